"""Room for a tree that is wanted for a moment: in a pool, else under the root, and gone afterwards."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.restoring import MIB, Host
from tests.scratch import Scratch, loops_under
from voldriverd import daemon
from voldriverd.driver import StreamFormat, TreeOptions
from voldriverd.engine import scratch as rooms
from voldriverd.engine.context import Limits
from voldriverd.errors import Unsupported, Unusable
from voldriverd.kernel import fs, mount, run

pytestmark = pytest.mark.root

WHAT = "cannot restore volume db"


@pytest.fixture
def place(session_scratch: Scratch, tmp_path: Path) -> Path:
    """Return a directory of this test on a btrfs."""
    return session_scratch.shared("restores", "btrfs") / tmp_path.name


@pytest.fixture
def host(tmp_path: Path, place: Path) -> Iterator[Host]:
    """Return a host with pools of btrfs and loop."""
    host = Host(tmp_path / "host", {"btrfs": place / "btrfs", "loop": place / "loop"})
    yield host
    host.vanish()


@pytest.fixture
def bare(tmp_path: Path, place: Path) -> Iterator[Host]:
    """Return a host that has plain directories only; its root is on no btrfs."""
    host = Host(tmp_path / "bare", {"directory": place / "plain"})
    yield host
    host.vanish()


@pytest.mark.parametrize("form", [StreamFormat.BTRFS, StreamFormat.BLOCKS])
def test_a_pool_that_takes_the_format_is_used_and_the_tree_goes_with_its_row(host: Host, form: StreamFormat) -> None:
    pool = host.pool({StreamFormat.BTRFS: "btrfs", StreamFormat.BLOCKS: "loop"}[form])
    assert pool.driver is not None
    with rooms.room(host.engine, form, MIB, WHAT) as (driver, key):
        assert driver is pool.driver
        driver.create(key, driver.complete(TreeOptions()))
        host.upkeep()
        assert key in driver.trees(), "what is wanted now is not collected"
        assert host.store.tree_keys(pool.row.id) == {key}
    host.check_trees()


def test_a_tree_that_a_crash_left_in_a_pool_goes_at_the_next_start(host: Host) -> None:
    stack = ExitStack()
    driver, key = stack.enter_context(rooms.room(host.engine, StreamFormat.BTRFS, MIB, WHAT))
    driver.create(key, TreeOptions())
    driver.attach(key, read_only=True)
    host.restart()
    host.check_trees()
    stack.pop_all()


def test_the_pool_with_the_most_room_is_used(tmp_path: Path, scratch: Scratch, place: Path) -> None:
    small = scratch.make("ext4", size_bytes=128 * MIB)
    host = Host(tmp_path / "host", {"directory": small / "pool", "btrfs": place / "btrfs"})
    with rooms.room(host.engine, StreamFormat.TAR, MIB, WHAT) as (driver, _):
        assert driver is host.pool("btrfs").driver
    host.upkeep()
    host.vanish()


@pytest.mark.parametrize("form", StreamFormat)
def test_without_a_pool_that_takes_it_there_is_room_under_the_root(bare: Host, form: StreamFormat) -> None:
    bare.engine = replace(bare.engine, limits=Limits(reserve=1.0))  # whatever is in the pool, too little is left
    with rooms.room(bare.engine, form, MIB, WHAT) as (driver, key):
        assert driver.formats[0] is form
        driver.create(key, driver.complete(TreeOptions()))
        (driver.attach(key, read_only=False) / "file").write_text("content")
        driver.detach(key)
    bare.check_trees()


def test_several_may_be_used_at_once(bare: Host) -> None:
    with (
        rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT) as (first, key),
        rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT) as (second, other),
    ):
        first.create(key, TreeOptions())
        assert second.trees() == set()
        second.create(other, TreeOptions())
    bare.check_trees()


def test_a_root_on_btrfs_needs_no_image(place: Path) -> None:
    host = Host(place, {"directory": place / "plain"})
    with rooms.room(host.engine, StreamFormat.BTRFS, MIB, WHAT) as (driver, key):
        driver.create(key, TreeOptions())
        assert not loops_under(host.root)
        assert not [entry for entry in mount.table() if Path(entry.mount_point).is_relative_to(host.root)]
    host.check_trees()
    host.vanish()
    place.rmdir()


def test_what_fails_inside_leaves_nothing(bare: Host) -> None:
    def fail() -> None:
        with rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT) as (driver, key):
            driver.create(key, TreeOptions())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    bare.check_trees()


def test_too_little_room_is_refused_with_the_figures(bare: Host) -> None:
    total, _ = fs.capacity(bare.root)
    text = r"needs .* TiB, and neither a pool that takes it has so much free nor .*/root, which has .* GiB"
    with pytest.raises(Unusable, match=text), rooms.room(bare.engine, StreamFormat.BTRFS, 9 * total + (1 << 40), WHAT):
        pass
    bare.check_trees()


def test_a_pool_without_the_room_is_passed_over(tmp_path: Path, scratch: Scratch, place: Path) -> None:
    small = scratch.make("btrfs", size_bytes=256 * MIB)
    host = Host(tmp_path / "host", {"btrfs": small / "pool", "directory": place / "plain"})
    with rooms.room(host.engine, StreamFormat.BTRFS, 512 * MIB, WHAT) as (driver, _):
        assert driver is not host.pool("btrfs").driver
    host.check_trees()
    host.vanish()


def test_a_host_without_the_tools_says_which_are_missing(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing", list)
    text = f"{WHAT}: mkfs.btrfs is not installed"
    with pytest.raises(Unsupported, match=text), rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT):
        pass
    bare.check_trees()


def test_a_kernel_without_btrfs_says_so(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mount, "mount", refuse)
    text = f"{WHAT}: this kernel knows no btrfs"
    with pytest.raises(Unsupported, match=text), rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT):
        pass
    bare.check_trees()


def test_an_engine_that_can_make_none_says_so(bare: Host) -> None:
    engine = replace(bare.engine, make_scratch=None)
    with pytest.raises(Unsupported, match="no pool of this host"), rooms.room(engine, StreamFormat.BTRFS, MIB, WHAT):
        pass


def test_what_a_crash_left_under_the_root_is_swept(bare: Host) -> None:
    stack = ExitStack()
    driver, key = stack.enter_context(rooms.room(bare.engine, StreamFormat.BTRFS, MIB, WHAT))
    driver.create(key, TreeOptions())
    (driver.attach(key, read_only=False) / "file").write_text("content")
    stack.pop_all()
    bare.restart()
    bare.check_trees()
    assert not loops_under(bare.root)


def test_what_cannot_be_swept_hinders_nobody(bare: Host, caplog: pytest.LogCaptureFixture) -> None:
    left = bare.root / "scratch" / "left"
    left.mkdir(parents=True)
    mount.mount("tmpfs", left, fs_type="tmpfs")
    busy = os.open(left, os.O_RDONLY)
    bare.restart()
    os.close(busy)
    assert "scratch" in caplog.text
    bare.restart()
    bare.check_trees()


def test_a_pool_for_a_moment_is_one_that_its_driver_can_open(tmp_path: Path) -> None:
    with daemon.make_scratch(StreamFormat.BLOCKS, tmp_path, WHAT) as driver:
        assert driver.trees() == set()
