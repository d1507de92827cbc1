import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.backing import freeze
from tests.engines import Bench, bench_on
from tests.memory import Memory
from tests.scratch import unmount_under
from voldriverd import model, names, store
from voldriverd.driver import Capability, Key, TreeOptions
from voldriverd.engine import (
    creation,
    failures,
    markers,
    mounts,
    pools,
    recovery,
    remembered,
    snapshots,
    space,
    trash,
    trees,
    upkeep,
    volumes,
)
from voldriverd.engine.context import Limits
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import fs, mount, tree
from voldriverd.model import SnapshotState, VolumeState
from voldriverd.store.ballast import Ballast
from voldriverd.store.write import Write

pytestmark = pytest.mark.root

ANONYMOUS = "0123456789abcdef" * 4
START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def at(bench: Bench, **after: float) -> None:
    """Set the clock to some time after START."""
    bench.now = lambda: START + timedelta(**after)
    bench.restart()


def is_mounted(path: Path) -> bool:
    return mount.at(path) is not None


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """Keep a directory open."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield
    os.close(fd)


def fill(bench: Bench, *, leave_bytes: int) -> Path:
    """Fill the pool's file system but for some bytes."""
    filler = bench.root.parent / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(bench.root).f_bavail * 4096 - leave_bytes)
    return filler


# Create and clone (D2, section 7).


def test_an_existing_name_is_returned_when_the_options_agree(bench: Bench) -> None:
    made = bench.create("db", size="1G", **{"label.team": "red"})
    assert bench.create("db") == made
    assert bench.create("db", size="1024M", pool="memory", **{"label.team": "red"}) == made


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": "2G"}, "size = 1 GiB, not 2 GiB"),
        ({"driver": "loop"}, "driver = memory, not loop"),
        ({"mode": "0700"}, "mode = nothing, not"),
        ({"protected": "yes"}, "protected = False, not True"),
        ({"from": "other"}, "from = nothing, not other"),
        ({"label.team": "blue"}, "label.team = red, not blue"),
    ],
)
def test_an_existing_name_with_an_option_that_differs_is_refused_naming_it(
    bench: Bench, options: dict[str, str], text: str
) -> None:
    bench.create("db", size="1G", **{"label.team": "red"})
    with pytest.raises(Exists, match=text):
        bench.create("db", **options)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"fs": "xfs"}, Unsupported, "cannot honour|no pool here can"),
        ({"nocow": "yes"}, Unsupported, "cannot honour|no pool here can"),
        ({"driver": "loop"}, Invalid, "no pool is configured for driver 'loop'; valid: memory"),
        ({"pool": "nix"}, Invalid, "no pool is named 'nix'; valid: memory"),
        ({"pool": "memory", "driver": "btrfs"}, Invalid, "pool memory has driver memory, not btrfs"),
        ({"from": "nobody"}, NotFound, "no volume is named nobody"),
        ({"from": "db@nothing"}, NotFound, "volume db has no snapshot named nothing"),
        ({"from": "db", "size": "1k"}, Invalid, "below its source's"),
        ({"from": "db", "mode": "0700"}, Invalid, "option mode does not go with from"),
        ({"from": "db", "pool": "other"}, Invalid, "a clone stays in its source's pool"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    bench: Bench, options: dict[str, str], kind: type[Exception], text: str
) -> None:
    bench.create("db", size="1M")
    before = bench.tree_rows(), bench.driver.trees(), len(bench.store.volumes())
    with pytest.raises(kind, match=text):
        bench.create("new", **options)
    assert (bench.tree_rows(), bench.driver.trees(), len(bench.store.volumes())) == before


def test_a_create_that_the_driver_fails_leaves_no_volume(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_key: Key, _options: TreeOptions) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench.driver, "create", fail)
    with pytest.raises(Unusable, match="cannot create volume db: no space is left in the pool"):
        bench.create("db")
    assert bench.store.volumes() == []
    bench.upkeep()
    assert bench.tree_rows() == set()


def test_a_clone_inherits_size_and_may_be_given_a_larger_one(bench: Bench) -> None:
    bench.create("db", size="1M")
    bench.write("db", "data")
    bench.create("same", **{"from": "db"})
    bench.create("larger", size="4M", **{"from": "db"})
    assert bench.size("same") == (1 << 20, 1 << 20)
    assert bench.size("larger") == (4 << 20, 4 << 20)
    assert bench.read("larger") == "data"


def test_a_clone_of_a_snapshot_is_made_with_what_its_origin_was(bench: Bench) -> None:
    made = bench.create("db", mode="0700", uid="1000")
    snapshot = snapshots.create(bench.engine, made, snapshots.Wish("s"))
    clone = bench.create("copy", **{"from": "db@s"})
    trees = [bench.store.tree(each.tree) for each in (made, snapshot, clone)]
    assert [tree.options for tree in trees if tree is not None] == [TreeOptions(mode=0o700, uid=1000)] * 3


def test_a_clone_is_independent_of_its_source(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "one")
    bench.create("copy", **{"from": "db"})
    bench.write("copy", "two")
    trash.purge(bench.engine, trash.remove(bench.engine, bench.volume("db")))
    bench.upkeep()
    assert bench.read("copy") == "two"


# Snapshots and revert (D5).


def test_a_snapshot_keeps_what_was_there(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "one")
    taken = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first", "before the upgrade"))
    bench.write("db", "two")
    assert bench.read_snapshot("db", "first") == "one"
    assert (taken.state, taken.description, taken.is_automatic) == (SnapshotState.CREATED, "before the upgrade", False)
    assert bench.store.snapshot_summary(taken.volume_id).newest == ("first",)


def test_a_snapshot_name_is_taken_once(bench: Bench) -> None:
    bench.create("db")
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    with pytest.raises(Exists, match="it has a snapshot named first already"):
        snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))


def test_a_mounted_volume_of_a_driver_that_is_not_instant_is_not_snapshotted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.create("db")
    bench.mount("db")
    monkeypatch.setattr(bench.driver, "capabilities", Capability.NONE)
    with pytest.raises(Unsupported, match=r"allow_live_copy = true in \[pools\.memory\]"):
        snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish())
    bench.unmount("db")
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish())


def test_revert_brings_back_the_snapshot_and_keeps_what_it_displaced(bench: Bench) -> None:
    at(bench, hours=0)
    bench.create("db")
    bench.write("db", "one")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.write("db", "two")
    _, kept = snapshots.revert(bench.engine, bench.volume("db"), first)
    assert bench.read("db") == "one"
    assert bench.read_key(kept.tree) == "two"
    assert (kept.name, kept.is_automatic) == ("before-revert-20260304T050607Z", True)
    assert kept.expires_at == START + timedelta(seconds=bench.limits.trash_retention_s)
    assert bench.read_snapshot("db", "first") == "one", "every snapshot is kept"
    snapshots.revert(bench.engine, bench.volume("db"), kept)
    assert bench.read("db") == "two", "a revert can be undone"


def test_two_reverts_in_one_second_have_names_of_their_own(bench: Bench) -> None:
    at(bench, hours=0)
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    names = {snapshots.revert(bench.engine, bench.volume("db"), first)[1].name for _ in range(3)}
    assert names == {f"before-revert-20260304T050607Z{end}" for end in ("", ".2", ".3")}


def test_revert_keeps_the_larger_of_both_sizes(bench: Bench) -> None:
    bench.create("db", size="1M")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    volumes.resize(bench.engine, bench.volume("db"), 4 << 20)
    snapshots.revert(bench.engine, bench.volume("db"), first)
    assert bench.size("db") == (4 << 20, 4 << 20)


def test_revert_of_a_volume_in_use_is_refused_and_changes_nothing(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "one")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    with (bench.mount("db") / "content").open(), pytest.raises(InUse, match="cannot revert volume db"):
        snapshots.revert(bench.engine, bench.volume("db"), first)
    assert bench.read("db") == "one"
    assert len(bench.store.snapshots()) == 1


def test_a_snapshot_of_another_volume_is_no_source_for_a_revert(bench: Bench) -> None:
    bench.create("db")
    bench.create("web")
    other = snapshots.create(bench.engine, bench.volume("web"), snapshots.Wish("first"))
    with pytest.raises(Invalid, match="belongs to another volume"):
        snapshots.revert(bench.engine, bench.volume("db"), other)


def test_a_revert_that_fails_leaves_the_volume_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.create("db")
    bench.write("db", "one")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.write("db", "two")
    clone = bench.driver.clone

    def fail_second(source: Key, target: Key, *, read_only: bool) -> None:
        if not read_only:
            raise OSError(errno.EIO, "Input/output error")
        clone(source, target, read_only=read_only)

    monkeypatch.setattr(bench.driver, "clone", fail_second)
    with pytest.raises(Unusable, match="the device of the pool is failing"):
        snapshots.revert(bench.engine, bench.volume("db"), first)
    assert bench.volume("db").state is VolumeState.INACTIVE
    assert bench.read("db") == "two"
    bench.upkeep()
    assert bench.driver.trees() == {bench.volume("db").tree, first.tree}


def test_the_newest_snapshot_may_be_removed_and_is_gone_at_once(bench: Bench) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    gone = snapshots.remove(bench.engine, bench.volume("db"), first)
    bench.upkeep()
    assert bench.driver.trees() == {bench.volume("db").tree}
    assert bench.store.snapshot(first.id) == gone, "its tombstone answers by id"
    with pytest.raises(NotFound):
        snapshots.remove(bench.engine, bench.volume("db"), gone)


def test_a_snapshot_can_be_renamed_but_not_onto_another(bench: Bench) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("second"))
    changed = snapshots.set_properties(bench.engine, bench.volume("db"), first, name="third", description="new")
    assert (bench.snapshot("db", "third"), changed.description) == (changed, "new")
    with pytest.raises(Exists, match="has one named second already"):
        snapshots.set_properties(bench.engine, bench.volume("db"), changed, name="second", description=None)


# The trash (D4).


def test_a_removed_volume_comes_back_with_its_snapshots(bench: Bench) -> None:
    bench.create("db")
    bench.write("db", "one")
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    removed = trash.remove(bench.engine, bench.volume("db"))
    assert bench.store.volume_named("db") is None
    bench.upkeep()
    trash.restore(bench.engine, removed)
    assert bench.read("db") == "one"
    assert bench.read_snapshot("db", "first") == "one"


def test_a_restore_onto_a_taken_name_is_refused_naming_the_holder(bench: Bench) -> None:
    bench.create("db")
    removed = trash.remove(bench.engine, bench.volume("db"))
    bench.create("db")
    with pytest.raises(Exists, match=f"held by volume 1v{bench.volume('db').id}"):
        trash.restore(bench.engine, removed)
    assert trash.restore(bench.engine, removed, name="old").name == "old"


def test_an_anonymous_volume_is_destroyed_at_once(bench: Bench) -> None:
    bench.create(ANONYMOUS)
    gone = trash.remove(bench.engine, bench.volume(ANONYMOUS))
    assert gone.state is VolumeState.PURGED
    bench.upkeep()
    assert bench.driver.trees() == set()


def test_without_a_retention_removal_destroys(bench: Bench) -> None:
    bench.limits = Limits(trash_retention_s=0, reserve=0.0)
    bench.restart()
    bench.create("db")
    assert trash.remove(bench.engine, bench.volume("db")).state is VolumeState.PURGED


def test_protection_can_be_lifted_on_a_full_disk_and_nothing_else_be_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = bench.create("db", protected="yes")
    monkeypatch.setattr(Ballast, "is_disk_roomy", lambda _: False)
    with pytest.raises(Unusable, match="disk is full"):
        volumes.set_properties(bench.engine, db, description="new")
    assert not volumes.set_properties(bench.engine, db, is_protected=False).is_protected
    trash.remove(bench.engine, bench.volume("db"))


def test_a_protected_volume_is_not_removed_until_that_is_lifted(bench: Bench) -> None:
    bench.create("db", protected="yes")
    with pytest.raises(InUse, match="it is protected; voldriver volume set db --no-protected"):
        trash.remove(bench.engine, bench.volume("db"))
    volumes.set_properties(bench.engine, bench.volume("db"), is_protected=False)
    trash.remove(bench.engine, bench.volume("db"))


def test_the_trash_expires_after_its_retention_and_not_before(bench: Bench) -> None:
    at(bench, hours=0)
    bench.create("db")
    removed = trash.remove(bench.engine, bench.volume("db"))
    at(bench, days=6)
    assert upkeep.expired_volumes(bench.engine) == []
    at(bench, days=7, seconds=1)
    assert upkeep.expired_volumes(bench.engine) == [removed]


def test_automatic_snapshots_expire_but_not_in_the_trash(bench: Bench) -> None:
    at(bench, hours=0)
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    _, kept = snapshots.revert(bench.engine, bench.volume("db"), first)
    at(bench, days=8)
    assert upkeep.expired_snapshots(bench.engine) == [kept]
    trash.remove(bench.engine, bench.volume("db"))
    assert upkeep.expired_snapshots(bench.engine) == []


def test_only_what_is_in_the_trash_is_purged(bench: Bench) -> None:
    bench.create("db")
    with pytest.raises(NotFound, match="it is not in the trash"):
        trash.purge(bench.engine, bench.volume("db"))


def test_tombstones_answer_for_two_days(bench: Bench) -> None:
    at(bench, hours=0)
    bench.create("db")
    gone = trash.purge(bench.engine, trash.remove(bench.engine, bench.volume("db")))
    at(bench, hours=47)
    upkeep.tidy(bench.engine)
    assert bench.store.ended_volume(gone.id) == gone
    at(bench, hours=49)
    upkeep.tidy(bench.engine)
    assert bench.store.ended_volume(gone.id) is None


# Space (D4).


def test_below_the_reserve_what_takes_space_is_refused_with_the_figures_and_the_rest_works(bench: Bench) -> None:
    bench.create("db")
    bench.create("old")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.limits = Limits(reserve=0.05)
    bench.restart()
    filler = fill(bench, leave_bytes=1 << 20)
    for refused in (
        lambda: bench.create("new"),
        lambda: snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish()),
        lambda: snapshots.revert(bench.engine, bench.volume("db"), first),
    ):
        with pytest.raises(space.Shortage, match=r"has .* of 64 MiB free, below the reserve of 5%"):
            refused()
    bench.mount("db")
    bench.unmount("db")
    snapshots.remove(bench.engine, bench.volume("db"), first)
    trash.purge(bench.engine, trash.remove(bench.engine, bench.volume("old")))
    assert [pool.row.name for pool in upkeep.short_pools(bench.engine)] == ["memory"]
    filler.unlink()
    assert upkeep.short_pools(bench.engine) == []
    bench.create("new")


@pytest.mark.parametrize("verb", ["snapshot", "revert", "clone"])
def test_a_copy_whose_turn_comes_when_others_have_taken_the_space_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.limits = Limits(reserve=0.05)
    bench.restart()
    monkeypatch.setattr(bench.driver, "capabilities", Capability.NONE)
    finish = begun(bench, verb, first)
    filler = fill(bench, leave_bytes=1 << 20)
    with pytest.raises(Unusable, match=r"has .* of 64 MiB free, below the reserve of 5%") as caught:
        finish()
    assert not isinstance(caught.value, space.Shortage)  # it would begin anew, under another id
    assert (bench.volume("db").state, len(bench.store.snapshots(bench.volume("db").id))) == (VolumeState.INACTIVE, 1)
    bench.upkeep()
    assert bench.driver.trees() == bench.tree_rows() == {bench.volume("db").tree, first.tree}
    monkeypatch.setattr(bench.driver, "capabilities", Capability.COW)
    filler.unlink()
    finish = begun(bench, verb, first)
    filler = fill(bench, leave_bytes=1 << 20)
    finish()  # what shares its source's content takes none
    filler.unlink()


def begun(bench: Bench, verb: str, snapshot: model.Snapshot) -> Callable[[], object]:
    """Begin a verb on the volume `db`; return what ends it."""
    volume = bench.volume("db")
    if verb == "snapshot":
        made = snapshots.begin_create(bench.engine, volume, snapshots.Wish("second"))
        return lambda: snapshots.finish_create(bench.engine, volume, made)
    if verb == "revert":
        going = snapshots.begin_revert(bench.engine, volume, snapshot)
        return lambda: snapshots.finish_revert(bench.engine, going)
    options = {"from": "db@first"}
    request = creation.Request("copy", names.parse_options(options), options)
    plan = volumes.begin_create(bench.engine, request, model.VolumeId(bench.store.reserve_id("volumes")))
    assert isinstance(plan, creation.Plan)
    return lambda: volumes.finish_begun(bench.engine, plan)


def test_a_shortage_destroys_the_oldest_day_first_and_of_a_day_what_uses_most(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[Key, int] = {}
    for name, day, used_bytes in (("small", 1, 1), ("large", 1, 9), ("new", 2, 99)):
        at(bench, days=day)
        bench.create(name)
        used[trash.remove(bench.engine, bench.volume(name)).tree] = used_bytes
    usage = type(bench.driver.usage(next(iter(used))))
    monkeypatch.setattr(bench.driver, "usage", lambda key: usage(used[key], None, None))
    pool = next(iter(bench.engine.pools))
    assert [volume.name for volume in space.trash_in_order(bench.engine, pool)] == ["large", "small", "new"]


# Mounts (D3, R6, R7).


def test_a_holder_that_mounts_twice_must_let_go_twice(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db", "container")
    assert bench.mount("db", "container") == path
    bench.unmount("db", "container")
    assert is_mounted(path)
    bench.unmount("db", "container")
    assert not is_mounted(path)


def test_the_last_of_two_holders_unmounts(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db", "one")
    bench.mount("db", "two")
    bench.unmount("db", "one")
    assert is_mounted(path)
    bench.unmount("db", "two")
    assert not is_mounted(path)


def test_an_unknown_holder_changes_nothing(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db", "one")
    bench.unmount("db", "stranger")
    assert is_mounted(path)


def test_unmount_of_a_busy_volume_lets_the_holder_go_and_reconciliation_unmounts(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db")
    with (path / "content").open("w"):
        bench.unmount("db")
        assert bench.store.all_mounts() == []
        assert is_mounted(path)
    mounts.reconcile(bench.engine, bench.store.volumes(), mounts.used_keys(bench.engine))
    assert not is_mounted(path)


def test_mount_repairs_what_somebody_unmounted(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db", "one")
    mount.unmount(path)
    assert bench.mount("db", "two") == path
    assert is_mounted(path)


def test_a_holder_of_another_boot_is_forgotten_at_start(bench: Bench) -> None:
    bench.create("db")
    bench.mount("db")
    bench.unmount_all()
    bench.boot_id = "boot-2"
    bench.restart()
    assert bench.store.all_mounts() == []


def test_holders_outlive_a_restart_of_the_daemon(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db")
    bench.restart()
    assert [each.holder for each in bench.store.all_mounts()] == ["holder"]
    assert is_mounted(path)


def test_an_old_holder_that_the_kernel_does_not_know_is_forgotten_and_a_young_one_kept(bench: Bench) -> None:
    at(bench, seconds=0)
    bench.create("db")
    path = bench.mount("db")
    at(bench, seconds=mounts.SETTLING_S - 1)
    assert is_mounted(path)
    at(bench, seconds=mounts.SETTLING_S)
    assert bench.store.all_mounts() == []
    assert not is_mounted(path)


def test_an_old_holder_whose_tree_is_mounted_elsewhere_is_kept(bench: Bench) -> None:
    at(bench, seconds=0)
    bench.create("db")
    path = bench.mount("db")
    elsewhere = bench.root / "elsewhere"
    elsewhere.mkdir()
    mount.bind(path, elsewhere, read_only=False)
    at(bench, days=1)
    assert [each.holder for each in bench.store.all_mounts()] == ["holder"]
    mount.unmount(elsewhere)


def test_a_root_behind_a_symbolic_link_is_looked_for_where_the_mount_table_has_it(memory_root: Path) -> None:
    (memory_root / "real").mkdir()
    (memory_root / "link").symlink_to("real")
    with bench_on(memory_root / "link") as bench:
        try:
            at(bench, seconds=0)
            path = bench.mount(bench.create("db").name)
            assert mounts.attached_keys(bench.engine) == {bench.volume("db").tree}
            elsewhere = memory_root / "elsewhere"
            elsewhere.mkdir()
            mount.bind(path, elsewhere, read_only=False)
            at(bench, days=1)
            mount.unmount(elsewhere)
            assert [each.holder for each in bench.store.all_mounts()] == ["holder"]
            at(bench, days=2)
            assert not is_mounted(path)
        finally:
            unmount_under(memory_root / "real")


def test_an_old_holder_whose_tree_only_propagation_has_copied_is_forgotten(bench: Bench) -> None:
    copies = bench.root / "copies"
    copies.mkdir()
    mount.bind(bench.root / "mounts", bench.root / "mounts", read_only=False)
    subprocess.run(["mount", "--make-shared", bench.root / "mounts"], check=True)
    mount.bind(bench.root / "mounts", copies, read_only=False)
    at(bench, seconds=0)
    bench.create("db")
    path = bench.mount("db")
    assert is_mounted(copies / path.name)
    at(bench, days=1)
    assert bench.store.all_mounts() == []
    assert not is_mounted(path)
    mount.unmount(copies)


def test_where_nobody_can_be_looked_at_nothing_is_forgotten_and_nothing_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(bench, seconds=0)
    bench.create("db")
    bench.mount("db")

    def refuse(**_: str) -> Iterator[tuple[int, mount.Entry]]:
        raise PermissionError(errno.EACCES, "the mounts of process 1 cannot be seen without CAP_SYS_PTRACE")

    monkeypatch.setattr(mount, "everywhere", refuse)
    at(bench, days=1)
    assert [each.holder for each in bench.store.all_mounts()] == ["holder"]
    with pytest.raises(Unusable, match="cannot remove volume db: the mounts of process 1 cannot be seen without"):
        trash.remove(bench.engine, bench.volume("db"))


def test_the_hosts_own_mount_is_kept_although_nobody_shows(bench: Bench) -> None:
    at(bench, seconds=0)
    bench.create("db")
    path = bench.mount("db", model.HOST_HOLDER)
    bench.mount("db", model.HOST_HOLDER)
    at(bench, days=1)
    assert is_mounted(path)
    bench.unmount("db", model.HOST_HOLDER)
    assert not is_mounted(path), "the host holds once, however often it asks"


def test_removal_is_refused_while_a_tree_is_mounted_elsewhere_and_the_mount_is_named(bench: Bench) -> None:
    bench.create("db")
    path = bench.mount("db")
    elsewhere = bench.root / "elsewhere"
    elsewhere.mkdir()
    mount.bind(path, elsewhere, read_only=False)
    bench.unmount("db")
    with pytest.raises(InUse, match=rf"mounted by .* \(pid {os.getpid()}\) at {elsewhere}"):
        trash.remove(bench.engine, bench.volume("db"))
    mount.unmount(elsewhere)
    trash.remove(bench.engine, bench.volume("db"))


def test_removal_is_refused_while_a_file_is_open_and_the_process_is_named(bench: Bench) -> None:
    bench.create("db")
    at(bench, days=1)
    path = bench.mount("db")
    at(bench, days=1, seconds=60)
    with (path / "content").open("w"), pytest.raises(InUse, match=rf"used by .* \(pid {os.getpid()}\) in .*/content"):
        trash.remove(bench.engine, bench.volume("db"))


def test_removal_is_refused_while_a_container_may_be_starting(bench: Bench) -> None:
    bench.create("db")
    bench.mount("db", "f" * 64)
    with pytest.raises(InUse, match="it is mounted by container mount ffffffffffff"):
        trash.remove(bench.engine, bench.volume("db"))


def test_a_stale_counter_does_not_forbid_removal(bench: Bench) -> None:
    at(bench, seconds=0)
    bench.create("db")
    bench.mount("db")
    at(bench, seconds=60)
    assert bench.store.all_mounts() != []
    trash.remove(bench.engine, bench.volume("db"))
    assert bench.store.all_mounts() == []


def test_purge_asks_the_kernel_again(bench: Bench) -> None:
    bench.create("db")
    removed = trash.remove(bench.engine, bench.volume("db"))
    path = bench.driver.attach(removed.tree, read_only=False)
    elsewhere = bench.root / "elsewhere"
    elsewhere.mkdir()
    mount.bind(path, elsewhere, read_only=False)
    with pytest.raises(InUse, match="cannot purge volume db"):
        trash.purge(bench.engine, removed)
    mount.unmount(elsewhere)
    trash.purge(bench.engine, removed)


def test_a_tree_that_is_mounted_waits_and_its_row_with_it(bench: Bench) -> None:
    bench.create("db")
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    path = bench.driver.attach(first.tree, read_only=True)
    with opened(path):
        snapshots.remove(bench.engine, bench.volume("db"), first)
        trees.collect(bench.engine, bench.volume("db").pool_id)
        assert first.tree in bench.driver.trees()
        assert first.tree in bench.tree_rows()
    trees.collect(bench.engine, bench.volume("db").pool_id)
    assert first.tree not in bench.tree_rows()


# Resize, properties, links, catalogue.


def test_a_tree_that_is_pointed_to_is_never_removed_whatever_was_discarded(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    volume = bench.create("db")
    bench.write("db", "content")
    one = freeze(bench.engine, volume, "one")
    two = freeze(bench.engine, volume, "two")
    snapshots.remove(bench.engine, volume, two)
    trees.discard(bench.engine, volume.pool_id, volume.tree, one.tree)
    bench.upkeep()
    assert bench.driver.trees() == {volume.tree, one.tree} == bench.tree_rows()
    assert bench.waiting() == set()
    assert "keys=s1,v1.1 result=they are pointed to, and stay" in caplog.text


def test_a_resize_that_is_refused_leaves_the_size(bench: Bench) -> None:
    bench.create("db", size="4M")
    with pytest.raises(Invalid, match=r"^cannot resize volume db: it cannot shrink$"):
        volumes.resize(bench.engine, bench.volume("db"), 1 << 20)
    assert bench.size("db") == (4 << 20, 4 << 20)
    assert bench.volume("db").state is VolumeState.INACTIVE


def test_properties_change_what_is_given(bench: Bench) -> None:
    bench.create("db", **{"label.team": "red"})
    volumes.set_properties(bench.engine, bench.volume("db"), description="mine", labels={"team": "blue"})
    changed = bench.volume("db")
    assert (changed.description, changed.labels, changed.is_protected) == ("mine", {"team": "blue"}, False)
    assert volumes.set_properties(bench.engine, changed, description="").description is None


def test_links_by_name_follow_the_volume(bench: Bench) -> None:
    link = bench.root / "by-name" / "db"
    bench.create("db")
    bench.catalogue.save()
    assert link.resolve() == bench.root / "mounts" / "v1.1"
    first = snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    snapshots.revert(bench.engine, bench.volume("db"), first)
    bench.catalogue.save()
    assert link.resolve() == bench.root / "mounts" / "v1.2"
    removed = trash.remove(bench.engine, bench.volume("db"))
    bench.catalogue.save()
    assert not link.is_symlink()
    trash.restore(bench.engine, removed, name="web")
    bench.create("db")
    bench.catalogue.save()
    assert (bench.root / "by-name" / "web").resolve() == bench.root / "mounts" / "v1.2"
    assert link.resolve() == bench.root / "mounts" / "v2.1"


def test_a_start_looks_at_the_mount_table_as_often_for_many_volumes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    lines = mount._lines

    def counted(pid: int | None) -> Iterator[str]:
        if pid is None:
            looks.append(1)
        return lines(pid)

    monkeypatch.setattr(mount, "_lines", counted)
    bench.create("first")
    bench.restart()
    few = len(looks)
    for number in range(20):
        bench.create(f"more-{number}")
    looks.clear()
    bench.restart()
    assert len(looks) == few


def test_a_new_pool_that_cannot_be_opened_says_why_each_time_and_opens_when_it_can(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    faults = iter([Unusable("the disk fails"), Unusable("the disk still fails")])

    def make(root: Path) -> Memory:
        if (err := next(faults, None)) is not None:
            raise err
        return Memory(root, bench.engine.mounts)

    specs = [pools.Spec("second", "memory", tmp_path / "second", make)]
    opened = pools.Pools(bench.store, specs, default_driver="memory")
    reasons = []
    for _ in range(3):
        opened.open_all(lambda *_: None)
        (second,) = [pool for pool in opened if pool.row.name == "second"]
        reasons.append(second.reason)
    assert ["the disk fails" in (reasons[0] or ""), "the disk still fails" in (reasons[1] or "")] == [True, True]
    assert second.driver is not None
    assert [row.name for row in bench.store.pools()] == ["memory", "second"]


def test_links_are_mended_at_start(bench: Bench) -> None:
    bench.create("db")
    link = bench.root / "by-name" / "db"
    bench.catalogue.save()
    link.unlink()
    (bench.root / "by-name" / "stranger").symlink_to("nowhere")
    bench.restart()
    assert [path.name for path in link.parent.iterdir()] == ["db"]


def test_each_pool_carries_a_copy_of_the_catalogue_that_follows(bench: Bench) -> None:
    bench.create("db", size="1M", **{"label.team": "red"})
    bench.catalogue.save()
    snapshots.create(bench.engine, bench.volume("db"), snapshots.Wish("first"))
    bench.catalogue.save()
    bench.catalogue.save()
    lines = [json.loads(line) for line in (bench.pool_root / remembered.FILE_NAME).read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["catalogue", "volume", "snapshot", "snapshot"]
    assert lines[1]["volume"]["labels"] == {"team": "red"}
    assert lines[-1]["snapshot"]["state"] == "created"


def test_the_copy_of_the_catalogue_is_made_anew_when_it_was_lost(bench: Bench) -> None:
    bench.create("db")
    bench.catalogue.save()
    path = bench.pool_root / remembered.FILE_NAME
    path.unlink()
    bench.create("web")
    bench.catalogue.save()
    bench.catalogue.save()
    assert "web" in path.read_text()


# Pools (D9).


def test_a_copy_of_the_catalogue_has_what_changed_while_its_pool_was_away(bench: Bench) -> None:
    volume = bench.create("db")
    trash.remove(bench.engine, volume)
    bench.catalogue.save()
    away = bench.root / "away"
    bench.pool_root.rename(away)
    assert bench.engine.pools.available() == []
    trash.restore(bench.engine, bench.trashed("db"))
    bench.catalogue.save()
    away.rename(bench.pool_root)
    recovery.open_pools(bench.engine)
    bench.catalogue.save()
    assert remembered.read(bench.pool_root).volumes[volume.id] == bench.volume("db")


def test_a_pool_whose_marker_is_gone_is_unavailable_and_keeps_its_volumes(bench: Bench) -> None:
    bench.create("db")
    bench.store.write_foreseen()
    away = bench.pool_root.with_name("away")
    bench.pool_root.rename(away)
    bench.pool_root.mkdir()
    bench.restart()
    assert bench.volume("db").state is VolumeState.INACTIVE
    for refused in (lambda: bench.mount("db"), lambda: bench.create("new")):
        with pytest.raises(Unusable, match="is not mounted or was emptied"):
            refused()
    assert list(bench.pool_root.iterdir()) == [], "nothing is written where the pool should be"
    bench.pool_root.rmdir()
    away.rename(bench.pool_root)
    bench.restart()
    assert is_mounted(bench.mount("db"))


def test_a_clone_that_was_told_outlives_a_kill_and_a_start_on_a_full_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.create("db")
    bench.write("db", "content")
    bench.create("copy", **{"from": "db"})
    commit = store.Store.commit

    def full(database: store.Store, change: Callable[[Write], object], **how: bool) -> object:
        if not how.get("is_vital"):  # as long as there is ballast
            raise Unusable("database or disk is full")
        return commit(database, change, **how)

    monkeypatch.setattr(store.Store, "commit", full)
    bench.restart()
    monkeypatch.undo()
    bench.upkeep()
    assert bench.volume("copy").state is VolumeState.INACTIVE
    assert bench.read("copy") == "content"


def come_and_go(bench: Bench) -> None:
    """Have the pool go away and be opened again, as under verbs that run."""
    away = bench.pool_root.with_name("away")
    bench.pool_root.rename(away)
    assert bench.engine.pools.available() == []
    away.rename(bench.pool_root)
    recovery.open_pools(bench.engine)
    assert len(bench.engine.pools.available()) == 1


def test_a_verb_that_runs_while_its_pool_comes_back_ends_as_it_would_have(bench: Bench) -> None:
    volume = bench.create("db")
    bench.write("db", "old")
    one = freeze(bench.engine, volume, "one")
    bench.write("db", "present")
    reverting = replace(bench.volume("db"), state=VolumeState.REVERTING)
    going = snapshots.begin_displacing(bench.engine, reverting, TreeOptions(), source=one.tree, verb="revert")
    come_and_go(bench)
    bench.driver.clone(volume.tree, going.kept.tree, read_only=True)
    bench.driver.clone(one.tree, going.key, read_only=False)
    moved, kept = snapshots.end_displacing(bench.engine, going, size_bytes=None)
    for _ in range(2):
        bench.upkeep()
        assert (bench.read_key(moved.tree), bench.read_key(kept.tree)) == ("old", "present")
        bench.restart()


def test_a_verb_that_ends_while_its_pool_is_recovered_is_not_said_to_have_lost_its_tree(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.create("db")
    bench.write("db", "content")
    wish = creation.Request("copy", names.parse_options({"from": "db"}), {"from": "db"})
    plan = volumes.begin_create(bench.engine, wish, model.VolumeId(bench.store.reserve_id("volumes")))
    assert isinstance(plan, creation.Plan)
    driver = bench.driver
    looks: list[Memory] = []
    listed = Memory.trees

    def look(asked: Memory) -> set[Key]:
        found = listed(asked)
        looks.append(asked)
        if len(looks) == 2:  # the first look is that of the opening
            volumes.finish_create(bench.engine, plan, driver)
        return found

    monkeypatch.setattr(Memory, "trees", look)
    come_and_go(bench)
    assert len(looks) > 1
    assert (bench.volume("copy").state, bench.volume("copy").message) == (VolumeState.INACTIVE, None)
    assert bench.read("copy") == "content"


def test_a_snapshot_that_is_made_while_its_pool_comes_back_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bench.create("db")
    bench.write("db", "content")
    clone = Memory.clone

    def slow(driver: Memory, source: Key, target: Key, *, read_only: bool) -> None:
        come_and_go(bench)
        clone(driver, source, target, read_only=read_only)

    monkeypatch.setattr(Memory, "clone", slow)
    made = freeze(bench.engine, volume, "one")
    assert bench.create("web", **{"from": "db@one"}).state is VolumeState.INACTIVE
    for _ in range(2):
        bench.upkeep()
        assert (bench.read_key(made.tree), bench.read("web")) == ("content", "content")
        bench.restart()


def test_a_pool_that_comes_back_undoes_nothing_that_was_told_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bench.create("db")
    bench.driver.remove(volume.tree)

    def full(*_: object) -> None:
        volumes.set_properties(bench.engine, bench.volume("db"), description="late")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Memory, "create", full)
    come_and_go(bench)
    assert bench.volume("db").description == "late"
    come_and_go(bench)
    monkeypatch.undo()
    come_and_go(bench)
    assert is_mounted(bench.mount("db"))


def test_a_pool_that_goes_away_while_it_is_opened_is_not_taken_for_an_empty_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.create("db")
    bench.create("web", **{"from": "db"})  # told, and not written yet
    away = bench.pool_root.with_name("away")
    opened_driver = Memory.open

    def lose(driver: Memory) -> None:
        bench.pool_root.rename(away)
        bench.pool_root.mkdir()
        opened_driver(driver)

    monkeypatch.setattr(Memory, "open", lose)
    bench.restart()
    assert [pool.driver for pool in bench.engine.pools] == [None]
    monkeypatch.undo()
    tree.vanish(bench.pool_root)
    away.rename(bench.pool_root)
    recovery.open_pools(bench.engine)
    assert is_mounted(bench.mount("web"))


def test_another_pool_in_the_place_is_refused(bench: Bench) -> None:
    bench.create("db")
    marker = bench.pool_root / ".voldriver-pool"
    marker.write_text(json.dumps({"uuid": "other", "driver": "memory", "version": "1"}))
    bench.restart()
    with pytest.raises(Unusable, match="holds another pool"):
        bench.mount("db")


def opened_for(bench: Bench, root: Path) -> pools.Pool:
    """Open the pool of a bench as the daemon of a root does."""
    specs = [pools.Spec("memory", "memory", bench.pool_root, lambda path: Memory(path, bench.engine.mounts))]
    opened = pools.Pools(bench.store, specs, default_driver="memory", root=root)
    opened.open_all(lambda *_: None)
    return next(iter(opened))


def test_a_pool_is_taken_from_a_root_whose_daemon_has_ended_and_from_no_other(bench: Bench, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    with fs.locked(first / markers.LOCK):
        for _ in range(2):
            assert opened_for(bench, first).trouble is None
        assert f"is used by the voldriverd that runs on root {first}" in str(opened_for(bench, second).trouble)
    assert opened_for(bench, second).trouble is None
    tree.vanish(first)  # a root that was moved
    assert opened_for(bench, first).trouble is None
    assert json.loads((bench.pool_root / markers.MARKER).read_text())["root"] == str(first)


def test_a_pool_that_lies_elsewhere_now_is_served_on_a_full_disk_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = bench.pool_root.with_name("moved")
    bench.pool_root.rename(moved)
    monkeypatch.setattr(Ballast, "is_disk_roomy", lambda _: False)
    specs = [pools.Spec("memory", "memory", moved, lambda path: Memory(path, bench.engine.mounts))]
    opened = pools.Pools(bench.store, specs, default_driver="memory")
    opened.open_all(lambda *_: None)
    (pool,) = opened
    assert (pool.trouble, pool.row.path) == (None, str(moved))
    assert [row.path for row in bench.store.pools()] == [str(moved)]
    moved.rename(bench.pool_root)


def test_a_pool_whose_marker_cannot_be_written_is_served(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(fs, "write_durably", read_only)
    assert opened_for(bench, tmp_path).trouble is None
    assert "its marker does not name our root" in caplog.text
    assert "root" not in json.loads((bench.pool_root / markers.MARKER).read_text())


@pytest.mark.parametrize("is_there", [True, False])
def test_no_tree_that_no_row_knows_is_taken_for_the_one_that_a_revert_makes(bench: Bench, *, is_there: bool) -> None:
    """The database is older than the pool: it was put back, and a revert came after its time."""
    volume = bench.create("db")
    bench.write("db", "old")
    freeze(bench.engine, volume, "one")
    newer = Key("v1.2")
    bench.driver.clone(volume.tree, newer, read_only=False)
    (bench.driver.attach(newer, read_only=False) / "content").write_text("newer")
    bench.driver.detach(newer)
    if not is_there:
        bench.driver.remove(volume.tree)
    bench.restart()
    assert next(iter(bench.engine.pools)).orphans == {newer}
    with nullcontext() if is_there else pytest.raises(NotFound):
        snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))
    bench.upkeep()
    bench.restart()
    bench.upkeep()
    assert bench.read_key(newer) == "newer"
    assert newer not in bench.tree_rows()


def test_a_database_that_lost_the_end_of_a_revert_loses_no_content(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that says of a commit that it is durable, and is not: the displaced tree went after that commit."""
    volume = bench.create("db")
    bench.write("db", "old")
    freeze(bench.engine, volume, "one")
    bench.write("db", "present")
    files = [bench.root / name for name in (store.FILE_NAME, f"{store.FILE_NAME}-wal")]
    lost: dict[Path, bytes] = {}
    clone = Memory.clone

    def note(driver: Memory, source: Key, target: Key, *, read_only: bool) -> None:
        lost.update({path: path.read_bytes() for path in files})
        clone(driver, source, target, read_only=read_only)

    monkeypatch.setattr(Memory, "clone", note)
    _, kept = snapshots.revert(bench.engine, bench.volume("db"), bench.snapshot("db", "one"))
    bench.write("db", "later")
    bench.upkeep()
    bench.close()
    for path, content in lost.items():
        path.write_bytes(content)
    for _ in range(2):
        bench.restart()
        bench.upkeep()
        assert bench.volume("db").state is VolumeState.INACTIVE
        assert bench.read("db") == "later"
        assert [bench.read_key(row.tree) for row in bench.store.snapshots(volume.id)] == ["old", "present"]
        assert [row.id for row in bench.store.snapshots(volume.id)][-1] == kept.id


def test_a_directory_with_foreign_files_is_not_made_a_pool(bench: Bench) -> None:
    bench.renew()
    bench.close()
    root = bench.root
    (root / "voldriver.db").unlink()
    tree.vanish(root / "pool")
    (root / "pool").mkdir()
    (root / "pool" / "thesis.tex").write_text("mine")
    bench.restart()
    with pytest.raises(Unusable, match=r"neither empty nor a pool: it holds thesis\.tex"):
        bench.create("db")


def test_an_os_error_becomes_the_kind_that_fits() -> None:
    for number, kind in ((errno.EBUSY, InUse), (errno.EOPNOTSUPP, Unsupported), (errno.ENOSPC, Unusable)):
        with pytest.raises(kind, match=r"^cannot do it: "), failures.told_as("cannot do it"):
            raise OSError(number, os.strerror(number))
