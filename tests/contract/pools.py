"""The pools on which the contract suite runs: one row per driver and file system that it must work on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from drivers.btrfs import Btrfs
from drivers.directory import Directory
from drivers.loop import Loop
from tests.memory import Memory
from voldriverd.driver import Capability, Driver


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver on a scratch file system of its own (made once a session, under this name)."""

    name: str
    fs_type: str
    make: Callable[[Path, Path], Driver]
    """Makes the driver from the pool's root and the directory of mount points."""
    promises: Capability
    """What the driver must promise there, no more and no less."""
    knows_changes: bool = False
    """Whether `changes` answers, mostly."""
    pretends: bool = False
    """A double for tests of the engine: it keeps the contract, but for sizes, power and what it promises."""


_COW: Final = Capability.COW | Capability.INSTANT
_SIZE: Final = Capability.SIZE
_DELTA: Final = Capability.DELTA

KINDS: Final = (
    Kind("btrfs", "btrfs", Btrfs, _COW | _DELTA, knows_changes=True),
    Kind("btrfs-quota", "btrfs", partial(Btrfs, quota="simple"), _COW | _DELTA | _SIZE, knows_changes=True),
    Kind("btrfs-full", "btrfs", partial(Btrfs, quota="full"), _COW | _DELTA | _SIZE, knows_changes=True),
    Kind("loop-btrfs", "btrfs", Loop, _COW | _SIZE | _DELTA),
    Kind("loop-xfs", "xfs", Loop, _COW | _SIZE | _DELTA),
    Kind("loop-ext4", "ext4", Loop, _SIZE),
    Kind("directory-btrfs", "btrfs", Directory, Capability.NONE),
    Kind("directory-ext4", "ext4", Directory, Capability.NONE),
    Kind("memory", "tmpfs", Memory, _COW | _DELTA, pretends=True),
)


def real() -> pytest.MarkDecorator:
    """Run a test on all pools but that of the double."""
    return _where(lambda kind: not kind.pretends)


def promising(capability: Capability) -> pytest.MarkDecorator:
    """Run a test only on pools of which this is promised."""
    return _where(lambda kind: not kind.pretends and capability in kind.promises)


def not_promising(capability: Capability) -> pytest.MarkDecorator:
    """Run a test only on pools of which this is not promised."""
    return _where(lambda kind: not kind.pretends and capability not in kind.promises)


def of_driver(name: str) -> pytest.MarkDecorator:
    """Run a test only on the pools of a driver."""
    return _where(lambda kind: kind.name.partition("-")[0] == name)


def knowing_changes() -> pytest.MarkDecorator:
    """Run a test only on pools whose driver need not walk to find changes."""
    return _where(lambda kind: kind.knows_changes)


def not_knowing_changes() -> pytest.MarkDecorator:
    """Run a test only on pools whose driver would have to walk to find changes."""
    return _where(lambda kind: not kind.knows_changes)


def making_increments() -> pytest.MarkDecorator:
    """Run a test on all pools that promise DELTA, the double among them."""
    return _where(lambda kind: Capability.DELTA in kind.promises)


def making_no_increments() -> pytest.MarkDecorator:
    """Run a test on all pools that do not promise DELTA."""
    return _where(lambda kind: Capability.DELTA not in kind.promises)


def chosen(markers: Iterable[pytest.Mark]) -> list[Kind]:
    """Return the kinds that all these marks allow."""
    conditions: list[Callable[[Kind], bool]] = [mark.kwargs["where"] for mark in markers]
    return [kind for kind in KINDS if all(condition(kind) for condition in conditions)]


def _where(condition: Callable[[Kind], bool]) -> pytest.MarkDecorator:
    return pytest.mark.pools(where=condition)
