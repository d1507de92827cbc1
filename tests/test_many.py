"""What verbs ask of the database, in steps of SQLite's machine, beside what a host has: no clock, no chance."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests import backing
from tests.engines import Bench
from voldriverd import model
from voldriverd.driver import Key
from voldriverd.engine import snapshots, trash, upkeep, volumes
from voldriverd.store.write import Write

pytestmark = pytest.mark.root

MANY: Final = 200
EACH: Final = 5
SPARE: Final = 100
"""Steps that a verb may take more beside so many rows: a tree of them is deeper, a page of it fuller."""


class Counting:
    """The steps of both connections of a bench, verb by verb."""

    def __init__(self, bench: Bench) -> None:
        self._steps = 0
        for connection in (bench.store._connection, bench.store._reader):
            connection.set_progress_handler(self._count, 1)

    def during(self, work: Callable[[], object]) -> int:
        self._steps = 0
        work()
        return self._steps

    def _count(self) -> None:
        self._steps += 1


def verbs(bench: Bench, target: model.Target) -> dict[str, Callable[[], object]]:
    """Return what is done with one volume from its beginning to its end, in order."""

    def snapshot() -> model.Snapshot:
        return bench.snapshot("db", "one")

    engine = bench.engine
    return {
        "create": lambda: bench.create("db"),
        "mount": lambda: bench.mount("db"),
        "unmount": lambda: bench.unmount("db"),
        "set": lambda: volumes.set_properties(engine, bench.volume("db"), description="new"),
        "resize": lambda: volumes.resize(engine, bench.volume("db"), 1 << 30),
        "snapshot": lambda: snapshots.create(engine, bench.volume("db"), snapshots.Wish("one")),
        "clone": lambda: bench.create("copy", **{"from": "db@one"}),
        "back up": lambda: backing.back_up(engine, bench.volume("db"), target),
        "revert": lambda: snapshots.revert(engine, bench.volume("db"), snapshot()),
        "remove snapshot": lambda: snapshots.remove(engine, bench.volume("db"), snapshot()),
        "collect": lambda: upkeep.collect(engine),
        "expired": lambda: upkeep.expired_snapshots(engine),
        "remove": lambda: trash.remove(engine, bench.volume("db")),
        "restore": lambda: trash.restore(engine, bench.trashed("db")),
        "remove again": lambda: trash.remove(engine, bench.volume("db")),
        "purge": lambda: trash.purge(engine, bench.trashed("db")),
        "tidy": lambda: upkeep.tidy(engine),
        "remove copy": lambda: trash.remove(engine, bench.volume("copy")),
        "purge copy": lambda: trash.purge(engine, bench.trashed("copy")),
    }


def fill(bench: Bench, target: model.Target) -> None:
    """Give the host rows of many volumes, snapshots and backups, as if it had them."""
    row = bench.create("full")
    backup = backing.back_up(bench.engine, row, target)
    snapshot = snapshots.create(bench.engine, row, snapshots.Wish("full"))

    def change(write: Write) -> None:
        for number in range(1000, 1000 + MANY):
            key = Key(f"v{number}.1")
            write.add_tree(model.Tree(key, row.pool_id, bench.plain, None, is_settled=True))
            volume = replace(row, id=model.VolumeId(number), name=f"v{number}", uuid=f"u{number}", key=key)
            write.put_volume(volume)
            for other in range(number * EACH, (number + 1) * EACH):
                key = Key(f"s{other}")
                write.add_tree(model.Tree(key, row.pool_id, bench.plain, None, is_settled=True))
                of_it = replace(snapshot, id=model.SnapshotId(other), volume_id=volume.id, name=f"s{other}", key=key)
                write.put_snapshot(replace(of_it, uuid=f"us{other}"))
                of_that = replace(backup, id=model.BackupId(other), volume_id=volume.id, snapshot_id=of_it.id, key=None)
                write.put_backup(replace(of_that, uuid=f"ub{other}"))

    bench.store.commit(change)


def test_no_verb_asks_more_of_the_database_beside_many_volumes_and_snapshots(bench: Bench, tmp_path: Path) -> None:
    target = backing.add_target(bench.engine, tmp_path / "target")
    counting = Counting(bench)
    for work in verbs(bench, target).values():  # what the first verbs leave, as tombstones, is there both times
        work()
    alone = {verb: counting.during(work) for verb, work in verbs(bench, target).items()}
    fill(bench, target)
    beside = {verb: counting.during(work) for verb, work in verbs(bench, target).items()}
    assert all(alone.values())
    assert {verb: (alone[verb], steps) for verb, steps in beside.items() if steps > alone[verb] + SPARE} == {}
