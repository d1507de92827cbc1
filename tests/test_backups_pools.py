"""Backups from real pools of each driver to a directory: chains, removal, another host, and what happens meanwhile."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import pytest

from drivers.loop import Loop
from tests import backing
from tests.backing import Tripped, back_up, begin, freeze, present
from tests.scratch import Scratch
from tests.torture.bench import DEFAULT_MIB, KINDS, MIB, Bench, Kind, Places, content_of, places_in_memory
from voldriverd import model
from voldriverd.driver import Capability, StreamFormat
from voldriverd.engine import backups, chains, keeping, snapshots, targets, trash
from voldriverd.errors import InUse
from voldriverd.jobs import Job
from voldriverd.model import BackupState

pytestmark = pytest.mark.root

PLAIN_LOOP: Final = Kind("loop-ext4", "loop", partial(Loop, default_size_bytes=DEFAULT_MIB * MIB))
"""Images without reflinks."""
INSTANT: Final = [kind for kind in KINDS if kind.driver != "directory"]
"""Those that freeze a volume in use."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    base = tmp_path_factory.mktemp("backups")
    with places_in_memory(base) as made:
        scratch = Scratch(made.base / "plain")
        try:
            yield Places(made.base, {**made.pools, PLAIN_LOOP.name: scratch.make("ext4")})
        finally:
            scratch.close()


@pytest.fixture(params=[*KINDS, PLAIN_LOOP], ids=lambda kind: kind.name)
def bench(places: Places, request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind: Kind = request.param
    made = Bench(kind, places.base / "first", places.pools[kind.name] / "first")
    yield made
    made.vanish()


@pytest.fixture
def target(bench: Bench) -> model.Target:
    """A target, and a volume `db` with something in it."""
    bench.create("db")
    change(bench, 0)
    return backing.add_target(bench.engine, bench.base / "target")


def change(bench: Bench, number: int) -> dict[str, bytes]:
    """Change the volume `db` and return what it holds then."""
    with bench.written("db") as place:
        (place / "large").write_bytes(os.urandom(12 * MIB)) if number == 0 else None
        with (place / "log").open("ab") as log:
            log.write(b"%d\n" % number)
        (place / f"file{number}").write_bytes(os.urandom(10_000))
        (place / f"file{number - 2}").unlink(missing_ok=True)
        return content_of(place)


def has(bench: Bench, capability: Capability) -> bool:
    return capability in bench.driver.capabilities


def contents(bench: Bench, backup: model.Backup) -> dict[str, bytes]:
    with backing.shown(bench.engine, backup) as place:
        return content_of(place)


def test_each_backup_of_a_chain_brings_back_its_instant(bench: Bench, target: model.Target) -> None:
    held, made = [], []
    for number in range(1, 5):
        held.append(change(bench, number))
        made.append(back_up(bench.engine, bench.volume("db"), target))
    assert [each.message for each in made] == [None] * 4
    assert [contents(bench, each) for each in made] == held
    are_increments = [each.parent_uuid is not None for each in made]
    assert are_increments == [False, *[has(bench, Capability.DELTA)] * 3]
    if has(bench, Capability.DELTA):
        assert max(each.content_bytes for each in made[1:]) < made[0].content_bytes / 2
    assert max(each.stored_bytes for each in made[1:]) < made[0].stored_bytes * 3 / 4
    bench.upkeep()
    bench.check_trees()


def test_a_chain_begins_anew_and_loses_its_first_and_the_rest_stays(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "CHAIN_MAX", 2)
    held, made = [], []
    for number in range(1, 5):
        held.append(change(bench, number))
        made.append(back_up(bench.engine, bench.volume("db"), target))
    for each in made[:2]:
        keeping.finish_remove(bench.engine, keeping.begin_remove(bench.engine, each.id), Job("remove"))
    bench.now = lambda: datetime.now(UTC) + timedelta(days=3)
    keeping.prune(bench.engine, target.id, Job("prune"))
    assert [contents(bench, each) for each in made[2:]] == held[2:]
    checked = keeping.verify(bench.engine, made[3], Job("verify"), sample=1.0)
    assert (checked.message, checked.verified_at is not None) == (None, True)


def test_another_root_finds_restores_and_goes_on(bench: Bench, target: model.Target, places: Places) -> None:
    held, made = [], []
    for number in range(1, 4):
        held.append(change(bench, number))
        made.append(back_up(bench.engine, bench.volume("db"), target))
    second = Bench(bench.kind, places.base / "second", places.pools[bench.kind.name] / "second")
    try:
        there = targets.create(second.engine, model.TargetDraft("there", target.url))
        adopted = keeping.scan(second.engine, there.id, Job("scan")).adopted
        by_uuid = {each.uuid: each for each in adopted}
        assert [contents(second, by_uuid[each.uuid]) for each in made] == held
        second.create("db")
        mine = back_up(second.engine, second.volume("db"), there)
        assert (mine.state, mine.parent_uuid) == (BackupState.CREATED, None)
    finally:
        second.vanish()


def test_what_is_cut_off_is_taken_up_by_the_next_daemon(bench: Bench, target: model.Target) -> None:
    back_up(bench.engine, bench.volume("db"), target)
    held = change(bench, 1)
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    assert backups.finish(bench.engine, backup, Tripped(1, Job.stop)).state is BackupState.CREATING
    bench.reboot()
    bench.upkeep()
    (again,) = bench.store.creating_backups()
    made = backups.finish(bench.engine, again, Job("backup"))
    assert (made.state, made.message) == (BackupState.CREATED, None)
    assert contents(bench, made) == held
    bench.upkeep()
    bench.check_trees()


def test_a_cancelled_backup_leaves_all_as_it_was(bench: Bench, target: model.Target) -> None:
    first = back_up(bench.engine, bench.volume("db"), target)
    held = change(bench, 1)
    ended = back_up(bench.engine, bench.volume("db"), target, Tripped(1, Job.cancel))
    assert ended.state is BackupState.REMOVED
    bench.upkeep()
    bench.check_trees()
    assert [row.id for row in bench.store.backups_in(target.id)] == [first.id]
    assert contents(bench, back_up(bench.engine, bench.volume("db"), target)) == held


def test_what_happens_to_snapshot_and_volume_meanwhile(bench: Bench, target: model.Target) -> None:
    held = change(bench, 1)
    snapshot = freeze(bench.engine, bench.volume("db"), "one")
    backup = begin(bench.engine, snapshot, target)
    if has(bench, Capability.COW):
        snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    else:
        with pytest.raises(InUse, match="is being made of it"):
            snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    trashed = trash.remove(bench.engine, bench.volume("db"))
    with pytest.raises(InUse, match="is being made of it"):
        trash.purge(bench.engine, trashed)
    bench.upkeep()
    made = backups.finish(bench.engine, backup, Job("backup"))
    trash.purge(bench.engine, trashed)
    bench.upkeep()
    bench.check_trees()
    assert bench.driver.trees() == set()
    assert present(bench.engine, made).key is None
    assert contents(bench, made) == held


@pytest.mark.parametrize("bench", INSTANT, indirect=True, ids=lambda kind: kind.name)
def test_a_live_volume_is_backed_up_as_of_its_snapshot(bench: Bench, target: model.Target) -> None:
    with bench.written("db") as place:
        held = content_of(place)
        snapshot = freeze(bench.engine, bench.volume("db"))
        (place / "later").write_bytes(b"later")
    made = backups.finish(bench.engine, begin(bench.engine, snapshot, target), Job("backup"))
    assert contents(bench, made) == held


def test_a_base_is_compared_thoroughly_in_its_time(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "THOROUGH_EVERY", 2)
    for number in range(1, 4):
        held = change(bench, number)
        made = back_up(bench.engine, bench.volume("db"), target)
    assert contents(bench, made) == held
    assert made.format is bench.driver.formats[0] or made.format is StreamFormat.BLOCKS
