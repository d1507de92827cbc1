import errno
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from voldriverd import model, store
from voldriverd.driver import Key, TreeOptions
from voldriverd.errors import Exists, Unusable
from voldriverd.kernel import mount
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store import schema
from voldriverd.store.write import Write

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


def tree(key: str) -> model.Tree:
    return model.Tree(Key(key), POOL.id, TreeOptions(size_bytes=5, mode=0o750), None, is_settled=False)


def put(database: store.Store, *rows: model.Volume | model.Snapshot) -> None:
    def change(write: Write) -> None:
        for row in rows:
            if row.key is not None:
                write.add_tree(tree(row.key))
            if isinstance(row, model.Volume):
                write.put_volume(row)
            else:
                write.put_snapshot(row)

    database.commit(change)


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
    assert {each.key for each in database.trees(POOL.id)} == {"v1.1", "s1", "v1.2"}
    database.commit(lambda write: write.settle_trees([Key("v1.1")]))
    assert set(database.unsettled_trees(POOL.id)) == {"s1", "v1.2"}
    database.commit(lambda write: write.drop_trees([Key("v1.2")]))
    assert database.tree(Key("v1.2")) is None


def test_a_newer_database_is_refused_naming_both_versions(tmp_path: Path) -> None:
    store.Store(tmp_path).close()
    with sqlite3.connect(tmp_path / store.FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(Unusable, match=f"version {schema.VERSION + 1}.*up to {schema.VERSION}"):
        store.Store(tmp_path)


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.FILE_NAME).write_bytes(b"not a database" * 1000)
    with pytest.raises(Unusable, match="cannot open database"):
        store.Store(tmp_path)


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
    with pytest.raises(Unusable, match="cannot write database"):
        _put_many(opened)
    assert opened.keep_ballast(), "a refused commit must not cost the ballast"
    gone = volume(1, "db", state=VolumeState.REMOVED)
    opened.commit(lambda write: write.put_volume(gone), is_vital=True)
    assert opened.volume(gone.id) == gone
    opened.close()
    mount.unmount(root)


def _fill(root: Path) -> None:
    with (root / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"\0" * 4096):
                pass
        except OSError as err:
            assert err.errno == errno.ENOSPC  # noqa: PT017 - the disk being full is the point


def _put_many(database: store.Store) -> None:
    for number in range(2, 2000):
        put(database, volume(number, f"v{number}", description="x" * 1000))
