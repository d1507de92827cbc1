"""The store of every released version, opened by this one: what it held is there, and what it was lies beside it.

`tests/stores` has them as SQL, written by the code of their time.
"""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests import docs_host
from tests.docs import Page
from tests.docs_host import DocsHost
from tests.running import Running
from tests.scratch import Scratch
from voldriverd import model, store
from voldriverd.errors import Unusable
from voldriverd.kernel import fs
from voldriverd.model import BackupState, SnapshotState, VolumeState
from voldriverd.store import aside, check, schema

STORES: Final = Path(__file__).parent / "stores"
RELEASED: Final = tuple(range(1, schema.VERSION + 1))
NOW: Final = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)
EVERY: Final = 9
"""Which of its calls an upgrade is killed at; 1 for all takes 20 s."""
OPEN: Final = "import sys, pathlib; from voldriverd import store; store.Store(pathlib.Path(sys.argv[1])).close()"
CHANGES: Final = "pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink"
"""The calls by which a store and its copy come to the disk."""
NEWER: Final = """
from voldriverd.cli.daemon import main
from voldriverd.engine import recovery
from voldriverd.errors import Unusable
from voldriverd.store import schema

def recover(engine):
    raise Unusable("cannot serve: it is broken")

schema.MIGRATIONS[schema.VERSION] = "CREATE TABLE later (id INTEGER PRIMARY KEY);"
schema.VERSION += 1
recovery.recover = recover
main()
"""
"""The daemon of the next release, which upgrades the database and then does not start."""
EXPIRES: Final = datetime(2026, 12, 29, 5, 6, 7, tzinfo=UTC)
"""When the nameless snapshot of each store does."""


def write_store(root: Path, version: int) -> Path:
    """Make the store of a version in a directory, as its daemon left it after a clean end."""
    path = root / store.FILE_NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((STORES / f"v{version}.sql").read_text())
        connection.execute("PRAGMA journal_mode = WAL")
    path.chmod(0o600)
    return path


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables of a store."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=str) for (name,) in tables}


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def lying(root: Path) -> set[str]:
    """Return what lies in the root, but for the ballast and the empty index of the journal."""
    return set(os.listdir(root)) - {"ballast", f"{store.FILE_NAME}-shm"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_store(tmp_path, 1)


@pytest.fixture(params=RELEASED)
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[store.Store]:
    write_store(tmp_path, request.param)
    opened = store.Store(tmp_path)
    yield opened
    opened.close()


def test_each_version_has_a_store_here() -> None:
    assert {path.name for path in STORES.glob("*.sql")} == {f"v{version}.sql" for version in RELEASED}


@pytest.mark.parametrize("version", RELEASED)
def test_every_row_of_every_version_is_kept(tmp_path: Path, version: int) -> None:
    path = write_store(tmp_path, version)
    before = rows(path)
    store.Store(tmp_path).close()
    after = rows(path)
    assert version_of(path) == schema.VERSION
    assert {name: after[name] for name in before} == before
    assert before["volumes"]
    assert before["snapshots"]


@pytest.mark.parametrize("version", RELEASED)
def test_every_version_comes_to_the_tables_of_a_new_store(tmp_path: Path, version: int) -> None:
    found = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        if name == "old":
            write_store(tmp_path / name, version)
        store.Store(tmp_path / name).close()
        with closing(sqlite3.connect(tmp_path / name / store.FILE_NAME)) as connection:
            found.append(sorted(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall(), key=str))
    assert found[0] == found[1]


def test_volumes_of_every_version_are_read(opened: store.Store) -> None:
    volumes = {volume.name: volume for volume in opened.volumes()}
    assert [(name, volume.state) for name, volume in volumes.items()] == [
        ("db", VolumeState.INACTIVE),
        ("copy", VolumeState.INACTIVE),
        ("kept", VolumeState.INACTIVE),
        ("trashed", VolumeState.REMOVED),
    ]
    db, kept, trashed = volumes["db"], volumes["kept"], volumes["trashed"]
    assert (db.key, db.content, db.size_bytes) == ("v1.2", 2, 64 << 20)
    assert (db.options, db.labels) == ({"size": "64M", "label.team": "red"}, {"team": "red"})
    assert volumes["copy"].options == {"from": "db@one"}
    assert (kept.is_protected, kept.description) == (True, "the ledger")
    assert trashed.removed_at is not None
    assert trashed.destroy_at == trashed.removed_at + timedelta(days=7)
    ended = opened.ended_volume(model.VolumeId(5))
    assert ended is not None
    assert (ended.name, ended.key, ended.state) == ("purged", None, VolumeState.PURGED)
    assert opened.volume_named("trashed") is None
    assert opened.reserve_id("volumes") == 6


def test_snapshots_of_every_version_are_read(opened: store.Store) -> None:
    found = [snapshot for snapshot in opened.snapshots() if snapshot.volume_id in {1, 4}]
    assert [(each.volume_id, each.name, each.key, each.is_automatic) for each in found] == [
        (1, "one", "s1", False),
        (1, None, "s2", False),
        (1, next(each.name for each in found if each.is_automatic), "s4", True),
        (4, "last", "s5", False),
    ]
    assert (found[0].description, found[1].expires_at) == ("before the change", EXPIRES)
    assert {each.state for each in found} == {SnapshotState.CREATED}
    removed = opened.snapshot(model.SnapshotId(3))
    assert removed is not None
    assert (removed.state, removed.key) == (SnapshotState.REMOVED, None)
    tree = opened.tree(found[0].tree)
    assert tree is not None
    assert (tree.source, tree.options.size_bytes) == ("v1.1", 64 << 20)


def test_holders_and_api_keys_of_every_version_are_read(opened: store.Store) -> None:
    held = [(mount.volume_id, mount.holder, mount.count, mount.boot_id) for mount in opened.all_mounts()]
    assert held == [(1, "container-1", 2, "boot-1"), (1, "container-2", 1, "boot-1"), (2, "host", 1, "boot-1")]
    assert [(key.name, key.description, key.role) for key in opened.api_keys()] == [
        ("robot", "of the build", model.Role.FULL),
        (None, None, model.Role.READ_ONLY),
    ]
    revoked = opened.api_key(model.ApiKeyId(3))
    assert revoked is not None
    assert (revoked.name, revoked.secret_hash) == ("lost", None)
    assert len(opened.seal) == 32


def test_targets_and_backups_of_the_second_version_are_read(tmp_path: Path) -> None:
    write_store(tmp_path, 2)
    with closing(store.Store(tmp_path)) as opened:
        target = opened.target_named("near")
        assert target is not None
        assert (target.url, [each.name for each in opened.targets()]) == ("file:///srv/target", ["near"])
        first, second, failed, going = opened.backups_of(model.VolumeId(3))
        assert second.parent_uuid == first.uuid
        assert (first.key, second.key, going.key) == (None, "b2", "b4")
        assert (first.message, first.content_bytes, first.stored_bytes) == ("all well", 2609, 297)
        assert first.verified_at is not None
        assert (failed.state, failed.message, failed.name) == (BackupState.ERROR, "the target is full", "nightly")
        assert opened.creating_backups() == [going]


def test_what_was_upgraded_lies_beside_it_for_nobody_else_to_read(old: Path) -> None:
    before = rows(old)
    with closing(store.Store(old.parent)) as opened:
        copy = opened.put_aside
    assert copy is not None
    assert lying(old.parent) == {old.name, copy.name}
    assert copy.name.startswith(f"{old.name}.v1.2")
    assert (version_of(copy), rows(copy)) == (1, before)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_what_only_the_journal_of_the_old_one_holds_is_in_the_copy(old: Path) -> None:
    with closing(sqlite3.connect(old)) as writer:
        writer.execute("UPDATE volumes SET description = 'late' WHERE name = 'db'")
        writer.commit()
        for suffix in ("", "-wal"):
            shutil.copy(f"{old}{suffix}", old.parent / f"killed{suffix}")  # as after kill -9
    for suffix in ("", "-wal"):
        (old.parent / f"killed{suffix}").rename(f"{old}{suffix}")
    with closing(store.Store(old.parent)) as opened:
        assert opened.put_aside is not None
        assert opened.volumes()[0].description == "late"
        assert "late" in {row[3] for row in rows(opened.put_aside)["volumes"]}


def test_a_store_of_this_version_and_a_new_one_are_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(store.Store(tmp_path)) as opened:
            assert opened.put_aside is None
    assert lying(tmp_path) == {store.FILE_NAME}


def test_the_copy_is_durable_before_anything_changes(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, rename, run = os.fsync, fs.rename_durably, schema._run

    def noting_fsync(fd: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def noting_rename(source: Path, target: Path) -> None:
        rename(source, target)
        happened.append("named")

    def noting_run(connection: sqlite3.Connection, steps: list[str]) -> None:
        happened.append("changed")
        run(connection, steps)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(fs, "rename_durably", noting_rename)
    monkeypatch.setattr(schema, "_run", noting_run)
    store.Store(old.parent).close()
    assert happened[:4] == [".voldriver.db.aside.part", old.parent.name, "named", "changed"]


def test_the_newest_copies_are_kept_and_the_latest_whatever_the_clock_says(old: Path) -> None:
    made = []
    for days in (0, 1, 2, 3, -9):
        with closing(sqlite3.connect(old)) as connection:
            connection.execute("UPDATE volumes SET description = ? WHERE id = 1", (str(days),))
            connection.commit()
            made.append(aside.keep(connection, old, 1, NOW + timedelta(days=days)))
        aside.prune(old, made[-1])
    assert aside.COPIES_MAX == 3
    assert aside.copies(old) == [made[3], made[2], made[4]]


def test_two_copies_of_one_second_are_both_kept(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        first = aside.keep(connection, old, 1, NOW)
        connection.execute("UPDATE volumes SET description = 'changed'")
        connection.commit()
        second = aside.keep(connection, old, 1, NOW)
    assert aside.copies(old) == [second, first]
    assert rows(first) != rows(second)


def test_a_copy_that_cannot_be_deleted_is_no_reason_not_to_serve(old: Path) -> None:
    for number in range(aside.COPIES_MAX):
        (old.parent / f"{old.name}.v0.2020010{number + 1}T000000Z").mkdir()
    with closing(store.Store(old.parent)) as opened:
        assert len(opened.volumes()) == 4
    assert len(aside.copies(old)) == aside.COPIES_MAX + 1


def test_a_step_that_fails_leaves_the_store_as_it_was_and_one_copy_however_often(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(old)
    monkeypatch.setitem(schema.MIGRATIONS, 1, f"{schema.MIGRATIONS[1]} CREATE TABLE backups (id);")
    for _ in range(3):
        with pytest.raises(
            Unusable, match=r"cannot upgrade .* from version 1 to 2: table backups already .* as it was"
        ):
            store.Store(old.parent)
        assert (version_of(old), rows(old)) == (1, before)
    assert [aside.version(old, copy) for copy in aside.copies(old)] == [1]
    monkeypatch.undo()
    with closing(store.Store(old.parent)) as opened:
        assert len(opened.volumes()) == 4
    assert len(aside.copies(old)) == 1


def test_a_copy_that_the_disk_did_not_take_is_none(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "fault", lambda path: "page 3 is torn" if path.name.endswith(".aside.part") else None)
    with pytest.raises(
        Unusable, match=r"version 1: the copy of it in .* is damaged \(page 3 is torn\); it is left as it"
    ):
        store.Store(old.parent)
    assert (lying(old.parent), version_of(old)) == ({old.name}, 1)


@pytest.mark.root
def test_a_full_disk_refuses_the_upgrade_and_changes_nothing(scratch: Scratch) -> None:
    place = scratch.make("tmpfs", size_bytes=1 << 20)
    path = write_store(place, 1)
    before = path.read_bytes()
    with (place / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            if os.statvfs(place).f_bfree <= 8:  # the journal fits, and the copy does not
                break
    with pytest.raises(Unusable, match=r"cannot upgrade .* no room in .* for a copy of it \(0\.1 MiB\); free some and"):
        store.Store(place)
    assert lying(place) == {path.name, "filler"}
    assert path.read_bytes() == before
    (place / "filler").unlink()
    with closing(store.Store(place)) as opened:
        assert len(opened.volumes()) == 4


@pytest.mark.root
def test_whoever_is_killed_at_the_upgrade_leaves_a_store_that_is_old_or_new_and_copies_that_are_whole(
    tmp_path: Path,
) -> None:
    reference = write_store(tmp_path, 1)
    before, image = rows(reference), reference.read_bytes()
    calls = _open_under_strace(_fresh(tmp_path / "all", image), [])
    wanted = {*calls[::EVERY], *(call for call in calls if call[0] in {"fsync", "rename"})}
    outcomes = set()
    for name, number in sorted(wanted):
        root = _fresh(tmp_path / f"{name}-{number}", image)
        assert _open_under_strace(root, ["-e", f"inject={name}:signal=SIGKILL:when={number}"])[-1] == (name, number)
        path = root / store.FILE_NAME
        for copy in aside.copies(path):
            assert (version_of(copy), rows(copy)) == (1, before)
        outcomes.add((version_of(path), len(aside.copies(path))))
        with closing(store.Store(root)) as opened:
            assert [volume.name for volume in opened.volumes()] == ["db", "copy", "kept", "trashed"]
        assert len(aside.copies(path)) == 1
        assert {name for name in lying(root) if name.startswith(".")} == set()
    assert {(1, 0), (1, 1), (2, 1)} <= outcomes
    assert (2, 0) not in outcomes


def _fresh(root: Path, image: bytes) -> Path:
    root.mkdir()
    (root / store.FILE_NAME).write_bytes(image)
    return root


def _open_under_strace(root: Path, inject: list[str]) -> list[tuple[str, int]]:
    """Open a store in a process of its own, and return its calls that changed something, each with which one it was."""
    trace = root / "trace"
    argv = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={CHANGES}", *inject]
    argv += [sys.executable, "-c", OPEN, str(root)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == bool(inject), done.stderr
    names = [line.split()[1].partition("(")[0] for line in trace.read_text().splitlines() if "(" in line]
    trace.unlink()
    return [(name, names[: at + 1].count(name)) for at, name in enumerate(names)]


def test_a_newer_store_is_refused_naming_both_versions_and_what_to_do(tmp_path: Path) -> None:
    path = write_store(tmp_path, schema.VERSION)
    with closing(sqlite3.connect(path)) as connection:
        copy = aside.keep(connection, path, schema.VERSION, NOW)
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(Unusable) as refused:
        store.Store(tmp_path)
    assert f"has version {schema.VERSION + 1}, this daemon knows up to {schema.VERSION}" in str(refused.value)
    assert f"install a release that knows version {schema.VERSION + 1}, or go back to " in str(refused.value)
    assert str(copy) in str(refused.value)
    assert path.read_bytes() == before
    copy.unlink()
    with pytest.raises(Unusable, match="no copy of before is here"):
        store.Store(tmp_path)


@pytest.mark.root
def test_a_daemon_upgrades_its_store_and_says_where_the_copy_is(tmp_path: Path) -> None:
    daemon = Running(tmp_path)
    daemon.root.mkdir()
    path = write_store(daemon.root, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE pools SET path = ?", (str(tmp_path / "gone"),))
        connection.commit()
    with daemon:
        shown = daemon.api("GET", "/v1/volumes").body["data"]
        assert [volume["name"] for volume in shown] == ["db", "copy", "kept"]
        (copy,) = aside.copies(path)
        assert f"verb=upgrade database={path} result=ok copy={copy}" in daemon.log


def test_the_way_back_in_the_docs_brings_the_old_store_and_keeps_the_newer_one(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        # Of an upgrade before; by its name it would come last, as one of version 9 does after one of version 10.
        aside.keep(connection, old, 9, datetime(2020, 1, 1, tzinfo=UTC))
        connection.execute("UPDATE volumes SET description = 'later' WHERE id = 1")
        connection.commit()
    before = rows(old)
    with closing(store.Store(old.parent)) as opened:
        opened.commit(lambda write: write.put_pool_path(model.PoolId(1), "/srv/elsewhere"))
        shutil.copy(f"{old}-wal", old.parent / "left-wal")
    (old.parent / "left-wal").rename(f"{old}-wal")  # as after kill -9
    (block,) = (block for block in Page("docs/upgrade.md").blocks if block.section == "Downgrade")
    commands = block.text.splitlines()
    assert (commands[0].split()[:2], commands[1]) == (["systemctl", "stop"], "cd /var/lib/voldriver")
    subprocess.run(["sh", "-e", "-c", "\n".join(commands[2:])], cwd=old.parent, check=True)
    assert (version_of(old), rows(old)) == (1, before)
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    newer = old.with_name("voldriver.db.newer")
    assert version_of(newer) == schema.VERSION
    assert rows(newer)["pools"][0][-1] == "/srv/elsewhere"
    with closing(store.Store(old.parent)) as opened:
        assert len(opened.volumes()) == 4


@pytest.mark.root
@pytest.mark.docker
def test_who_goes_back_from_an_upgrade_that_does_not_start_as_the_docs_say_has_the_volumes(tmp_path: Path) -> None:
    (way_back,) = (block.text for block in Page("docs/upgrade.md").blocks if block.section == "Downgrade")
    (tmp_path / "newer.py").write_text(NEWER)
    with DocsHost(tmp_path) as host:
        host.begin()
        host.must("voldriver volume create db; echo kept >$(voldriver volume mount db | head -n 1)/file")
        host.must(docs_host.STOP)
        assert "cannot serve: it is broken" in host.run(f"{sys.executable} {tmp_path}/newer.py")
        host.run("systemctl start voldriverd")
        place = docs_host.ROOT / store.FILE_NAME
        (copy,) = aside.copies(host.world.root / str(place)[1:])
        assert f"or go back to what was put aside before the upgrade, {place.with_name(copy.name)} " in host.log
        host.must(way_back)
        host.must("systemctl start voldriverd")
        assert host.must("voldriver volume ls -q; cat $(voldriver volume mount db | head -n 1)/file") == "db\nkept\n"
        newer = tmp_path / "newer.db"
        newer.write_bytes(copy.with_name("voldriver.db.newer").read_bytes())
    assert version_of(newer) == schema.VERSION + 1
