"""Backups through the engine, on the in-memory driver: what is made on what, and what is left of what fails."""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import backing
from tests.backing import Tripped, back_up, begin, freeze, objects, present
from tests.engines import Bench, bench_on
from voldriverd import model
from voldriverd.backup.faults import Cancelled
from voldriverd.backup.repository import Repository
from voldriverd.driver import Capability, Key, Part, Stream, StreamFormat
from voldriverd.engine import backups, catalogue, chains, keeping, remembered, snapshots, space, targets, trash
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.jobs import Job
from voldriverd.kernel import mount, nfs
from voldriverd.model import BackupState, Health

pytestmark = pytest.mark.root


@pytest.fixture
def place(bench: Bench) -> Path:
    """A directory for backups."""
    return bench.root.parent / "target"


@pytest.fixture
def target(bench: Bench, place: Path) -> model.Target:
    """A target in it, and a volume `db` that holds `one`."""
    bench.create("db")
    bench.write("db", "one")
    return backing.add_target(bench.engine, place)


def make(bench: Bench, target: model.Target, content: str, job: Job | None = None) -> model.Backup:
    """Make a backup of another content."""
    bench.write("db", content)
    return back_up(bench.engine, bench.volume("db"), target, job)


def trees(bench: Bench) -> set[Key]:
    """Return the trees of backups, after upkeep."""
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows()
    return {key for key in bench.driver.trees() if key.startswith("b")}


def read(bench: Bench, backup: model.Backup) -> str:
    return backing.read(bench.engine, backup).decode()


def run(bench: Bench, backup: model.Backup, job: Job | None = None) -> model.Backup:
    return backups.finish(bench.engine, backup, job or Job("backup"))


@contextmanager
def gone(place: Path) -> Iterator[None]:
    """Take a target away for the block."""
    away = place.with_name("away")
    place.rename(away)
    yield
    away.rename(place)


# What is made on what.


def test_the_first_is_whole_and_each_later_one_builds_on_the_one_before(bench: Bench, target: model.Target) -> None:
    made = [make(bench, target, content) for content in ("one", "two", "three")]
    assert [each.state for each in made] == [BackupState.CREATED] * 3
    assert [each.parent_uuid for each in made] == [None, made[0].uuid, made[1].uuid]
    assert [each.message for each in made] == [None] * 3
    assert all(each.format is StreamFormat.BTRFS and each.content_bytes > 0 for each in made)
    assert [read(bench, each) for each in made] == ["one", "two", "three"]


def test_only_the_tree_of_the_last_is_kept_as_a_base(bench: Bench, target: model.Target) -> None:
    first = make(bench, target, "one")
    assert (trees(bench), first.key) == ({"b1"}, "b1")
    second = make(bench, target, "two")
    assert (trees(bench), second.key, present(bench.engine, first).key) == ({"b2"}, "b2", None)


def test_each_target_has_a_base_of_its_own(bench: Bench, target: model.Target, place: Path) -> None:
    other = backing.add_target(bench.engine, place.with_name("other"), "far")
    make(bench, target, "one")
    assert make(bench, other, "two").parent_uuid is None
    third = make(bench, target, "three")
    assert third.parent_uuid is not None
    assert trees(bench) == {"b2", "b3"}
    assert read(bench, third) == "three"


def test_a_chain_is_not_longer_than_its_limit(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "CHAIN_MAX", 2)
    made = [make(bench, target, str(number)) for number in range(7)]
    assert [each.parent_uuid is None for each in made] == [True, False, False] * 2 + [True]
    assert {each.message for each in made} == {None}
    assert [read(bench, each) for each in made] == [str(number) for number in range(7)]


@pytest.mark.parametrize("are_rows_kept", [True, False], ids=["by the rows", "by the manifests"])
def test_a_chain_ends_when_its_increments_come_to_more_than_its_whole_one(
    bench: Bench, target: model.Target, *, are_rows_kept: bool
) -> None:
    first = make(bench, target, "one")
    second = make(bench, target, "x" * first.content_bytes)
    third = make(bench, target, "two")
    if not are_rows_kept:
        forgotten = replace(present(bench.engine, first), state=BackupState.REMOVED)
        bench.store.commit(lambda write: write.put_backup(forgotten))
    assert [each.parent_uuid is None for each in (first, second, third)] == [True, False, True]
    assert second.content_bytes > first.content_bytes


def test_every_tenth_increment_is_thorough(bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    send = bench.driver.send

    def note(key: Key, base: Key | None = None, *, is_thorough: bool = False) -> Any:
        asked.append(is_thorough)
        return send(key, base, is_thorough=is_thorough)

    monkeypatch.setattr(bench.driver, "send", note)
    make(bench, target, "x" * 500_000)
    for number in range(21):
        make(bench, target, str(number % 2))
    assert [number for number, is_thorough in enumerate(asked) if is_thorough] == [10, 20]


def test_what_cannot_be_a_base_is_kept_by_nobody(memory_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench_on(memory_root) as bench:
        monkeypatch.setattr(bench.driver, "capabilities", Capability.COW | Capability.INSTANT)
        bench.create("db")
        target = backing.add_target(bench.engine, bench.root.parent / "target")
        made = [make(bench, target, content) for content in ("one", "two")]
        assert [each.parent_uuid for each in made] == [None, None]
        assert [each.key for each in made] == [None, None]
        assert trees(bench) == set()


def test_a_stream_of_another_format_is_whole_and_leaves_the_base_as_it_is(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(bench, target, "one")
    send = bench.driver.send

    @contextmanager
    def send_tar(key: Key, _base: Key | None = None, *, is_thorough: bool = False) -> Iterator[Stream]:
        del is_thorough
        with send(key, wanted=StreamFormat.TAR) as stream:
            yield replace(stream, notes=("it has nested subvolumes",))

    with monkeypatch.context() as patched:
        patched.setattr(bench.driver, "send", send_tar)
        second = make(bench, target, "two")
    assert (second.format, second.parent_uuid, second.key) == (StreamFormat.TAR, None, None)
    assert second.message == "it has nested subvolumes"
    third = make(bench, target, "three")
    assert third.parent_uuid == first.uuid
    assert [read(bench, each) for each in (first, second, third)] == ["one", "two", "three"]


@pytest.mark.parametrize("lost", ["tree", "manifest", "content of the manifest"])
def test_a_base_of_which_something_is_lost_makes_a_whole_one_that_says_so(
    bench: Bench, target: model.Target, place: Path, lost: str
) -> None:
    make(bench, target, "one")
    manifest = objects(place, "backups")[0]
    if lost == "tree":
        bench.driver.remove(Key("b1"))
    elif lost == "manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(b"x" * 100)
    second = make(bench, target, "two")
    told = {"tree": "is missing from the pool", "manifest": "is not in the target any more"}.get(lost, "is damaged")
    assert second.message is not None
    assert second.message.startswith("whole: ")
    assert told in second.message
    assert (second.state, second.parent_uuid, read(bench, second)) == (BackupState.CREATED, None, "two")


def test_a_chain_of_which_a_link_is_lost_here_and_there_makes_a_whole_one_that_says_so(
    bench: Bench, target: model.Target, place: Path
) -> None:
    first, _ = make(bench, target, "one"), make(bench, target, "two")
    bench.store.commit(lambda write: write.delete_backup(first))
    (manifest,) = (path for path in objects(place, "backups") if path.name == first.uuid)
    manifest.unlink()
    third = make(bench, target, "three")
    assert third.message == "whole: backup 1b2, which it would have built on, is damaged: it is missing"
    assert (third.parent_uuid, read(bench, third)) == (None, "three")


# Begin.


def test_a_backup_tells_where_it_comes_from(bench: Bench, target: model.Target) -> None:
    volume = bench.volume("db")
    snapshot = freeze(bench.engine, volume, "before")
    backup = begin(bench.engine, snapshot, target, name="nightly", description="why", is_of_snapshot=True)
    assert (backup.volume_id, backup.volume_uuid, backup.volume_name) == (volume.id, volume.uuid, "db")
    assert (backup.snapshot_id, backup.snapshot_uuid, backup.snapshot_name) == (snapshot.id, snapshot.uuid, "before")
    assert (backup.name, backup.description, backup.is_of_snapshot) == ("nightly", "why", True)
    assert (backup.taken_at, backup.driver, backup.state) == (snapshot.created_at, "memory", BackupState.CREATING)


def test_the_same_snapshot_is_backed_up_once_to_a_target(bench: Bench, target: model.Target, place: Path) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"))
    first = begin(bench.engine, snapshot, target)
    assert begin(bench.engine, snapshot, target) == first
    made = run(bench, first)
    assert begin(bench.engine, snapshot, target) == made
    other = backing.add_target(bench.engine, place.with_name("other"), "far")
    assert begin(bench.engine, snapshot, other).id != made.id


def test_the_same_snapshot_with_another_name_is_refused(bench: Bench, target: model.Target) -> None:
    snapshot, plain = freeze(bench.engine, bench.volume("db"), "one"), freeze(bench.engine, bench.volume("db"), "two")
    made = run(bench, begin(bench.engine, snapshot, target, name="nightly", description="by cron"))
    assert begin(bench.engine, snapshot, target, name="nightly") == made
    assert begin(bench.engine, snapshot, target, description="by cron") == made
    has = "has it already, as backup 1b1 with"
    with pytest.raises(Exists, match=rf"cannot back up snapshot one with name 'y': target .* {has} name 'nightly'"):
        begin(bench.engine, snapshot, target, name="y")
    with pytest.raises(Exists, match=rf"one with description 'by hand': target .* {has} description 'by cron'"):
        begin(bench.engine, snapshot, target, name="nightly", description="by hand")
    nameless = begin(bench.engine, plain, target)
    with pytest.raises(Exists, match=r"two with name 'y': target .* has it already, as backup 1b2 without a name"):
        begin(bench.engine, plain, target, name="y")
    assert bench.engine.store.backups_of_snapshot(plain.id) == [nameless]


def test_a_snapshot_is_backed_up_again_after_a_failure(bench: Bench, target: model.Target, place: Path) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"))
    with gone(place):
        assert run(bench, begin(bench.engine, snapshot, target)).state is BackupState.ERROR
    assert run(bench, begin(bench.engine, snapshot, target)).state is BackupState.CREATED


def test_what_cannot_be_backed_up_is_refused_and_leaves_nothing(bench: Bench, target: model.Target) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"), "one")
    creating = replace(snapshot, state=model.SnapshotState.CREATING)
    with pytest.raises(InUse, match="cannot back up snapshot one: it is being created"):
        begin(bench.engine, creating, target)
    trash.remove(bench.engine, bench.volume("db"))
    with pytest.raises(NotFound, match="cannot back up snapshot one: it is in the trash with its volume"):
        begin(bench.engine, snapshot, target)
    trash.restore(bench.engine, bench.trashed("db"))
    removed = snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    with pytest.raises(NotFound, match="cannot back up snapshot one: it is removed"):
        begin(bench.engine, removed, target)
    next(iter(bench.engine.pools)).driver = None
    with pytest.raises(Unusable, match="pool memory is unavailable"):
        begin(bench.engine, snapshot, target)
    assert bench.store.backups_in(target.id) == []


def test_a_clone_that_fails_leaves_no_backup(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"), "one")

    def fail(_source: Key, _target: Key, *, read_only: bool) -> None:
        raise OSError(errno.ENOSPC, f"no space, {read_only}")

    with monkeypatch.context() as patched:
        patched.setattr(bench.driver, "clone", fail)
        with pytest.raises(Unusable, match="cannot back up snapshot one: no space is left in the pool"):
            begin(bench.engine, snapshot, target)
    assert bench.store.backups_in(target.id) == []
    assert trees(bench) == set()


def test_a_backup_needs_nothing_of_the_reserve(bench: Bench, target: model.Target) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"))
    bench.limits = replace(bench.limits, reserve=1.0)
    bench.restart()
    assert run(bench, begin(bench.engine, snapshot, target)).state is BackupState.CREATED


# What lies in the pool.


def test_ids_of_backups_start_above_the_trees_on_disk(bench: Bench, target: model.Target) -> None:
    bench.driver.create(Key("b41"), bench.plain)
    bench.restart()
    assert begin(bench.engine, freeze(bench.engine, bench.volume("db")), target).id == 42
    assert next(iter(bench.engine.pools)).orphans == {"b41"}


def test_a_tree_of_another_letter_is_left_alone(bench: Bench) -> None:
    bench.driver.create(Key("x7"), bench.plain)
    bench.restart()
    assert next(iter(bench.engine.pools)).orphans == {"x7"}


def test_the_catalogue_tells_of_bases_and_of_what_is_none_any_more(bench: Bench, target: model.Target) -> None:
    def told() -> list[tuple[str, str | None]]:
        bench.catalogue.save()
        lines = map(json.loads, (bench.pool_root / remembered.FILE_NAME).read_text().splitlines())
        return [(line["backup"]["uuid"], line["backup"]["key"]) for line in lines if "backup" in line]

    first, second = make(bench, target, "one"), make(bench, target, "two")
    bench.catalogue = catalogue.Catalogue(bench.engine)
    assert told() == [(second.uuid, "b2")]
    third = make(bench, target, "three")
    assert told()[-2:] == [(second.uuid, None), (third.uuid, "b3")]
    assert first.uuid not in dict(told())


# What happens meanwhile.


def test_progress_is_told_in_bytes_of_content(bench: Bench, target: model.Target) -> None:
    job = Job("backup")
    backup = make(bench, target, "x" * 100_000, job)
    assert job.done_bytes == backup.content_bytes
    assert job.total_bytes is not None
    assert job.total_bytes >= 100_000


def test_a_snapshot_may_be_removed_while_it_is_sent(bench: Bench, target: model.Target) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"), "one")
    backup = begin(bench.engine, snapshot, target)
    snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    bench.upkeep()
    made = run(bench, backup)
    assert (made.state, read(bench, made)) == (BackupState.CREATED, "one")


def test_a_tombstone_that_goes_meanwhile_costs_a_backup_nothing(bench: Bench, target: model.Target) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"), "one")
    backup = begin(bench.engine, snapshot, target)
    snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    bench.store.commit(lambda write: write.drop_tombstones(bench.engine.now() + timedelta(days=1)))
    made = run(bench, present(bench.engine, backup))
    assert (made.state, made.snapshot_id, made.snapshot_name) == (BackupState.CREATED, None, "one")


def test_a_snapshot_whose_own_tree_is_sent_cannot_be_removed(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.driver, "capabilities", Capability.NONE)
    snapshot = freeze(bench.engine, bench.volume("db"), "one")
    backup = begin(bench.engine, snapshot, target)
    assert backup.key is None
    told = "cannot remove snapshot one of volume db: backup 1b1 is being made of it; voldriver backup cancel 1b1"
    with pytest.raises(InUse, match=told):
        snapshots.remove(bench.engine, bench.volume("db"), snapshot)
    made = run(bench, backup)
    assert (made.state, made.key, read(bench, made)) == (BackupState.CREATED, None, "one")
    snapshots.remove(bench.engine, bench.volume("db"), snapshot)


def test_a_volume_may_be_trashed_while_it_is_sent_but_not_destroyed(bench: Bench, target: model.Target) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    trashed = trash.remove(bench.engine, bench.volume("db"))
    with pytest.raises(InUse, match="cannot remove volume db: backup 1b1 is being made of it"):
        trash.purge(bench.engine, trashed)
    made = run(bench, backup)
    assert made.state is BackupState.CREATED
    trash.purge(bench.engine, trashed)
    assert trees(bench) == set()
    assert present(bench.engine, made) == replace(made, key=None)
    assert read(bench, made) == "one"


def test_a_base_is_nobodys_snapshot(bench: Bench, target: model.Target) -> None:
    bench.write("db", "one")
    made = run(bench, begin(bench.engine, freeze(bench.engine, bench.volume("db"), "one"), target))
    assert made.key is not None
    assert [each.name for each in bench.store.snapshots()] == ["one"]
    assert bench.store.snapshot_summary(bench.volume("db").id).count == 1


# What fails.


def test_a_target_that_is_gone_costs_one_backup_and_not_the_base(
    bench: Bench, target: model.Target, place: Path
) -> None:
    first = make(bench, target, "one")
    with gone(place):
        second = make(bench, target, "two")
        assert bench.engine.targets.health(target.id)[0] is Health.UNAVAILABLE
    assert (second.state, second.key) == (BackupState.ERROR, None)
    assert second.message is not None
    assert str(place) in second.message
    assert trees(bench) == {"b1"}
    third = make(bench, target, "three")
    assert (third.parent_uuid, read(bench, third)) == (first.uuid, "three")
    assert bench.engine.targets.health(target.id) == (Health.AVAILABLE, None)


def test_a_stream_that_breaks_leaves_no_backup_and_deletes_nothing(
    bench: Bench, target: model.Target, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(bench, target, "one")
    before = objects(place, "chunks"), objects(place, "backups")
    send = bench.driver.send

    @contextmanager
    def broken(key: Key, base: Key | None = None, *, is_thorough: bool = False) -> Iterator[Stream]:
        with send(key, base, is_thorough=is_thorough) as stream:
            yield replace(stream, parts=map(_fail, stream.parts))

    with monkeypatch.context() as patched:
        patched.setattr(bench.driver, "send", broken)
        second = make(bench, target, "two")
    assert (second.state, second.message) == (
        BackupState.ERROR,
        "the device of the pool is failing (see the kernel log)",
    )
    assert (objects(place, "chunks"), objects(place, "backups")) == before
    backups.withdraw(bench.engine, second, threading.Event())
    assert objects(place, "writing") == []
    assert make(bench, target, "three").parent_uuid == first.uuid


def _fail(_part: Part) -> Part:
    raise OSError(errno.EIO, "input/output error")


def test_a_cancelled_backup_is_gone_and_the_base_stays(bench: Bench, target: model.Target, place: Path) -> None:
    first = make(bench, target, "one")
    second = make(bench, target, "x" * 500_000, Tripped(1, Job.cancel))
    assert (second.state, second.message, second.key) == (BackupState.REMOVED, "cancelled", None)
    assert second.removed_at is not None
    assert trees(bench) == {"b1"}
    assert len(objects(place, "backups")) == 1
    backups.withdraw(bench.engine, second, threading.Event())
    assert objects(place, "writing") == []
    assert make(bench, target, "two").parent_uuid == first.uuid


@pytest.mark.parametrize(
    ("act", "state"), [(Job.cancel, BackupState.REMOVED), (Job.stop, BackupState.CREATING)], ids=["cancel", "stop"]
)
def test_what_breaks_because_it_is_ended_is_no_failure(
    bench: Bench,
    target: model.Target,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Job], None],
    state: BackupState,
) -> None:
    job = Job("backup")
    send = bench.driver.send

    @contextmanager
    def broken(key: Key, base: Key | None = None, *, is_thorough: bool = False) -> Iterator[Stream]:
        act(job)
        with send(key, base, is_thorough=is_thorough) as stream:
            yield replace(stream, parts=map(_fail, stream.parts))

    monkeypatch.setattr(bench.driver, "send", broken)
    monkeypatch.setattr(Repository, "write", lambda _self, _draft, stream, **_: list(stream.parts))
    assert make(bench, target, "two", job).state is state


def test_a_stopped_backup_is_taken_up_and_what_arrived_is_not_sent_again(
    bench: Bench, target: model.Target, place: Path
) -> None:
    first = make(bench, target, "one")
    bench.write("db", "x" * 500_000)
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    stopped = run(bench, backup, Tripped(1, Job.stop))
    assert stopped == present(bench.engine, backup) == backup
    assert trees(bench) == {"b1", "b2"}
    bench.restart()
    (again,) = bench.store.creating_backups()
    made = run(bench, again)
    assert (made.state, made.parent_uuid, read(bench, made)) == (BackupState.CREATED, first.uuid, "x" * 500_000)
    assert objects(place, "writing") == []


def test_a_backup_that_arrived_before_a_crash_is_not_sent_again(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(bench, target, "one")
    bench.write("db", "two")
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    made = run(bench, backup)
    bench.store.commit(lambda write: write.put_backup(backup))  # as if the last commit had been lost
    monkeypatch.setattr(bench.driver, "send", None)
    again = run(bench, backup)
    assert again == made
    assert present(bench.engine, first).key is None


def test_what_was_given_up_after_it_arrived_goes_from_the_target(
    bench: Bench, target: model.Target, place: Path
) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    run(bench, backup)
    bench.store.commit(lambda write: write.put_backup(backup))  # as if the last commit had been lost
    ended = backups.give_up(bench.engine, backup)
    assert len(objects(place, "backups")) == 1
    backups.withdraw(bench.engine, ended, threading.Event())
    assert objects(place, "backups") == []


def test_a_failed_backup_that_is_there_after_all_is_not_withdrawn(
    bench: Bench, target: model.Target, place: Path
) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    run(bench, backup)
    failed = backups.fail(bench.engine, backup, "the answer to its last request was lost")
    backups.withdraw(bench.engine, failed, threading.Event())
    assert len(objects(place, "backups")) == 1


def test_what_is_given_up_while_nobody_answers_is_given_up_here(
    bench: Bench, target: model.Target, place: Path
) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    with gone(place):
        ended = backups.give_up(bench.engine, backup)
        backups.withdraw(bench.engine, ended, threading.Event())
    assert present(bench.engine, backup).state is BackupState.REMOVED


# Space.


def test_a_base_that_is_given_up_for_its_space_costs_a_whole_backup(bench: Bench, target: model.Target) -> None:
    first = make(bench, target, "one")
    pool = next(iter(bench.engine.pools))
    assert space.bases_in_order(bench.engine, pool) == [first]
    assert backups.drop_base(bench.engine, first)
    assert not backups.drop_base(bench.engine, first)
    assert trees(bench) == set()
    second = make(bench, target, "two")
    assert (second.parent_uuid, read(bench, second)) == (None, "two")


def test_the_oldest_base_is_given_up_first_and_none_that_is_being_sent(bench: Bench, target: model.Target) -> None:
    for name in ("web", "mail"):
        bench.create(name)
    made = [back_up(bench.engine, bench.volume(name), target) for name in ("web", "db")]
    begin(bench.engine, freeze(bench.engine, bench.volume("mail")), target)
    assert space.bases_in_order(bench.engine, next(iter(bench.engine.pools))) == made


# Removal.


def remove(bench: Bench, backup: model.Backup) -> model.Backup:
    going = keeping.begin_remove(bench.engine, backup.id)
    return going if going.state is BackupState.REMOVED else keeping.finish_remove(bench.engine, going, Job("remove"))


def test_a_removed_backup_goes_here_and_there(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    ended = remove(bench, made)
    assert (ended.state, ended.key, ended.message) == (BackupState.REMOVED, None, None)
    assert ended.removed_at is not None
    assert trees(bench) == set()
    assert objects(place, "backups") == []
    with pytest.raises(NotFound, match="cannot remove backup 1b1: it is removed"):
        remove(bench, made)
    assert make(bench, target, "two").parent_uuid is None


def test_a_backup_that_others_build_on_may_be_removed(bench: Bench, target: model.Target) -> None:
    first, second, third = (make(bench, target, content) for content in ("one", "two", "three"))
    assert [remove(bench, each).state for each in (first, second)] == [BackupState.REMOVED] * 2
    assert read(bench, third) == "three"
    fourth = make(bench, target, "four")
    assert (fourth.parent_uuid, read(bench, fourth)) == (third.uuid, "four")


def test_a_removal_is_tried_again_when_the_target_answers(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    with gone(place):
        going = remove(bench, made)
        assert going.state is BackupState.REMOVING
        assert going.message is not None
        assert going.message.startswith("it will be removed when that can be done: ")
    assert keeping.finish_remove(bench.engine, going, Job("remove")).state is BackupState.REMOVED
    assert objects(place, "backups") == []


def test_what_is_not_in_the_target_any_more_is_removed(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    objects(place, "backups")[0].unlink()
    assert remove(bench, made).state is BackupState.REMOVED


def test_a_backup_whose_manifest_is_damaged_says_what_is_in_the_way(
    bench: Bench, target: model.Target, place: Path
) -> None:
    made = make(bench, target, "one")
    objects(place, "backups")[0].write_bytes(b"x" * 100)
    going = remove(bench, made)
    assert going.state is BackupState.REMOVING
    assert going.message is not None
    assert f"volumes/{made.volume_uuid}/backups/{made.uuid}" in going.message
    assert bench.engine.targets.health(target.id) == (Health.AVAILABLE, None)


def test_a_backup_on_which_one_may_be_built_now_is_not_removed(bench: Bench, target: model.Target) -> None:
    first = make(bench, target, "one")
    going = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    with pytest.raises(InUse, match="cannot remove backup 1b1: backup 1b2, which is being made, may build on it"):
        remove(bench, first)
    with pytest.raises(InUse, match="cannot remove backup 1b2: it is being made; cancel it"):
        remove(bench, going)
    run(bench, going)
    assert remove(bench, first).state is BackupState.REMOVED


def test_a_failed_backup_is_forgotten_at_once(bench: Bench, target: model.Target, place: Path) -> None:
    with gone(place):
        failed = make(bench, target, "one")
        assert remove(bench, failed).state is BackupState.REMOVED


# Verify.


def verify(bench: Bench, backup: model.Backup, sample: float = 1.0, job: Job | None = None) -> model.Backup:
    return keeping.verify(bench.engine, backup, job or Job("verify"), sample=sample)


def test_a_sound_backup_is_verified_with_all_that_it_builds_on(bench: Bench, target: model.Target) -> None:
    made = [make(bench, target, content) for content in ("one", "two")]
    job = Job("verify")
    checked = verify(bench, made[1], job=job)
    assert (checked.verified_at is not None, checked.message) == (True, None)
    assert job.done_bytes == sum(each.content_bytes for each in made)


@pytest.mark.parametrize("which", [0, 1], ids=["in the whole one", "in the increment"])
def test_a_flipped_bit_is_found_and_takes_the_proof_back(
    bench: Bench, target: model.Target, place: Path, which: int
) -> None:
    before = set[Path]()
    for number in range(2):
        made = make(bench, target, str(number) * 1000)
        added, before = set(objects(place, "chunks")) - before, set(objects(place, "chunks"))
        if number == which:
            damaged = max(added, key=lambda path: path.stat().st_size)
    verify(bench, made)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    checked = verify(bench, made)
    assert checked.verified_at is None
    assert checked.message is not None
    assert checked.message.startswith("damaged: ")
    assert damaged.name in checked.message


def test_after_damage_was_found_the_next_backup_is_whole_and_mends_what_it_shares(
    bench: Bench, target: model.Target, place: Path
) -> None:
    first, second = make(bench, target, "one"), make(bench, target, "two")
    for path in objects(place, "chunks"):
        path.write_bytes(b"x" * 100)
    assert verify(bench, second).message is not None
    third = make(bench, target, "three")
    assert third.message == "whole, and everything was sent again: backup 1b2 is damaged"
    assert (third.parent_uuid, read(bench, third)) == (None, "three")
    fourth = make(bench, target, "four")
    assert (fourth.parent_uuid, fourth.message, read(bench, fourth)) == (third.uuid, None, "four")
    assert verify(bench, first).message is not None


def test_chunks_that_are_damaged_are_sent_again(bench: Bench, target: model.Target, place: Path) -> None:
    snapshot = freeze(bench.engine, bench.volume("db"))
    first = run(bench, begin(bench.engine, snapshot, target))
    for path in objects(place, "chunks"):
        path.write_bytes(b"x" * 100)
    damaged = verify(bench, first)
    again = run(bench, begin(bench.engine, snapshot, target))
    assert (again.id, again.parent_uuid, read(bench, again)) == (model.BackupId(2), None, "one")
    assert (damaged.message is None, verify(bench, first).message, read(bench, first)) == (False, None, "one")


def test_a_sample_proves_nothing(bench: Bench, target: model.Target) -> None:
    assert verify(bench, make(bench, target, "one"), sample=0.5).verified_at is None


def test_a_link_that_is_missing_is_damage(bench: Bench, target: model.Target, place: Path) -> None:
    first, second = make(bench, target, "one"), make(bench, target, "two")
    (manifest,) = (path for path in objects(place, "backups") if path.name == first.uuid)
    manifest.unlink()
    checked = verify(bench, second)
    assert checked.message is not None
    assert first.uuid in checked.message


def test_what_is_no_backup_cannot_be_verified(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    with gone(place), pytest.raises(Unusable, match=str(place)):
        verify(bench, made)
    job = Job("verify")
    job.cancel()
    with pytest.raises(InUse, match="cannot verify backup 1b1: it was cancelled"):
        verify(bench, made, job=job)
    objects(place, "backups")[0].unlink()
    with pytest.raises(NotFound):
        verify(bench, made)
    with pytest.raises(NotFound, match="cannot verify backup 1b1: it is removed"):
        verify(bench, remove(bench, made))


# Scan and prune.


def scan(bench: Bench, target: model.Target, job: Job | None = None) -> keeping.Found:
    return keeping.scan(bench.engine, target.id, job or Job("scan"))


def test_another_host_finds_and_reads_all_backups(bench: Bench, target: model.Target, memory_root: Path) -> None:
    made = [make(bench, target, content) for content in ("one", "two", "three")]
    with bench_on(memory_root) as other:
        there = targets.create(other.engine, model.TargetDraft("there", target.url))
        found = scan(other, there)
        assert {each.uuid for each in found.adopted} == {each.uuid for each in made}
        by_uuid = {each.uuid: each for each in found.adopted}
        adopted = [by_uuid[each.uuid] for each in made]
        assert [read(other, each) for each in adopted] == ["one", "two", "three"]
        for mine, theirs in zip(made, adopted, strict=True):
            same = {
                "id": mine.id,
                "target_id": mine.target_id,
                "volume_id": mine.volume_id,
                "key": present(bench.engine, mine).key,
                "snapshot_id": mine.snapshot_id,
            }
            assert replace(theirs, **same) == present(bench.engine, mine)  # type: ignore[arg-type]
            assert (theirs.volume_id, theirs.snapshot_id, theirs.key) == (None, None, None)
        assert scan(other, there) == keeping.Found([], [], [])


def test_a_text_that_no_database_holds_keeps_no_scan_from_its_end(bench: Bench, target: model.Target) -> None:
    made = make(bench, target, "one")
    bench.store.commit(lambda write: write.delete_backup(made))
    with targets.opened(bench.engine, target.id) as repository:
        manifest = repository.manifest(made.volume_uuid, made.uuid)
        body = replace(manifest.sent, notes=("tar cannot hold sockets: caf\udce9",))
        repository._folder(made.volume_uuid).put_manifest(replace(manifest, host="\ud800", body=body))
    (again,) = scan(bench, target).adopted
    assert (again.host, again.message) == (r"\ud800", r"tar cannot hold sockets: caf\udce9")


def test_rows_that_were_lost_belong_to_their_volume_and_snapshot_again(bench: Bench, target: model.Target) -> None:
    made = make(bench, target, "one")
    bench.store.commit(lambda write: write.delete_backup(made))
    (again,) = scan(bench, target).adopted
    assert (again.volume_id, again.snapshot_id) == (made.volume_id, made.snapshot_id)
    assert again.id > made.id


def test_rows_of_what_is_gone_become_tombstones(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    objects(place, "backups")[0].unlink()
    found = scan(bench, target)
    assert [each.id for each in found.gone] == [made.id]
    ended = present(bench.engine, made)
    assert (ended.state, ended.key, ended.message) == (BackupState.REMOVED, None, "it is not in its target any more")
    assert trees(bench) == set()


def test_a_scan_leaves_alone_what_is_on_its_way(bench: Bench, target: model.Target) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    assert scan(bench, target) == keeping.Found([], [], [])
    run(bench, backup)
    bench.store.commit(lambda write: write.put_backup(backup))  # as if the last commit had been lost
    assert scan(bench, target) == keeping.Found([], [], [])
    assert present(bench.engine, backup).state is BackupState.CREATING


def test_a_failed_backup_that_is_there_after_all_is_one(bench: Bench, target: model.Target) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    run(bench, backup)
    bench.store.commit(lambda write: write.put_backup(replace(backup, state=BackupState.ERROR, key=None)))
    (adopted,) = scan(bench, target).adopted
    assert (adopted.id, adopted.state) == (backup.id, BackupState.CREATED)
    assert read(bench, present(bench.engine, backup)) == "one"


def test_a_damaged_manifest_is_told_and_its_row_stays(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    objects(place, "backups")[0].write_bytes(b"x" * 100)
    found = scan(bench, target)
    assert [damage.backup_uuid for damage in found.damaged] == [made.uuid]
    assert (found.adopted, found.gone) == ([], [])
    assert present(bench.engine, made).state is BackupState.CREATED


def test_a_scan_that_is_cut_off_changes_nothing(bench: Bench, target: model.Target, place: Path) -> None:
    make(bench, target, "one")
    with gone(place), pytest.raises(Unusable):
        scan(bench, target)
    job = Job("scan")
    job.cancel()
    with pytest.raises(InUse, match="cannot scan target near: it was cancelled"):
        scan(bench, target, job)
    assert len(bench.store.backups_in(target.id)) == 1


def test_a_row_that_somebody_changed_meanwhile_is_left_as_it_is(
    bench: Bench, target: model.Target, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(bench, target, "one")
    objects(place, "backups")[0].unlink()
    row_of = targets.opened

    @contextmanager
    def meanwhile(*arguments: Any, **options: Any) -> Iterator[Any]:
        with row_of(*arguments, **options) as repository:
            yield repository
        keeping.begin_remove(bench.engine, made.id)

    monkeypatch.setattr(targets, "opened", meanwhile)
    scan(bench, target)
    assert present(bench.engine, made).state is BackupState.REMOVING


def test_a_row_that_came_while_the_target_was_read_is_not_made_twice(
    bench: Bench, target: model.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(bench, target, "one")
    bench.store.commit(lambda write: write.delete_backup(made))
    opened = targets.opened

    @contextmanager
    def meanwhile(*arguments: Any, **options: Any) -> Iterator[Any]:
        with opened(*arguments, **options) as repository:
            yield repository
        bench.store.commit(lambda write: write.put_backup(replace(made, key=None)))

    monkeypatch.setattr(targets, "opened", meanwhile)
    scan(bench, target)
    assert [row.id for row in bench.store.backups_in(target.id)] == [made.id]


def test_prune_deletes_what_nobody_names_when_it_is_old_by_the_clock_of_the_target(
    bench: Bench, target: model.Target, place: Path
) -> None:
    first = make(bench, target, "x" * 1000)
    kept = make(bench, target, "y")
    backups.drop_base(bench.engine, kept)
    whole = make(bench, target, "z")
    remove(bench, kept)
    remove(bench, first)
    bench.now = lambda: datetime.now(UTC) + timedelta(days=3)
    bench.restart()
    assert keeping.prune(bench.engine, target.id, Job("prune")).chunks == 0
    for path in place.rglob("chunks/*/*"):
        os.utime(path, (0, 0))
    job = Job("prune")
    pruned = keeping.prune(bench.engine, target.id, job)
    assert pruned.chunks > 0
    assert job.done_bytes == pruned.stored_bytes
    assert (verify(bench, whole).message, read(bench, whole)) == (None, "z")


# Targets.


def test_a_place_that_cannot_be_used_makes_no_target(bench: Bench, place: Path) -> None:
    draft = model.TargetDraft("near", f"file://{place}")
    with pytest.raises(Unusable, match=str(place)):
        targets.create(bench.engine, draft)
    place.mkdir()
    (place / "else").write_text("something")
    with pytest.raises(Unusable, match="something else"):
        targets.create(bench.engine, draft)
    with pytest.raises(Invalid, match="an access key and a secret key go together"):
        targets.create(bench.engine, replace(draft, access_key=model.Secret("x")))
    assert bench.store.targets() == []


def test_a_name_is_one_targets(bench: Bench, target: model.Target, place: Path) -> None:
    with pytest.raises(Exists, match="cannot create target near: a target of this name exists"):
        backing.add_target(bench.engine, place.with_name("other"))
    assert bench.store.targets() == [target]


def test_a_target_that_nobody_waits_for_any_more_is_not_made(bench: Bench, place: Path) -> None:
    place.mkdir()
    ended = threading.Event()
    ended.set()
    with pytest.raises(Cancelled):
        targets.create(bench.engine, model.TargetDraft("near", f"file://{place}"), cancelled=ended)
    assert bench.store.targets() == []


def test_a_removed_target_takes_its_rows_and_bases_along(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    ended = targets.remove(bench.engine, target.id)
    assert (ended.secret_key, ended.removed_at is not None) == (None, True)
    row = present(bench.engine, made)
    assert (row.state, row.key) == (BackupState.REMOVED, None)
    assert row.message == "its target was removed; what lies there stays"
    assert trees(bench) == set()
    with pytest.raises(NotFound, match="there is no target 1bt1"):
        targets.remove(bench.engine, target.id)
    again = targets.create(bench.engine, model.TargetDraft("near", f"file://{place}"))
    (adopted,) = scan(bench, again).adopted
    assert read(bench, adopted) == "one"


def test_a_target_to_which_something_is_sent_is_not_removed(bench: Bench, target: model.Target) -> None:
    backup = begin(bench.engine, freeze(bench.engine, bench.volume("db")), target)
    with pytest.raises(InUse, match="cannot remove target near: backup 1b1 is being made there; cancel it first"):
        targets.remove(bench.engine, target.id)
    assert bench.store.targets() == [target]
    assert run(bench, backup).state is BackupState.CREATED


def test_a_target_with_a_removal_that_waits_may_be_removed(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    with gone(place):
        remove(bench, made)
        targets.remove(bench.engine, target.id)
    assert bench.store.removing_backups() == []


def test_a_place_that_holds_another_repository_is_refused(bench: Bench, target: model.Target, place: Path) -> None:
    make(bench, target, "one")
    with gone(place):
        place.mkdir()
        refused = make(bench, target, "two")
        assert refused.state is BackupState.ERROR
        assert refused.message is not None
        assert "holds another repository than before" in refused.message
        assert bench.engine.targets.health(target.id)[0] is Health.UNAVAILABLE
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    targets.look(bench.engine, target.id)
    assert bench.engine.targets.health(target.id) == (Health.AVAILABLE, None)


def test_a_look_notes_why_a_target_cannot_be_used(bench: Bench, target: model.Target, place: Path) -> None:
    with gone(place):
        with pytest.raises(Unusable):
            targets.look(bench.engine, target.id)
        health, reason = bench.engine.targets.health(target.id)
        assert health is Health.UNAVAILABLE
        assert reason is not None
        assert str(place) in reason


def test_what_is_wrong_with_one_backup_says_nothing_of_the_target(
    bench: Bench, target: model.Target, place: Path
) -> None:
    made = make(bench, target, "one")
    for path in objects(place, "chunks"):
        path.unlink()
    with pytest.raises(Unusable):
        read(bench, made)
    assert bench.engine.targets.health(target.id) == (Health.AVAILABLE, None)


def configured(bench: Bench, *specs: targets.Spec, default_name: str | None = None) -> list[model.Target]:
    """Start anew with a configuration; return the live targets."""
    bench.restart()
    bench.engine = replace(bench.engine, targets=targets.Targets(specs, default_name=default_name))
    targets.configure(bench.engine)
    return bench.store.targets()


def test_what_is_configured_has_rows(bench: Bench, target: model.Target) -> None:
    spec = targets.Spec("nightly", "s3://bucket/prefix", "http://127.0.0.1:1", "here", mount_options=None)
    _, row = configured(bench, spec)
    assert (row.name, row.url, row.endpoint, row.region) == (spec.name, spec.url, spec.endpoint, spec.region)
    assert (row.is_configured, row.access_key, row.secret_key) == (True, None, None)
    assert configured(bench, spec) == [target, row]
    assert configured(bench, replace(spec, region="there")) == [target, replace(row, region="there")]
    assert configured(bench) == [target, replace(row, region="there", is_configured=False)]
    targets.remove(bench.engine, row.id)


def test_a_configured_target_is_removed_in_the_configuration_only(bench: Bench, place: Path) -> None:
    (row,) = configured(bench, targets.Spec("nightly", f"file://{place}"))
    told = r"cannot remove target nightly: it is configured; remove \[targets.nightly\] from the configuration file"
    with pytest.raises(Unsupported, match=told):
        targets.remove(bench.engine, row.id)


def test_the_configuration_takes_over_a_target_of_its_name(bench: Bench, target: model.Target, place: Path) -> None:
    made = make(bench, target, "one")
    (row,) = configured(bench, targets.Spec("near", f"file://{place}"))
    assert (row.id, row.is_configured, row.repository_uuid) == (target.id, True, target.repository_uuid)
    assert read(bench, made) == "one"
    (moved,) = configured(bench, targets.Spec("near", "file:///elsewhere"))
    assert moved.repository_uuid is None


def test_secrets_of_a_configured_target_are_read_when_they_are_wanted(bench: Bench, place: Path) -> None:
    bench.create("db")
    place.mkdir()
    secret = place.with_name("passphrase")
    (row,) = configured(bench, targets.Spec("nightly", f"file://{place}", passphrase_file=secret))
    told = f"cannot use target nightly: cannot read {secret}: No such file"
    with pytest.raises(Unusable, match=told):
        targets.look(bench.engine, row.id)
    for content, fault in ((b"", "is empty"), (b"\xff", "it is no text"), (b"x" * 5_000, "is too long")):
        secret.write_bytes(content)
        with pytest.raises(Unusable, match=fault):
            targets.look(bench.engine, row.id)
    secret.write_text("open sesame\n")
    made = make(bench, row, "one")
    assert (made.state, read(bench, made)) == (BackupState.CREATED, "one")
    secret.write_text("open sesame")
    targets.look(bench.engine, row.id)
    secret.write_text("close sesame\n")
    with pytest.raises(Unusable, match="passphrase is wrong"):
        targets.look(bench.engine, row.id)


def test_a_secret_that_was_given_is_kept_and_used(bench: Bench, place: Path) -> None:
    place.mkdir()
    draft = model.TargetDraft("near", f"file://{place}", passphrase=model.Secret("open sesame"))
    row = targets.create(bench.engine, draft)
    bench.restart()
    targets.look(bench.engine, row.id)
    assert row.passphrase == "open sesame"


def test_the_default_target_is_the_named_or_the_only_one(bench: Bench, place: Path) -> None:
    with pytest.raises(Invalid, match="there is no target"):
        targets.default(bench.engine)
    near, far = (targets.Spec(name, f"file://{place}/{name}") for name in ("near", "far"))
    (only,) = configured(bench, near)
    assert targets.default(bench.engine) == only
    configured(bench, near, far)
    with pytest.raises(Invalid, match="default_target is not set; valid: far, near"):
        targets.default(bench.engine)
    configured(bench, near, far, default_name="far")
    assert targets.default(bench.engine).name == "far"


def test_what_a_crash_left_mounted_is_unmounted_at_the_start(bench: Bench) -> None:
    left = bench.root / "targets" / "7"
    left.mkdir(parents=True)
    mount.mount("tmpfs", left, fs_type="tmpfs")
    targets.configure(bench.engine)
    assert list((bench.root / "targets").iterdir()) == []


def test_an_nfs_share_without_a_client_says_so(bench: Bench) -> None:
    draft = model.TargetDraft("share", "nfs://server/exports/backups", mount_options="vers=4.2")
    with pytest.raises(Unusable, match="cannot mount nfs://server/exports/backups: this host has no NFS client"):
        targets.create(bench.engine, draft)
    assert bench.store.targets() == []


def test_an_nfs_share_is_mounted_while_somebody_uses_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, ...]] = []

    def attach(server: str, share: str, place: Path, options: str | None) -> None:
        done.append(("mount", server, share, place.name, str(options)))

    monkeypatch.setattr(nfs, "attach", attach)
    monkeypatch.setattr(nfs, "detach", lambda place: done.append(("unmount", place.name)))
    row = targets.create(bench.engine, model.TargetDraft("share", "nfs://server/exports", mount_options="vers=4.2"))
    assert done == [("unmount", "1"), ("mount", "server", "/exports", "1", "vers=4.2"), ("unmount", "1")]
    done.clear()
    with targets.opened(bench.engine, row.id), targets.opened(bench.engine, row.id):
        assert [each[0] for each in done] == ["unmount", "mount"]
    assert [each[0] for each in done] == ["unmount", "mount", "unmount"]
