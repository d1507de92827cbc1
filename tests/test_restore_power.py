"""The power switch in restores: a cut at every single step, then recovery, and what it leaves taken up.

An existing volume is as before or as restored, and says so; a new one is absent, or there in the end with everything.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.engines import Bench
from tests.restoring import restore, restore_as
from voldriverd import model
from voldriverd.engine import backups, restores, snapshots, supplies, targets
from voldriverd.jobs import Job
from voldriverd.model import SnapshotState, VolumeState

pytestmark = pytest.mark.root

STEPS_MAX: Final = 60
"""No restore has more; a loop that does not end fails here."""

either_way = pytest.mark.parametrize("loss", ["nothing", "all"])


@pytest.fixture
def prepared(bench: Bench, tmp_path: Path) -> Iterator[Callable[[], model.Backup]]:
    """Return what makes a bench anew, with a volume `db` that says `now`, and a backup of when it said `two`."""
    count = 0

    def prepare() -> model.Backup:
        nonlocal count
        count += 1
        place = tmp_path / f"target{count}"
        place.mkdir()
        bench.renew()
        target = targets.create(bench.engine, model.TargetDraft("shelf", f"file://{place}"))
        bench.create("db", size="2M")
        bench.create("other", size="1M")
        bench.write("other", "as it was")
        made = [_backup(bench, target, number) for number in ("one", "two")]
        assert made[1].parent_uuid == made[0].uuid
        bench.write("db", "now")
        bench.upkeep()
        return made[1]

    yield prepare
    assert count > 1


def _backup(bench: Bench, target: model.Target, says: str) -> model.Backup:
    bench.write("db", says)
    snapshot = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish(says))
    made = backups.finish(bench.engine, backups.begin(bench.engine, snapshot, target, backups.Wish()), Job("backup"))
    assert made.state is model.BackupState.CREATED, made.message
    return made


def _recover(bench: Bench, loss: str) -> None:
    bench.unmount_all()
    bench.lose_power(loss)
    bench.restart()


def _take_up(bench: Bench, backup: model.Backup) -> None:
    """Do what the service does at its start."""
    for volume in restores.resumable(bench.engine):
        source = restores.backup_of(bench.engine, restores.source_of(volume), "cannot restore")
        assert source.id == backup.id
        with closing(supplies.look(bench.engine, source, work=Job("restore"), what="cannot restore")) as supply:
            arrived = restores.bring_new(bench.engine, volume, supply, Job("restore"))
            restores.finish_new(bench.engine, volume.id, supply, arrived)


def _check_rest(bench: Bench, where: str) -> None:
    """See that every volume rests, and that no tree is left that nobody points to."""
    assert {row.state for row in bench.store.volumes()} == {VolumeState.INACTIVE}, where
    assert {row.state for row in bench.store.snapshots()} == {SnapshotState.CREATED}, where
    bench.upkeep()
    (pool,) = bench.engine.pools
    assert not pool.orphans, where
    owned = bench.store.pointed_keys(pool.row.id)
    assert bench.driver.trees() == owned, where
    assert bench.tree_rows() == owned, where


@either_way
def test_an_existing_volume_is_as_before_or_as_restored(
    bench: Bench, prepared: Callable[[], model.Backup], loss: str
) -> None:
    seen = set()
    for step in range(STEPS_MAX):
        backup = prepared()
        was_cut = bench.is_cut(step, lambda: restore(bench.engine, bench.volume("other"), backup, Job("restore")))  # noqa: B023 - it is called at once
        where = f"after {bench.switch.steps}"
        has_begun = "before commit" in bench.switch.steps
        _recover(bench, loss)
        _check_rest(bench, where)
        volume = bench.volume("other")
        kept = [bench.read_key(each.tree) for each in bench.store.snapshots(volume.id)]
        found = bench.read("other"), tuple(kept), bench.size("other")
        before = "as it was", (), (1 << 20, 1 << 20)
        after = "two", ("as it was",), (2 << 20, 2 << 20)
        assert found in ([before, after] if was_cut else [after]), where
        is_told = (volume.message or "").endswith("was interrupted; the volume is as it was before")
        assert is_told == (has_begun and found == before), where
        seen.add(found)
        if not was_cut:
            assert seen == {before, after}
            return
    pytest.fail(f"a restore has more than {STEPS_MAX} steps")


@either_way
def test_a_new_volume_is_absent_or_there_in_the_end(
    bench: Bench, prepared: Callable[[], model.Backup], loss: str
) -> None:
    for step in range(STEPS_MAX):
        backup = prepared()
        was_cut = bench.is_cut(step, lambda: restore_as(bench.engine, "new", backup, {}, Job("restore")))  # noqa: B023 - it is called at once
        where = f"after {bench.switch.steps}"
        has_begun = "before commit" in bench.switch.steps
        _recover(bench, loss)
        assert (bench.store.volume_named("new") is not None) == has_begun, where
        _take_up(bench, backup)
        _check_rest(bench, where)
        if has_begun:
            assert bench.read("new") == "two", where
            assert bench.size("new") == (2 << 20, 2 << 20), where
            assert bench.volume("new").message is None, where
        if not was_cut:
            return
    pytest.fail(f"a restore has more than {STEPS_MAX} steps")


@either_way
def test_what_is_taken_up_may_be_cut_again(bench: Bench, prepared: Callable[[], model.Backup], loss: str) -> None:
    for step in range(STEPS_MAX):
        backup = prepared()
        assert bench.is_cut(3, lambda: restore_as(bench.engine, "new", backup, {}, Job("restore")))  # noqa: B023 - it is called at once
        _recover(bench, loss)
        was_cut = bench.is_cut(step, lambda: _take_up(bench, backup))  # noqa: B023 - it is called at once
        where = f"after {bench.switch.steps}"
        _recover(bench, loss)
        _take_up(bench, backup)
        _check_rest(bench, where)
        assert bench.read("new") == "two", where
        if not was_cut:
            assert step > 0
            return
    pytest.fail(f"a restore has more than {STEPS_MAX} steps")


@either_way
def test_one_that_nobody_wants_any_more_leaves_nothing(
    bench: Bench, prepared: Callable[[], model.Backup], loss: str
) -> None:
    for step in range(STEPS_MAX):
        backup = prepared()
        assert bench.is_cut(4, lambda: restore_as(bench.engine, "new", backup, {}, Job("restore")))  # noqa: B023 - it is called at once
        _recover(bench, loss)
        (volume,) = restores.resumable(bench.engine)
        was_cut = bench.is_cut(step, lambda: restores.give_up_new(bench.engine, volume.id))  # noqa: B023 - it is called at once
        _recover(bench, loss)
        _take_up(bench, backup)
        _check_rest(bench, f"after {bench.switch.steps}")
        if not was_cut:
            assert bench.store.volume_named("new") is None
            return
    pytest.fail(f"giving up has more than {STEPS_MAX} steps")
