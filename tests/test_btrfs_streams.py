"""The streams of the btrfs driver: what its own format holds, on several file systems and against what lies in wait."""

import ctypes
import itertools
import mmap
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from drivers import btrfs_streams
from drivers.btrfs import Btrfs
from tests.contract import crash
from tests.likeness import Facts, describe
from tests.scratch import Scratch, unmount_under
from tests.sendstreams import (
    CLONE_CTRANSID,
    CLONE_LEN,
    CLONE_OFFSET,
    CLONE_PATH,
    DATA,
    END,
    FILE_OFFSET,
    HEAD,
    INODE,
    MODE,
    RDEV,
    Kept,
    command,
    commands,
    keep,
    made,
    replay,
)
from tests.test_kernel_tree_copy import (
    _make_attributes,
    _make_files,
    _make_links,
    _make_odd_names,
    _make_special_files,
    _make_times,
)
from voldriverd.driver import PART_MAX, Key, Part, Stream, StreamFormat, TreeOptions
from voldriverd.errors import Exists, InUse, NotFound, Unsupported, Unusable
from voldriverd.kernel import btrfs, fs, mount, pipe, readahead, receive, run, send
from voldriverd.kernel.send import CLONE_UUID, CTRANSID, PATH, PATH_LINK, UUID, Command

pytestmark = pytest.mark.root

_PLAIN: Final = TreeOptions()
_MIB: Final = 1 << 20
_SENT: Final = uuid.UUID(int=7).bytes
_numbers: Final = itertools.count()
_libc: Final = ctypes.CDLL(None)

Make = Callable[..., Btrfs]


@pytest.fixture
def make(session_scratch: Scratch, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes an open pool on the file system of a name, with its quota mode."""

    def make_pool(name: str = "one", quota: str = "off") -> Btrfs:
        root = session_scratch.shared(f"streams-{name}-{quota}", "btrfs") / f"pool{next(_numbers)}"
        root.mkdir(0o700)
        mounts = tmp_path / root.name
        mounts.mkdir()
        driver = Btrfs(root, mounts, quota=quota)
        driver.open()
        return driver

    yield make_pool
    unmount_under(tmp_path)


@pytest.fixture
def driver(make: Make) -> Btrfs:
    """Return an open pool without quotas."""
    return make()


@pytest.fixture
def other(make: Make) -> Btrfs:
    """Return one on another file system."""
    return make("two")


def path_of(driver: Btrfs, key: str) -> Path:
    return driver._trees / key


def new(driver: Btrfs, key: str = "v1.1", options: TreeOptions = _PLAIN) -> Path:
    driver.create(Key(key), options)
    return path_of(driver, key)


def freeze(driver: Btrfs, source: str, target: str) -> Path:
    driver.clone(Key(source), Key(target), read_only=True)
    return path_of(driver, target)


def restore(driver: Btrfs, key: str, *kept: Kept, options: TreeOptions = _PLAIN) -> Path:
    driver.receive(Key(key), replay(*kept), options)
    return path_of(driver, key)


def assert_nothing(driver: Btrfs, *keys: str) -> None:
    assert driver.trees() == set(keys)
    assert os.listdir(driver._staging) == []
    assert [entry.mount_point for entry in mount.table() if str(driver._staging) in entry.mount_point] == []


def reflink(source: Path, target: Path) -> None:
    with source.open("rb") as one, target.open("wb") as two:
        fs.reflink(one.fileno(), two.fileno())


def small(driver: Btrfs) -> Kept:
    """Return the stream of a tree with a file and a clone of it."""
    root = new(driver)
    (root / "file").write_bytes(b"content" * 1_000)
    reflink(root / "file", root / "same")
    freeze(driver, "v1.1", "s1")
    return keep(driver, "s1")


def pair(driver: Btrfs) -> tuple[Kept, Kept]:
    """Return the streams of a tree and of what changed in it, which has clones out of the older one."""
    first = small(driver)
    root = path_of(driver, "v1.1")
    reflink(root / "file", root / "third")
    (root / "same").unlink()
    (root / "new").write_bytes(b"new")
    freeze(driver, "v1.1", "s2")
    return first, keep(driver, "s2", "s1")


# what a chain holds


def _make_all(root: Path) -> None:
    """Make one of everything that a stream can hold."""
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "closed").mkdir(0)
    for make in (_make_files, _make_special_files, _make_attributes, _make_odd_names, _make_links, _make_times):
        make(root)
    os.utime(root / "closed", ns=(1, 2))
    os.chown(root, 12, 34)
    root.chmod(0o2750)


def _rename_directory(root: Path) -> None:
    (root / "directory").rename(root / "moved")
    (root / "moved" / "inner").rename(root / "inner")


def _rewrite(root: Path) -> None:
    with (root / "large").open("r+b") as file:
        file.seek(100_000)
        file.write(b"x" * 10_000)
    os.truncate(root / "sparse", (3 << 20) + 5)


def _replace(root: Path) -> None:
    (root / "empty").unlink()
    (root / "empty").mkdir()
    (root / "closed").rmdir()
    (root / "closed").symlink_to("empty")
    os.utime(root / "closed", ns=(2**61, 5), follow_symlinks=False)


def _swap(root: Path) -> None:
    (root / "suid").rename(root / "aside")
    (root / "unreadable").rename(root / "suid")
    (root / "aside").rename(root / "unreadable")


def _change_attributes(root: Path) -> None:
    os.removexattr(root / "tiny", "user.empty")
    os.setxattr(root / "tiny", "user.binary", b"other")
    os.setxattr(root / "unreadable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chown(root / "fifo", 1, 2)
    (root / "large").chmod(0o600)


def _dig(root: Path) -> None:
    with (root / "hole").open("wb") as file:
        file.truncate(20 * _MIB)


def _clone(root: Path) -> None:
    reflink(root / "large", root / "clone")
    with (root / "clone").open("ab") as file:
        file.write(b"more")


_EDITS: Final[tuple[Callable[[Path], object], ...]] = (
    _rewrite,
    _clone,
    _rename_directory,
    _replace,
    _swap,
    _change_attributes,
    lambda root: os.link(root / "large", root / "inner" / "large again"),
    lambda root: (root / "tiny again").unlink(),
    lambda _: None,
    _dig,
)


@pytest.mark.parametrize("version", [1, 2])
def test_a_whole_tree_and_ten_increments_are_restored_each_as_it_was(
    driver: Btrfs, other: Btrfs, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr(btrfs_streams, "_NEWEST_VERSION", version)
    _make_all(new(driver))
    chain, seen = [], []
    for number, edit in enumerate((lambda _: None, *_EDITS)):
        edit(path_of(driver, "v1.1"))
        seen.append(describe(freeze(driver, "v1.1", f"s{number}")))
        chain.append(keep(driver, f"s{number}", f"s{number - 1}" if number else None))
        assert chain[-1].stream.version == version
    for number, before in enumerate(seen):
        assert _told(restore(other, f"v2.{number}", *chain[: number + 1])) == _without_flags(before)
    assert_nothing(other, *(f"v2.{number}" for number in range(len(seen))))


def _told(root: Path) -> dict[bytes, Facts]:
    return _without_flags(describe(root))


def _without_flags(found: dict[bytes, Facts]) -> dict[bytes, Facts]:
    for facts in found.values():
        facts.pop("flags", None)
    return found


def test_a_restored_chain_is_backed_up_from_there_and_restored_on_a_third(
    driver: Btrfs, other: Btrfs, make: Make
) -> None:
    third = make("three")
    root = restore(other, "v5.1", *pair(driver))
    freeze(other, "v5.1", "s5")
    (root / "file").write_bytes(b"changed there")
    reflink(root / "third", root / "fourth")
    before = describe(freeze(other, "v5.1", "s6"))
    chain = keep(other, "s5"), keep(other, "s6", "s5")
    assert describe(restore(third, "v9.1", *chain)) == before
    assert describe(restore(driver, "v9.1", *chain)) == before


def test_a_chain_is_restored_where_it_was_made_as_often_as_one_likes(driver: Btrfs) -> None:
    chain = pair(driver)
    before = describe(path_of(driver, "s2"))
    for number in range(3):
        assert describe(restore(driver, f"v2.{number}", *chain)) == before


def test_a_chain_is_restored_in_the_middle_of_another_restore_of_it(driver: Btrfs, other: Btrfs) -> None:
    first, second = pair(driver)

    def interrupted() -> Iterator[Part]:
        restore(other, "v2.1", first, second)
        yield from second.parts

    other.receive(Key("v1.1"), iter([first.again(), replace(second.stream, parts=interrupted())]), _PLAIN)
    assert describe(path_of(other, "v1.1")) == describe(path_of(other, "v2.1")) == describe(path_of(driver, "s2"))


def test_of_a_chain_there_are_never_more_than_two_links(driver: Btrfs, other: Btrfs) -> None:
    kept = [small(driver)]
    for number in range(2, 5):
        (path_of(driver, "v1.1") / str(number)).touch()
        freeze(driver, "v1.1", f"s{number}")
        kept.append(keep(driver, f"s{number}", f"s{number - 1}"))
    seen = []

    def watched() -> Iterator[Stream]:
        for stream in replay(*kept):
            seen.append(os.listdir(other._staging / "v2.1"))
            yield stream

    other.receive(Key("v2.1"), watched(), _PLAIN)
    assert seen == [[], ["0"], ["1"], ["2"]]


def test_two_restores_of_one_backup_at_once(driver: Btrfs, other: Btrfs) -> None:
    chain = pair(driver)
    threads = [threading.Thread(target=restore, args=(other, f"v{number}.1", *chain)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_nothing(other, "v0.1", "v1.1", "v2.1", "v3.1")
    assert describe(path_of(other, "v3.1")) == describe(path_of(driver, "s2"))


def test_a_tree_that_is_its_own_base_is_restored(driver: Btrfs, other: Btrfs) -> None:
    first = small(driver)
    assert describe(restore(other, "v2.1", first, keep(driver, "s1", "s1"))) == describe(path_of(driver, "s1"))


def test_a_base_of_another_origin_will_do(driver: Btrfs, other: Btrfs) -> None:
    small(driver)
    (new(driver, "v7.1") / "else").write_bytes(b"else")
    before = describe(freeze(driver, "v7.1", "s7"))
    assert describe(restore(other, "v2.1", keep(driver, "s1"), keep(driver, "s7", "s1"))) == before


def test_a_restored_tree_is_writable_and_has_forgotten_where_it_came_from(driver: Btrfs, other: Btrfs) -> None:
    root = restore(other, "v2.1", *pair(driver))
    with btrfs.opened(root) as fd:
        assert not btrfs.is_read_only(fd)
        assert receive.received_uuid(fd) == bytes(16)
    (root / "file").write_bytes(b"changed")


def test_a_restored_tree_survives_power_loss(
    driver: Btrfs, other: Btrfs, scratch: Scratch, session_scratch: Scratch
) -> None:
    chain = pair(driver)
    for options in (_PLAIN, TreeOptions(compression="zstd")):
        key = f"v2.{options.compression or 1}"
        restore(other, key, *chain, options=options)
        place = session_scratch.shared("streams-two-off", "btrfs")
        after = scratch.power_cut(place, of=session_scratch) / path_of(other, key).relative_to(place)
        assert sorted(os.listdir(after)) == ["file", "new", "third"]
        assert (after / "third").read_bytes() == b"content" * 1_000


# how it is sent


def test_an_increment_has_only_what_changed(driver: Btrfs) -> None:
    root = new(driver)
    (root / "large").write_bytes(os.urandom(8 * _MIB))
    freeze(driver, "v1.1", "s1")
    with (root / "large").open("r+b") as file:
        file.seek(5 * _MIB)
        file.write(bytes(10_000))
    freeze(driver, "v1.1", "s2")
    whole, increment = keep(driver, "s2"), keep(driver, "s2", "s1")
    assert len(whole.data) > 8 * _MIB
    assert not whole.stream.is_incremental
    assert len(increment.data) < 20_000
    assert increment.stream.is_incremental


def test_parts_are_full_but_for_the_last(driver: Btrfs) -> None:
    (new(driver) / "large").write_bytes(os.urandom(9 * _MIB))
    freeze(driver, "v1.1", "s1")
    kept = keep(driver, "s1")
    lengths = [part.length for part in kept.parts]
    assert lengths == [PART_MAX, PART_MAX, len(kept.data) - 2 * PART_MAX]
    assert [len(part.data or b"") for part in kept.parts] == lengths
    assert {part.offset for part in kept.parts} == {None}


def test_the_disk_reads_files_before_their_turn(driver: Btrfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "AHEAD_MAX", 100)
    root = new(driver)
    for number in range(300):
        (root / f"{number}").write_bytes(os.urandom(64 << 10))
    frozen = freeze(driver, "v1.1", "s1")
    near, far = (sorted(frozen.iterdir(), key=lambda path: path.stat().st_ino)[number] for number in (120, 210))
    with driver.send(Key("s1")) as stream, near.open("rb") as first, far.open("rb") as second:
        assert not _is_cached(first.fileno())
        next(stream.parts)  # 4 of 19 MiB, some 60 files; the kernel waits with a pipe full of more
        _wait_until_cached(first.fileno())
        assert not _is_cached(second.fileno())
        next(stream.parts)
        _wait_until_cached(second.fileno())


def test_the_disk_reads_the_files_of_a_large_increment(driver: Btrfs) -> None:
    root = new(driver)
    for number in range(20):
        (root / f"{number}").write_bytes(os.urandom(64 << 10))
    freeze(driver, "v1.1", "s1")
    (root / "large").write_bytes(os.urandom(13 << 20))  # with it the kernel waits in a full pipe
    (root / "new").write_bytes(os.urandom(64 << 10))
    frozen = freeze(driver, "v1.1", "s2")
    with (
        driver.send(Key("s2"), Key("s1")) as stream,
        (frozen / "new").open("rb") as new_one,
        (frozen / "9").open("rb") as other,
    ):
        next(iter(stream.parts))
        _wait_until_cached(new_one.fileno())
        assert not _is_cached(other.fileno())


def _wait_until_cached(fd: int) -> None:
    deadline_s = time.monotonic() + 10
    while not _is_cached(fd):
        assert time.monotonic() < deadline_s, "nobody has it read"
        time.sleep(0.01)


def _is_cached(fd: int) -> bool:
    """Tell whether the beginning of a file need not be read from the disk (mincore(2), which reads nothing itself)."""
    answer = ctypes.c_uint8()
    with mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as mapped:
        begin = ctypes.c_char.from_buffer(mapped)
        try:
            address = ctypes.c_void_p(ctypes.addressof(begin))
            assert _libc.mincore(address, ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(answer)) == 0
        finally:
            del begin
    return bool(answer.value & 1)


def test_the_same_tree_and_base_give_the_same_bytes(driver: Btrfs) -> None:
    _make_all(new(driver))
    freeze(driver, "v1.1", "s1")
    _clone(path_of(driver, "v1.1"))
    freeze(driver, "v1.1", "s2")
    assert keep(driver, "s1").data == keep(driver, "s1").data
    assert keep(driver, "s2", "s1").data == keep(driver, "s2", "s1").data


def test_compressed_data_is_sent_and_kept_as_it_lies(driver: Btrfs, other: Btrfs) -> None:
    text = b"".join(b"line %d of a file\n" % number for number in range(200_000))
    (new(driver, options=TreeOptions(compression="zstd")) / "file").write_bytes(text)
    freeze(driver, "v1.1", "s1")
    kept = keep(driver, "s1")
    assert kept.stream.version == 2
    assert len(kept.data) < len(text) // 3
    root = restore(other, "v2.1", kept)
    assert (root / "file").read_bytes() == text
    assert os.getxattr(root, "btrfs.compression") == b"zstd"
    freeze(other, "v2.1", "s2")
    assert len(keep(other, "s2").data) < len(text) // 3


def test_the_expected_length_is_near_the_true_one(make: Make) -> None:
    for quota in ("off", "simple"):
        driver = make("one", quota)
        root = new(driver)
        for number in range(200):
            (root / str(number)).write_bytes(os.urandom(20_000))
        freeze(driver, "v1.1", "s1")
        (root / "more").write_bytes(os.urandom(_MIB))
        freeze(driver, "v1.1", "s2")
        freeze(driver, "s1", "b1")
        for kept in (keep(driver, "s1"), keep(driver, "s2", "s1"), keep(driver, "s2", "b1")):
            assert kept.stream.expected_bytes == pytest.approx(len(kept.data), rel=0.1)


def test_with_quotas_no_more_is_expected_than_lies_there(make: Make) -> None:
    driver = make("one", "simple")
    (new(driver, options=TreeOptions(compression="zstd")) / "file").write_bytes(bytes(8 * _MIB))
    freeze(driver, "v1.1", "s1")
    kept = keep(driver, "s1")
    assert kept.stream.expected_bytes == driver.usage(Key("s1")).used_bytes
    assert len(kept.data) < _MIB


def test_a_reader_that_stops_early_leaves_nothing(driver: Btrfs) -> None:
    (new(driver) / "large").write_bytes(os.urandom(4 * PART_MAX))
    freeze(driver, "v1.1", "s1")
    for taken in (0, 1):
        with driver.send(Key("s1")) as stream:
            assert len([part for _, part in zip(range(taken), stream.parts, strict=False)]) == taken
    assert "btrfs-send" not in {thread.name for thread in threading.enumerate()}
    driver.remove(Key("s1"))
    assert_nothing(driver, "v1.1")


def test_what_is_being_sent_cannot_be_removed(driver: Btrfs) -> None:
    root = new(driver)
    freeze(driver, "v1.1", "s1")
    (root / "large").write_bytes(os.urandom(PART_MAX + 4 * pipe.BYTES))
    freeze(driver, "v1.1", "s2")
    with driver.send(Key("s2"), Key("s1")) as stream:
        for key in ("s1", "s2"):
            with pytest.raises(InUse, match="a send of it runs"):
                driver.remove(Key(key))
        assert sum(part.length for part in stream.parts) > PART_MAX + 4 * pipe.BYTES
    for key in ("s1", "s2"):
        driver.remove(Key(key))


def test_what_is_absent_is_not_sent(driver: Btrfs) -> None:
    small(driver)
    for key, base in (("s9", None), ("s1", "s9"), ("s9", "s1")):
        with pytest.raises(NotFound, match="cannot send tree s9"):
            keep(driver, key, base)


def test_a_writable_tree_is_not_sent(driver: Btrfs) -> None:
    small(driver)
    with pytest.raises(PermissionError):
        keep(driver, "v1.1")


def test_a_format_that_it_cannot_write_is_refused(driver: Btrfs) -> None:
    small(driver)
    with pytest.raises(Unsupported, match="cannot send tree s1 as blocks: btrfs writes btrfs and tar"):
        keep(driver, "s1", wanted=StreamFormat.BLOCKS)


def test_tar_on_request_is_whole(driver: Btrfs, other: Btrfs) -> None:
    pair(driver)
    kept = keep(driver, "s2", "s1", wanted=StreamFormat.TAR)
    assert (kept.stream.format, kept.stream.is_incremental) == (StreamFormat.TAR, False)
    assert set(describe(restore(other, "v2.1", kept))) == set(describe(path_of(driver, "s2")))


# what a btrfs stream cannot hold


def test_nested_subvolumes_are_sent_as_tar_with_all_that_is_in_them(driver: Btrfs, other: Btrfs) -> None:
    small(driver)
    with btrfs.opened(path_of(driver, "v1.1")) as fd:
        btrfs.create(fd, "nested")
    (path_of(driver, "v1.1") / "nested" / "inside").write_bytes(b"inside")
    freeze(driver, "v1.1", "s2")
    for base in (None, "s1"):
        kept = keep(driver, "s2", base)
        assert (kept.stream.format, kept.stream.is_incremental) == (StreamFormat.TAR, False)
        assert "subvolumes are nested in it" in kept.stream.notes[0]
    assert (restore(other, "v2.1", kept) / "nested" / "inside").read_bytes() == b"inside"
    with pytest.raises(Unsupported, match="cannot send tree s2 as btrfs: subvolumes are nested"):
        keep(driver, "s2", wanted=StreamFormat.BTRFS)


def test_a_tree_whose_base_was_sent_as_tar_is_sent_whole(driver: Btrfs, other: Btrfs) -> None:
    small(driver)
    with btrfs.opened(path_of(driver, "v1.1")) as fd:
        btrfs.create(fd, "nested")
        freeze(driver, "v1.1", "s2")
        btrfs.destroy(fd, "nested")
    before = describe(freeze(driver, "v1.1", "s3"))
    kept = keep(driver, "s3", "s2")
    assert (kept.stream.format, kept.stream.is_incremental) == (StreamFormat.BTRFS, False)
    assert "it is whole because" in kept.stream.notes[0]
    assert describe(restore(other, "v2.1", kept)) == before


@pytest.mark.parametrize(("length", "wanted"), [(4_080, StreamFormat.BTRFS), (4_081, StreamFormat.TAR)])
def test_paths_that_are_too_long_are_sent_as_tar(
    driver: Btrfs, other: Btrfs, length: int, wanted: StreamFormat
) -> None:
    fd = os.open(new(driver), os.O_RDONLY)
    left = length
    while left > 300:
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
        left -= 201
    os.mkdir("e" * (left - 150), dir_fd=fd)
    os.mkdir(f"{'e' * (left - 150)}/{'f' * 149}", dir_fd=fd)
    os.close(fd)
    before = _found(freeze(driver, "v1.1", "s1"))
    kept = keep(driver, "s1")
    assert kept.stream.format == wanted
    assert ("it has paths that are too long for a btrfs stream" in kept.stream.notes) == (wanted is StreamFormat.TAR)
    assert _found(restore(other, "v2.1", kept)) == before


def test_an_increment_with_a_path_that_is_too_long_is_refused_when_it_comes(driver: Btrfs) -> None:
    fd = os.open(new(driver), os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("e" * 50, os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"as it was")
    freeze(driver, "v1.1", "s1")
    (path_of(driver, "v1.1") / ("d" * 200)).rename(path_of(driver, "v1.1") / ("d" * 215))  # 4,085 in all
    with open(os.open("e" * 50, os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"changed")
    os.close(fd)
    freeze(driver, "v1.1", "s2")
    assert keep(driver, "s1").stream.format is StreamFormat.BTRFS
    with pytest.raises(Unsupported, match="cannot send tree s2 as btrfs: it has paths that are too long"):
        keep(driver, "s2", "s1")
    assert keep(driver, "s2").stream.format is StreamFormat.TAR


def _found(root: Path) -> list[bytes]:
    """Return all paths, however long."""
    return sorted(subprocess.run(["find", "-print0"], cwd=root, check=True, stdout=subprocess.PIPE).stdout.split(b"\0"))


@pytest.mark.parametrize("flag", ["+C", "+S", "+i", "+a", "+d", "+A", "+D"])
def test_flags_are_told_where_they_are_lost(driver: Btrfs, flag: str) -> None:
    root = new(driver)
    (root / "plain").touch()
    (root / "flagged").mkdir() if flag == "+D" else (root / "flagged").touch()
    for number in range(2):
        freeze(driver, "v1.1", f"s{number}")
        (root / "plain").write_bytes(b"more")
        run.run(["chattr", flag if number == 0 else f"-{flag[1]}", str(root / "flagged")])
    freeze(driver, "v1.1", "s2")
    notes = [keep(driver, "s0").stream.notes, keep(driver, "s1").stream.notes, keep(driver, "s1", "s0").stream.notes]
    told = "a btrfs stream cannot hold inode flags (as immutable, no copy on write): 1 files have some"
    assert notes == [(), (told,), (told,)]
    assert keep(driver, "s2", "s1").stream.notes == ()


def test_flags_are_told_of_what_was_changed_before_the_base_was_cloned(driver: Btrfs) -> None:
    root = new(driver)
    (root / "flagged").touch()
    for number in range(2_000):  # so that it lies not in the leaf of what is written below
        (root / f"{number}").touch()
    freeze(driver, "v1.1", "s1")
    run.run(["chattr", "+d", str(root / "flagged")])
    os.sync()
    freeze(driver, "s1", "b1")
    (root / "1999").write_bytes(b"more")
    freeze(driver, "v1.1", "s2")
    assert "1 files have some" in " ".join(keep(driver, "s2", "b1").stream.notes)


def test_a_symlink_may_be_as_long_as_it_likes(driver: Btrfs, other: Btrfs) -> None:
    (new(driver) / "link").symlink_to("x" * 4_095)
    freeze(driver, "v1.1", "s1")
    kept = keep(driver, "s1")
    assert kept.stream.format is StreamFormat.BTRFS
    assert os.readlink(restore(other, "v2.1", kept) / "link") == "x" * 4_095


def test_a_tree_has_the_attributes_that_its_root_hands_down_and_its_files_only_their_own(
    driver: Btrfs, other: Btrfs
) -> None:
    root = new(driver)
    (root / "before").mkdir()
    (root / "plain").write_bytes(b"plain")
    set_default_acl(root)
    os.setxattr(root, "btrfs.compression", b"zstd")
    (root / "between").mkdir()
    seen, chain = [], []
    for number in range(3):
        seen.append(describe(freeze(driver, "v1.1", f"s{number}")))
        chain.append(keep(driver, f"s{number}", f"s{number - 1}" if number else None))
        (root / str(number)).mkdir()
        if number:
            os.removexattr(root, "system.posix_acl_default")
            os.setxattr(root, "btrfs.compression", b"zlib")
    for number, before in enumerate(seen):
        assert describe(restore(other, f"v2.{number}", *chain[: number + 1])) == before


def test_the_compression_of_the_file_system_is_not_restored(driver: Btrfs, scratch: Scratch, tmp_path: Path) -> None:
    place = scratch.make("btrfs")
    os.setxattr(place, "btrfs.compression", b"zstd")
    target = Btrfs(place, tmp_path)
    target.open()
    root = restore(target, "v2.1", *pair(driver))
    assert describe(root) == describe(path_of(driver, "s2"))


def set_default_acl(path: Path) -> None:
    run.run(["setfacl", "-d", "-m", "u:1000:rwx", str(path)])


# options


@pytest.mark.parametrize("quota", ["simple", "full"])
def test_a_restored_tree_has_its_size_and_tells_its_use(make: Make, driver: Btrfs, quota: str) -> None:
    target = make("quota", quota)
    root = new(driver)
    (root / "one").write_bytes(os.urandom(4 * _MIB))
    freeze(driver, "v1.1", "s1")
    (root / "two").write_bytes(os.urandom(4 * _MIB))
    freeze(driver, "v1.1", "s2")
    chain = keep(driver, "s1"), keep(driver, "s2", "s1")
    tree = restore(target, "v2.1", *chain, options=TreeOptions(size_bytes=16 * _MIB))
    usage = target.usage(Key("v2.1"))
    assert usage.limit_bytes == 16 * _MIB
    assert 8 * _MIB <= (usage.used_bytes or 0) < 9 * _MIB
    with pytest.raises(OSError, match="quota"):
        (tree / "three").write_bytes(os.urandom(17 * _MIB))


@pytest.mark.parametrize("quota", ["simple", "full"])
def test_a_size_that_the_tree_is_larger_than_becomes_what_it_has(make: Make, driver: Btrfs, quota: str) -> None:
    target = make("quota", quota)
    (new(driver) / "one").write_bytes(os.urandom(4 * _MIB))
    freeze(driver, "v1.1", "s1")
    restore(target, "v2.1", keep(driver, "s1"), options=TreeOptions(size_bytes=2 * _MIB))
    limit = target.usage(Key("v2.1")).limit_bytes
    assert limit is not None
    assert 4 * _MIB <= limit < 5 * _MIB


@pytest.mark.parametrize("quota", ["simple", "full"])
def test_without_a_size_there_is_no_limit(make: Make, driver: Btrfs, quota: str) -> None:
    target = make("quota", quota)
    kept = small(driver)
    restore(target, "v2.1", kept)
    usage = target.usage(Key("v2.1"))
    assert usage.limit_bytes is None
    assert usage.used_bytes


@pytest.mark.parametrize("wanted", [StreamFormat.BTRFS, StreamFormat.TAR])
def test_compression_that_is_asked_for_holds_for_what_is_written_then(
    driver: Btrfs, other: Btrfs, wanted: StreamFormat
) -> None:
    small(driver)
    root = restore(other, "v2.1", keep(driver, "s1", wanted=wanted), options=TreeOptions(compression="zlib"))
    (root / "d").mkdir()
    assert os.getxattr(root / "d", "btrfs.compression") == b"zlib"
    assert_nothing(other, "v2.1")


@pytest.mark.parametrize("wanted", [StreamFormat.BTRFS, StreamFormat.TAR])
def test_nocow_that_is_asked_for_holds_for_what_is_written_then(
    driver: Btrfs, other: Btrfs, wanted: StreamFormat
) -> None:
    root = new(driver, options=TreeOptions(compression="zstd"))
    (root / "file").write_bytes(b"content")
    freeze(driver, "v1.1", "s1")
    kept = keep(driver, "s1", wanted=wanted)
    notes = other.receive(Key("v2.1"), replay(kept), TreeOptions(nocow=True))
    assert any("copy on write" in note for note in notes) == (wanted is StreamFormat.BTRFS)
    with (path_of(other, "v2.1") / "new").open("wb") as file:
        assert fs.get_flags(file.fileno()) & fs.FS_NOCOW_FL


# the tool


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("btrfs-progs v5.16.2 \n", 1),
        ("btrfs-progs v6.1.3\n", 1),
        ("btrfs-progs v6.2\n", 2),
        ("btrfs-progs v6.17.1\n-EXPERIMENTAL -INJECT\n", 2),
        ("btrfs-progs v10.0\n", 2),
        ("something else\n", 1),
    ],
)
def test_the_version_of_streams_is_what_the_tool_reads_rightly(
    driver: Btrfs, monkeypatch: pytest.MonkeyPatch, said: str, version: int
) -> None:
    small(driver)
    monkeypatch.setattr(receive, "_newest_version", receive._newest_version.__wrapped__)  # the answer is not kept
    monkeypatch.setattr(run, "run", lambda *_: said)
    assert keep(driver, "s1").stream.version == version


def test_an_old_kernel_writes_version_1(
    driver: Btrfs, other: Btrfs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(driver)
    monkeypatch.setattr(send, "_VERSION", tmp_path / "absent")
    kept = keep(driver, "s1")
    assert kept.stream.version == 1
    assert describe(restore(other, "v2.1", kept)) == describe(path_of(driver, "s1"))


def test_a_stream_that_the_tool_cannot_read_is_unusable(
    driver: Btrfs, other: Btrfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = small(driver)
    monkeypatch.setattr(receive, "newest_version", lambda: 1)
    with pytest.raises(Unusable, match=r"cannot receive tree v2\.1: .*version 2: btrfs-progs 6\.2 or later is needed"):
        restore(other, "v2.1", kept)
    assert_nothing(other)


def test_without_the_tool_nothing_is_received_but_all_is_sent(
    driver: Btrfs, other: Btrfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(driver)
    monkeypatch.setattr(receive, "TOOL", "no-such-tool")
    kept = keep(driver, "s1")
    assert kept.stream.version == 1
    with pytest.raises(Unusable, match=r"not installed \(package btrfs-progs\)"):
        restore(other, "v2.1", kept)
    assert_nothing(other)


# what is no chain


def test_a_key_that_is_taken_is_refused_before_anything_is_read(driver: Btrfs, other: Btrfs) -> None:
    kept = small(driver)
    new(other, "v2.1")
    chain = replay(kept)
    with pytest.raises(Exists, match=r"cannot receive tree v2\.1"):
        other.receive(Key("v2.1"), chain, _PLAIN)
    assert next(chain) is not None


def test_another_format_is_refused(other: Btrfs) -> None:
    blocks = Stream(StreamFormat.BLOCKS, 1, False, 0, 0, iter(()))
    with pytest.raises(Unsupported, match=r"cannot receive tree v2\.1 from blocks: btrfs takes btrfs and tar"):
        other.receive(Key("v2.1"), iter([blocks]), _PLAIN)
    assert_nothing(other)


def test_a_chain_of_nothing_is_unusable(other: Btrfs) -> None:
    with pytest.raises(Unusable, match="there is no stream"):
        other.receive(Key("v2.1"), iter([]), _PLAIN)
    assert_nothing(other)


def test_links_that_do_not_follow_each_other_are_unusable(driver: Btrfs, other: Btrfs) -> None:
    first, second = pair(driver)
    (path_of(driver, "v1.1") / "newest").write_bytes(b"newest")
    freeze(driver, "v1.1", "s3")
    third = keep(driver, "s3", "s2")
    tar = keep(driver, "s1", wanted=StreamFormat.TAR)
    for text, chain in {
        "the stream builds on another": (second,),
        "the stream builds on no other": (first, first),
        r"the stream builds on [0-9a-f-]{36}, which is not the one before it": (first, third),
        "an archive builds on nothing": (first, tar),
        "builds on another": (tar, second),
    }.items():
        with pytest.raises(Unusable, match=rf"cannot receive tree v2\.1: .*{text}"):
            restore(other, "v2.1", *chain)
        assert_nothing(other)


def test_a_stream_that_was_cut_is_unusable_wherever_that_was(driver: Btrfs, other: Btrfs) -> None:
    first, second = pair(driver)
    ends = list(itertools.accumulate(map(len, commands(second.data)), initial=len(HEAD)))
    for end in {0, 1, *ends, *(end + 3 for end in ends)} - {ends[-1], ends[-1] + 3}:
        with pytest.raises(Unusable, match="the stream does not end with its end"):
            other.receive(Key("v2.1"), iter([first.again(), made(second.data[:end], version=2)]), _PLAIN)
    assert_nothing(other)


def test_a_stream_with_a_wrong_byte_is_unusable_wherever_it_is(driver: Btrfs, other: Btrfs) -> None:
    data = small(driver).data
    for position in {*range(0, 200, 7), *range(200, len(data), 211), len(data) - 1}:
        wrong = data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]
        with pytest.raises(Unusable, match=r"cannot receive tree v2\.1: "):
            other.receive(Key("v2.1"), iter([made(wrong, version=2)]), _PLAIN)
    assert_nothing(other)


def test_the_last_words_of_the_tool_are_told(driver: Btrfs, other: Btrfs) -> None:
    data = bytearray(small(driver).data)
    data[len(data) // 2] ^= 1
    with pytest.raises(Unusable, match=r"^cannot receive tree v2\.1: crc32 mismatch in command$"):
        other.receive(Key("v2.1"), iter([made(bytes(data), version=2)]), _PLAIN)


@pytest.mark.parametrize("more", [END, HEAD, b"x", bytes(100)])
def test_a_stream_with_more_behind_it_is_unusable(driver: Btrfs, other: Btrfs, more: bytes) -> None:
    with pytest.raises(Unusable):
        other.receive(Key("v2.1"), iter([made(small(driver).data + more, version=2)]), _PLAIN)
    assert_nothing(other)


def test_what_does_not_fit_is_unusable(driver: Btrfs, scratch: Scratch, tmp_path: Path) -> None:
    (new(driver) / "large").write_bytes(os.urandom(200 * _MIB))
    freeze(driver, "v1.1", "s1")
    target = Btrfs(scratch.make("btrfs", size_bytes=128 * _MIB), tmp_path)
    target.open()
    with driver.send(Key("s1")) as stream, pytest.raises(Unusable, match="No space left on device"):
        target.receive(Key("v2.1"), iter([stream]), _PLAIN)
    assert_nothing(target)


@pytest.mark.parametrize("error", [KeyError("x"), run.ToolError(5, "x"), receive.Refused("x"), SystemExit()])
def test_what_the_parts_raise_passes_through(driver: Btrfs, other: Btrfs, error: BaseException) -> None:
    first, second = pair(driver)

    def breaking() -> Iterator[Part]:
        yield Part(second.data[:300], 300)
        raise error

    with pytest.raises(type(error)) as caught:
        other.receive(Key("v2.1"), iter([first.again(), replace(second.stream, parts=breaking())]), _PLAIN)
    assert caught.value is error
    assert_nothing(other)


# what lies in wait


def _subvolume() -> bytes:
    return HEAD + command(Command.SUBVOL, {PATH: b"name", UUID: _SENT, CTRANSID: 1})


def _clone_command(sent: bytes, path: bytes) -> bytes:
    return command(
        Command.CLONE,
        {
            FILE_OFFSET: 0,
            CLONE_LEN: 4096,
            PATH: b"stolen",
            CLONE_UUID: sent,
            CLONE_CTRANSID: 1,
            CLONE_PATH: path,
            CLONE_OFFSET: 0,
        },
    )


_STOLEN: Final = command(Command.MKFILE, {PATH: b"stolen", INODE: 6})


def test_a_device_in_a_stream_is_made_and_never_opened(driver: Btrfs) -> None:
    node = command(Command.MKNOD, {PATH: b"null", INODE: 5, MODE: 0o20666, RDEV: 0x103})
    driver.receive(Key("v1.1"), iter([made(_subvolume() + node + END)]), _PLAIN)
    assert path_of(driver, "v1.1").joinpath("null").stat().st_rdev == 0x103
    write = command(Command.WRITE, {PATH: b"null", FILE_OFFSET: 0, DATA: b"x"})
    with pytest.raises(Unusable, match=r"cannot open .*null: Permission denied"):
        driver.receive(Key("v2.1"), iter([made(_subvolume() + node + write + END)]), _PLAIN)
    assert_nothing(driver, "v1.1")


@pytest.mark.parametrize("path", [b"link/file", b"../../../secret", b"../0/../../../file"])
def test_a_path_in_a_stream_leads_nowhere_else(driver: Btrfs, path: bytes) -> None:
    (driver._root / "secret").write_bytes(b"secret")
    link = command(Command.SYMLINK, {PATH: b"link", INODE: 5, PATH_LINK: bytes(driver._root)})
    chmod = command(Command.CHMOD, {PATH: path, MODE: 0o777})
    before = (driver._root / "secret").stat()
    (driver._root / "file").write_bytes(b"file")
    with pytest.raises(Unusable, match="No such file"):
        driver.receive(Key("v2.1"), iter([made(_subvolume() + link + chmod + END)]), _PLAIN)
    assert (driver._root / "secret").stat().st_mode == before.st_mode


def test_a_tree_that_is_not_in_the_chain_cannot_be_cloned_from(driver: Btrfs) -> None:
    other_uuid = commands(small(driver).data)[0]
    assert _SENT not in other_uuid
    with pytest.raises(Unusable, match="which is not the one before it"):
        driver.receive(
            Key("v2.1"), iter([made(_subvolume() + _STOLEN + _clone_command(bytes(16), b"file") + END)]), _PLAIN
        )
    assert_nothing(driver, "v1.1", "s1")


@pytest.mark.parametrize("path", [b"up/file", b"../../../trees/v1.1/file", b"/trees/v1.1/file"])
def test_a_path_to_clone_from_leads_nowhere_else(driver: Btrfs, path: bytes) -> None:
    small(driver)
    link = command(Command.SYMLINK, {PATH: b"up", INODE: 5, PATH_LINK: b"../../../trees/v1.1"})
    snapshot = command(
        Command.SNAPSHOT, {PATH: b"n", UUID: bytes(16), CTRANSID: 2, CLONE_UUID: _SENT, CLONE_CTRANSID: 1}
    )
    chain = [made(_subvolume() + link + END), made(HEAD + snapshot + _STOLEN + _clone_command(_SENT, path) + END)]
    with pytest.raises(Unusable, match="cannot open"):
        driver.receive(Key("v2.1"), iter(chain), _PLAIN)
    assert_nothing(driver, "v1.1", "s1")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"something else entirely", "is none of btrfs"),
        (HEAD[:-4] + b"\3\0\0\0" + END, "has version 3"),
        (HEAD + _STOLEN + END, "does not begin with its one subvolume"),
        (_subvolume() + _subvolume()[len(HEAD) :] + END, "does not begin with its one subvolume"),
        (HEAD + command(Command.SUBVOL, {PATH: b"n"}) + END, "a command without what it needs"),
        (HEAD + receive._sealed(Command.SUBVOL, b"\1\0\xff\0x"), "half an attribute"),
        (HEAD + receive._sealed(Command.SUBVOL, b"\1"), "half an attribute"),
        (HEAD + receive._sealed(Command.SUBVOL, b"\1\0\0\0" * 2), "half an attribute, or one twice"),
        (HEAD + receive._sealed(Command.SUBVOL, bytes(140_000)), "holds what no stream holds"),
        (HEAD + END, "does not end with its end"),
    ],
)
def test_what_is_no_stream_of_one_subvolume_is_unusable(driver: Btrfs, content: bytes, text: str) -> None:
    with pytest.raises(Unusable, match=rf"cannot receive tree v2\.1: the stream {text}|: the stream holds {text}"):
        driver.receive(Key("v2.1"), iter([made(content)]), _PLAIN)
    assert_nothing(driver)


# crashes


def test_a_restore_that_is_killed_leaves_only_what_open_sweeps(driver: Btrfs, other: Btrfs) -> None:
    first, second = pair(driver)

    def killed() -> Iterator[Part]:
        yield Part(second.data[:300], 300)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        try:
            other.receive(Key("v2.1"), iter([first.again(), replace(second.stream, parts=killed())]), _PLAIN)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert os.listdir(other._staging) == ["v2.1"]
    assert other.trees() == set()
    other.open()
    assert_nothing(other)


@pytest.mark.parametrize("options", [_PLAIN, TreeOptions(compression="zstd")])
def test_a_restore_that_is_cut_anywhere_is_whole_or_absent(driver: Btrfs, other: Btrfs, options: TreeOptions) -> None:
    chain = pair(driver)
    action = partial(restore, other, "v2.1", *chain, options=options)
    for step in range(0, crash.count(action), 2):
        other.remove(Key("v2.1"))
        crash.cut(action, before=step)
        other.open()
        assert_nothing(other, *(other.trees() & {Key("v2.1")}))
        if other.trees():
            assert set(describe(path_of(other, "v2.1"))) == {b".", b"./file", b"./new", b"./third"}


def test_a_restore_after_one_that_was_killed_needs_no_open(driver: Btrfs, other: Btrfs) -> None:
    chain = pair(driver)
    crash.cut(partial(restore, other, "v2.1", *chain), before=25)
    assert os.listdir(other._staging) == ["v2.1"]
    restore(other, "v2.1", *chain)
    assert_nothing(other, "v2.1")


def test_a_place_where_something_still_works_is_not_swept(driver: Btrfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_RELEASE_S", 0.05)
    with (
        btrfs_streams.staged(driver._staging, Key("v2.1")) as place,
        receive.confined(place),
        btrfs.opened(place),
        pytest.raises(Unusable, match=r"v2\.1: what was broken off still works there"),
    ):
        driver.open()
    assert_nothing(driver)
