"""Images written down and made again: blocks, what changed since a base, archives; on the real kernel."""

import errno
import fcntl
import filecmp
import hashlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, cast

import pytest
from hypothesis import HealthCheck, given, settings

from drivers import blocks
from drivers.loop import Loop
from tests.contract import crash
from tests.likeness import Facts, describe
from tests.scratch import Scratch
from tests.test_kernel_extents import ACTIONS, Action, File, act
from tests.test_loop import MakePool, Pool
from tests.watchers import Enough, Watcher
from voldriverd.driver import PART_MAX, Capability, Key, Part, Stream, StreamFormat, TreeOptions
from voldriverd.errors import Exists, NotFound, Unsupported, Unusable
from voldriverd.kernel import content, extents, fs, image, ioctl, loop, mount, run, watch
from voldriverd.kernel.extents import Found

pytestmark = pytest.mark.root

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
BLOCK: Final = 4096
TREE: Final = Key("v1.1")
SNAPSHOT: Final = Key("s1")
COPY: Final = Key("v2.1")
BASE: Final = Key("b1")
NEXT: Final = Key("b2")
SIZES: Final = {"ext4": 64 * MIB, "xfs": 300 * MIB}

fs_types = pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
reflinking = pytest.mark.parametrize("host", ["btrfs", "xfs"])
hosts = pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])


@pytest.fixture
def make_pool(session_scratch: Scratch, tmp_path: Path) -> Iterator[MakePool]:
    """Return what makes pools; whatever is mounted at the end is unmounted."""
    make = MakePool(session_scratch, tmp_path)
    yield make
    make.close()


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    """Return a pool with reflinks."""
    return make_pool("btrfs")


@pytest.fixture
def small(scratch: Scratch, make_pool: MakePool) -> Pool:
    """Return a pool with reflinks on a file system of 512 MiB."""
    return make_pool.at(scratch.make("xfs", size_bytes=512 * MIB) / "pool")


def _chain(pool: Pool, keys: Sequence[Key], *, is_thorough: bool = False) -> Iterator[Stream]:
    """Yield the first tree whole, and each other as what changed since the one before."""
    for base, key in itertools.pairwise([None, *keys]):
        assert key is not None
        with pool.driver.send(key, base, is_thorough=is_thorough) as stream:
            yield stream


def _receive(
    pool: Pool, streams: Iterator[Stream], key: Key = COPY, options: TreeOptions | None = None
) -> tuple[str, ...]:
    return pool.driver.receive(key, streams, options or TreeOptions())


def _is_same(pool: Pool, one: Key, other: Key) -> bool:
    filecmp.clear_cache()
    return filecmp.cmp(pool.images / one, pool.images / other, shallow=False)


def _facts(pool: Pool, key: Key) -> dict[bytes, Facts]:
    found = describe(pool.driver.attach(key, read_only=True))
    pool.driver.detach(key)
    return found


def _sent(pool: Pool, key: Key, base: Key | None = None, *, is_thorough: bool = False) -> list[Part]:
    with pool.driver.send(key, base, is_thorough=is_thorough) as stream:
        return list(stream.parts)


def _write_image(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _work(pool: Pool, step: int) -> None:
    """Do what people do to a volume: files made, overwritten, cut off, linked, removed, and space given back."""
    place = pool.attach()
    generator = random.Random(step)
    for number in range(20):
        (place / f"{step}-{number}").write_bytes(generator.randbytes(generator.randrange(60 * KIB)))
    with (place / "database").open("r+b" if step else "w+b") as file:
        for _ in range(30):
            file.seek(generator.randrange(400) * BLOCK)
            file.write(generator.randbytes(BLOCK))
    os.link(place / f"{step}-0", place / f"{step}-link")
    os.symlink("database", place / f"{step}-symlink")
    os.setxattr(place / f"{step}-1", "user.step", str(step).encode())
    os.truncate(place / f"{step}-2", 3)
    if step % 3 == 2:
        for number in range(3, 20):
            (place / f"{step - 1}-{number}").unlink()
        fs.sync_file_system(place)
        run.run(["fstrim", str(place)])
    if step == 5:
        pool.driver.detach(TREE)
        pool.driver.resize(TREE, (pool.images / TREE).stat().st_size + 32 * MIB)


@pytest.mark.parametrize("host", ["btrfs", "xfs"])
@fs_types
def test_a_whole_one_and_ten_increments_give_each_state_back(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    pool.create(fs_type, size_bytes=SIZES[fs_type])
    keys = []
    for step in range(11):
        _work(pool, step)  # and what it wrote is neither synced nor at rest
        keys.append(Key(f"b{step}"))
        pool.driver.clone(TREE, keys[-1], read_only=True)
    pool.driver.detach(TREE)
    for last in (0, 4, 10):
        copy = Key(f"v2.{last}")
        assert _receive(pool, _chain(pool, keys[: last + 1]), copy) == ()
        assert _is_same(pool, keys[last], copy)
        assert _facts(pool, keys[last]) == _facts(pool, copy)
    _receive(pool, _chain(pool, keys, is_thorough=True))
    assert _is_same(pool, keys[-1], COPY)
    assert set(os.listdir(pool.images)) == {TREE, COPY, *keys, "v2.0", "v2.4", "v2.10"}


@hosts
@fs_types
def test_a_whole_one_comes_back_in_any_pool(make_pool: MakePool, host: str, fs_type: str) -> None:
    source, target = make_pool("btrfs"), make_pool(host)
    source.create(fs_type, size_bytes=SIZES[fs_type])
    _work(source, 0)
    source.driver.clone(TREE, BASE, read_only=True)
    assert _receive(target, _chain(source, [BASE])) == ()
    source.driver.detach(TREE)
    assert _facts(target, COPY) == _facts(source, BASE)
    status = (target.images / COPY).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == SIZES[fs_type]
    assert status.st_blocks * 512 < 64 * MIB


def test_a_pool_without_reflinks_sends_a_whole_one(make_pool: MakePool) -> None:
    plain = make_pool("ext4")
    plain.create(size_bytes=SIZES["ext4"])
    plain.write(b"content")
    plain.driver.clone(TREE, BASE, read_only=True)
    _receive(plain, _chain(plain, [BASE]))
    assert plain.read(COPY) == b"content"


# what a stream is like


@reflinking
def test_parts_ascend_and_none_crosses_a_cut(make_pool: MakePool, host: str) -> None:
    pool = make_pool(host)
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 10 * MIB + 5 * BLOCK, random.randbytes(20 * MIB))
    with pool.driver.send(TREE) as stream:
        parts = list(stream.parts)
        expected_bytes = stream.expected_bytes
        assert (stream.format, stream.is_incremental) == (StreamFormat.BLOCKS, False)
        assert (stream.image_bytes, stream.notes) == (SIZES["ext4"], ())
    held = [(part.offset or 0, part.length, part.data) for part in parts]
    assert sum(length for _, length, _ in held) == expected_bytes
    assert all(offset // PART_MAX == (offset + length - 1) // PART_MAX for offset, length, _ in held)
    assert all(one[0] + one[1] <= other[0] for one, other in itertools.pairwise(held))
    original = path.read_bytes()
    made = bytearray(len(original))
    for offset, length, data in held:
        made[offset : offset + length] = bytes(length) if data is None else data
    assert made == original


def test_zeros_are_sent_as_a_hole(pool: Pool) -> None:
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 16 * MIB, bytes(8 * MIB))
    assert {part.offset for part in _sent(pool, TREE) if part.data is None} == {16 * MIB, 20 * MIB}
    pool.driver.clone(TREE, BASE, read_only=True)
    _write_image(path, 32 * MIB, bytes(MIB))
    assert _sent(pool, TREE, BASE) == [Part(None, MIB, 32 * MIB)]


def test_space_that_is_only_reserved_is_not_sent(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"], thick=True)
    assert sum(part.length for part in _sent(pool, TREE)) < 8 * MIB


def test_an_image_that_ends_within_a_block_is_sent_to_its_last_byte(pool: Pool) -> None:
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, SIZES["ext4"], b"abc")
    pool.driver.clone(TREE, BASE, read_only=True)
    assert _sent(pool, TREE)[-1] == Part(b"abc", 3, SIZES["ext4"])
    os.truncate(path, SIZES["ext4"] + 2)
    _write_image(path, SIZES["ext4"] + 1, b"c")
    for is_thorough in (False, True):
        assert _sent(pool, TREE, BASE, is_thorough=is_thorough) == [Part(b"ac", 2, SIZES["ext4"])]
        _receive(pool, _chain(pool, [BASE, TREE], is_thorough=is_thorough))
        assert _is_same(pool, TREE, COPY)
        pool.driver.remove(COPY)


@reflinking
def test_an_increment_is_what_changed(make_pool: MakePool, host: str) -> None:
    pool = make_pool(host)
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 16 * MIB, random.randbytes(8 * MIB))
    pool.driver.clone(TREE, BASE, read_only=True)
    fresh = random.randbytes(2 * BLOCK)
    _write_image(path, 20 * MIB - BLOCK, fresh)
    run.run(["fallocate", "-p", "-o", str(17 * MIB), "-l", str(BLOCK), str(path)])
    with pool.driver.send(TREE, BASE) as stream:
        assert (stream.is_incremental, stream.image_bytes) == (True, SIZES["ext4"])
        assert (stream.expected_bytes, stream.notes) == (2 * BLOCK, ())
        assert list(stream.parts) == [
            Part(None, BLOCK, 17 * MIB),
            Part(fresh[:BLOCK], BLOCK, 20 * MIB - BLOCK),
            Part(fresh[BLOCK:], BLOCK, 20 * MIB),
        ]


@reflinking
def test_an_increment_reads_only_what_changed(make_pool: MakePool, host: str) -> None:
    pool = make_pool(host)
    path = pool.create(size_bytes=10 * GIB)
    _write_image(path, GIB, random.randbytes(100 * MIB))
    pool.driver.clone(TREE, BASE, read_only=True)
    generator = random.Random(1)
    changed_bytes = 2 * MIB
    _write_image(path, GIB + 50 * MIB, generator.randbytes(changed_bytes))
    for number in generator.sample(range(1, 50), 40):
        length = generator.randrange(1, 17) * BLOCK
        changed_bytes += length
        _write_image(path, GIB + number * MIB, generator.randbytes(length))
    before_bytes = _read_from_disk()
    assert sum(part.length for part in _sent(pool, TREE, BASE)) == changed_bytes
    assert _read_from_disk() - before_bytes < changed_bytes * 1.5


def _read_from_disk() -> int:
    """Return how many bytes this process had its disks read (proc_pid_io(5))."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


@hosts
@pytest.mark.parametrize("is_direct", [True, False])
def test_what_was_read_is_not_kept_in_memory(
    make_pool: MakePool, host: str, monkeypatch: pytest.MonkeyPatch, *, is_direct: bool
) -> None:
    pool = make_pool(host)
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 16 * MIB, random.randbytes(8 * MIB))
    fs.sync_file_system(path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not is_direct:
        monkeypatch.setattr(os, "open", _refusing_direct(os.open))
    assert sum(part.length for part in _sent(pool, TREE)) > 8 * MIB
    assert run.run(["fincore", "-b", "-n", "-o", "RES", str(path)]).split() == ["0"]


def _refusing_direct(real: Callable[..., int]) -> Callable[..., int]:
    def refuse(path: Path, flags: int, mode: int = 0o777, **options: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode, **options)

    return refuse


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 10), (100, 300), (4_095, 8_193), (8_192, 9_999), (9_000, 10_001), (9_999, 20_000), (12_288, 12_300)],
)
@hosts
def test_any_range_can_be_read_and_is_zero_behind_the_end(make_pool: MakePool, host: str, start: int, end: int) -> None:
    path = make_pool(host).root / "file"
    path.write_bytes(random.Random(1).randbytes(10_000))
    wanted = (path.read_bytes() + bytes(20_000))[start:end]
    with content.reading(path, 16_384) as reader:
        assert reader.read(start, end) == wanted
        assert reader.read(0, 16_384)[:10_000] == path.read_bytes()


def test_a_file_that_is_shorter_than_it_was_is_no_part(pool: Pool) -> None:
    path = pool.create(size_bytes=SIZES["ext4"])
    with pool.driver.send(TREE) as stream:
        os.truncate(path, 0)
        with pytest.raises(OSError, match="the file is shorter than it was"):
            list(stream.parts)


def test_parts_cannot_be_read_after_the_block(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    with pool.driver.send(TREE) as stream:
        next(stream.parts)
    assert list(stream.parts) == []


def test_the_same_tree_and_base_give_the_same_again(pool: Pool) -> None:
    _two_states(pool)
    assert _sent(pool, NEXT, BASE) == _sent(pool, NEXT, BASE)
    assert _sent(pool, NEXT) == _sent(pool, NEXT)


# when the map cannot be trusted


def _two_states(pool: Pool) -> None:
    """Make two trees of one origin, the second of which has changes in four blocks, one of them a zero."""
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 16 * MIB, random.randbytes(16 * MIB))
    pool.driver.clone(TREE, BASE, read_only=True)
    _write_image(path, 20 * MIB, random.randbytes(2 * BLOCK))
    _write_image(path, 24 * MIB - BLOCK, random.randbytes(BLOCK) + bytes(BLOCK))
    pool.driver.clone(TREE, NEXT, read_only=True)


@reflinking
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ACTIONS, after=ACTIONS)
def test_whatever_is_done_to_an_image_its_increment_makes_of_the_base(
    make_pool: MakePool, host: str, before: list[Action], after: list[Action]
) -> None:
    images = make_pool(host).images
    with closing(File(images / TREE, 64 * BLOCK)) as file:
        for action in before:
            act(file, *action)
        with closing(file.clone()) as base:
            for action in after:
                act(file, *action)
            wanted = file.content()
            for is_thorough in (False, True):
                with closing(base.clone()) as copy:
                    with blocks.changed(file.path, base.path, is_thorough=is_thorough) as stream:
                        blocks.apply(stream, copy.fd, "receive tree v2.1")
                        assert stream.notes == ()
                    assert copy.content() == wanted


@reflinking
def test_a_thorough_increment_has_what_differs_and_no_more(make_pool: MakePool, host: str) -> None:
    pool = make_pool(host)
    _two_states(pool)
    _write_image(pool.images / TREE, 30 * MIB, (pool.images / NEXT).read_bytes()[30 * MIB : 31 * MIB])
    pool.driver.clone(TREE, Key("b3"), read_only=True)
    with pool.driver.send(Key("b3"), BASE, is_thorough=True) as stream:
        assert (stream.notes, stream.expected_bytes) == ((), 3 * BLOCK)
        ranges = [(part.offset, part.length, part.data is None) for part in stream.parts]
    assert ranges == [
        (20 * MIB, 2 * BLOCK, False),
        (24 * MIB - BLOCK, BLOCK, False),
        (24 * MIB, BLOCK, True),
    ]


def test_a_change_that_the_file_system_does_not_tell_of_is_told(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    _two_states(pool)
    monkeypatch.setattr(extents, "compare", lambda *_: iter([extents.Span(20 * MIB, 20 * MIB + BLOCK, Found.DATA)]))
    with pool.driver.send(NEXT, BASE, is_thorough=True) as stream:
        (note,) = stream.notes
    assert "the pool's file system did not tell of changes in 12,288 bytes" in note
    _receive(pool, _chain(pool, [BASE, NEXT], is_thorough=True))
    assert _is_same(pool, NEXT, COPY)


def test_all_bytes_are_compared_if_the_base_is_moved_meanwhile(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    _two_states(pool)
    monkeypatch.setattr(extents, "compare", _moving(pool.images / BASE, extents.compare))
    with pool.driver.send(NEXT, BASE) as stream:
        assert stream.notes == ("the pool moved data of the base meanwhile: all bytes were compared instead",)
        assert stream.expected_bytes == 3 * BLOCK
    _receive(pool, _chain(pool, [BASE, NEXT]))
    assert _is_same(pool, NEXT, COPY)


def _moving(path: Path, real: Callable[..., Iterator[extents.Span]]) -> Callable[..., Iterator[extents.Span]]:
    """Give a file other extents with the same bytes whenever maps are compared."""

    def move(*maps: list[extents.Extent]) -> Iterator[extents.Span]:
        data = path.read_bytes()[16 * MIB : 17 * MIB]
        path.chmod(0o600)
        _write_image(path, 16 * MIB, data)
        return real(*maps)

    return move


@pytest.fixture(name="old_pool")
def make_old_pool(make_pool: MakePool) -> Pool:
    """Make a pool whose images are compressed, with a tree of two blocks of 64 KiB, "a" and "b", that has its base."""
    pool = make_pool("btrfs")
    run.run(["chattr", "-C", str(pool.images)])
    run.run(["btrfs", "property", "set", str(pool.images), "compression", "zstd"])
    path = pool.images / TREE
    path.write_bytes(b"a" * 64 * KIB + b"b" * 64 * KIB)
    fs.sync_file_system(path)
    pool.driver.clone(TREE, BASE, read_only=True)
    with path.open("r+b") as file:
        _share(file.fileno(), 64 * KIB, 0, 64 * KIB)  # as a program for deduplication may do
    return pool


def test_compressed_images_of_old_pools_are_compared_by_their_bytes(old_pool: Pool) -> None:
    with (old_pool.images / TREE).open("rb") as file, (old_pool.images / BASE).open("rb") as base:
        spans = list(extents.difference(file.fileno(), base.fileno()) or ())
    assert spans == [extents.Span(0, 128 * KIB, Found.DOUBT)]
    assert _sent(old_pool, TREE, BASE) == [Part(b"b" * 64 * KIB, 64 * KIB, 0)]


def _share(fd: int, source: int, target: int, length: int) -> None:
    """Let a range have the extents of another range of the same file (ioctl_ficlonerange(2))."""
    fcntl.ioctl(fd, ioctl.iow(0x94, 13, 32), struct.pack("=qQQQ", fd, source, length, target))


# who watches


_LOOKS: Final = "looks for what changed"
_COMPARES: Final = "compares all bytes with its base"


def _map_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "difference", lambda *_: None)


@reflinking
@pytest.mark.parametrize("is_thorough", [False, True], ids=["moved", "thorough"])
def test_who_watches_is_told_of_each_byte_that_is_compared(
    make_pool: MakePool, host: str, monkeypatch: pytest.MonkeyPatch, *, is_thorough: bool
) -> None:
    pool = make_pool(host)
    _two_states(pool)
    wanted = _sent(pool, NEXT, BASE, is_thorough=True)
    if not is_thorough:
        _map_is_not_trusted(monkeypatch)
    watcher = Watcher()
    with watch.watched(watcher):
        assert _sent(pool, NEXT, BASE, is_thorough=is_thorough) == wanted
    total_bytes = watcher.totals[_COMPARES]
    assert total_bytes is not None
    assert total_bytes > 16 * MIB
    assert watcher.told_bytes[_COMPARES] == total_bytes


@reflinking
@pytest.mark.parametrize("is_thorough", [False, True], ids=["moved", "thorough"])
def test_a_comparison_of_all_bytes_ends_with_the_next_piece(
    make_pool: MakePool, host: str, monkeypatch: pytest.MonkeyPatch, *, is_thorough: bool
) -> None:
    pool = make_pool(host)
    _two_states(pool)
    if not is_thorough:
        _map_is_not_trusted(monkeypatch)
    before, before_bytes = _open_files(), _read_from_disk()
    with pytest.raises(Enough), watch.watched(Watcher(_COMPARES, ends_after=1)):
        _sent(pool, NEXT, BASE, is_thorough=is_thorough)
    assert _read_from_disk() - before_bytes < 8 * MIB  # of 32
    assert _open_files() == before
    assert len(_sent(pool, NEXT, BASE)) == 3


@reflinking
def test_maps_of_many_extents_are_left_with_the_next_answer_of_the_kernel(
    make_pool: MakePool, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(host)
    path = pool.create(size_bytes=SIZES["ext4"])
    with path.open("r+b") as file:
        for number in range(2_000):  # written so that none continues another
            os.pwrite(file.fileno(), b"x" * BLOCK, 16 * MIB + 2 * BLOCK * number)
    pool.driver.clone(TREE, BASE, read_only=True)
    answers: list[int] = []
    call = ioctl.call

    def count(fd: int, number: int, argument: Any) -> Any:
        answers.append(number)
        return call(fd, number, argument)

    monkeypatch.setattr(ioctl, "call", count)
    with pytest.raises(Enough), watch.watched(Watcher(_LOOKS, ends_after=0)):
        _sent(pool, TREE, BASE)
    assert answers == []
    assert _sent(pool, TREE, BASE) == []
    assert answers.count(extents.FS_IOC_FIEMAP) >= 2_000 // 512 * 3


def test_what_is_compressed_is_compared_no_further_than_wanted(old_pool: Pool) -> None:
    with pytest.raises(Enough), watch.watched(Watcher(_LOOKS, ends_after=1)):
        _sent(old_pool, TREE, BASE)


def test_zeros_that_are_read_and_not_sent_are_told_and_may_be_the_end(pool: Pool) -> None:
    path = pool.create(size_bytes=SIZES["ext4"])
    _write_image(path, 16 * MIB, bytes(32 * MIB))
    watcher = Watcher()
    with watch.watched(watcher):
        assert sum(part.length for part in _sent(pool, TREE) if part.data is None) == watcher.told_bytes[None]
    assert watcher.told_bytes[None] >= 32 * MIB
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=8 * MIB)), pool.driver.send(TREE) as stream:
        assert sum(part.length for part in stream.parts) < 16 * MIB


def _open_files() -> set[str]:
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def test_moved_extents_are_sent_right(scratch: Scratch, make_pool: MakePool) -> None:
    place = scratch.make("btrfs")
    pool = make_pool.at(place / "pool")
    _two_states(pool)
    run.run(["btrfs", "filesystem", "defragment", "-f", "-t", "1G", str(pool.images / BASE)])
    _receive(pool, _chain(pool, [BASE, NEXT]))
    assert _is_same(pool, NEXT, COPY)
    run.run(["btrfs", "balance", "start", "--full-balance", str(place)])
    _receive(pool, _chain(pool, [BASE, NEXT]), Key("v3.1"))
    assert _is_same(pool, NEXT, Key("v3.1"))


def test_a_database_that_is_written_to_all_the_time_comes_back_in_order(pool: Pool) -> None:
    pool.create(size_bytes=128 * MIB)
    keys = [Key(f"b{number}") for number in range(6)]
    committed = []
    with _writer(pool.attach() / "db") as writer:
        for key in keys:
            committed.append([int(writer.readline()) for _ in range(20)][-1])
            pool.driver.clone(TREE, key, read_only=True)
    pool.driver.detach(TREE)
    for number in range(len(keys)):
        copy = Key(f"v2.{number}")
        assert _receive(pool, _chain(pool, keys[: number + 1]), copy) == ()
        with closing(sqlite3.connect(pool.attach(copy) / "db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ((count, last),) = database.execute("SELECT count(*), max(number) FROM rows")
        assert committed[number] <= count == last
        pool.driver.detach(copy)


@contextmanager
def _writer(path: Path) -> Iterator[IO[str]]:
    """Yield the lines of a process that commits to a database without a pause, one for each commit."""
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode=WAL')\n"
        "db.execute('CREATE TABLE rows (number INTEGER PRIMARY KEY, text BLOB)')\n"
        "while True:\n"
        "    print(db.execute('INSERT INTO rows (text) VALUES (randomblob(5000))').lastrowid, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


# what is refused, and what an error leaves


def _stream(
    *parts: Part,
    size_bytes: int | None = 64 * MIB,
    is_incremental: bool = False,
    expected_bytes: int | None = None,
    kind: StreamFormat = StreamFormat.BLOCKS,
) -> Stream:
    return Stream(
        format=kind,
        version=1,
        is_incremental=is_incremental,
        image_bytes=size_bytes,
        expected_bytes=expected_bytes,
        parts=iter(parts),
    )


def _refuses(pool: Pool, streams: Iterator[Stream], kind: type[Exception], cause: str, key: Key = COPY) -> None:
    before = set(os.listdir(pool.images))
    with pytest.raises(kind, match=cause):
        _receive(pool, streams, key, TreeOptions(fs="ext4", size_bytes=64 * MIB))
    assert set(os.listdir(pool.images)) == before


def test_a_tree_that_is_not_there_is_not_sent(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    for key, base in ((COPY, None), (COPY, TREE), (TREE, COPY)):
        with (
            pytest.raises(NotFound, match=r"cannot send tree v2\.1: there is no such tree"),
            pool.driver.send(key, base),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "base", "wanted", "cause"),
    [
        ("btrfs", None, StreamFormat.BTRFS, "the loop driver writes no stream of format btrfs"),
        ("btrfs", BASE, StreamFormat.TAR, "as what changed since b1: an archive is always whole"),
        ("ext4", BASE, None, "as what changed since b1: the pool has no reflinks"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    make_pool: MakePool, host: str, base: Key | None, wanted: StreamFormat | None, cause: str
) -> None:
    pool = make_pool(host)
    pool.create(size_bytes=SIZES["ext4"])
    pool.driver.clone(TREE, BASE, read_only=True)
    with (
        pytest.raises(Unsupported, match=rf"cannot send tree v1\.1.*{cause}"),
        pool.driver.send(TREE, base, wanted=wanted),
    ):
        pass


def test_increments_are_not_promised_without_maps(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "has_map", lambda _: False)
    pool.driver.open()
    assert pool.driver.capabilities == Capability.SIZE | Capability.COW | Capability.INSTANT


def test_a_key_that_is_taken_is_refused(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    _refuses(pool, iter([_stream()]), Exists, r"cannot receive tree v1\.1: it exists already", TREE)


def test_a_stream_of_btrfs_is_refused(pool: Pool) -> None:
    stream = _stream(kind=StreamFormat.BTRFS)
    _refuses(pool, iter([stream]), Unsupported, "the loop driver takes no stream of format btrfs")


@pytest.mark.parametrize(
    ("streams", "cause"),
    [
        ([], "the chain does not begin with a whole stream"),
        ([_stream(is_incremental=True)], "the chain does not begin with a whole stream"),
        ([_stream(), _stream()], "the chain has a second whole stream"),
        (
            [_stream(), _stream(kind=StreamFormat.TAR, is_incremental=True)],
            "a stream of format tar stands where blocks",
        ),
        ([_stream(size_bytes=None)], "its stream is not of an image"),
        ([_stream(size_bytes=-1)], "its stream is not of an image"),
        ([_stream(size_bytes=(15 << 40) + 1)], "its stream is not of an image of 16,492,674,416,640 bytes at most"),
    ],
)
def test_a_chain_that_is_none_is_refused(pool: Pool, streams: list[Stream], cause: str) -> None:
    _refuses(pool, iter(streams), Unusable, rf"cannot receive tree v2\.1: .*{cause}")


@pytest.mark.parametrize(
    "parts",
    [
        [Part(b"x" * BLOCK, BLOCK, 64 * MIB)],
        [Part(None, 2 * BLOCK, 64 * MIB - BLOCK)],
        [Part(b"x", 1, 1 << 70)],
        [Part(b"x", 1, -1)],
        [Part(None, -1, BLOCK)],
        [Part(b"x" * BLOCK, BLOCK, 0), Part(b"y", 1, BLOCK - 1)],
        [Part(b"x", 1, BLOCK), Part(b"y", 1, 0)],
        [Part(b"xy", 1, 0)],
        [Part(b"x", 2, 0)],
        [Part(b"x", 1)],
    ],
)
def test_ranges_that_cannot_be_are_refused(pool: Pool, parts: list[Part]) -> None:
    _refuses(pool, iter([_stream(*parts)]), Unusable, r"cannot receive tree v2\.1: its stream")


def test_an_image_without_a_file_system_is_refused(pool: Pool) -> None:
    cause = "its file system cannot be mounted: it holds neither ext4 nor xfs"
    _refuses(pool, iter([_stream(Part(b"x", 1, 5))]), Unusable, cause)


@hosts
@fs_types
def test_a_file_system_that_cannot_be_mounted_is_refused(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type, size_bytes=SIZES[fs_type])
    os.truncate(path, SIZES[fs_type] // 2)
    _refuses(pool, _chain(pool, [TREE]), Unusable, r"cannot receive tree v2\.1: its file system cannot be mounted: ")


def test_another_error_of_a_mount_is_not_the_streams(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    monkeypatch.setattr(mount, "mount", _fail_with(errno.EPERM))
    _refuses(pool, _chain(pool, [TREE]), PermissionError, "Operation not permitted")


def _fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        ("rm -r data", "its file system cannot be mounted: No such file or directory"),
        ("rm -r data; ln -s /etc data", "data in its file system is no directory"),
    ],
)
def test_a_file_system_without_what_is_served_is_refused(pool: Pool, tmp_path: Path, action: str, cause: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with image.mounted(pool.create(size_bytes=SIZES["ext4"]), place, read_only=False):
        run.run(["sh", "-c", f"cd {place}; {action}"])
    _refuses(pool, _chain(pool, [TREE]), Unusable, rf"cannot receive tree v2\.1: {cause}")


@reflinking
@fs_types
def test_a_file_system_with_errors_comes_back_and_they_are_told(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type, size_bytes=SIZES[fs_type])
    _damage(path, fs_type)
    (note,) = _receive(pool, _chain(pool, [TREE]))
    assert note.startswith("the file system has errors: ")
    assert ("e2fsck" if fs_type == "ext4" else "xfs_repair") in note
    assert _is_same(pool, TREE, COPY)


def _damage(path: Path, fs_type: str) -> None:
    """Have a file system count something wrong that no mount looks at."""
    if fs_type == "ext4":
        run.run(["debugfs", "-w", "-R", "set_inode_field /data links_count 7", str(path)])
    else:
        run.run(["xfs_db", "-x", "-c", "path /data", "-c", "write core.nlinkv2 7", str(path)])


def test_without_the_tool_nothing_is_known_of_errors(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("xfs", size_bytes=SIZES["xfs"])
    monkeypatch.setenv("PATH", str(tmp_path))
    (note,) = _receive(pool, _chain(pool, [TREE]))
    assert note == "the file system has errors: they are not known, for xfs_repair is not installed"


class _BrokenError(Exception):
    """What an iterator of parts may raise."""


def _breaking(parts: Iterator[Part]) -> Iterator[Part]:
    yield from itertools.islice(parts, 1)
    raise _BrokenError


@pytest.mark.parametrize("wanted", [StreamFormat.BLOCKS, StreamFormat.TAR])
@hosts
def test_what_breaks_a_stream_passes_through_and_leaves_nothing(
    make_pool: MakePool, host: str, wanted: StreamFormat
) -> None:
    pool = make_pool(host)
    pool.create(size_bytes=SIZES["ext4"])
    pool.write(random.randbytes(5 * MIB))
    before = os.listdir(pool.images)
    options = TreeOptions(fs="ext4", size_bytes=SIZES["ext4"])
    with pool.driver.send(TREE, wanted=wanted) as stream:
        broken = replace(stream, parts=_breaking(stream.parts))
        with pytest.raises(_BrokenError):
            _receive(pool, iter([broken]), COPY, options)
    assert os.listdir(pool.images) == before
    assert [name for name in os.listdir(pool.mounts) if name.startswith(".")] == []


@hosts
@pytest.mark.parametrize("wanted", [StreamFormat.BLOCKS, StreamFormat.TAR])
def test_an_early_end_leaves_nothing(make_pool: MakePool, host: str, wanted: StreamFormat) -> None:
    pool = make_pool(host)
    pool.create(size_bytes=SIZES["ext4"])
    pool.write(random.randbytes(5 * MIB))
    with pool.driver.send(TREE, wanted=wanted) as stream:
        next(stream.parts)
    assert os.listdir(pool.images) == [TREE]
    assert os.listdir(pool.mounts) == [TREE]
    assert loop.wait_cleared(pool.images / TREE, timeout_s=5)


def test_what_does_not_fit_is_refused_with_the_figures(small: Pool) -> None:
    streams = iter([_stream(size_bytes=GIB, expected_bytes=600 * MIB)])
    _refuses(small, streams, Unusable, r"cannot receive tree v2\.1: it needs 600 MiB, the pool has [0-9.]+ MiB free")


@pytest.mark.parametrize(("size_bytes", "wanted_bytes"), [(600 * MIB, None), (64 * MIB, 600 * MIB)])
def test_a_thick_tree_that_does_not_fit_is_refused_with_the_figures(
    small: Pool, size_bytes: int, wanted_bytes: int | None
) -> None:
    options = TreeOptions(thick=True, size_bytes=wanted_bytes)
    with pytest.raises(Unusable, match=r"cannot receive tree v2\.1: it needs 600 MiB, the pool has [0-9.]+ MiB free"):
        _receive(small, iter([_stream(size_bytes=size_bytes, expected_bytes=MIB)]), options=options)
    assert os.listdir(small.images) == []


@pytest.mark.parametrize("kind", [StreamFormat.BLOCKS, StreamFormat.TAR])
def test_a_pool_that_fills_up_meanwhile_is_blamed_and_nothing_is_left(
    small: Pool, make_pool: MakePool, kind: StreamFormat
) -> None:
    source = make_pool("btrfs")
    source.create(size_bytes=GIB)
    place = source.attach()
    (place / "file").write_bytes(os.urandom(600 * MIB))
    source.driver.detach(TREE)
    options = TreeOptions(fs="ext4", size_bytes=GIB)
    with source.driver.send(TREE, wanted=kind) as stream:
        unknown = replace(stream, expected_bytes=None)
        with pytest.raises(OSError, match="No space left on device"):
            _receive(small, iter([unknown]), COPY, options)
    assert os.listdir(small.images) == []
    assert [name for name in os.listdir(small.mounts) if name != TREE] == []


# what the options ask for


@hosts
@fs_types
def test_a_thick_tree_has_all_its_space_also_after_holes(make_pool: MakePool, host: str, fs_type: str) -> None:
    source, target = make_pool("btrfs"), make_pool(host)
    path = source.create(fs_type, size_bytes=SIZES[fs_type])
    _work(source, 0)
    source.driver.clone(TREE, BASE, read_only=True)
    shutil.rmtree(source.attach(), ignore_errors=True)  # but for the mount point
    fs.sync_file_system(source.attach())
    run.run(["fstrim", str(source.attach())])
    source.driver.clone(TREE, NEXT, read_only=True)
    source.driver.detach(TREE)
    assert any(part.data is None for part in _sent(source, NEXT, BASE))
    _receive(target, _chain(source, [BASE, NEXT]), options=TreeOptions(thick=True))
    copy = target.images / COPY
    assert copy.stat().st_blocks * 512 >= path.stat().st_size
    assert image.is_thick(copy)
    if host != "ext4":
        assert filecmp.cmp(source.images / NEXT, copy, shallow=False)


def test_the_space_of_a_thick_tree_is_reserved_before_anything_comes(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])

    def looking(parts: Iterator[Part]) -> Iterator[Part]:
        assert (pool.images / f".part.{COPY}").stat().st_blocks * 512 >= SIZES["ext4"]
        yield from parts

    with pool.driver.send(TREE) as stream:
        looked_at = replace(stream, parts=looking(stream.parts))
        assert _receive(pool, iter([looked_at]), options=TreeOptions(thick=True)) == ()


@hosts
@fs_types
@pytest.mark.parametrize("thick", [False, True])
def test_a_larger_size_is_had_at_once(make_pool: MakePool, host: str, fs_type: str, *, thick: bool) -> None:
    source, target = make_pool("btrfs"), make_pool(host)
    source.create(fs_type, size_bytes=SIZES[fs_type])
    _work(source, 0)
    source.driver.clone(TREE, BASE, read_only=True)  # with a journal to replay
    source.driver.detach(TREE)
    _receive(target, _chain(source, [BASE]), options=TreeOptions(thick=thick, size_bytes=400 * MIB))
    status = (target.images / COPY).stat()
    assert status.st_size == 400 * MIB
    assert (status.st_blocks * 512 >= 400 * MIB) is thick
    assert fs.capacity(target.attach(COPY))[0] > 320 * MIB
    target.driver.detach(COPY)
    assert {*_facts(target, COPY)} == {*_facts(source, BASE)}


def test_ext4_grows_without_the_capability_too(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    pool.write(b"content")
    monkeypatch.setattr(image, "may_grow_mounted_ext4", lambda: False)
    _receive(pool, _chain(pool, [TREE]), options=TreeOptions(size_bytes=400 * MIB))
    assert image.is_ext4_grown(pool.images / COPY, 400 * MIB)
    assert pool.read(COPY) == b"content"


def test_a_smaller_size_is_that_of_the_image(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    _receive(pool, _chain(pool, [TREE]), options=TreeOptions(size_bytes=16 * MIB))
    assert (pool.images / COPY).stat().st_size == SIZES["ext4"]


@fs_types
def test_what_came_back_is_mounted_beside_its_origin_and_another(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type, size_bytes=SIZES[fs_type])
    pool.write(b"content")
    pool.driver.clone(TREE, BASE, read_only=True)
    places = [pool.attach()]
    for key in (COPY, Key("v3.1")):
        _receive(pool, _chain(pool, [BASE]), key)
        places.append(pool.attach(key))
    (places[1] / "file").write_bytes(b"other")
    assert [(place / "file").read_bytes() for place in places] == [b"content", b"other", b"content"]


def test_what_came_back_has_no_copies_on_write(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    _receive(pool, _chain(pool, [TREE]))
    assert "C" in run.run(["lsattr", str(pool.images / COPY)]).split()[0]


# crashes


def _settle(pool: Pool) -> None:
    driver = Loop(pool.root, pool.mounts)
    driver.open()


@reflinking
@pytest.mark.parametrize("wanted", [StreamFormat.BLOCKS, StreamFormat.TAR])
def test_a_receive_that_is_killed_makes_a_whole_tree_or_none(
    make_pool: MakePool, host: str, wanted: StreamFormat
) -> None:
    pool = make_pool(host)
    pool.create(size_bytes=SIZES["ext4"])
    (pool.attach() / "directory").mkdir()
    (pool.attach() / "directory" / "file").write_bytes(random.randbytes(MIB))
    pool.driver.clone(TREE, BASE, read_only=True)
    (pool.attach() / "more").write_bytes(random.randbytes(MIB))
    pool.driver.clone(TREE, NEXT, read_only=True)
    pool.driver.detach(TREE)
    before = set(os.listdir(pool.images))
    options = pool.driver.complete(TreeOptions(size_bytes=96 * MIB))

    def receive() -> None:
        if wanted is StreamFormat.BLOCKS:
            pool.driver.receive(COPY, _chain(pool, [BASE, NEXT]), options)
        else:
            with pool.driver.send(NEXT, wanted=wanted) as stream:
                pool.driver.receive(COPY, iter([stream]), options)

    steps = crash.count(receive)
    assert 10 < steps < 250
    assert crash.count(lambda: pool.driver.remove(COPY)) > 0
    facts = _facts(pool, NEXT)
    for number in range(0, steps, max(1, steps // 30)):
        crash.cut(receive, before=number)
        _settle(pool)
        assert [name for name in os.listdir(pool.mounts) if name.startswith(".")] == []
        left = set(os.listdir(pool.images)) - before
        assert left <= {COPY}
        for key in left:
            assert _lasting(_facts(pool, Key(key))) == _lasting(facts)
            pool.driver.remove(Key(key))


def test_what_a_killed_sender_had_mounted_is_swept_but_not_under_somebody(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    pool.write(random.randbytes(5 * MIB))

    def send() -> None:
        with pool.driver.send(TREE, wanted=StreamFormat.TAR) as stream:
            next(stream.parts)
            os.kill(os.getpid(), signal.SIGKILL)

    crash.cut(send, before=-1)
    (stage,) = (path for path in pool.mounts.iterdir() if path.name.startswith("."))
    with (stage / image.DATA / "file").open("rb"):
        _settle(pool)
        assert mount.at(stage) is not None
        assert len(os.listdir(pool.images)) == 2
    _settle(pool)
    assert os.listdir(pool.images) == [TREE]
    assert os.listdir(pool.mounts) == [TREE]


# archives


@hosts
@fs_types
def test_an_archive_gives_the_files_back(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    pool.driver.create(
        TREE, pool.driver.complete(TreeOptions(fs=fs_type, size_bytes=SIZES[fs_type], mode=0o1770, uid=7))
    )
    _work(pool, 0)
    os.truncate(pool.attach() / "0-3", 10 * MIB)
    pool.driver.detach(TREE)
    before = _facts(pool, TREE)
    options = pool.driver.complete(TreeOptions(fs=fs_type, size_bytes=SIZES[fs_type]))
    with pool.driver.send(TREE, wanted=StreamFormat.TAR) as stream:
        assert (stream.format, stream.is_incremental, stream.image_bytes) == (StreamFormat.TAR, False, None)
        assert pool.driver.receive(COPY, iter([stream]), options) == ()
    assert _lasting(_facts(pool, COPY)) == _lasting(before)
    assert image.type_of(pool.images / COPY) == fs_type
    assert stat.S_IMODE((pool.images / COPY).stat().st_mode) == 0o600


def _lasting(found: dict[bytes, Facts]) -> dict[bytes, Facts]:
    """Leave out the access times, which no archive holds."""
    return {path: {**facts, "times": cast("tuple[int, int]", facts["times"])[1]} for path, facts in found.items()}


@reflinking
@fs_types
def test_an_archive_leaves_the_bytes_of_a_base_alone(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    pool.create(fs_type, size_bytes=SIZES[fs_type])
    _work(pool, 0)
    pool.driver.clone(TREE, BASE, read_only=True)  # with a journal to replay
    pool.driver.detach(TREE)
    before = hashlib.sha256((pool.images / BASE).read_bytes()).digest()
    with ExitStack() as stack:  # two targets may want it at once
        streams = [stack.enter_context(pool.driver.send(BASE, wanted=StreamFormat.TAR)) for _ in range(2)]
        stages = [place for place in pool.mounts.iterdir() if place.name.startswith(".")]
        assert [bool(os.statvfs(place).f_flag & os.ST_RDONLY) for place in stages] == [True, True]
        one, other = ([part.data for part in stream.parts] for stream in streams)
        assert b"".join(part or b"" for part in one) == b"".join(part or b"" for part in other)
    assert hashlib.sha256((pool.images / BASE).read_bytes()).digest() == before
    assert set(os.listdir(pool.images)) == {TREE, BASE}


@reflinking
@fs_types
def test_a_base_stays_what_was_sent_although_its_snapshot_is_mounted(
    make_pool: MakePool, host: str, fs_type: str
) -> None:
    pool = make_pool(host)
    pool.create(fs_type, size_bytes=SIZES[fs_type])
    _work(pool, 0)
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)  # with a journal to replay
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    with pool.driver.send(BASE) as stream:
        whole = replace(stream, parts=iter(list(stream.parts)))
    pool.driver.attach(SNAPSHOT, read_only=True)
    pool.driver.detach(SNAPSHOT)
    pool.driver.detach(TREE)  # it writes what the replay has written
    pool.driver.clone(TREE, NEXT, read_only=True)
    with pool.driver.send(NEXT, BASE, is_thorough=True) as increment:
        _receive(pool, iter([whole, increment]))
    assert _is_same(pool, NEXT, COPY)


def test_a_thick_tree_is_made_from_an_archive(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    options = pool.driver.complete(TreeOptions(size_bytes=SIZES["ext4"], thick=True))
    with pool.driver.send(TREE, wanted=StreamFormat.TAR) as stream:
        pool.driver.receive(COPY, iter([stream]), options)
    assert (pool.images / COPY).stat().st_blocks * 512 >= SIZES["ext4"]


def test_an_archive_that_cannot_fit_is_refused_with_a_size_that_would_do(pool: Pool) -> None:
    stream = _stream(kind=StreamFormat.TAR, expected_bytes=100 * MIB)
    cause = r"its content does not fit in 64 MiB: give it a size of 125 MiB or so"
    _refuses(pool, iter([stream]), Unusable, rf"cannot receive tree v2\.1: {cause}")


def test_a_thick_tree_for_an_archive_that_does_not_fit_is_refused_with_the_figures(small: Pool) -> None:
    options = TreeOptions(fs="ext4", size_bytes=600 * MIB, thick=True)
    with pytest.raises(Unusable, match=r"cannot receive tree v2\.1: it needs 600 MiB, the pool has [0-9.]+ MiB free"):
        small.driver.receive(COPY, iter([_stream(kind=StreamFormat.TAR)]), options)


def test_an_archive_that_turns_out_too_large_is_refused_and_leaves_nothing(pool: Pool) -> None:
    pool.create(size_bytes=2 * SIZES["ext4"])
    pool.write(random.randbytes(SIZES["ext4"]))
    with pool.driver.send(TREE, wanted=StreamFormat.TAR) as stream:
        unknown = replace(stream, expected_bytes=None)
        _refuses(pool, iter([unknown]), Unusable, "its content does not fit in 64 MiB: give it a size of 80 MiB or so")


def test_nothing_comes_behind_an_archive(pool: Pool) -> None:
    pool.create(size_bytes=SIZES["ext4"])
    with pool.driver.send(TREE, wanted=StreamFormat.TAR) as stream:
        _refuses(pool, iter([stream, _stream()]), Unusable, "the chain goes on behind an archive")
