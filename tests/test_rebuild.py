"""A database that is lost, damaged or older than its pools: what is refused, what comes back, and what that needs."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.backing import freeze
from tests.commands import Voldriver
from tests.engines import Bench
from tests.running import Running, scratch_config
from tests.scratch import Scratch
from voldriverd import config, daemon, store
from voldriverd.cli import daemon as cli
from voldriverd.driver import Key
from voldriverd.engine import rebuild, remembered, snapshots, trash
from voldriverd.engine.context import utc_now
from voldriverd.errors import InUse, Unusable
from voldriverd.model import PoolId, VolumeState

pytestmark = pytest.mark.root


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "d"


@pytest.fixture
def running(base: Path, session_scratch: Scratch) -> Running:
    """Return a daemon that is not started, on a btrfs, a loop and a directory pool."""
    return Running(base, config=scratch_config(session_scratch))


def cli_of(running: Running, *arguments: str) -> str:
    return Voldriver(running.api_socket).out(*arguments)


def settings(running: Running) -> config.Config:
    return config.load(running.config_file, root=running.root, run_dir=running.run_dir)


def rebuilt(running: Running, *arguments: str, stdin: str = "") -> Result:
    given = ["--config", str(running.config_file), "--root", str(running.root), "--run-dir", str(running.run_dir)]
    return CliRunner().invoke(cli.main, [*given, "rebuild", *arguments], input=stdin, catch_exceptions=False)


def lose(running: Running) -> None:
    for path in running.root.glob(f"{store.FILE_NAME}*"):
        path.unlink()


def fill(running: Running) -> None:
    """Make a volume on every driver with two snapshots, one reverted, one in the trash, one cloned."""
    for driver in ("btrfs", "loop", "directory"):
        cli_of(
            running, "volume", "create", f"a-{driver}", "-d", driver, "-o", "label.team=red", "--description", driver
        )
        place = Path(cli_of(running, "volume", "mount", f"a-{driver}").strip())
        (place / "file").write_text("old")
        cli_of(running, "volume", "unmount", f"a-{driver}")
        cli_of(running, "snapshot", "create", f"a-{driver}", "one")
        place = Path(cli_of(running, "volume", "mount", f"a-{driver}").strip())
        (place / "file").write_text("new")
        cli_of(running, "volume", "unmount", f"a-{driver}")
        cli_of(running, "snapshot", "create", f"a-{driver}", "two", "--description", "why")
        cli_of(running, "snapshot", "revert", f"a-{driver}", "one")
    cli_of(running, "volume", "create", "gone", "-d", "btrfs")
    cli_of(running, "volume", "rm", "gone")
    cli_of(running, "volume", "create", "big", "-d", "loop", "-o", "fs=xfs", "-o", "size=300M")
    cli_of(running, "volume", "clone", "big", "bigger")


def shown(running: Running) -> dict[str, list[dict[str, object]]]:
    """Return all volumes and snapshots, but for what is of the moment."""
    found: dict[str, list[dict[str, object]]] = {}
    for path in ("volumes", "volumes?removed_notnull=1", "snapshots"):
        rows = running.api("GET", f"/v1/{path}").body["data"]
        for row in rows:
            for field in ("storagePoolId", "usedBytes", "links", "actions", "accessMode"):
                row.pop(field, None)
        found[path] = sorted(rows, key=lambda row: str(row["id"]))
    return found


def content(running: Running, name: str) -> str:
    place = Path(cli_of(running, "volume", "mount", name).strip())
    try:
        return (place / "file").read_text()
    finally:
        cli_of(running, "volume", "unmount", name)


def test_a_lost_database_comes_back_with_every_volume_and_snapshot(running: Running) -> None:
    with running:
        fill(running)
        before = shown(running)
        running.stop()
        lose(running)
        result = rebuilt(running, "--yes")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("5 volumes, 1 in the trash, 9 snapshots in 3 pools\n")
        running.start()
        assert shown(running) == before
        assert {content(running, f"a-{driver}") for driver in ("btrfs", "loop", "directory")} == {"old"}
        for driver in ("btrfs", "loop", "directory"):
            cli_of(running, "snapshot", "revert", f"a-{driver}", "two")
            assert content(running, f"a-{driver}") == "new"
        cli_of(running, "volume", "restore", "gone")
        pools = running.api("GET", "/v1/storagepools").body["data"]
        assert [pool["orphans"] for pool in pools] == [[], [], []]


def test_without_its_database_a_daemon_takes_no_pool_and_keeps_what_tells_of_it(running: Running) -> None:
    with running:
        fill(running)
        before = shown(running)
        running.stop()
        lose(running)
        running.start()
        pools = running.api("GET", "/v1/storagepools").body["data"]
        assert {pool["health"] for pool in pools} == {"unavailable"}
        assert all("was it lost? voldriverd rebuild" in pool["transitioningMessage"] for pool in pools)
        assert shown(running)["volumes"] == []
        running.stop()
        lose(running)
        rebuilt(running, "--yes")
        running.start()
        assert shown(running) == before


def test_the_plan_is_shown_first_and_no_changes_nothing(running: Running) -> None:
    with running:
        fill(running)
        running.stop()
        lose(running)
        result = rebuilt(running, stdin="n\n")
        assert result.exit_code == 1
        assert "snapshots in 3 pools" in result.stdout
        assert not (running.root / store.FILE_NAME).exists()
        assert not (running.root / "rebuild").exists()
        rebuilt(running, "--yes")


def test_a_sound_database_is_left_alone(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        with pytest.raises(InUse, match="another voldriverd does"):
            daemon.rebuild(settings(running), lambda _: True)
        running.stop()
        result = rebuilt(running, "--yes")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "is sound; move it away first" in result.stderr


def test_a_damaged_database_is_kept_beside_the_new_one(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        path = running.root / store.FILE_NAME
        path.write_bytes(b"damage" + path.read_bytes()[6:])
        damaged = path.read_bytes()
        assert rebuilt(running, "--yes").exit_code == 0
        (kept,) = running.root.glob(f"{store.FILE_NAME}.damaged-*")
        assert kept.read_bytes() == damaged
        running.start()
        assert cli_of(running, "volume", "ls", "-q") == "a\n"


def test_a_journal_that_outlived_its_database_is_not_played_into_the_new_one(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.kill()
        path = running.root / store.FILE_NAME
        journal = path.with_name(f"{path.name}-wal")
        assert journal.stat().st_size
        left = journal.read_bytes()
        running.start()
        cli_of(running, "volume", "create", "b", "-d", "btrfs")
        before = shown(running)
        running.stop()
        path.unlink()
        journal.write_bytes(left)
        assert rebuilt(running, "--yes").exit_code == 0
        assert not journal.exists()
        (kept,) = running.root.glob(f"{store.FILE_NAME}.*-wal")
        assert kept.read_bytes() == left
        running.start()
        assert shown(running) == before


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_takes_the_place(
    memory_root: Path, session_scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = memory_root / "filler"
    write = rebuild.write

    def fill_up(database: store.Store, made: rebuild.Plan) -> None:
        write(database, made)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, os.statvfs(memory_root).f_bavail * 4096)

    with Running(memory_root / "d", config=scratch_config(session_scratch)) as running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        lose(running)
        monkeypatch.setattr(rebuild, "write", fill_up)
        with pytest.raises(Unusable, match=r"cannot rebuild: .* does not take the whole database"):
            daemon.rebuild(settings(running), lambda _: True)
        assert not (running.root / store.FILE_NAME).exists()
        filler.unlink()
        monkeypatch.undo()
        rebuilt(running, "--yes")
        running.start()
        assert cli_of(running, "volume", "ls", "-q") == "a\n"


def test_a_root_in_which_nothing_lies_is_said_once_and_no_pool_is_blamed(tmp_path: Path) -> None:
    arguments = ["--config", str(tmp_path / "none.toml"), "--root", str(tmp_path / "root"), "rebuild", "--yes"]
    (tmp_path / "none.toml").touch()
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    cause = f"no pools are configured, and there is no image {tmp_path}/root/embedded.img that has any"
    question = "is the disk of the root mounted, and is it the right configuration?"
    assert (result.exit_code, result.stderr) == (1, f"voldriverd: cannot rebuild: {cause}; {question}\n")
    assert not (tmp_path / "root" / store.FILE_NAME).exists()


def test_a_pool_that_is_not_there_is_named_and_nothing_is_made(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        lose(running)
        text = running.config_file.read_text()
        running.config_file.write_text(text + '[pools.far]\ndriver = "btrfs"\npath = "/proc/far"\n')
        with pytest.raises(Unusable, match=r"cannot rebuild: pool far: .* take it out of the configuration"):
            daemon.rebuild(settings(running), lambda _: True)
        assert not (running.root / store.FILE_NAME).exists()
        running.config_file.write_text(text)
        rebuilt(running, "--yes")


def test_a_pool_that_is_not_mounted_is_not_taken_for_an_empty_one(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        lose(running)
        place = next(pool.path for pool in settings(running).pools if pool.driver == "btrfs")
        away = place.rename(place.with_name("away"))
        gone = pytest.raises(Unusable, match=r"cannot rebuild: pool fast: .* is not mounted or was emptied")
        with gone:
            daemon.rebuild(settings(running), lambda _: True)
        assert not place.exists()
        place.mkdir()
        with gone:
            daemon.rebuild(settings(running), lambda _: True)
        assert not list(place.iterdir())
        place.rmdir()
        away.rename(place)
        assert rebuilt(running, "--yes").stdout.startswith("1 volumes")


def test_trees_newer_than_the_catalogue_come_back_as_volumes(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        place = Path(cli_of(running, "volume", "mount", "a").strip())
        (place / "file").write_text("frozen")
        cli_of(running, "volume", "unmount", "a")
        running.stop()
        copies = {path: path.read_bytes() for path in pool_paths(running)}
        running.start()
        cli_of(running, "snapshot", "create", "a", "late")
        cli_of(running, "volume", "create", "b", "-d", "loop", "-o", "size=64M")
        running.stop()
        for path, copy in copies.items():
            path.write_bytes(copy)
        lose(running)
        result = rebuilt(running, "--yes")
        assert "newer than the catalogue; it comes back as recovered-s1" in result.stdout
        running.start()
        assert set(cli_of(running, "volume", "ls", "-q").split()) == {"a", "recovered-s1", "recovered-v2.1"}
        assert content(running, "recovered-s1") == "frozen"
        cli_of(running, "volume", "mount", "recovered-v2.1")
        cli_of(running, "volume", "create", "c", "-d", "btrfs")
        assert running.api("GET", "/v1/volumes?name=c").body["data"][0]["id"] == "1v5"


def test_a_snapshot_of_a_volume_whose_line_is_damaged_comes_back(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        (Path(cli_of(running, "volume", "mount", "a").strip()) / "file").write_text("frozen")
        cli_of(running, "volume", "unmount", "a")
        cli_of(running, "snapshot", "create", "a", "one")
        running.stop()
        for path in pool_paths(running):
            path.write_bytes(path.read_bytes().replace(b'{"volume":', b'{"v"olume":'))
        lose(running)
        assert "lines of its catalogue make no sense" in rebuilt(running, "--yes").stdout
        running.start()
        assert set(cli_of(running, "volume", "ls", "-q").split()) == {"recovered-v1.1", "recovered-s1"}
        assert content(running, "recovered-s1") == "frozen"


@pytest.mark.parametrize("state", [VolumeState.INACTIVE, VolumeState.REVERTING])
def test_a_content_newer_than_the_one_that_is_taken_is_never_destroyed(bench: Bench, state: VolumeState) -> None:
    """The copy may end between the two commits of a revert, before what was acknowledged and written since."""
    volume = replace(bench.create("a"), state=state, content=2)
    bench.driver.clone(volume.tree, Key("v1.2"), read_only=False)
    pool = next(iter(bench.engine.pools)).row
    told = remembered.Remembered({volume.id: volume})
    plan = rebuild.plan([rebuild.Found(pool, bench.driver, frozenset(bench.driver.trees()), told)], utc_now())
    assert {made.name: made.key for made in plan.volumes} == {"a": "v1.1", "recovered-v1.2": "v1.2"}


def test_what_a_restore_has_brought_is_not_brought_once_more(bench: Bench) -> None:
    """The copy may end between the two commits of a restore, whose end was acknowledged."""
    volume = bench.create("a")
    bench.driver.clone(volume.tree, Key("v1.2"), read_only=False)
    bench.driver.remove(volume.tree)
    pool = next(iter(bench.engine.pools)).row
    told = remembered.Remembered({volume.id: replace(volume, state=VolumeState.RESTORING, content=2)})
    plan = rebuild.plan([rebuild.Found(pool, bench.driver, frozenset(bench.driver.trees()), told)], utc_now())
    assert [(made.name, made.key, made.state) for made in plan.volumes] == [("a", "v1.2", VolumeState.INACTIVE)]


def rebuild_from(bench: Bench, told: remembered.Remembered) -> None:
    """Put a database in the place of a bench's that is made of its pool, and of what a copy tells."""
    pool = next(iter(bench.engine.pools)).row
    plan = rebuild.plan([rebuild.Found(pool, bench.driver, frozenset(bench.driver.trees()), told)], utc_now())
    bench.close()
    for path in bench.root.glob(f"{store.FILE_NAME}*"):
        path.unlink()
    made = store.Store(bench.root)
    made.commit(lambda write: write.add_pool(pool))
    rebuild.write(made, plan)
    made.close()
    bench.restart()


def test_a_volume_beside_a_newer_content_of_it_can_be_reverted(bench: Bench) -> None:
    bench.create("a")
    freeze(bench.engine, bench.volume("a"), "one")
    bench.write("a", "present")
    bench.driver.clone(bench.volume("a").tree, Key("v1.2"), read_only=False)
    bench.restart()
    bench.catalogue.save()
    rebuild_from(bench, remembered.read(bench.pool_root))
    snapshots.revert(bench.engine, bench.volume("a"), bench.snapshot("a", "one"))
    bench.upkeep()
    assert (bench.read("a"), bench.read("recovered-v1.2")) == ("", "present")


@pytest.mark.parametrize("state", [VolumeState.REGISTERING, VolumeState.IMPORTING, VolumeState.RESTORING])
def test_a_new_volume_whose_end_the_copy_does_not_tell_keeps_what_was_written_since(
    bench: Bench, state: VolumeState
) -> None:
    """The copy is a second behind, or for as long as its pool is full."""
    volume = bench.create("a")
    bench.write("a", "present")
    begun = replace(volume, state=state, options={"from": "backup:7"} if state is VolumeState.RESTORING else {})
    rebuild_from(bench, remembered.Remembered({volume.id: begun}))
    bench.upkeep()
    assert (bench.volume("a").state, bench.read("a")) == (VolumeState.INACTIVE, "present")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"name":"a"', '"name":"../../a"'),
        ('"name":"a"', '"name":5'),
        ('"options":{}', '"options":{"bogus":"x"}'),
        ('"labels":{}', '"labels":{"a":[1]}'),
        ('"size_bytes":null', '"size_bytes":"x"'),
        ('"content":1', '"content":null'),
        ('"id":1,', '"id":99999999999999999999,'),
        ('"id":1,', '"id":-1,'),
        ('"key":"v1.1"', '"key":"../../etc"'),
        ('"key":"v1.1"', '"key":null'),
        ('+00:00"', '"'),
    ],
)
def test_a_line_that_no_database_would_take_costs_a_volume_no_more_than_its_name(
    bench: Bench, old: str, new: str
) -> None:
    bench.create("a")
    bench.write("a", "present")
    bench.catalogue.save()
    path = bench.pool_root / remembered.FILE_NAME
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    told = remembered.read(bench.pool_root)
    assert told.unreadable == 1
    rebuild_from(bench, told)
    assert bench.read("recovered-v1.1") == "present"


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"\0\n" * 100])
def test_a_pool_whose_copy_is_damaged_is_not_taken_either(bench: Bench, damage: bytes) -> None:
    bench.create("a")
    bench.close()
    (bench.pool_root / remembered.FILE_NAME).write_bytes(damage)
    for path in bench.root.glob(f"{store.FILE_NAME}*"):
        path.unlink()
    bench.restart()
    (pool,) = bench.engine.pools
    assert pool.driver is None
    assert "its catalogue cannot be read: was it lost? voldriverd rebuild" in str(pool.reason)


def test_a_damaged_copy_of_trees_that_nobody_knows_is_kept(bench: Bench) -> None:
    (bench.pool_root / remembered.FILE_NAME).write_bytes(b"damaged")
    remembered.keep(bench.pool_root, frozenset({Key("v1.1")}), utc_now())
    (kept,) = bench.pool_root.glob(f"{remembered.KEPT}*")
    assert kept.read_bytes() == b"damaged"


def test_what_only_a_kept_copy_tells_of_and_is_gone_does_not_come_back(bench: Bench) -> None:
    """It was purged long ago, and its tombstone has gone: of the present copy what is missing is worth a look."""
    bench.create("old")
    bench.catalogue.save()
    copy = (bench.pool_root / remembered.FILE_NAME).read_bytes()
    trash.remove(bench.engine, bench.volume("old"))
    trash.purge(bench.engine, bench.trashed("old"))
    missing = bench.create("missing")
    bench.restart()
    bench.catalogue.save()
    (bench.pool_root / f"{remembered.KEPT}1").write_bytes(copy)
    bench.driver.remove(missing.tree)
    rebuild_from(bench, remembered.read(bench.pool_root))
    assert [volume.name for volume in bench.store.volumes()] == ["missing"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_missing_volume_whose_number_another_one_has_is_named_and_hinders_nothing(bench: Bench, order: int) -> None:
    volume = bench.create("a")
    pool = next(iter(bench.engine.pools)).row
    other = replace(pool, id=PoolId(2), name="other", path="/other")
    found = [
        rebuild.Found(pool, bench.driver, frozenset({volume.tree}), remembered.Remembered({volume.id: volume})),
        rebuild.Found(
            other, bench.driver, frozenset(), remembered.Remembered({volume.id: replace(volume, name="gone")})
        ),
    ]
    plan = rebuild.plan(found[::order], utc_now())
    assert [made.name for made in plan.volumes] == ["a"]
    assert "volume gone (pool other): its tree is missing, and its number is another volume's; it is forgotten" in (
        plan.notes
    )


def test_a_volume_with_trees_in_two_pools_is_refused(bench: Bench) -> None:
    pool = next(iter(bench.engine.pools)).row
    found = [
        rebuild.Found(replace(pool, path=path), bench.driver, frozenset({Key(key)}), remembered.Remembered())
        for path, key in (("/a", "v1.1"), ("/b", "v1.2"))
    ]
    with pytest.raises(Unusable, match="/a, /b hold a tree v1 each; they come from two databases"):
        rebuild.plan(found, utc_now())


def test_an_older_database_loses_nothing_either(running: Running) -> None:
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        path = running.root / store.FILE_NAME
        old = path.read_bytes()
        running.start()
        cli_of(running, "volume", "create", "b", "-d", "btrfs", "-o", "label.team=red")
        before = shown(running)
        running.stop()
        lose(running)
        path.write_bytes(old)
        running.start()
        assert cli_of(running, "volume", "ls", "-q") == "a\n"
        assert "a tree that no row knows; it is left alone" in running.log
        running.stop()
        lose(running)
        assert rebuilt(running, "--yes").exit_code == 0
        running.start()
        assert shown(running) == before


def test_of_two_of_one_name_the_newer_keeps_it_and_the_other_comes_back_under_another(running: Running) -> None:
    """A database that was put back knows nothing of the first ones, and lets their names be given again."""
    with running:
        cli_of(running, "volume", "create", "a", "-d", "btrfs")
        running.stop()
        path = running.root / store.FILE_NAME
        old = path.read_bytes()
        for driver in ("btrfs", "directory"):
            running.start()
            cli_of(running, "snapshot", "create", "a", "nightly")
            cli_of(running, "volume", "create", "b", "-d", driver)
            running.stop()
            lose(running)
            path.write_bytes(old)
        lose(running)
        assert rebuilt(running, "--yes").exit_code == 0
        running.start()
        rows = running.api("GET", "/v1/volumes").body["data"]
        assert {(row["name"], row["driver"]) for row in rows} == {
            ("a", "btrfs"),
            ("b", "directory"),
            ("recovered-v2.1", "btrfs"),
        }
        rows = running.api("GET", "/v1/snapshots").body["data"]
        assert {(row["id"], row["name"]) for row in rows} == {("1s1", "recovered-s1"), ("1s2", "nightly")}


def test_what_people_put_among_the_trees_is_told_and_left_alone(running: Running) -> None:
    """A copy made by hand before a rebuild, or an ext4 that is mounted there with its lost+found."""
    strange = ["V1.1", "lost+found", "s1-old", "v1", "v1.1.bak", "v9" + "9" * 30 + ".1", "x\ny"]
    with running:
        cli_of(running, "volume", "create", "a", "-d", "directory")
        running.stop()
        trees = next(pool.path for pool in settings(running).pools if pool.driver == "directory") / "trees"
        for name in (*strange, "v7.1"):  # the last is a key, and no tree for its driver
            (trees / name).mkdir()
        running.start()
        pools = running.api("GET", "/v1/storagepools?name=plain").body["data"]
        assert pools[0]["orphans"] == sorted([*strange, "v7.1"])
        running.stop()
        lose(running)
        shown = rebuilt(running, "--yes").stdout
        assert all(f"pool plain: {name!r} is no tree; it is left alone" in shown for name in strange)
        assert "tree v7.1 (pool plain): cannot measure tree v7.1: there is none; it is left alone" in shown
        running.start()
        assert cli_of(running, "volume", "ls", "-q") == "a\n"
        assert set(strange) < {path.name for path in trees.iterdir()}


def pool_paths(running: Running) -> list[Path]:
    return [pool.path / remembered.FILE_NAME for pool in settings(running).pools]
