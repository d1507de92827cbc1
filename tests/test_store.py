import errno
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from voldriverd import model, store
from voldriverd.driver import Key, StreamFormat, TreeOptions
from voldriverd.errors import Exists, Unusable
from voldriverd.kernel import mount
from voldriverd.model import BackupState, Condition, SnapshotState, VolumeState
from voldriverd.store import connection, schema
from voldriverd.store.write import Write, summary

JOURNAL_SLACK_BYTES = 16 * (24 + 4_096)
"""One transaction begins before the journal is full and ends after it."""
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POOL = model.Pool(model.PoolId(1), "pool-uuid", "fast", "btrfs", "/srv/fast")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[store.Store]:
    opened = store.Store(tmp_path)
    opened.commit(lambda write: write.add_pool(POOL))
    yield opened
    opened.close()


def volume(number: int, name: str, **changes: object) -> model.Volume:
    made = model.Volume(
        id=model.VolumeId(number),
        uuid=f"uuid-{number}",
        name=name,
        description=None,
        pool_id=POOL.id,
        driver="btrfs",
        key=Key(f"v{number}.1"),
        content=1,
        state=VolumeState.INACTIVE,
        size_bytes=1 << 30,
        options={"size": "1G"},
        labels={"team": "red"},
        is_protected=False,
        created_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def snapshot(number: int, volume_id: int, name: str | None, **changes: object) -> model.Snapshot:
    made = model.Snapshot(
        id=model.SnapshotId(number),
        uuid=f"snapshot-{number}",
        volume_id=model.VolumeId(volume_id),
        name=name,
        description="why",
        key=Key(f"s{number}"),
        state=SnapshotState.CREATED,
        is_automatic=False,
        size_bytes=1 << 30,
        created_at=NOW,
        expires_at=NOW + timedelta(days=7),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def target(number: int, name: str, **changes: object) -> model.Target:
    made = model.Target(
        id=model.TargetId(number),
        uuid=f"target-{number}",
        name=name,
        description="far away",
        is_configured=False,
        url="s3://bucket/prefix",
        endpoint="http://127.0.0.1:8333",
        region="us-east-1",
        access_key="access",
        secret_key="secret",
        passphrase="open sesame",
        mount_options="soft",
        repository_uuid="there",
        created_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def backup(number: int, **changes: object) -> model.Backup:
    made = model.Backup(
        id=model.BackupId(number),
        uuid=f"backup-{number}",
        target_id=model.TargetId(1),
        volume_id=None,
        volume_uuid="volume-uuid",
        volume_name="db",
        snapshot_id=None,
        snapshot_uuid="snapshot-uuid",
        snapshot_name="one",
        name="nightly",
        description="why",
        driver="btrfs",
        format=StreamFormat.BTRFS,
        host="here",
        state=BackupState.CREATED,
        created_at=NOW,
        taken_at=NOW - timedelta(hours=1),
        parent_uuid="parent",
        key=None,
        size_bytes=1 << 30,
        content_bytes=5,
        stored_bytes=4,
        message="noted",
        verified_at=NOW + timedelta(hours=1),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def tree(key: str) -> model.Tree:
    return model.Tree(Key(key), POOL.id, TreeOptions(size_bytes=5, mode=0o750), None, is_settled=False)


def put(database: store.Store, *rows: model.Row | model.Target) -> None:
    def change(write: Write) -> None:
        for row in rows:
            if isinstance(row, model.Target):
                write.put_target(row)
                continue
            if row.key is not None:
                write.add_tree(tree(row.key))
            if isinstance(row, model.Volume):
                write.put_volume(row)
            elif isinstance(row, model.Snapshot):
                write.put_snapshot(row)
            else:
                write.put_backup(row)

    database.commit(change)


def listed(database: store.Store, *conditions: model.Condition, **changes: object) -> list[int]:
    """Return the ids of a list of backups."""
    wanted = model.Search(conditions, sort=None, is_descending=False, has_removed=False, offset=0, limit=100)
    return [each.id for each in database.search_backups(replace(wanted, **changes))]  # type: ignore[arg-type]


def test_rows_come_back_as_they_went_in_after_reopening(database: store.Store, tmp_path: Path) -> None:
    first = volume(1, "db", removed_at=NOW, destroy_at=NOW, message="told", description="mine")
    held = model.Mount(model.MountId(1), first.id, "holder", 2, "boot", NOW)
    put(database, first, snapshot(1, 1, None), snapshot(2, 1, "two"))
    database.commit(lambda write: write.put_mount(held))
    database.close()
    again = store.Store(tmp_path)
    assert again.volume(first.id) == first
    assert again.snapshots(first.id) == [snapshot(1, 1, None), snapshot(2, 1, "two")]
    assert again.mounts(first.id) == (held,)
    assert again.tree(Key("v1.1")) == tree("v1.1")
    assert again.pools() == [POOL]
    assert again.snapshot_summary(first.id) == model.SnapshotSummary(2, ("two", "s1"))
    again.close()


def test_the_copy_in_memory_follows_each_commit(database: store.Store) -> None:
    put(database, volume(1, "db"))
    assert database.volume_named("db") == volume(1, "db")
    database.commit(lambda write: write.put_volume(volume(1, "db", state=VolumeState.REMOVED)))
    assert database.volume_named("db") is None
    assert [row.state for row in database.volumes()] == [VolumeState.REMOVED]
    database.commit(lambda write: write.put_volume(volume(1, "back")))
    assert database.volume_named("back") == volume(1, "back")
    database.commit(lambda write: write.put_volume(volume(1, "back", state=VolumeState.PURGED, key=None)))
    assert database.volumes() == []
    assert database.ended_volume(model.VolumeId(1)) is not None


def test_a_failed_change_leaves_rows_and_memory(database: store.Store) -> None:
    put(database, volume(1, "db"))

    def change(write: Write) -> None:
        write.put_volume(volume(1, "other"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.commit(change)
    assert database.volume_named("db") == volume(1, "db")
    assert database.volume_named("other") is None
    put(database, volume(2, "next"))


def test_every_commit_waits_for_the_disk_but_one_that_is_implied(database: store.Store) -> None:
    def level(write: Write) -> int:
        return int(write._connection.execute("PRAGMA synchronous").fetchone()[0])

    def failing(write: Write) -> None:
        level(write)
        raise RuntimeError

    full, normal = 2, 1  # sqlite.org/pragma.html#pragma_synchronous: in WAL a commit is synced with FULL only
    assert [database.commit(level, is_implied=each) for each in (False, True, True, False)] == [
        full,
        normal,
        normal,
        full,
    ]
    with pytest.raises(RuntimeError):
        database.commit(failing, is_implied=True)
    assert database.commit(level) == full


def test_a_number_is_reserved_while_a_commit_waits_for_the_disk(database: store.Store) -> None:
    """Or the event loop, which reserves that of a new volume, would answer no `Get` as long as the disk does not."""
    begun, may_end = threading.Event(), threading.Event()

    def wait(_: Write) -> None:
        begun.set()
        assert may_end.wait(20)

    committing = threading.Thread(target=database.commit, args=(wait,))
    committing.start()
    assert begun.wait(20)
    found: list[int] = []
    reserving = threading.Thread(target=lambda: found.append(database.reserve_id("volumes")))
    reserving.start()
    reserving.join(2)
    is_quick = bool(found)
    may_end.set()
    for thread in (committing, reserving):
        thread.join()
    assert is_quick


def test_a_commit_makes_the_journal_no_longer_until_it_is_used_anew(tmp_path: Path) -> None:
    journal = tmp_path / f"{store.FILE_NAME}-wal"
    with closing(store.Store(tmp_path)) as database:
        length_bytes = journal.stat().st_size
        database.commit(lambda write: write.add_pool(POOL))
        for number in range(1, 400):
            put(database, volume(number, f"v{number}"))
            assert journal.stat().st_size <= length_bytes + JOURNAL_SLACK_BYTES
        assert len(in_the_file(tmp_path)) == 399


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_journal_that_the_disk_does_not_take_longer_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    written: list[int] = []
    write = os.write

    def some(fd: int, content: bytes) -> int:
        if failing == "write" and len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(fd, content[: 1 << 15]))
        return written[-1]

    def no_sync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = tmp_path / f"{store.FILE_NAME}-wal"
    with closing(store.Store(tmp_path)) as database:
        database.commit(lambda write: write.add_pool(POOL))
        before = journal.read_bytes().rstrip(b"\0")
        os.truncate(journal, len(before))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", some)
            if failing == "fsync":
                patch.setattr(os, "fsync", no_sync)
            connection.lengthen_journal(tmp_path / store.FILE_NAME)
        assert written
        assert journal.read_bytes() == before
        put(database, volume(1, "db"))
        assert in_the_file(tmp_path) == [volume(1, "db")]
    connection.lengthen_journal(tmp_path / store.FILE_NAME)  # there is none after a clean end
    assert not journal.exists()


def test_a_clone_is_what_its_source_is_and_settled(database: store.Store) -> None:
    made = TreeOptions(size_bytes=1 << 30, fs="xfs", thick=True)
    source = model.Tree(Key("v1.1"), POOL.id, made, None, is_settled=False)
    database.commit(lambda write: write.add_tree(source))
    database.commit(lambda write: write.add_clone(Key("s1"), source.key))
    assert database.tree(Key("s1")) == model.Tree(Key("s1"), POOL.id, made, source.key, is_settled=True)


def test_what_is_foreseen_is_seen_at_once_and_written_with_the_next_commit(tmp_path: Path) -> None:
    with closing(store.Store(tmp_path)) as database:
        database.commit(lambda write: write.add_pool(POOL))
        begun = volume(1, "db", state=VolumeState.REGISTERING)
        put(database, begun)
        database.take_changes()
        told: list[model.Commit] = []
        database.watch(told.append)
        database.foresee(volume(1, "db"))
        assert database.volume_named("db") == database.volume(model.VolumeId(1)) == volume(1, "db")
        assert told == [model.Commit((volume(1, "db"),), (), ())]
        assert database.take_changes() == [volume(1, "db")]
        assert in_the_file(tmp_path) == [begun]
        with pytest.raises(RuntimeError):
            database.commit(fail)
        assert in_the_file(tmp_path) == [begun]
        put(database, volume(2, "other"))
        assert in_the_file(tmp_path) == [volume(1, "db"), volume(2, "other")]
        assert told[1:] == [model.Commit((volume(2, "other"),), (), ())]
        database.foresee(volume(1, "db"))
        database.commit(lambda write: write.put_volume(volume(1, "db", message="later")))
        assert in_the_file(tmp_path)[0] == database.volume_named("db") == volume(1, "db", message="later")


def test_what_is_foreseen_is_written_alone_if_nothing_else_is(tmp_path: Path) -> None:
    with closing(store.Store(tmp_path)) as database:
        database.commit(lambda write: write.add_pool(POOL))
        put(database, volume(1, "db", state=VolumeState.REGISTERING))
        database.foresee(volume(1, "db"))
        database.write_foreseen()
        assert in_the_file(tmp_path) == [volume(1, "db")]
        changes = database._connection.total_changes
        database.write_foreseen()
        assert database._connection.total_changes == changes


def test_a_foreseen_snapshot_is_counted_and_whoever_reads_snapshots_finds_it(database: store.Store) -> None:
    put(database, volume(1, "db"))
    for number in range(1, 30):
        name = None if number == 25 else f"name {number}"
        put(database, snapshot(number, 1, name, state=SnapshotState.CREATING))
        database.foresee(snapshot(number, 1, name))
        seen = database.snapshot_summary(model.VolumeId(1))
        assert database.snapshot(model.SnapshotId(number)) == snapshot(number, 1, name)
        with closing(connection.connect_to_read(database._path)) as reader:
            assert summary(reader, model.VolumeId(1)) == seen == database.snapshot_summary(model.VolumeId(1))
    assert seen.count == 29
    assert seen.newest[:6] == ("name 29", "name 28", "name 27", "name 26", "s25", "name 24")
    assert len(seen.newest) == model.SUMMARY_NAMES


def foresee_one(database: store.Store) -> None:
    """Put a volume and a snapshot of it whose end waits to be written."""
    put(database, volume(1, "db"))
    put(database, snapshot(1, 1, "one", state=SnapshotState.CREATING))
    database.foresee(snapshot(1, 1, "one"))


def test_on_a_full_disk_snapshots_can_be_read_before_what_is_foreseen_is_written(
    database: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    foresee_one(database)
    with monkeypatch.context() as context:
        context.setattr(store.connection, "is_full", lambda _: False)
        context.setattr(database, "_attempt", full)
        with pytest.raises(Unusable, match="disk is full"):
            database.write_foreseen()
        assert [row.state for row in database.snapshots()] == [SnapshotState.CREATING]
    assert [row.state for row in database.snapshots()] == [SnapshotState.CREATED]


def test_a_disk_that_fails_or_is_read_only_keeps_nobody_from_reading(
    database: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    foresee_one(database)

    def failing(*_: object, **__: object) -> None:
        err = sqlite3.OperationalError("disk I/O error")
        err.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise err

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as context:
        context.setattr(database, "_attempt", failing)
        context.setattr(os, "truncate", read_only)
        assert [row.state for row in database.snapshots()] == [SnapshotState.CREATING]
        with pytest.raises(Unusable, match="disk I/O error"):
            database.write_foreseen()
    assert [row.state for row in database.snapshots()] == [SnapshotState.CREATED]


def fail(_: Write) -> None:
    raise RuntimeError


def full(*_: object, **__: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def in_the_file(directory: Path) -> list[model.Volume]:
    """Return the volumes that a start would find if the process were killed."""
    copy = directory / "copy"
    copy.mkdir(exist_ok=True)
    for name in (store.FILE_NAME, f"{store.FILE_NAME}-wal"):
        (copy / name).write_bytes((directory / name).read_bytes())
    with closing(store.Store(copy)) as killed:
        return killed.volumes()


def test_a_live_name_is_unique_and_a_trashed_one_free(database: store.Store) -> None:
    put(database, volume(1, "db"))
    with pytest.raises(Exists):
        put(database, volume(2, "db"))
    database.commit(lambda write: write.put_volume(volume(1, "db", state=VolumeState.REMOVED)))
    put(database, volume(2, "db"))
    found = database.volume_named("db")
    assert found is not None
    assert found.id == 2


def test_snapshot_names_are_unique_among_the_live_ones_of_a_volume(database: store.Store) -> None:
    put(database, volume(1, "db"), volume(2, "web"), snapshot(1, 1, "one"), snapshot(2, 2, "one"))
    with pytest.raises(Exists):
        put(database, snapshot(3, 1, "one"))
    put(database, snapshot(4, 1, None), snapshot(5, 1, None))
    database.commit(lambda write: write.put_snapshot(snapshot(1, 1, "one", state=SnapshotState.REMOVED, key=None)))
    put(database, snapshot(6, 1, "one"))
    assert database.snapshot_summary(model.VolumeId(1)).newest == ("one", "s5", "s4")


def test_only_the_newest_twenty_names_are_in_the_summary(database: store.Store) -> None:
    put(database, volume(1, "db"), *(snapshot(number, 1, f"n{number}") for number in range(1, 31)))
    summary = database.snapshot_summary(model.VolumeId(1))
    assert summary.count == 30
    assert summary.newest == tuple(f"n{number}" for number in range(30, 10, -1))


def test_ids_are_never_given_twice(database: store.Store, tmp_path: Path) -> None:
    first = database.reserve_id("volumes")
    put(database, volume(first, "db"))
    database.commit(lambda write: write.delete_volume(volume(first, "db")))
    database.close()
    again = store.Store(tmp_path)
    assert again.reserve_id("volumes") == first + 1
    again.raise_id("volumes", 100)
    assert again.reserve_id("volumes") == 101
    again.close()


def test_tombstones_go_after_their_time(database: store.Store) -> None:
    gone = {"state": SnapshotState.REMOVED, "key": None, "removed_at": NOW}
    put(database, volume(1, "db"), snapshot(1, 1, "one", **gone))
    database.commit(lambda write: write.put_volume(volume(1, "db", state=VolumeState.PURGED, key=None, removed_at=NOW)))
    assert not database.has_tombstones(NOW)
    assert database.has_tombstones(NOW + timedelta(seconds=1))
    assert database.commit(lambda write: write.drop_tombstones(NOW + timedelta(seconds=1))) == 2
    assert database.ended_volume(model.VolumeId(1)) is None


def test_pointed_keys_are_those_of_volumes_and_snapshots(database: store.Store) -> None:
    put(database, volume(1, "db"), snapshot(1, 1, "one"))
    database.commit(lambda write: write.add_tree(tree("v1.2")))
    assert database.pointed_keys(POOL.id) == {"v1.1", "s1"}
    assert database.tree_keys(POOL.id) == {"v1.1", "s1", "v1.2"}
    database.commit(lambda write: write.settle_trees([Key("v1.1")]))
    assert set(database.unsettled_trees(POOL.id)) == {"s1", "v1.2"}
    database.drop_trees([Key("v1.2")])
    assert database.tree(Key("v1.2")) is None


def test_targets_and_backups_come_back_as_they_went_in_after_reopening(database: store.Store, tmp_path: Path) -> None:
    first, ended = target(1, "nightly"), target(2, "old", removed_at=NOW)
    put(database, volume(1, "db"), snapshot(1, 1, "one"), first, ended)
    going = backup(1, volume_id=1, snapshot_id=1, key=Key("b1"), state=BackupState.CREATING, is_of_snapshot=True)
    plain = backup(2, format=None, parent_uuid=None, size_bytes=None, verified_at=None, message=None)
    put(database, going, plain, backup(3, state=BackupState.REMOVED, removed_at=NOW))
    for again in (database, store.Store(tmp_path)):
        assert again.targets() == [first]
        assert (again.target(first.id), again.target(ended.id)) == (first, None)
        assert (again.target_named("nightly"), again.target_named("old")) == (first, None)
        assert (again.ended_target(ended.id), again.ended_target(first.id)) == (ended, None)
        assert [again.backup(model.BackupId(number)) for number in (1, 2)] == [going, plain]
        assert again.backup(model.BackupId(3)) == backup(3, state=BackupState.REMOVED, removed_at=NOW)
        assert again.creating_backups() == [going]
        assert again.is_backing_up(model.SnapshotId(1))
        again.close()


def test_the_memory_of_backups_follows_each_commit(database: store.Store) -> None:
    put(database, target(1, "nightly"), backup(1, state=BackupState.CREATING), backup(2, state=BackupState.REMOVING))
    assert [each.id for each in database.creating_backups()] == [1]
    assert [each.id for each in database.removing_backups()] == [2]
    put(database, backup(1), target(1, "weekly"))
    assert database.creating_backups() == []
    assert database.target_named("weekly") == target(1, "weekly")
    database.commit(lambda write: write.delete_backup(backup(2)))
    assert database.removing_backups() == []
    put(database, target(1, "weekly", removed_at=NOW))
    assert database.targets() == []


def test_a_snapshot_is_backing_up_only_while_a_backup_asked_without_a_target_runs(database: store.Store) -> None:
    going = {"volume_id": 1, "snapshot_id": 1, "state": BackupState.CREATING}
    put(database, volume(1, "db"), snapshot(1, 1, "one"), target(1, "nightly"), backup(1, **going))
    backing_up = Condition("state", "eq", "backing-up"), Condition("is_creating", "eq", 1)
    wanted = model.Search(backing_up, None, is_descending=False, has_removed=False, offset=0, limit=9)
    assert not database.is_backing_up(model.SnapshotId(1))
    assert database.search_snapshots(wanted) == []
    put(database, backup(2, **going, is_of_snapshot=True))
    assert database.is_backing_up(model.SnapshotId(1))
    assert database.search_snapshots(wanted) == [snapshot(1, 1, "one")]
    put(database, backup(2, **{**going, "state": BackupState.ERROR}))
    assert not database.is_backing_up(model.SnapshotId(1))
    assert database.search_snapshots(wanted) == []


def test_a_page_of_snapshots_costs_the_same_beside_many_volumes(database: store.Store) -> None:
    page = model.Search((), None, is_descending=False, has_removed=False, offset=0, limit=5)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def counted() -> int:
        nonlocal steps
        steps = 0
        assert [row.id for row in database.search_snapshots(page)] == [1, 2, 3, 4, 5]
        return steps

    put(database, volume(1, "db"), *(snapshot(number, 1, None) for number in range(1, 10)))
    database._reader.set_progress_handler(count, 1)  # each step of SQLite's machine
    alone = counted()
    put(
        database,
        *(volume(number, f"v{number}") for number in range(2, 400)),
        *(snapshot(number, 1 + number % 300, None) for number in range(10, 400)),
    )
    assert counted() <= alone + 100  # a row that is passed takes five


def test_a_live_name_of_a_target_is_unique_and_a_removed_one_free(database: store.Store) -> None:
    put(database, target(1, "nightly"))
    with pytest.raises(Exists):
        put(database, target(2, "nightly"))
    put(database, target(1, "nightly", removed_at=NOW))
    put(database, target(2, "nightly"))


def test_backups_are_found_by_what_they_belong_to(database: store.Store) -> None:
    put(database, volume(1, "db"), snapshot(1, 1, "one"), target(1, "near"), target(2, "far"))
    put(database, backup(1, volume_id=1, snapshot_id=1, key=Key("b1")), backup(2, volume_id=1, target_id=2))
    put(database, backup(3), backup(4, volume_id=1, snapshot_id=1, state=BackupState.REMOVED))
    here = model.VolumeId(1)
    assert [each.id for each in database.backups_of(here)] == [1, 2]
    assert [each.id for each in database.backups_of(here, model.TargetId(2))] == [2]
    assert [each.id for each in database.backups_of_snapshot(model.SnapshotId(1))] == [1]
    assert [each.id for each in database.backups_in(model.TargetId(1))] == [1, 3]
    assert [each.id for each in database.backups_with_trees()] == [1]
    assert [each.id for each in database.backups_with_trees(model.VolumeId(2))] == []
    assert database.backup_of_uuid(model.TargetId(2), "backup-2") == backup(2, volume_id=1, target_id=2)
    assert database.backup_of_uuid(model.TargetId(1), "backup-2") is None
    assert database.backup_of_uuid(model.TargetId(1), "backup-4") is None


def test_parents_are_those_of_the_same_target_that_have_rows(database: store.Store) -> None:
    put(database, target(1, "near"), target(2, "far"), backup(1, parent_uuid=None), backup(2, parent_uuid="backup-1"))
    put(database, backup(3, parent_uuid="backup-2", target_id=2), backup(4, parent_uuid="forgotten"))
    rows = [backup(number, parent_uuid="asked") for number in (1, 2, 3, 4)]
    assert database.parents(rows) == {2: 1}


def test_lists_of_backups_are_filtered_sorted_and_cut(database: store.Store) -> None:
    put(
        database, target(1, "nightly"), *(backup(each, content_bytes=9 - each, name=f"n{each}") for each in range(1, 7))
    )
    put(database, backup(7, state=BackupState.REMOVED), backup(8, state=BackupState.CREATING))
    assert listed(database) == [1, 2, 3, 4, 5, 6, 8]
    assert listed(database, has_removed=True) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert listed(database, Condition("name", "prefix", "n"), sort="content_bytes", limit=2, offset=1) == [5, 4]
    assert listed(database, Condition("is_going", "eq", 1)) == [8]
    assert listed(database, Condition("verified_at", "eq", "2026-01-02T04:04:05"), limit=1) == [1]


def test_what_is_dropped_leaves_its_backups_without_it(database: store.Store) -> None:
    gone = {"state": SnapshotState.REMOVED, "key": None, "removed_at": NOW}
    kept = backup(1, volume_id=1, snapshot_id=1)
    put(database, volume(1, "db"), snapshot(1, 1, "one"), target(1, "nightly"), kept)
    database.commit(lambda write: write.put_snapshot(snapshot(1, 1, "one", **gone)))
    database.commit(lambda write: write.put_volume(volume(1, "db", state=VolumeState.PURGED, key=None, removed_at=NOW)))
    assert database.backup(kept.id) == kept
    database.commit(lambda write: write.drop_tombstones(NOW + timedelta(seconds=1)))
    assert database.backup(kept.id) == replace(kept, volume_id=None, snapshot_id=None)


def test_tombstones_of_backups_and_then_of_their_targets_go(database: store.Store) -> None:
    put(database, target(1, "nightly", removed_at=NOW), backup(1))
    later = NOW + timedelta(seconds=1)
    assert database.commit(lambda write: write.drop_tombstones(later)) == 0
    put(database, backup(1, state=BackupState.REMOVED, removed_at=NOW))
    assert database.has_tombstones(later)
    assert database.commit(lambda write: write.drop_tombstones(later)) == 2
    assert database.ended_target(model.TargetId(1)) is None
    assert not database.has_tombstones(later)


def test_a_base_is_pointed_to(database: store.Store) -> None:
    put(database, volume(1, "db"), target(1, "nightly"), backup(1, volume_id=1, key=Key("b1")))
    assert database.pointed_keys(POOL.id) == {"v1.1", "b1"}
    assert database.pointed_keys(model.PoolId(2)) == set()


@pytest.mark.parametrize("fails", [False, True])
def test_a_pointer_to_nothing_is_refused_also_after_trees_were_dropped(
    database: store.Store, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    put(database, volume(1, "db"))
    with monkeypatch.context() as context:
        if fails:
            context.setattr(database, "_attempt", full)
            context.setattr(store.connection, "is_full", lambda _: False)
        with pytest.raises(Unusable) if fails else nullcontext():
            database.drop_trees([Key("v1.1")])
    with pytest.raises(Exists, match="FOREIGN KEY"):
        database.commit(lambda write: write.put_volume(volume(2, "web")))  # it has no tree


def test_secrets_of_a_target_are_not_printed() -> None:
    shown = repr(target(1, "nightly"))
    assert [secret for secret in ("'access'", "'secret'", "open sesame") if secret in shown] == []


VERSION_1_SHA256 = "83d68793005b3fc2cfe8d0d8a04b2af5fcfeca05fda9fce19f50fa42f3c10e46"


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    assert hashlib.sha256(schema.SCHEMA.encode()).hexdigest() == VERSION_1_SHA256, "what changes goes into a migration"
    with closing(sqlite3.connect(tmp_path / store.FILE_NAME)) as connection:
        connection.executescript(f"{schema.SCHEMA} INSERT INTO seals VALUES (X'abcd'); PRAGMA user_version = 1;")
        rows = ("pools VALUES (1, 'pool-uuid', 'fast', 'btrfs', '/srv/fast')", _FIRST_TREE, _FIRST_VOLUME)
        connection.executescript("".join(f"INSERT INTO {row};" for row in rows))
    opened = store.Store(tmp_path)
    assert opened.pools() == [POOL]
    assert opened.volumes() == [volume(1, "db")]
    assert opened.seal == bytes.fromhex("abcd")
    put(opened, target(1, "nightly"), backup(1, volume_id=1))
    opened.close()
    again = store.Store(tmp_path)
    assert again.backup(model.BackupId(1)) == backup(1, volume_id=1)
    again.close()


_FIRST_TREE = """trees VALUES ('v1.1', 1, '{"size_bytes": 5, "mode": 488}', NULL, 0)"""
_FIRST_VOLUME = """volumes VALUES (1, 'uuid-1', 'db', NULL, 1, 'btrfs', 'v1.1', 1, 'inactive', 1073741824,
    '{"size": "1G"}', '{"team": "red"}', 0, '2026-01-02T03:04:05+00:00', NULL, NULL, NULL)"""


def test_a_new_database_has_the_tables_of_one_brought_up_to_date(tmp_path: Path) -> None:
    tables = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        with closing(sqlite3.connect(tmp_path / name / store.FILE_NAME)) as connection:
            if name == "old":
                seal = "INSERT INTO seals VALUES (X'00'); PRAGMA user_version = 1;"
                connection.executescript(f"{schema.SCHEMA} {seal}")
        store.Store(tmp_path / name).close()
        with closing(sqlite3.connect(tmp_path / name / store.FILE_NAME)) as connection:
            tables.append(sorted(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall(), key=str))
    assert tables[0] == tables[1]


def test_a_migration_that_fails_leaves_the_version_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(tmp_path / store.FILE_NAME)) as connection:
        connection.executescript(f"{schema.SCHEMA} INSERT INTO seals VALUES (X'00'); PRAGMA user_version = 1;")
    monkeypatch.setitem(schema.MIGRATIONS, 1, schema.MIGRATIONS[1] + "CREATE TABLE backups (id);")
    with pytest.raises(Unusable, match="cannot upgrade database"):
        store.Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / store.FILE_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'targets'").fetchone() == (0,)


def test_a_newer_database_is_refused_naming_both_versions(tmp_path: Path) -> None:
    store.Store(tmp_path).close()
    with sqlite3.connect(tmp_path / store.FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(Unusable, match=f"version {schema.VERSION + 1}.*up to {schema.VERSION}"):
        store.Store(tmp_path)


@pytest.mark.parametrize("page", [0, 1, 5])
def test_a_damaged_database_is_refused_and_left_as_it_is(database: store.Store, tmp_path: Path, page: int) -> None:
    for number in range(1, 200):
        put(database, volume(number, f"volume-{number}"))
    database.close()
    path = tmp_path / store.FILE_NAME
    content = bytearray(path.read_bytes())
    content[page * 4096 : page * 4096 + 512] = os.urandom(512)
    path.write_bytes(content)
    with pytest.raises(Unusable, match=r"cannot open database .*: it is damaged .* voldriverd rebuild"):
        store.Store(tmp_path)
    assert path.read_bytes() == content


def test_the_database_is_for_root_alone(database: store.Store, tmp_path: Path) -> None:
    put(database, volume(1, "db"))
    modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir() if path.is_file()}
    assert set(modes.values()) == {0}, modes


def test_a_look_up_never_misses_a_volume_that_is_being_changed(database: store.Store) -> None:
    put(database, volume(1, "db"))
    ended = threading.Event()
    missed: list[int] = []

    def look() -> None:
        while not ended.is_set():
            if database.volume_named("db") is None:
                missed.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(60):
        changed = volume(1, "db", content=number)
        database.commit(lambda write, changed=changed: write.put_volume(changed))  # type: ignore[misc]
    ended.set()
    reader.join()
    assert missed == []


@pytest.mark.root
def test_vital_commits_succeed_on_a_full_disk_and_others_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    mount.mount("tmpfs", root, fs_type="tmpfs", data="size=12m")
    opened = store.Store(root)
    opened.commit(lambda write: write.add_pool(POOL))
    put(opened, volume(1, "db", description="x" * 1000))
    _fill(root)
    with pytest.raises(Unusable, match=r"cannot write database .*: database or disk is full"):
        put(opened, volume(2, "web"))  # although the journal has room
    assert opened.keep_ballast(), "a refused commit must not cost the ballast"
    assert sorted(os.listdir(root)) == ["ballast", "filler", store.FILE_NAME, f"{store.FILE_NAME}-wal"]
    gone = volume(1, "db", state=VolumeState.REMOVED)
    opened.commit(lambda write: write.put_volume(gone), is_vital=True)
    assert opened.volume(gone.id) == gone
    opened.close()
    mount.unmount(root)


def test_a_file_system_that_does_not_tell_how_full_it_is_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of FUSE without `statfs`, or a tmpfs without a size."""
    silent = os.statvfs_result([4096, 0, 0, 0, 0, 0, 0, 0, 0, 255])
    with closing(store.Store(tmp_path)) as database:
        database.commit(lambda write: write.add_pool(POOL))
        monkeypatch.setattr(os, "statvfs", lambda _: silent)
        put(database, volume(1, "db"))
        assert database.volume_named("db") == volume(1, "db")
        assert not (tmp_path / "ballast.probe").exists()


def _fill(root: Path) -> None:
    with (root / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"\0" * 4096):
                pass
        except OSError as err:
            assert err.errno == errno.ENOSPC  # noqa: PT017 - the disk being full is the point
