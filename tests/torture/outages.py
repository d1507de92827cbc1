"""Cuts of the power: copies of the disk at random instants, and replays of what was written to it.

`instants` clones the disk by FICLONE while all work: what was only in the page cache of the file systems on it is
lost, what they had handed to the disk is kept, though nobody had flushed it. `writes` loses that too: the disk is
recorded with its flushes, and of what was written after the last flush before a cut any 4 KiB blocks are kept.
"""

import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.recorded import BLOCK_BYTES, Replay, recorded
from tests.scratch import Scratch
from tests.torture.power import DISK_BYTES, LAYOUTS, Host
from voldriverd.kernel import fs

INSTANTS: Final = 500
RECORDS: Final = 20
"""In the long forms, which take 15 to 30 minutes each for it, so more than `--time` gives if it is not asked."""
BATCH: Final = 10
"""Cuts of one life of a host."""
PAUSE_S: Final = 0.5
"""How much time is between two instants at most."""
OUTER_BYTES: Final = 8 << 30
"""Sparse, of the file system that holds the disk and its copies."""
LIFE_S: Final = 2.5
"""How long a host lives that is recorded."""


@dataclass
class Seen:
    """What was done."""

    cuts: Counter[str] = field(default_factory=Counter)
    """By layout."""
    acknowledged: int = 0
    flushes: int = 0
    kept: int = 0
    lost: int = 0
    """Blocks written after the last flush."""


class Outages:
    """Hosts that live on disks in one directory, one after the other."""

    def __init__(self, base: Path, *, seed: int) -> None:
        """Take an empty directory, best in memory."""
        base.mkdir()
        self._base = base
        self._seed = seed
        self._random = random.Random(seed)
        self.seen = Seen()

    def instants(self, name: str, count: int) -> None:
        """Clone the disk of a host at so many instants, and check each clone."""
        with self._host(name) as (host, directory):
            disk = self._disk(name, directory)
            clones = [directory / f"instant-{number}" for number in range(count)]
            with host.working(disk):
                for clone in clones:
                    time.sleep(self._random.uniform(0, PAUSE_S))
                    _clone(disk, clone)
            for clone in clones:
                self._check(host, name, clone)
            self.seen.acknowledged += host.acknowledged

    def writes(self, name: str, count: int) -> None:
        """Record the disk of a host, and check what it may hold after so many cuts at random points of the record."""
        with self._host(name) as (host, directory):
            disk = self._disk(name, directory)
            before, record = directory / "before", directory / "record"
            _clone(disk, before)
            with recorded(disk, record) as served, host.working(served):
                time.sleep(LIFE_S)
            disk.unlink()
            replay = Replay(before, record, always_from=DISK_BYTES)
            first = replay.first_after(DISK_BYTES + slot * BLOCK_BYTES for slot in range(host.slots))
            self.seen.flushes += replay.flushes(first)
            for end in replay.ends(first, count, chance=self._random):
                kept, lost = replay.cut(end, directory / "cut", chance=self._random)
                self.seen.kept, self.seen.lost = self.seen.kept + kept, self.seen.lost + lost
                self._check(host, name, directory / "cut", where=f"before entry {end} of {len(replay)}")
            self.seen.acknowledged += host.acknowledged

    @contextmanager
    def _host(self, name: str) -> Iterator[tuple[Host, Path]]:
        """Give a host and a directory for its disk and the copies of it, which is gone afterwards."""
        scratch = Scratch(self._base / "scratch")
        try:
            directory = scratch.make("xfs", size_bytes=OUTER_BYTES)
            yield Host(self._base / "host", LAYOUTS[name], seed=self._random.getrandbits(32)), directory
        finally:
            scratch.close()
            shutil.rmtree(self._base / "host", ignore_errors=True)

    def _disk(self, name: str, directory: Path) -> Path:
        disk = directory / "disk"
        LAYOUTS[name].format(disk)
        return disk

    def _check(self, host: Host, name: str, disk: Path, *, where: str = "") -> None:
        try:
            host.check(disk)
        except BaseException:
            sys.stderr.write(f"{name}, seed {self._seed}, {disk.name} {where}, {self.seen}\n")
            raise
        disk.unlink()
        self.seen.cuts[name] += 1


def _clone(disk: Path, target: Path) -> None:
    with disk.open("rb") as source, target.open("wb") as file:
        fs.reflink(source.fileno(), file.fileno())
