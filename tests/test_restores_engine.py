"""Restores on real pools from a target in a directory: every driver into every other, and what goes wrong."""

import io
import itertools
import os
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import zstandard

from tests.contract import content
from tests.likeness import Facts
from tests.restoring import MIB, Host
from tests.scratch import Scratch, loops_under
from tests.test_kernel_tree import add_flags
from voldriverd import model, names
from voldriverd.driver import StreamFormat
from voldriverd.engine import mounts, restores, snapshots, space, supplies, trash, volumes
from voldriverd.engine.context import Limits
from voldriverd.errors import Error, Exists, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.jobs import Job
from voldriverd.kernel import fs
from voldriverd.model import VolumeState

pytestmark = pytest.mark.root

DRIVERS: Final = ("btrfs", "loop", "directory")
_numbers: Final = itertools.count()


class Ending(Job):
    """Work that ends once so many bytes have passed."""

    def __init__(self, after_bytes: int, end: Callable[[Job], None]) -> None:
        super().__init__("restore")
        self._after_bytes = after_bytes
        self._end = end

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        if done_bytes >= self._after_bytes:
            self._end(self)


def die(_: Job) -> None:
    """End as after a kill."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def place(session_scratch: Scratch) -> Path:
    """Return a new directory's path on a btrfs with quotas."""
    return session_scratch.shared("restores", "btrfs") / f"host{next(_numbers)}"


@pytest.fixture
def host(tmp_path: Path, place: Path) -> Iterator[Host]:
    """Return a host with a pool of each driver, and a root on no btrfs."""
    host = Host(tmp_path / "host", {name: place / name for name in DRIVERS})
    yield host
    host.vanish()
    place.rmdir()


@pytest.fixture
def elsewhere(tmp_path: Path, place: Path, host: Host) -> Iterator[Host]:
    """Return another host, with plain directories only, that has the same target."""
    other = Host(tmp_path / "elsewhere", {"directory": place / "plain"})
    other.target = host.target
    other.restart()
    yield other
    other.target = tmp_path / "elsewhere" / "target"
    other.vanish()


def known_on(elsewhere: Host, backup: model.Backup) -> model.Backup:
    """Have a host know a backup that another one has made."""
    (target,) = elsewhere.store.targets()
    known = replace(backup, target_id=target.id, volume_id=None, snapshot_id=None, key=None)
    elsewhere.store.commit(lambda write: write.put_backup(known))
    return known


def likeness(host: Host, name: str) -> dict[bytes, Facts]:
    """Describe what a volume holds."""
    volume = host.volume(name)
    with host.shown(volume) as root:
        return content.likeness(root)


def fill(host: Host, name: str) -> dict[bytes, Facts]:
    """Put one of everything into a volume."""
    with host.written(name) as root:
        content.fill(root)
    return likeness(host, name)


def chunks(host: Host) -> list[Path]:
    """Return the objects with data in the target, the largest first."""
    found = (path for path in host.target.glob("volumes/*/chunks/*/*") if path.is_file())
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def whole_bytes(path: Path) -> bytes:
    """Return what an object holds."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def flip(path: Path) -> None:
    """Damage an object in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def killed(host: Host, work: Callable[[], object]) -> None:
    """Run something in a child that kills itself, and start again."""
    host.close()
    child = os.fork()
    if not child:
        try:
            host.restart()
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child was to kill itself"
    host.restart()


# Every driver into every other.


@pytest.mark.parametrize("target", DRIVERS)
@pytest.mark.parametrize("source", DRIVERS)
def test_a_new_volume_of_any_driver_has_everything(host: Host, source: str, target: str) -> None:
    host.create("db", driver=source)
    before = fill(host, "db")
    backup = host.backup("db", "one")
    job = Job("restore")
    restored = host.restore_as("copy", backup, {"driver": target}, job=job)
    assert restored.state is VolumeState.INACTIVE
    assert restored.driver == target
    assert likeness(host, "copy") == before
    assert job.total_bytes is not None
    assert backup.content_bytes <= job.done_bytes
    with host.written("copy") as root:
        (root / "new").write_text("it can be written to")
    host.check_trees()
    assert not loops_under(host.root)


@pytest.mark.parametrize("target", DRIVERS)
@pytest.mark.parametrize("source", DRIVERS)
def test_a_volume_of_any_driver_gets_everything_and_its_own_is_kept(host: Host, source: str, target: str) -> None:
    host.create("db", driver=source)
    before = fill(host, "db")
    backup = host.backup("db", "one")
    host.create("other", driver=target)
    host.write("other", "displaced")
    moved, kept = host.restore("other", backup)
    assert likeness(host, "other") == before
    assert host.read("other", kept.tree) == "displaced"
    assert (moved.state, moved.key) == (VolumeState.INACTIVE, model.volume_key(moved.id, 2))
    assert kept.shown_name.startswith("before-restore-")
    assert kept.is_automatic
    snapshots.revert(host.engine, moved, kept)
    assert host.read("other") == "displaced"
    host.check_trees()


@pytest.mark.parametrize("source", ["btrfs", "loop"])
def test_without_a_pool_of_its_driver_a_backup_goes_through_an_image_under_the_root(
    host: Host, elsewhere: Host, source: str
) -> None:
    host.create("db", driver=source)
    before = fill(host, "db")
    known = known_on(elsewhere, host.backup("db", "one"))
    restored = elsewhere.restore_as("copy", known)
    assert restored.driver == "directory", "its own driver has no pool here, so it is the default one"
    assert likeness(elsewhere, "copy") == before
    elsewhere.check_trees()
    assert not loops_under(elsewhere.root)


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_of_eleven_backups_restores_what_was_there(host: Host, driver: str) -> None:
    host.create("db", driver=driver)
    made = []
    for number in range(11):
        with host.written("db") as root:
            (root / f"file{number}").write_bytes(os.urandom(50_000))
            (root / "content").write_text(f"content {number}")
        made.append((host.backup("db", f"s{number}"), likeness(host, "db")))
    for backup, before in made:
        host.restore("db", backup)
        assert likeness(host, "db") == before
    host.check_trees()


def test_a_restored_volume_is_backed_up_and_restored_again(host: Host) -> None:
    host.create("db", driver="btrfs")
    fill(host, "db")
    host.restore_as("copy", host.backup("db", "one"))
    with host.written("copy") as root:
        content.change(root)
    before = likeness(host, "copy")
    host.restore_as("again", host.backup("copy", "two"), {"driver": "loop"})
    assert likeness(host, "again") == before


# An existing volume.


def test_the_larger_of_both_sizes_is_kept(host: Host) -> None:
    host.create("small", driver="loop", size="32M")
    host.write("small", "small")
    small = host.backup("small", "one")
    host.create("large", driver="loop", size="48M")
    host.write("large", "large")
    large = host.backup("large", "one")
    assert host.restore("large", small)[0].size_bytes == 48 * MIB
    assert host.restore("small", large)[0].size_bytes == 48 * MIB
    for name, holds in (("large", "small"), ("small", "large")):
        volume = host.volume(name)
        assert host.driver_of(volume).usage(volume.tree).limit_bytes == 48 * MIB
        with host.shown(volume) as root:
            assert fs.capacity(root)[0] > 40 * MIB
        assert host.read(name) == holds


def test_a_volume_without_a_size_gets_the_one_of_the_backup(tmp_path: Path, scratch: Scratch) -> None:
    place = scratch.make("btrfs")
    host = Host(tmp_path / "host", {"btrfs": place / "pool"}, quota="simple")
    host.create("limited", size="100M")
    backup = host.backup("limited", "one")
    host.create("db")
    assert host.restore("db", backup)[0].size_bytes == 100 * MIB
    assert host.driver_of(host.volume("db")).usage(host.volume("db").tree).limit_bytes == 100 * MIB
    host.vanish()


def test_an_image_keeps_its_file_system(host: Host) -> None:
    host.create("other", driver="loop", fs="xfs", size="320M")
    host.write("other", "xfs")
    backup = host.backup("other", "one")
    host.create("db", driver="loop")
    moved, _ = host.restore("db", backup)
    tree = host.store.tree(moved.tree)
    assert tree is not None
    assert tree.options.fs == "xfs"
    assert host.read("db") == "xfs"
    volumes.resize(host.engine, moved, 400 * MIB)
    with host.shown(host.volume("db")) as root:
        assert fs.capacity(root)[0] > 330 * MIB


def test_a_file_system_too_small_for_the_content_is_made_larger(host: Host) -> None:
    host.create("db", driver="directory")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(50 * MIB))
    backup = host.backup("db", "one")
    host.create("small", driver="loop", size="32M")
    moved, _ = host.restore("small", backup)
    assert (moved.size_bytes or 0) > 60 * MIB
    assert (moved.size_bytes or 0) % MIB == 0
    assert likeness(host, "small") == likeness(host, "db")
    assert (host.restore_as("new", backup, {"driver": "loop"}).size_bytes or 0) > 60 * MIB


def test_what_a_volume_is_being_restored_from_is_said_meanwhile_and_nothing_else_is_done_to_it(host: Host) -> None:
    host.create("db", driver="btrfs")
    host.write("db", "one")
    one = host.snapshot("db", "first")
    backup = host.backup("db", "one")
    host.write("db", "now")
    with host.supplied(backup, Job("restore")) as supply:
        going = restores.begin(host.engine, host.volume("db"), supply)
        volume = host.volume("db")
        assert volume == going.volume
        assert volume.state is VolumeState.RESTORING
        assert (volume.message or "").startswith(f"restore from backup {backup.shown_name} of db (")
        verbs: dict[str, Callable[[], object]] = {
            "mount": lambda: mounts.mount(host.engine, volume, "holder"),
            "snapshot": lambda: host.snapshot("db", "second"),
            "revert": lambda: snapshots.revert(host.engine, volume, one),
            "resize": lambda: volumes.resize(host.engine, volume, MIB),
            "remove": lambda: trash.remove(host.engine, volume),
            "create": lambda: host.create("copy", **{"from": "db"}),
            "restore": lambda: restores.begin(host.engine, volume, supply),
        }
        for verb, call in verbs.items():
            with pytest.raises(InUse, match=f"cannot {verb} volume .*: it is restoring"):
                call()
        assert mounts.unmount(host.engine, volume, "nobody")
        volumes.set_properties(host.engine, volume, description="changed meanwhile")
        arrived = restores.bring(host.engine, going, supply, Job("restore"))
        moved, kept = restores.finish(host.engine, going, supply, arrived)
    assert (moved.description, moved.message) == ("changed meanwhile", None)
    assert (host.read("db"), host.read("db", kept.tree)) == ("one", "now")
    host.check_trees()


def test_a_name_that_is_taken_meanwhile_is_not_taken_away(host: Host) -> None:
    host.create("db", driver="btrfs")
    host.write("db", "one")
    first = host.snapshot("db", "first")
    backup = host.backup("db", "one")
    with host.supplied(backup, Job("restore")) as supply:
        going = restores.begin(host.engine, host.volume("db"), supply)
        name = going.kept.shown_name
        snapshots.set_properties(host.engine, going.volume, first, name=name, description=None)
        arrived = restores.bring(host.engine, going, supply, Job("restore"))
        _, kept = restores.finish(host.engine, going, supply, arrived)
    assert kept.name == f"{name}.2"


def test_a_volume_that_is_used_or_in_the_trash_is_refused(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    volume = host.volume("db")
    mounts.mount(host.engine, volume, model.HOST_HOLDER)
    with pytest.raises(InUse, match="cannot restore volume db: it is mounted by the host"):
        host.restore("db", backup)
    mounts.unmount(host.engine, volume, model.HOST_HOLDER)
    trash.remove(host.engine, volume)
    with host.supplied(backup, Job("restore")) as supply, pytest.raises(NotFound, match="it is in the trash"):
        restores.begin(host.engine, host.store.volumes()[0], supply)


def test_below_the_reserve_a_restore_is_refused(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    host.engine = replace(host.engine, limits=Limits(reserve=1.0))
    with pytest.raises(space.Shortage, match="cannot restore volume db: pool btrfs has"):
        host.restore("db", backup)
    with pytest.raises(space.Shortage, match="cannot create volume copy: pool btrfs has"):
        host.restore_as("copy", backup)


@pytest.mark.parametrize("driver", ["btrfs", "directory"])
def test_a_pool_that_has_not_the_room_is_refused_with_the_figures(
    tmp_path: Path, scratch: Scratch, host: Host, driver: str
) -> None:
    host.create("db", driver="directory")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(112 * MIB))
    backup = host.backup("db", "one")
    small = scratch.make("btrfs", size_bytes=128 * MIB)
    tight = Host(tmp_path / "tight", {driver: small / "pool"})
    tight.target = host.target
    tight.restart()
    known = known_on(tight, backup)
    tight.create("other")
    tight.write("other", "as it was")
    text = rf"the backup takes 112.* MiB, and pool {driver} has .* MiB free"
    with pytest.raises(Unusable, match=f"cannot restore volume other: {text}"):
        tight.restore("other", known)
    with pytest.raises(Unusable, match=f"cannot create volume new: {text}"):
        tight.restore_as("new", known)
    assert tight.volume("other").state is VolumeState.INACTIVE
    assert tight.read("other") == "as it was"
    assert tight.store.volume_named("new") is None
    tight.check_trees()
    tight.target = tmp_path / "tight" / "target"
    tight.vanish()


def test_a_pool_that_fills_up_meanwhile_leaves_the_volume_as_it_was(
    tmp_path: Path, scratch: Scratch, host: Host
) -> None:
    host.create("db", driver="directory")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(60 * MIB))
    small = scratch.make("ext4", size_bytes=120 * MIB)
    tight = Host(tmp_path / "tight", {"directory": small / "pool"})
    tight.target = host.target
    tight.restart()
    known = known_on(tight, host.backup("db", "one"))
    tight.create("other")
    tight.write("other", "as it was")

    def fill_up(_: Job) -> None:
        fill = small / "fill"
        if not fill.exists():
            with fill.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, fs.capacity(small)[1] - MIB)

    with pytest.raises(Unusable, match="cannot restore volume other: no space is left in the pool"):
        tight.restore("other", known, job=Ending(1, fill_up))
    (small / "fill").unlink()
    after = tight.volume("other")
    assert after.state is VolumeState.INACTIVE
    assert after.message == "cannot restore volume other: no space is left in the pool"
    assert tight.read("other") == "as it was"
    tight.check_trees()
    tight.target = tmp_path / "tight" / "target"
    tight.vanish()


# What is in the target.


def test_what_is_no_backup_any_more_is_refused(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    for state, error in (
        (model.BackupState.CREATING, InUse),
        (model.BackupState.ERROR, NotFound),
        (model.BackupState.REMOVED, NotFound),
    ):
        with pytest.raises(error, match=f"cannot restore volume db: backup {backup.shown_name} is"):
            host.restore("db", replace(backup, state=state))


def test_a_chain_with_a_link_missing_is_refused_before_anything_changes(host: Host) -> None:
    host.create("db", driver="btrfs")
    host.write("db", "one")
    whole = host.backup("db", "one")
    host.write("db", "two")
    increment = host.backup("db", "two")
    assert increment.parent_uuid == whole.uuid
    next(host.target.glob(f"volumes/*/backups/{whole.uuid}")).unlink()
    before = host.volume("db")
    with pytest.raises(Unusable, match=whole.uuid):
        host.restore("db", increment)
    assert host.volume("db") == before
    with pytest.raises(NotFound):
        host.restore("db", whole)


def test_a_target_that_has_gone_is_said(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    aside = host.target.rename(host.target.with_name("aside"))
    before = host.volume("db")
    with pytest.raises(Unusable, match="there is no such directory"):
        host.restore("db", backup)
    aside.rename(host.target)
    assert host.volume("db") == before


@pytest.mark.parametrize("driver", DRIVERS)
def test_damage_leaves_the_volume_as_it_was_and_is_named(host: Host, driver: str) -> None:
    host.create("db", driver=driver)
    fill(host, "db")
    backup = host.backup("db", "one")
    host.write("db", "now")
    damaged = chunks(host)[0]
    flip(damaged)
    with pytest.raises(Unusable, match=damaged.name):
        host.restore("db", backup)
    after = host.volume("db")
    assert after.state is VolumeState.INACTIVE
    assert (after.message or "").startswith("cannot restore volume db: cannot read backup")
    assert damaged.name in (after.message or "")
    assert restores.is_fault(after.message or "")
    assert host.read("db") == "now"
    with pytest.raises(Unusable, match=damaged.name):
        host.restore_as("copy", backup)
    assert host.store.volume_named("copy") is None
    host.check_trees()


@pytest.mark.parametrize("target", ["loop", "directory"])
@pytest.mark.parametrize("source", ["loop", "directory"])
def test_damage_may_be_left_as_holes_and_is_listed(host: Host, source: str, target: str) -> None:
    host.create("db", driver=source)
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(9 * MIB))
        (root / "content").write_text("sound")
    backup = host.backup("db", "one")
    whole = likeness(host, "db")[b"./big"]
    damaged = next(path for path in chunks(host) if b"sound" not in whole_bytes(path))  # of one file only
    flip(damaged)
    host.create("other", driver=target)
    moved, _ = host.restore("other", backup, allow_holes=True)
    assert (moved.message or "").startswith(f"{restores.RESTORED} backup {backup.shown_name} of db")
    assert damaged.name in (moved.message or "")
    assert not restores.is_fault(moved.message or "")
    assert host.read("other") == "sound"
    found = likeness(host, "other").get(b"./big")
    assert found != whole
    host.check_trees()


def test_of_a_btrfs_stream_no_damage_can_be_left_out(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    before = host.volume("db")
    with pytest.raises(Unsupported, match="damaged of a btrfs stream cannot be left out"):
        host.restore("db", backup, allow_holes=True)
    assert host.volume("db") == before


def test_an_increment_that_its_stream_cannot_hold_is_made_whole(host: Host) -> None:
    host.create("db", driver="btrfs")
    with host.written("db") as root:
        make_deep(root, ["d" * 200] * 20)
        (root / "content").write_text("sound")
    host.backup("db", "one")
    with host.written("db") as root:
        (root / ("d" * 200)).rename(root / ("d" * 250))
        make_deep(root, ["d" * 250, *["d" * 200] * 19, "e" * 50])
    backup = host.backup("db", "two")
    assert (backup.format, backup.parent_uuid) == (StreamFormat.TAR, None)
    assert backup.message == "it has paths that are too long for a btrfs stream"
    host.create("other", driver="btrfs")
    host.restore("other", backup)
    assert host.read("other") == "sound"
    host.check_trees()


def make_deep(root: Path, names: list[str]) -> None:
    """Make directories one in the other, as far as they are not there; all together may be longer than a path."""
    fd = os.open(root, os.O_RDONLY)
    for name in names:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)
        outside, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(outside)
    os.close(fd)


# Ended in the middle.


@pytest.mark.parametrize(("source", "target"), [("btrfs", "btrfs"), ("loop", "loop"), ("directory", "loop")])
def test_a_cancelled_restore_leaves_everything_as_it_was(host: Host, source: str, target: str) -> None:
    host.create("db", driver=source)
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(6 * MIB))
    backup = host.backup("db", "one")
    host.create("other", driver=target)
    host.write("other", "as it was")
    with pytest.raises(InUse, match="cannot restore volume other: it was cancelled"):
        host.restore("other", backup, job=Ending(1, Job.cancel))
    assert host.volume("other").message == "cannot restore volume other: it was cancelled"
    assert host.read("other") == "as it was"
    with pytest.raises(InUse, match="cannot restore volume new: it was interrupted"):
        host.restore_as("new", backup, {"driver": target}, job=Ending(1, Job.stop))
    host.check_trees()


def test_what_goes_through_another_driver_ends_there_too(host: Host) -> None:
    host.create("db", driver="btrfs")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(6 * MIB))
    backup = host.backup("db", "one")
    with pytest.raises(InUse, match="it was cancelled"):
        host.restore_as("new", backup, {"driver": "directory"}, job=Ending(backup.content_bytes + 1, Job.cancel))
    host.check_trees()


def test_what_is_cancelled_at_the_last_moment_is_not_done(host: Host) -> None:
    host.create("db", driver="btrfs")
    host.write("db", "one")
    backup = host.backup("db", "one")
    host.write("db", "now")
    with pytest.raises(InUse, match="it was cancelled"):
        host.restore("db", backup, job=Ending(backup.content_bytes, Job.cancel))
    assert host.read("db") == "now"
    host.check_trees()
    host.restore("db", backup, job=Ending(backup.content_bytes, Job.stop))
    assert host.read("db") == "one", "what has come that far when the daemon stops is ended"


def test_the_next_verb_ends_what_is_said_of_the_last(host: Host) -> None:
    host.create("db", driver="loop", size="32M")
    backup = host.backup("db", "one")
    for verb in (
        lambda: volumes.resize(host.engine, host.volume("db"), 48 * MIB),
        lambda: snapshots.revert(host.engine, host.volume("db"), host.snapshot("db", "two")),
        lambda: host.restore("db", backup),
    ):
        with pytest.raises(InUse):
            host.restore("db", backup, job=Ending(1, Job.cancel))
        assert host.volume("db").message
        verb()
        assert host.volume("db").message is None


def test_what_is_cut_off_fails_as_ended_however_that_looks(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")

    def cut_off(job: Job) -> None:
        job.cancel()
        raise Unusable("cannot receive tree v1.2: a pipe broke")

    with pytest.raises(InUse, match="cannot restore volume db: it was cancelled"):
        host.restore("db", backup, job=Ending(1, cut_off))
    host.check_trees()


def test_work_that_was_ended_before_does_not_begin(host: Host) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    job = Job("restore")
    job.cancel()
    before = host.volume("db")
    with pytest.raises(InUse, match="cannot restore volume db: it was cancelled"):
        host.restore("db", backup, job=job)
    assert host.volume("db") == before


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("source", DRIVERS)
def test_a_kill_leaves_an_existing_volume_as_it_was(host: Host, source: str, driver: str) -> None:
    host.create("db", driver=source)
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(6 * MIB))
    backup = host.backup("db", "one")
    host.create("other", driver=driver)
    host.write("other", "as it was")
    killed(host, lambda: host.restore("other", backup, job=Ending(5 * MIB, die)))
    after = host.volume("other")
    assert after.state is VolumeState.INACTIVE
    assert (after.message or "").startswith(f"the restore from backup {backup.shown_name} of db (")
    assert (after.message or "").endswith("was interrupted; the volume is as it was before")
    assert host.read("other") == "as it was"
    host.check_trees()
    assert not loops_under(host.root)
    host.restart()
    assert host.volume("other").message == after.message, "it is said until the next verb"
    moved, _ = host.restore("other", backup)
    assert moved.message is None
    assert likeness(host, "other") == likeness(host, "db")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("source", DRIVERS)
def test_after_a_kill_a_new_volume_is_restored_again(host: Host, source: str, driver: str) -> None:
    host.create("db", driver=source)
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(6 * MIB))
    backup = host.backup("db", "one")
    killed(host, lambda: host.restore_as("new", backup, {"driver": driver}, job=Ending(5 * MIB, die)))
    (volume,) = restores.resumable(host.engine)
    assert (volume.name, volume.state, volume.driver) == ("new", VolumeState.RESTORING, driver)
    source_id = restores.source_of(volume)
    assert restores.backup_of(host.engine, source_id, "cannot") == backup
    with host.supplied(backup, Job("restore")) as supply:
        for _ in range(2):  # a crash may come between the tree and the commit
            arrived = restores.bring_new(host.engine, volume, supply, Job("restore"))
        restores.finish_new(host.engine, volume.id, supply, arrived)
    assert likeness(host, "new") == likeness(host, "db")
    host.check_trees()
    assert restores.resumable(host.engine) == []


def test_a_new_volume_whose_restore_is_put_off_says_why_and_may_go(host: Host) -> None:
    host.create("db", driver="btrfs")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(6 * MIB))
    backup = host.backup("db", "one")
    killed(host, lambda: host.restore_as("new", backup, job=Ending(1, die)))
    (volume,) = restores.resumable(host.engine)
    restores.postpone(host.engine, volume.id, "the target does not answer")
    host.restart()
    assert host.volume("new").message == "cannot restore volume new: the target does not answer"
    restores.give_up_new(host.engine, volume.id)
    assert host.store.volume_named("new") is None
    host.check_trees()


# A new volume.


def test_a_new_volume_is_like_the_old_one(host: Host) -> None:
    host.create("db", driver="btrfs", compression="zstd", **{"label.tier": "gold", "label.team": "one"})
    volumes.set_properties(host.engine, host.volume("db"), description="the books")
    backup = host.backup("db", "one")
    restored = host.restore_as("copy", backup, {"protected": "yes", "label.team": "two"})
    tree = host.store.tree(restored.tree)
    assert tree is not None
    assert tree.options.compression == "zstd"
    assert restored.labels == {"tier": "gold", "team": "two"}
    assert (restored.driver, restored.description, restored.message) == ("btrfs", "the books", None)
    assert restored.is_protected
    assert restored.options == {"protected": "yes", "label.team": "two", "from": f"backup:{backup.shown_name}"}


def test_options_that_are_given_count_more(host: Host) -> None:
    host.create("db", driver="btrfs", compression="zstd")
    host.write("db", "one")
    backup = host.backup("db", "one")
    restored = host.restore_as("copy", backup, {"nocow": "yes"})
    tree = host.store.tree(restored.tree)
    assert tree is not None
    assert (tree.options.nocow, tree.options.compression) == (True, None)
    assert host.read("copy") == "one"


def test_a_size_or_file_system_that_is_given_is_made(host: Host) -> None:
    host.create("db", driver="loop", size="48M")
    before = fill(host, "db")
    backup = host.backup("db", "one")
    for name, options, size_mib in (
        ("larger", {"size": "96M"}, 96),
        ("smaller", {"size": "32M"}, 32),
        ("other", {"fs": "xfs", "size": "320M"}, 320),
        ("thick", {"thick": "yes"}, 48),
    ):
        restored = host.restore_as(name, backup, options)
        usage = host.driver_of(restored).usage(restored.tree)
        assert (restored.size_bytes, usage.limit_bytes) == (size_mib * MIB, size_mib * MIB)
        assert (usage.used_bytes or 0) >= (size_mib * MIB if name == "thick" else 0)
        found = likeness(host, name)
        for facts in found.values():  # xfs shows each ACL once more as an attribute of its own
            attributes = facts["xattrs"]
            assert isinstance(attributes, dict)
            attributes.pop("trusted.SGI_ACL_FILE", None)
            attributes.pop("trusted.SGI_ACL_DEFAULT", None)
        assert found == before, name


def test_a_size_below_the_content_is_refused(host: Host) -> None:
    for source in ("directory", "loop", "btrfs"):
        host.create(source, driver=source)
        with host.written(source) as root:
            (root / "big").write_bytes(os.urandom(40 * MIB))
        backup = host.backup(source, "one")
        with pytest.raises(Invalid, match=r"size 32 MiB is below the 40.* MiB that it is to hold") as caught:
            host.restore_as("small", backup, {"driver": "loop", "size": "32M"})
        assert caught.value.field == "size"
        assert host.store.volume_named("small") is None
    host.check_trees()


def test_a_limit_below_what_it_takes_is_refused(tmp_path: Path, scratch: Scratch) -> None:
    place = scratch.make("btrfs")
    host = Host(tmp_path / "host", {"btrfs": place / "pool"}, quota="simple")
    host.create("db")
    with host.written("db") as root:
        (root / "big").write_bytes(os.urandom(40 * MIB))
    backup = host.backup("db", "one")
    with pytest.raises(Invalid, match=r"size 32 MiB is below the .* MiB that the backup takes"):
        host.restore_as("small", backup, {"size": "32M"})
    assert host.restore_as("large", backup, {"size": "64M"}).size_bytes == 64 * MIB
    host.check_trees()
    host.vanish()


def test_what_the_driver_has_not_is_said(host: Host) -> None:
    host.create("db", driver="loop", thick="yes", size="32M")
    backup = host.backup("db", "one")
    restored = host.restore_as("copy", backup, {"driver": "directory"})
    said = restored.message or ""
    assert said.startswith(f"restored from backup {backup.shown_name} of db (")
    assert "but: driver directory has no option size; driver directory has no option thick" in said
    host.restart()
    assert host.volume("copy").message == said


@pytest.mark.parametrize("target", DRIVERS)
def test_what_the_stream_has_not_is_said(host: Host, target: str) -> None:
    host.create("db", driver="directory")
    with host.written("db") as root, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    restored = host.restore_as("copy", host.backup("db", "one"), {"driver": target})
    assert "but: tar cannot hold sockets: socket" in (restored.message or "")
    assert host.restore("copy", host.backup("db", "two"))[0].message is not None


def test_what_the_first_stream_of_a_chain_has_not_is_said(host: Host) -> None:
    host.create("db", driver="btrfs")
    with host.written("db") as root:
        for number in range(900):  # so that the flagged one lies where a new one changes nothing
            (root / str(number)).touch()
        add_flags(root / "450", fs.FS_NOCOW_FL)
    host.backup("db", "one")
    with host.written("db") as root:
        (root / "another").touch()
    increment = host.backup("db", "two")
    assert (increment.parent_uuid is None, increment.message) == (False, None)
    restored = host.restore_as("copy", increment)
    assert "a btrfs stream cannot hold inode flags" in (restored.message or "")


@pytest.mark.parametrize("target", ["loop", "directory"])
def test_what_another_driver_could_not_hand_on_is_said(host: Host, target: str) -> None:
    host.create("db", driver="btrfs")
    with host.written("db") as root, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    restored = host.restore_as("copy", host.backup("db", "one"), {"driver": target})
    assert "but: tar cannot hold sockets: socket" in (restored.message or "")


def test_of_many_notes_the_first_are_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restores, "NOTES_MAX", 1)
    host.create("db", driver="loop", thick="yes", size="32M")
    restored = host.restore_as("copy", host.backup("db", "one"), {"driver": "directory"})
    assert (restored.message or "").endswith("has no option size; and 1 more, see the log")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"uid": "7"}, Invalid, "option uid does not go with a backup"),
        ({"mode": "0700"}, Invalid, "option mode does not go with a backup"),
        ({"pool": "nowhere"}, Invalid, "no pool is named 'nowhere'"),
        ({"driver": "directory", "size": "1G"}, Unsupported, "cannot be limited"),
        ({"driver": "loop", "size": "1k"}, Invalid, "the smallest ext4 volume"),
    ],
)
def test_options_that_cannot_be_are_refused(host: Host, options: dict[str, str], kind: type[Error], text: str) -> None:
    host.create("db", driver="btrfs")
    backup = host.backup("db", "one")
    with pytest.raises(kind, match=text):
        host.restore_as("copy", backup, options)
    assert host.store.volume_named("copy") is None


def test_a_name_that_is_taken_is_refused(host: Host) -> None:
    host.create("db", driver="btrfs")
    with pytest.raises(Exists, match="a volume of this name exists"):
        host.restore_as("db", host.backup("db", "one"))


@pytest.mark.parametrize("shown", ["1b7", "7", "1s1", "1b", "1bx", "1b" + "9" * 30])
def test_a_backup_that_is_not_there_is_not_found(host: Host, shown: str) -> None:
    with pytest.raises(NotFound, match=f"cannot create volume db: there is no backup {shown}"):
        restores.backup_of(host.engine, names.BackupSource(shown), "cannot create volume db")


# One file of it.


@pytest.mark.parametrize("driver", DRIVERS)
def test_one_file_or_folder_of_a_backup_can_be_read(host: Host, driver: str) -> None:
    host.create("db", driver=driver)
    fill(host, "db")
    with host.written("db") as root:
        large = (root / "large").read_bytes()
    backup = host.backup("db", "one")
    for path, names_in_it in (("large", {"large"}), ("directory", {"directory", "directory/inner"})):
        archive = b"".join(supplies.archive(host.engine, backup, path))
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert names_in_it <= set(tar.getnames())
            if path == "large":
                member = tar.extractfile("large")
                assert member is not None
                assert member.read() == large
    host.check_trees()


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_not_in_a_backup_is_not_found(host: Host, driver: str) -> None:
    host.create("db", driver=driver)
    backup = host.backup("db", "one")
    with pytest.raises(NotFound):
        list(supplies.archive(host.engine, backup, "nothing"))
    host.check_trees()


def test_reading_that_ends_early_leaves_nothing(host: Host) -> None:
    host.create("db", driver="btrfs")
    fill(host, "db")
    pieces = supplies.archive(host.engine, host.backup("db", "one"), "")
    assert next(pieces)
    pieces.close()
    host.check_trees()
