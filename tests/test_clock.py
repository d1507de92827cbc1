"""A clock that is set an hour back or forth: what goes by it, and what does not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.backing import add_target, back_up, freeze
from tests.engines import Bench
from voldriverd.engine import mounts, remembered, snapshots, space, trash, upkeep, use, volumes
from voldriverd.engine.context import Limits
from voldriverd.errors import InUse

pytestmark = pytest.mark.root

START: Final = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
NOBODY: Final = frozenset[str]()


class Clock:
    """A clock that can be set, and the time that passes meanwhile."""

    def __init__(self, bench: Bench) -> None:
        self._set = timedelta(0)
        self._passed_s = 0.0
        bench.now = self.now
        object.__setattr__(bench.engine, "now", self.now)
        object.__setattr__(bench.engine, "uptime", self.uptime)

    def now(self) -> datetime:
        return START + self._set + timedelta(seconds=self._passed_s)

    def uptime(self) -> float:
        return self._passed_s

    def set(self, jump: timedelta) -> None:
        self._set += jump

    def wait(self, seconds: float) -> None:
        self._passed_s += seconds


@pytest.fixture
def clock(bench: Bench) -> Clock:
    return Clock(bench)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_holder_is_as_old_as_it_is_whatever_the_clock_says(bench: Bench, clock: Clock, jump: timedelta) -> None:
    bench.create("db")
    bench.mount("db", "c1")
    clock.set(jump)
    mounts.reconcile(bench.engine, [bench.volume("db")], NOBODY)
    assert bench.store.mounts(bench.volume("db").id) != (), "its container may still be starting"
    with pytest.raises(InUse, match="container mount c1"):
        use.ensure_unused(bench.engine, bench.volume("db"), "cannot remove volume db")
    clock.wait(mounts.SETTLING_S)
    mounts.reconcile(bench.engine, [bench.volume("db")], NOBODY)
    assert bench.store.mounts(bench.volume("db").id) == ()


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_holder_from_before_the_last_start_does_not_bar_the_way_for_an_hour(
    bench: Bench, clock: Clock, jump: timedelta
) -> None:
    bench.create("db")
    bench.mount("db", "c1")
    clock.wait(mounts.SETTLING_S)
    bench.restart()
    clock.set(jump)
    use.ensure_unused(bench.engine, bench.volume("db"), "cannot remove volume db")
    trash.remove(bench.engine, bench.volume("db"))


def test_the_trash_goes_by_the_clock_and_by_no_more_than_it_jumps(bench: Bench, clock: Clock) -> None:
    object.__setattr__(bench.engine, "limits", Limits(trash_retention_s=7_200, reserve=0.0))
    bench.create("db")
    trash.remove(bench.engine, bench.volume("db"))
    clock.set(HOUR)
    assert upkeep.expired_volumes(bench.engine) == []
    clock.wait(3_600)
    assert [row.name for row in upkeep.expired_volumes(bench.engine)] == ["db"]
    clock.set(-HOUR)
    assert upkeep.expired_volumes(bench.engine) == []
    clock.wait(3_600)
    assert [row.name for row in upkeep.expired_volumes(bench.engine)] == ["db"]


def test_snapshots_expire_by_the_clock(bench: Bench, clock: Clock) -> None:
    bench.create("db")
    volume = bench.volume("db")
    wish = snapshots.Wish("one", expires_at=clock.now() + 2 * HOUR)
    snapshots.create(bench.engine, volume, wish)
    clock.set(-HOUR)
    clock.wait(7_200)
    assert upkeep.expired_snapshots(bench.engine) == []
    clock.set(HOUR)
    assert [row.name for row in upkeep.expired_snapshots(bench.engine)] == ["one"]


def test_snapshots_are_in_the_order_in_which_they_were_made(bench: Bench, clock: Clock) -> None:
    bench.create("db")
    for name in ("first", "second", "third"):
        freeze(bench.engine, bench.volume("db"), name)
        clock.set(-HOUR)
    assert [row.name for row in bench.store.snapshots(bench.volume("db").id)] == ["first", "second", "third"]
    assert bench.store.snapshot_summary(bench.volume("db").id).newest[0] == "third"


def test_reverts_an_hour_back_have_names_of_their_own(bench: Bench, clock: Clock) -> None:
    bench.create("db")
    freeze(bench.engine, bench.volume("db"), "one")
    for content, jump in (("a", HOUR), ("b", -HOUR), ("c", HOUR)):
        bench.write("db", content)
        snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))
        clock.set(jump)
    kept = [row for row in bench.store.snapshots(bench.volume("db").id) if row.name != "one"]
    assert [bench.read_key(row.tree) for row in kept] == ["a", "b", "c"]
    assert len({row.name for row in kept}) == 3


def test_backups_build_on_the_one_before_and_bases_go_in_the_order_of_ids(
    bench: Bench, clock: Clock, tmp_path: Path
) -> None:
    target = add_target(bench.engine, tmp_path / "target")
    made = []
    for name in ("one", "two"):
        bench.create(name)
        made.append(back_up(bench.engine, bench.volume(name), target))
        clock.set(-HOUR)
    again = back_up(bench.engine, bench.volume("two"), target)
    assert again.parent_uuid == made[1].uuid
    assert again.taken_at < made[1].taken_at
    pool = next(iter(bench.engine.pools))
    assert [row.id for row in space.bases_in_order(bench.engine, pool)] == [made[0].id, again.id]


def test_of_two_kept_catalogues_the_later_one_counts(bench: Bench) -> None:
    bench.create("db")
    volume = bench.volume("db")
    for description, now in (("old", START), ("new", START - HOUR)):
        volumes.set_properties(bench.engine, bench.volume("db"), description=description)
        bench.catalogue.save()
        copy = (bench.pool_root / remembered.FILE_NAME).read_bytes()
        remembered.keep(bench.pool_root, frozenset({volume.tree}), now)
        (bench.pool_root / remembered.FILE_NAME).write_bytes(copy)
    (bench.pool_root / remembered.FILE_NAME).unlink()
    assert remembered.read(bench.pool_root).volumes[volume.id].description == "new"
