"""SIZE, resize and usage."""

import errno
import itertools
import os
import time
from pathlib import Path

import pytest

from tests.contract.conftest import Pool
from tests.contract.pools import not_promising, promising, real
from voldriverd.driver import Capability, Key, TreeOptions
from voldriverd.errors import Invalid, NotFound, Unsupported

pytestmark = [pytest.mark.root, real()]

_SIZE = 64 << 20
_SIZED = TreeOptions(size_bytes=_SIZE)
_MIB = os.urandom(1 << 20)


def _fill(directory: Path, *, limit_bytes: int) -> tuple[int, int | None]:
    """Write a file until it fails or is as large as the limit; return the bytes written and the errno."""
    written = 0
    try:
        with (directory / "fill").open("ab", buffering=0) as file:
            while written < limit_bytes:
                written += file.write(_MIB)
            os.fsync(file.fileno())
    except OSError as err:
        return written, err.errno
    return written, None


@promising(Capability.SIZE)
def test_writing_past_the_size_fails(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    written, number = _fill(pool.attach("v1.1"), limit_bytes=2 * _SIZE)
    assert number in {errno.ENOSPC, errno.EDQUOT}
    assert _SIZE // 2 < written <= _SIZE


@promising(Capability.SIZE)
def test_writing_past_the_size_of_a_clone_fails(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.clone(Key("s1"), Key("v1.2"), read_only=False)
    written, number = _fill(pool.attach("v1.2"), limit_bytes=2 * _SIZE)
    assert number in {errno.ENOSPC, errno.EDQUOT}
    assert written <= _SIZE


@promising(Capability.SIZE)
def test_a_size_below_the_minimum_is_invalid_and_the_minimum_named(pool: Pool) -> None:
    with pytest.raises(Invalid, match=r"minimum|smallest") as caught:
        pool.driver.complete(TreeOptions(size_bytes=1))
    assert caught.value.field == "size"


@not_promising(Capability.SIZE)
def test_without_sizes_the_option_is_unsupported_and_a_driver_named_that_has_them(pool: Pool) -> None:
    with pytest.raises(Unsupported, match="loop"):
        pool.driver.complete(_SIZED)


def test_an_option_is_listed_if_and_only_if_it_is_honoured(pool: Pool) -> None:
    given = {
        "size": TreeOptions(size_bytes=1 << 30),
        "thick": TreeOptions(thick=True),
        "fs": TreeOptions(fs="ext4"),
        "uid": TreeOptions(uid=1),
        "gid": TreeOptions(gid=1),
        "mode": TreeOptions(mode=0o700),
        "nocow": TreeOptions(nocow=True),
        "compression": TreeOptions(compression="zstd"),
    }
    assert {name for name, options in given.items() if _is_honoured(pool, options)} == pool.driver.options


def _is_honoured(pool: Pool, options: TreeOptions) -> bool:
    try:
        pool.driver.complete(options)
    except Unsupported:
        return False
    return True


def test_complete_is_repeatable_and_touches_nothing(pool: Pool) -> None:
    completed = pool.driver.complete(TreeOptions())
    assert pool.driver.complete(completed) == completed
    assert pool.driver.trees() == set()


@promising(Capability.SIZE)
def test_a_grown_tree_takes_more(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.driver.resize(Key("v1.1"), 3 * _SIZE)
    written, number = _fill(pool.attach("v1.1"), limit_bytes=2 * _SIZE)
    assert (written, number) == (2 * _SIZE, None)


@promising(Capability.SIZE)
def test_an_attached_tree_can_grow(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    path = pool.attach("v1.1")
    try:
        pool.driver.resize(Key("v1.1"), 3 * _SIZE)
    except Unsupported as err:
        pytest.skip(f"ext4 online grow: {err}")
    assert _fill(path, limit_bytes=2 * _SIZE) == (2 * _SIZE, None)


@promising(Capability.SIZE)
def test_resize_keeps_the_content_and_may_be_repeated(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.write("v1.1", "file", b"content")
    pool.driver.resize(Key("v1.1"), 2 * _SIZE)
    pool.driver.resize(Key("v1.1"), 2 * _SIZE)
    assert pool.driver.usage(Key("v1.1")).limit_bytes == 2 * _SIZE
    assert pool.read("v1.1", "file") == b"content"


@promising(Capability.SIZE)
def test_resize_of_a_clone_leaves_its_source(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    pool.driver.resize(Key("v2.1"), 2 * _SIZE)
    assert pool.driver.usage(Key("v1.1")).limit_bytes == _SIZE
    assert pool.driver.usage(Key("v2.1")).limit_bytes == 2 * _SIZE


@promising(Capability.SIZE)
def test_resize_below_the_content_is_invalid_and_changes_nothing(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.write("v1.1", "file", _MIB * 40)
    with pytest.raises(Invalid, match=r"cannot resize tree v1\.1") as caught:
        pool.driver.resize(Key("v1.1"), _SIZE // 2)
    assert caught.value.field == "size"
    assert pool.driver.usage(Key("v1.1")).limit_bytes == _SIZE
    assert pool.read("v1.1", "file") == _MIB * 40


@promising(Capability.SIZE)
def test_resize_of_an_absent_tree_is_not_found(pool: Pool) -> None:
    with pytest.raises(NotFound, match=r"cannot resize tree v9\.9"):
        pool.driver.resize(Key("v9.9"), _SIZE)


@not_promising(Capability.SIZE)
def test_resize_without_sizes_is_unsupported(pool: Pool) -> None:
    pool.create("v1.1")
    with pytest.raises(Unsupported, match="loop"):
        pool.driver.resize(Key("v1.1"), _SIZE)


def test_usage_of_an_absent_tree_is_not_found(pool: Pool) -> None:
    with pytest.raises(NotFound, match=r"v9\.9"):
        pool.driver.usage(Key("v9.9"))


@promising(Capability.SIZE)
def test_usage_tells_size_and_what_was_written(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    before = pool.driver.usage(Key("v1.1"))
    pool.write("v1.1", "file", _MIB * 8)
    os.sync()
    after = pool.driver.usage(Key("v1.1"))
    assert after.limit_bytes == _SIZE
    assert before.used_bytes is not None
    assert after.used_bytes is not None
    assert 8 << 20 <= after.used_bytes - before.used_bytes < 10 << 20


@promising(Capability.SIZE)
def test_usage_of_a_clone_counts_what_it_was_born_with(pool: Pool) -> None:
    pool.create("v1.1", _SIZED)
    pool.write("v1.1", "file", _MIB * 8)
    pool.driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    pool.driver.clone(Key("s1"), Key("v1.2"), read_only=False)
    for key in ("s1", "v1.2"):
        used = pool.driver.usage(Key(key)).used_bytes
        assert used is not None
        assert used >= 8 << 20


def test_usage_takes_the_same_time_for_any_content(pool: Pool) -> None:
    pool.create("v1.1")
    pool.create("v2.1")
    path = pool.attach("v2.1")
    for number in range(1_000):
        (path / f"file{number}").write_bytes(b"x" * 1_000)
    os.sync()
    assert _fastest_s(pool, "v2.1") < 3 * _fastest_s(pool, "v1.1") + 0.001


def _fastest_s(pool: Pool, key: str) -> float:
    times = [time.perf_counter()]
    for _ in range(10):
        pool.driver.usage(Key(key))
        times.append(time.perf_counter())
    return min(after - before for before, after in itertools.pairwise(times))
