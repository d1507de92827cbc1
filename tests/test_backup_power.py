"""The power switch in the middle of what is done with backups: a cut at every single step, then recovery.

After each: what was begun ends as if nothing had been, every backup that is listed gives back what it was made of, and
no tree is lost or leaked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from tests import backing
from tests.engines import Bench
from voldriverd import model
from voldriverd.engine import backups, keeping, targets, trash
from voldriverd.jobs import Job
from voldriverd.model import BackupState

pytestmark = pytest.mark.root

STEPS_MAX: Final = 60
"""No verb has more; a loop that does not end fails here."""
_CONTENT: Final = {"1b1": "one", "1b2": "two"}


@dataclass(frozen=True)
class Verb:
    """One verb on a bench with the backup 1b1, and what may be listed after it was cut off and after it was done."""

    run: Callable[[Bench], object]
    cut: frozenset[str]
    done: frozenset[str]


def _target(bench: Bench) -> model.Target:
    return bench.store.targets()[0]


def _row(bench: Bench, backup_id: int) -> model.Backup:
    row = bench.store.backup(model.BackupId(backup_id))
    assert row is not None
    return row


def _back_up(bench: Bench) -> None:
    backup = backing.begin(bench.engine, bench.snapshot("db", "two"), _target(bench))
    assert backups.finish(bench.engine, backup, Job("backup")).state is BackupState.CREATED


def _cancel(bench: Bench) -> None:
    backup = backing.begin(bench.engine, bench.snapshot("db", "two"), _target(bench))
    assert backups.finish(bench.engine, backup, backing.Tripped(1, Job.cancel)).state is BackupState.REMOVED


def _stop(bench: Bench) -> None:
    backup = backing.begin(bench.engine, bench.snapshot("db", "two"), _target(bench))
    backups.finish(bench.engine, backup, backing.Tripped(1, Job.stop))


def _fail(bench: Bench) -> None:
    backup = backing.begin(bench.engine, bench.snapshot("db", "two"), _target(bench))
    place, away = bench.root / "target", bench.root / "away"
    place.rename(away)
    try:
        assert backups.finish(bench.engine, backup, Job("backup")).state is BackupState.ERROR
    finally:
        away.rename(place)


def _remove(bench: Bench) -> None:
    going = keeping.begin_remove(bench.engine, model.BackupId(1))
    keeping.finish_remove(bench.engine, going, Job("remove"))


def _drop_base(bench: Bench) -> None:
    backups.drop_base(bench.engine, _row(bench, 1))


def _purge(bench: Bench) -> None:
    trash.purge(bench.engine, trash.remove(bench.engine, bench.volume("db")))


def _remove_target(bench: Bench) -> None:
    targets.remove(bench.engine, _target(bench).id)


BOTH: Final = frozenset({"1b1", "1b2"})
FIRST: Final = frozenset({"1b1"})
VERBS: Final = {
    "back up": Verb(_back_up, BOTH, BOTH),
    "cancel": Verb(_cancel, BOTH, FIRST),
    "stop": Verb(_stop, BOTH, BOTH),
    "fail": Verb(_fail, BOTH, FIRST),
    "remove": Verb(_remove, FIRST, frozenset()),
    "drop base": Verb(_drop_base, FIRST, FIRST),
    "purge": Verb(_purge, FIRST, FIRST),
    "remove target": Verb(_remove_target, FIRST, frozenset()),
}


def _prepare(bench: Bench) -> None:
    bench.create("db")
    target = backing.add_target(bench.engine, bench.root / "target")
    for name in ("one", "two"):
        bench.write("db", name)
        backing.freeze(bench.engine, bench.volume("db"), name)
    made = backups.finish(bench.engine, backing.begin(bench.engine, bench.snapshot("db", "one"), target), Job("backup"))
    assert made.state is BackupState.CREATED
    bench.upkeep()


@pytest.mark.parametrize("loss", ["nothing", "all"])
@pytest.mark.parametrize("name", VERBS)
def test_a_cut_at_every_step_leaves_whole_backups_and_no_others(bench: Bench, name: str, loss: str) -> None:
    verb = VERBS[name]
    for step in range(STEPS_MAX):
        bench.renew()
        _prepare(bench)
        was_cut = bench.is_cut(step, lambda: verb.run(bench))
        steps = list(bench.switch.steps)
        bench.unmount_all()
        bench.lose_power(loss)
        bench.restart()
        _check(bench, verb, was_cut=was_cut, where=f"after {steps}")
        if not was_cut:
            assert step > 0, "a verb without a step"
            return
    pytest.fail(f"{name} has more than {STEPS_MAX} steps")


def _check(bench: Bench, verb: Verb, *, was_cut: bool, where: str) -> None:
    for backup in bench.store.creating_backups():
        assert backups.finish(bench.engine, backup, Job("backup")).state is BackupState.CREATED, where
    for backup in bench.store.removing_backups():
        assert keeping.finish_remove(bench.engine, backup, Job("remove")).state is BackupState.REMOVED, where
    listed = [row for target in bench.store.targets() for row in bench.store.backups_in(target.id)]
    made = [row for row in listed if row.state is BackupState.CREATED]
    names = {row.shown_name for row in made}
    assert names == verb.done or (was_cut and names <= verb.cut), where
    for row in made:
        assert backing.read(bench.engine, row).decode() == _CONTENT[row.shown_name], where
    _check_trees(bench, where)
    _check_target(bench, {row.uuid for row in made}, where)


def _check_trees(bench: Bench, where: str) -> None:
    bench.upkeep()
    bases = [row.key for row in bench.store.backups_with_trees()]
    assert len(bases) <= 1, where
    pointed = {key for pool in bench.engine.pools for key in bench.store.pointed_keys(pool.row.id)}
    assert bench.driver.trees() == pointed == bench.tree_rows(), where
    assert not any(pool.orphans for pool in bench.engine.pools), where


def _check_target(bench: Bench, uuids: set[str], where: str) -> None:
    """Check that the target lists what the rows list; where it was removed, its content stays."""
    for target in bench.store.targets():
        with targets.opened(bench.engine, target.id) as repository:
            listed = [each for each in repository.manifests() if not isinstance(each, Exception)]
        assert {each.uuid for each in listed} == uuids, where
