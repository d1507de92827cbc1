"""kill -9 in the middle of verbs: what was acknowledged is true, and nothing is half done.

The short forms of `scripts/torture kills` and `scripts/torture daemon`, and what they and the state machine have found.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.engines import Bench, bench_on
from tests.memory import PowerCut
from tests.running import Running
from tests.scratch import Scratch
from tests.torture import daemons, kills
from tests.torture.bench import KINDS, MIB, Places, daemon_config, places_in_memory
from tests.torture.bench import Bench as RealBench
from voldriverd.engine import snapshots, volumes
from voldriverd.errors import Unusable
from voldriverd.kernel import btrfs, fs, image, ioctl, mount, qgroup, run
from voldriverd.model import VolumeState

pytestmark = pytest.mark.root

SEED: Final = 1
KILLS: Final = 12
"""Of engines, for each driver."""
DAEMON_KILLS: Final = 5


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with places_in_memory(tmp_path_factory.mktemp("kills")) as places:
        yield places


@contextmanager
def real_bench(places: Places, driver: str) -> Iterator[RealBench]:
    """Give an engine on a real driver, and leave nothing."""
    kind = next(each for each in KINDS if each.name == driver)
    bench = RealBench(kind, places.base / "bench", places.pools[kind.name] / "bench")
    try:
        yield bench
    finally:
        bench.vanish()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    place = tmp_path / "memory"
    place.mkdir()
    mount.mount("tmpfs", place, fs_type="tmpfs", data="size=64m")
    with bench_on(place) as bench:
        yield bench
    mount.unmount(place)


@pytest.mark.parametrize("driver", ["btrfs-quota", "loop", "directory"])
def test_what_had_ended_when_the_process_was_killed_is_true_and_what_had_not_is_whole_or_absent(
    places: Places, driver: str
) -> None:
    with real_bench(places, driver) as bench:
        kills.run(bench, seed=SEED, rounds=KILLS)


def test_a_daemon_that_is_killed_loses_nothing_of_its_clients_and_of_those_who_write_through_its_mounts(
    places: Places,
) -> None:
    with Running(places.base / "daemon", config=daemon_config(places)) as daemon:
        killing = daemons.Killing(daemon, seed=SEED)
        killing.run(DAEMON_KILLS)
        assert killing.ended > 0


def test_what_a_cut_verb_has_begun_gives_its_key_to_nobody_else(bench: Bench) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.switch.cut_at = len(bench.switch.steps) + 2  # after the commit of begin
    with pytest.raises(PowerCut):
        snapshots.revert(bench.engine, bench.volume("db"), first)
    bench.switch.cut_at = None
    bench.restart()
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("second"))
    snapshots.revert(bench.engine, bench.volume("db"), first)
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows()


def dies(_: Path) -> None:
    """Stand in for a step before which the process is killed."""
    raise PowerCut


def test_a_resize_that_dies_between_image_and_file_system_is_ended(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with real_bench(places, "loop") as bench:
        bench.create("db", fs="xfs", size="300M")
        monkeypatch.setattr(image, "grow_mounted", dies)
        with pytest.raises(PowerCut):
            volumes.resize(bench.engine, bench.volume("db"), 400 * MIB)
        monkeypatch.undo()
        bench.restart()
        assert bench.volume("db").size_bytes == 400 * MIB
        with bench.written("db") as place:
            assert fs.capacity(place)[0] > 310 * MIB


def test_a_larger_clone_that_dies_before_it_has_grown_is_ended(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    with real_bench(places, "loop") as bench:
        bench.create("db", fs="xfs", size="300M")
        monkeypatch.setattr(image, "grow_mounted", dies)
        with pytest.raises(PowerCut):
            bench.create("copy", size="400M", **{"from": "db"})
        monkeypatch.undo()
        bench.restart()
        with bench.written("copy") as place:
            assert fs.capacity(place)[0] > 310 * MIB


def test_a_resize_that_dies_and_cannot_be_ended_leaves_the_old_size_and_a_volume_that_mounts(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    if image.may_grow_mounted_ext4():
        monkeypatch.setattr(image, "may_grow_mounted_ext4", lambda: False)
    with real_bench(places, "loop") as bench:
        bench.create("db", size="32M")
        bench.mount("db")
        bench.switch.cut_at = len(bench.switch.steps) + 2  # after the commit that begins it
        with pytest.raises(PowerCut):
            volumes.resize(bench.engine, bench.volume("db"), 64 * MIB)
        bench.switch.cut_at = None
        bench.restart()
        assert (bench.volume("db").size_bytes, bench.volume("db").state) == (32 * MIB, VolumeState.INACTIVE)
        assert bench.mount("db", "another").is_dir()
        bench.unmount("db", "another")
        bench.unmount("db")
        volumes.resize(bench.engine, bench.volume("db"), 64 * MIB)
        assert bench.volume("db").size_bytes == 64 * MIB


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENOENT])
def test_a_quota_group_that_goes_while_it_is_read_is_none_and_keeps_no_pool_closed(
    places: Places, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Seen once in 400 kills: the kernel removes the group of a subvolume that it has just cleaned up."""

    def fail(path: Path | str, *_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number), str(path))

    with real_bench(places, "btrfs-quota") as bench:
        bench.create("db", size="32M")
        identity = bench.driver._file_system_id  # type: ignore[attr-defined] # of the btrfs driver
        with monkeypatch.context() as patch, btrfs.opened(bench.pool_root) as fd:
            patch.setattr(Path, "read_text", fail)
            patch.setattr(qgroup, "_read", fail)
            assert qgroup.group(identity, 256) is None
            assert qgroup.exclusive_bytes(identity, 256) is None
            qgroup.sweep(fd, identity)


def test_a_quota_group_that_the_kernel_is_not_done_with_keeps_no_pool_closed(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with real_bench(places, "btrfs-quota") as bench:
        bench.create("db", size="32M")
        with monkeypatch.context() as patch, btrfs.opened(bench.pool_root) as fd:
            patch.setattr(btrfs, "exists", lambda *_: False)
            patch.setattr(ioctl, "call", fail)
            qgroup.sweep(fd, bench.driver._file_system_id)  # type: ignore[attr-defined] # of the btrfs driver


def test_a_resize_that_its_tool_cannot_do_leaves_the_volume_whole_without_reflinks_too(places: Places) -> None:
    """The tool resize2fs 1.47 gives up in the middle of a growth by more than a factor of 1,024."""
    scratch = Scratch(places.base / "ext4")
    pool_root = scratch.make("ext4") / "pool"
    bench = RealBench(next(kind for kind in KINDS if kind.name == "loop"), places.base / "bench", pool_root)
    try:
        bench.create("db", size="64M")
        with bench.written("db") as place:
            (place / "file").write_text("precious")
        with suppress(Unusable):  # a kernel that may grow it mounted can do it
            volumes.resize(bench.engine, bench.volume("db"), 100 << 30)
        run.run(["e2fsck", "-f", "-n", str(pool_root / "trees" / bench.volume("db").tree)])
        with bench.written("db") as place:
            assert (place / "file").read_text() == "precious"
    finally:
        bench.vanish()
        scratch.close()
