"""What every verb is given: the store, the pools, the clock and the limits of the configuration."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from voldriverd import model, store
from voldriverd.driver import Driver, Stream, StreamFormat
from voldriverd.engine import pools, reading, trees
from voldriverd.engine.ailments import Ailments
from voldriverd.engine.targets import Targets


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration says of trash and space."""

    trash_retention_s: int = 7 * 86_400
    """0: a removed volume is destroyed at once."""
    reserve: float = 0.05
    """The fraction of a pool's file system that is kept free."""


ScratchMaker = Callable[[StreamFormat, Path, str], AbstractContextManager[Driver]]
"""Makes, in an empty directory and for the block, a pool whose driver takes a format; the text begins its errors.

Raises Unsupported: this host lacks what it takes."""

Archiver = Callable[[Path], AbstractContextManager[Stream]]
"""Writes a directory of this host down, as TAR, for the block."""


def utc_now() -> datetime:
    """Return the present time, aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Engine:
    """The arguments of every verb; nothing here changes but what it points to."""

    root: Path
    store: store.Store
    pools: pools.Pools
    boot_id: str
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], datetime] = utc_now
    garbage: trees.Garbage = field(default_factory=trees.Garbage)
    readers: reading.Readers = field(default_factory=reading.Readers)
    targets: Targets = field(default_factory=Targets)
    ailments: Ailments = field(default_factory=Ailments)
    uptime: Callable[[], float] = time.monotonic
    """Seconds since some time, whatever anybody does to the clock."""
    held_since: dict[tuple[model.VolumeId, str], float] = field(default_factory=dict)
    """By `uptime`, when each holder that came in the life of this process mounted its volume last."""
    make_scratch: ScratchMaker | None = None
    """None: there are no pools but the configured ones."""
    archive: Archiver | None = None
    """None: nothing is imported from directories, unless it can be adopted."""

    def __post_init__(self) -> None:
        """Have the root as the mount table has it, whatever links lead there."""
        object.__setattr__(self, "root", Path(os.path.realpath(self.root)))

    @property
    def mounts(self) -> Path:
        """The directory of mount points."""
        return self.root / "mounts"
