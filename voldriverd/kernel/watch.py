"""Who watches what this thread does, and may end it.

What takes long (a comparison, a walk, a copy, a check) tells here how far it is, whoever called it: an argument would
go through every method of every driver and all that lies between, for a few loops at the bottom. Nothing is told, and
nothing ended, where nobody watches; what cleans up must not tell, for it would be ended too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

TELL_S: Final = 0.25
"""How often what only waits tells that it does: who ends it should not notice the difference."""


class Watcher(Protocol):
    """What is told; whatever it raises ends the work and passes through."""

    def prepare(self, step: str, total_bytes: int | None) -> None:
        """Be told that something begins before the work itself goes on.

        `step` says in words what it does (`checks the file system`), `total_bytes` how much that will be; None if that
        cannot be told.
        """
        ...

    def advance(self, more_bytes: int) -> None:
        """Be told that so much more is done, 0 that the work goes on."""
        ...


_WATCHER: Final = ContextVar[Watcher | None]("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Have somebody told of what this thread does in the block."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def prepare(step: str, total_bytes: int | None = None) -> None:
    """Tell that a step begins, and how many bytes it will be. Raises what the watcher does."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.prepare(step, total_bytes)


def advance(more_bytes: int = 0) -> None:
    """Tell that so much more is done. Raises what the watcher does."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher.advance(more_bytes)
