"""A bar that follows work in the daemon, on the standard error of a terminal; elsewhere nothing is shown."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from voldriverd.cli import show
from voldriverd.cli.connection import Resource

_COLUMNS: Final = 80
_BAR_MAX: Final = 20
_FRAME: Final = 7
"""Of columns: what click draws round the bar, and the last one, in which a terminal would begin a new line."""


@contextmanager
def bar() -> Iterator[Callable[[Resource], None]]:
    """Give what to call with each look at a resource in transition."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    said = [""]
    width = min(_BAR_MAX, _columns() // 4)
    meter: Any = click.progressbar(
        length=100, file=sys.stderr, show_eta=False, show_percent=False, item_show_func=lambda _: said[0], width=width
    )
    with meter as shown:

        def follow(resource: Resource) -> None:
            said[0] = show.plain(resource["transitioningMessage"] or "")[: max(_columns() - width - _FRAME, 0)]
            shown.update((resource["transitioningProgress"] or 0) - shown.pos, said[0])

        yield follow


@contextmanager
def going_on(cancel: str | None = None) -> Iterator[None]:
    """Say after Ctrl-C that the work goes on in the daemon, and what ends it, if anything; exit status 130."""
    try:
        yield
    except KeyboardInterrupt as err:
        show.note("the daemon goes on with it" + (f"; to end it: {cancel}" if cancel else ""))
        raise click.exceptions.Exit(130) from err


def _columns() -> int:
    """Return how wide the terminal is; 0, as serial lines say, is not known."""
    return max(os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS, _FRAME)
