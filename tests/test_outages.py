"""The power of the whole host fails: short forms of `scripts/torture power` and `writes`, and what they stand on."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.recorded import BLOCK_BYTES, Marks, Replay, entries, marked, recorded
from tests.scratch import Scratch
from tests.torture.bench import places_in_memory
from tests.torture.outages import Outages
from voldriverd.kernel import content, fs, mount, run

pytestmark = pytest.mark.root

SEED: Final = 1
INSTANTS: Final = 5
CUTS: Final = 3
DISK_BYTES: Final = 64 << 20
BLOCKS: Final = 64
"""Of a write whose fate hangs on chance: all of it kept, or none, is as good as never."""


@pytest.fixture
def outages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    with places_in_memory(tmp_path_factory.mktemp("o")) as places:  # the path of a socket has 107 bytes at most
        yield Outages(places.base / "outages", seed=SEED)


@pytest.fixture
def disk(scratch: Scratch) -> Path:
    """Return an image, one block larger than it says, on a file system with reflinks."""
    image = scratch.make("xfs") / "disk"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES + BLOCK_BYTES)
    return image


def copied(disk: Path) -> Path:
    copy = disk.with_name("before")
    with disk.open("rb") as source, copy.open("wb") as target:
        fs.reflink(source.fileno(), target.fileno())
    return copy


def test_at_any_instant_the_disk_holds_what_was_acknowledged(outages: Outages) -> None:
    outages.instants("ext4", INSTANTS)
    assert outages.seen.cuts == {"ext4": INSTANTS}
    assert outages.seen.acknowledged > INSTANTS


def test_what_was_acknowledged_was_flushed_before(outages: Outages) -> None:
    outages.writes("btrfs", CUTS)
    assert outages.seen.cuts == {"btrfs": CUTS}
    assert outages.seen.flushes > CUTS
    assert outages.seen.lost > 0


def test_an_fsync_through_file_system_and_loop_device_is_a_flush_in_the_record_and_without_there_is_none(
    disk: Path, tmp_path: Path
) -> None:
    run.run(["mkfs.ext4", "-q", str(disk), f"{DISK_BYTES >> 10}"])
    record, place = disk.with_name("record"), tmp_path / "place"
    place.mkdir()
    with recorded(disk, record) as served:
        run.run(["mount", "-o", "loop", str(served), str(place)])
        fs.write_durably(place / "synced", b"synced" * BLOCK_BYTES)
        after_fsync = entries(record)
        (place / "never synced").write_bytes(b"cached" * BLOCK_BYTES)
        after_write = entries(record)
        mount.unmount(place)
    said = record.read_bytes()
    last = max(number for number, entry in enumerate(after_fsync) if entry.is_flush)
    data = [number for number, entry in enumerate(after_fsync) if said[entry.data_at :][:6] == b"synced"]
    assert data
    assert max(data) < last
    assert after_write == after_fsync


def test_what_was_flushed_is_there_after_a_cut_and_of_the_rest_any_blocks(disk: Path) -> None:
    before, record = copied(disk), disk.with_name("record")
    with recorded(disk, record) as served, served.open("r+b", buffering=0) as file, Marks(served, DISK_BYTES) as marks:
        os.pwrite(file.fileno(), b"a" * BLOCK_BYTES * BLOCKS, 0)
        marks.put(0, 1)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"b" * BLOCK_BYTES * BLOCKS, 0)
        marks.put(0, 2, 3)
        end = len(entries(record))
    replay = Replay(before, record, always_from=DISK_BYTES)
    seen = set()
    for seed in range(BLOCKS):
        kept, lost = replay.cut(end, disk, chance=random.Random(seed))
        with disk.open("rb") as file:
            found = file.read(BLOCK_BYTES * BLOCKS)
        assert found.count(b"b" * BLOCK_BYTES) == kept
        assert found.count(b"a" * BLOCK_BYTES) == lost == BLOCKS - kept
        assert marked(disk, DISK_BYTES) == [2, 3]
        seen.add(kept)
    assert {0, BLOCKS} < seen
    assert replay.ends(0, 1, chance=random.Random(SEED)) < [len(replay)]
    assert replay.first_after([0, DISK_BYTES]) == 2


def test_zeroes_that_a_disk_makes_without_their_being_written_are_recorded(disk: Path) -> None:
    before, record = copied(disk), disk.with_name("record")
    with recorded(disk, record) as served, served.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"a" * BLOCK_BYTES * 2, 0)
        os.fsync(file.fileno())
        end = len(entries(record))
        content.punch(file.fileno(), 0, BLOCK_BYTES)
    replay = Replay(before, record, always_from=DISK_BYTES)
    for cut, expected in ((end, b"a"), (len(replay), b"\0")):
        replay.cut(cut, disk, chance=random.Random(SEED))
        with disk.open("rb") as file:
            assert file.read(BLOCK_BYTES) == expected * BLOCK_BYTES
            assert file.read(BLOCK_BYTES) == b"a" * BLOCK_BYTES
