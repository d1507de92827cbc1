"""A bar that follows work in the daemon, on the standard error of a terminal; elsewhere nothing is shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from voldriverd.cli import show
from voldriverd.cli.connection import Resource


@contextmanager
def bar() -> Iterator[Callable[[Resource], None]]:
    """Give what to call with each look at a resource in transition."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    said = [""]
    meter: Any = click.progressbar(
        length=100, file=sys.stderr, show_eta=False, show_percent=False, item_show_func=lambda _: said[0]
    )
    with meter as shown:

        def follow(resource: Resource) -> None:
            said[0] = show.plain(resource["transitioningMessage"] or "")
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
