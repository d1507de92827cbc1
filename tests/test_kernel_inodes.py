"""What a subvolume's metadata tells of its inodes."""

import os
from pathlib import Path

import pytest

from tests.scratch import Scratch
from tests.test_kernel_btrfs import make, snapshot
from tests.watchers import Enough, Watcher
from voldriverd.kernel import btrfs, inodes, receive, run, watch

pytestmark = pytest.mark.root

_LARGE = os.urandom(64 << 10)


@pytest.fixture
def place(session_scratch: Scratch, request: pytest.FixtureRequest) -> Path:
    """Return a new directory on btrfs."""
    directory = session_scratch.shared("kernel-inodes", "btrfs") / str(request.node.name)
    directory.mkdir()
    return directory


def with_data(tree: Path, *, since: int = 0) -> list[int]:
    os.sync()
    with btrfs.opened(tree) as fd:
        return list(inodes.with_data(fd, since=since))


def number_of(path: Path) -> int:
    return path.stat().st_ino


def test_files_whose_data_lies_on_the_disk_as_it_is_are_found_in_order(place: Path) -> None:
    tree = make(place, "one")
    wanted = [tree / "first", tree / "with a hole before"]
    wanted[0].write_bytes(_LARGE)
    (tree / "small, and so in the metadata").write_bytes(b"small")
    (tree / "empty").touch()
    os.truncate(tree / "empty", 1 << 30)
    (tree / "directory").mkdir()
    (tree / "link").symlink_to("first")
    compressed = tree / "compressed"
    compressed.touch()
    os.setxattr(compressed, "btrfs.compression", b"zstd")
    compressed.write_bytes(b"again and " * 10_000)
    with wanted[1].open("wb") as file:
        file.seek(1 << 20)
        file.write(_LARGE)
    assert with_data(tree) == [number_of(path) for path in wanted]


def test_none_of_many_files_is_missed(place: Path) -> None:
    tree = make(place, "one")
    for number in range(1_000):
        with (tree / f"{number}").open("wb") as file:
            for extent in range(3 if number % 100 == 0 else 1):
                file.seek(extent << 20)
                file.write(_LARGE[:8_192])
    assert with_data(tree) == sorted(number_of(path) for path in tree.iterdir())


def test_what_is_as_it_was_then_is_passed_over(place: Path) -> None:
    tree = make(place, "one")
    for number in range(1_000):
        (tree / f"{number}").write_bytes(_LARGE[:8_192])
    os.sync()
    with btrfs.opened(snapshot(tree, "base", read_only=True)) as base:
        since = receive.changed_in(base) + 1
    (tree / "500").write_bytes(_LARGE)
    (tree / "new").write_bytes(_LARGE)
    assert with_data(tree, since=since) == sorted(number_of(tree / name) for name in ("500", "new"))


def test_what_changed_since_is_counted_with_its_data(place: Path) -> None:
    tree = make(place, "one")
    for name in ("whole", "plain", "flagged before"):
        (tree / name).write_bytes(_LARGE)
    run.run(["chattr", "+d", str(tree / "flagged before")])
    os.sync()
    with btrfs.opened(snapshot(tree, "base", read_only=True)) as base:
        since = receive.changed_in(base) + 1
    with (tree / "plain").open("r+b") as file:
        for extent in range(1_000):  # many more than one page of items
            file.seek(extent << 13)
            file.write(bytes([1]) * 4_096)
            if extent % 10 == 0:
                os.fdatasync(file.fileno())
    (tree / "in the metadata").write_bytes(b"123")
    os.truncate(tree / "in the metadata", 1 << 30)
    with (tree / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
    compressed = tree / "compressed"
    compressed.touch()
    os.setxattr(compressed, "btrfs.compression", b"zstd")
    compressed.write_bytes(b"again and " * 10_000)
    run.run(["chattr", "+d", str(tree / "plain")])
    os.sync()
    with btrfs.opened(tree) as fd:
        count, data_bytes = inodes.changes(fd, inodes.UNSENT, since=since)
    assert count in {1, 2}  # the one before may lie beside what is new
    assert data_bytes == pytest.approx(1_000 * 4_096 + 4_096, abs=8_192)


def test_inodes_with_flags_are_counted_among_many(place: Path) -> None:
    tree = make(place, "one")
    for number in range(1_000):
        (tree / f"{number}").write_bytes(_LARGE[:8_192])
    for number in range(0, 1_000, 100):
        run.run(["chattr", "+d", str(tree / f"{number}")])
    os.sync()
    with btrfs.opened(tree) as fd:
        assert inodes.count_flagged(fd, inodes.UNSENT) == 10
        assert inodes.count_flagged(fd, inodes.BTRFS_INODE_APPEND) == 0


def test_who_watches_can_end_the_look_at_many_files(place: Path) -> None:
    tree = make(place, "one")
    for number in range(1_000):
        (tree / f"{number}").touch()
    os.sync()
    watcher = Watcher()
    with btrfs.opened(tree) as fd:
        with watch.watched(watcher):
            inodes.count_flagged(fd, inodes.UNSENT)
        assert watcher.heard > 2  # with each page
        with pytest.raises(Enough), watch.watched(Watcher(ends_after=0)):
            inodes.count_flagged(fd, inodes.UNSENT)
