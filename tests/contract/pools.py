"""The pools on which the contract suite runs: one row per driver and file system that it must work on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from drivers.btrfs import Btrfs
from drivers.directory import Directory
from drivers.loop import Loop
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


KINDS: Final[tuple[Kind, ...]] = (
    Kind("btrfs", "btrfs", Btrfs),
    Kind("btrfs-quota", "btrfs", partial(Btrfs, quota="simple")),
    Kind("loop-btrfs", "btrfs", Loop),
    Kind("loop-xfs", "xfs", Loop),
    Kind("loop-ext4", "ext4", Loop),
    Kind("directory-btrfs", "btrfs", Directory),
    Kind("directory-ext4", "ext4", Directory),
)
