"""The pools on which the contract suite runs: one row per driver and file system that it must work on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.driver import Driver


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver on a scratch file system of its own (made once a session, under this name)."""

    name: str
    fs_type: str
    make: Callable[[Path, Path], Driver]
    """Makes the driver from the pool's root and the directory of mount points."""
    prepare: Callable[[Path], None] = lambda _: None
    """Prepares a new pool's root, which is empty and 0700."""


KINDS: Final[tuple[Kind, ...]] = ()
