"""What takes long before or after the bytes of a backup or restore is shown, and ends when nobody wants it any more."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import backing
from tests.backing import objects
from tests.restoring import MIB, Host
from tests.scratch import Scratch, loops_under
from voldriverd import model
from voldriverd.engine import backups, chains
from voldriverd.errors import InUse
from voldriverd.jobs import Job
from voldriverd.kernel import image
from voldriverd.model import BackupState, VolumeState

pytestmark = pytest.mark.root

COMPARES: Final = "compares all bytes with its base"
LOOKS: Final = "looks how much there is"
CHECKS: Final = "checks its file system"
GROWS: Final = "grows its file system"
KEEPS: Final = "keeps what it displaces"
_numbers: Final = itertools.count()


class EndedAt(Job):
    """A job that is ended by itself once its step has done so many bytes (0: when the step begins)."""

    def __init__(self, verb: str, step: str, end: Callable[[Job], None], *, after_bytes: int = 0) -> None:
        self.said: list[str] = []
        self._at = step
        self._end = end
        self._after_bytes = after_bytes
        super().__init__(verb)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "step" and value == self._at and not self._after_bytes:
            self.said.append(self.message())
            self._end(self)

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        if self.step == self._at:
            self.said.append(self.message())
            if done_bytes >= self._after_bytes > 0:
                self._end(self)


@pytest.fixture
def place(session_scratch: Scratch) -> Path:
    """Return a new directory's path on a btrfs."""
    return session_scratch.shared("restores", "btrfs") / f"endings{next(_numbers)}"


@pytest.fixture
def host(tmp_path: Path, place: Path) -> Iterator[Host]:
    """Return a host with a pool of each driver, and in each a volume of its name."""
    host = Host(tmp_path / "host", {name: place / name for name in ("btrfs", "loop", "directory")})
    for name in host.places:
        host.create(name, driver=name)
        with host.written(name) as root:
            (root / "large").write_bytes(os.urandom(12 * MIB))
    yield host
    host.vanish()
    place.rmdir()


def begun(host: Host, name: str) -> model.Backup:
    (target,) = host.store.targets()
    return backing.begin(host.engine, backing.freeze(host.engine, host.volume(name)), target)


def ended_at_comparison(host: Host, end: Callable[[Job], None]) -> tuple[model.Backup, EndedAt]:
    """Make a whole backup of the volume `loop`, and begin one that compares all bytes and is ended in that."""
    host.backup("loop", "one")
    host.write("loop", "changed")
    job = EndedAt("backup", COMPARES, end, after_bytes=1)
    return backups.finish(host.engine, begun(host, "loop"), job), job


def test_a_comparison_of_all_bytes_is_shown_and_a_cancel_ends_it_and_leaves_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "THOROUGH_EVERY", 1)
    cancelled, job = ended_at_comparison(host, Job.cancel)
    assert (cancelled.state, cancelled.message, cancelled.key) == (BackupState.REMOVED, "cancelled", None)
    (said,) = job.said  # it ended with the next piece
    assert said.startswith(f"{COMPARES}: ")
    assert " % (" in said
    backups.withdraw(host.engine, cancelled, threading.Event())
    assert len(objects(host.target, "backups")) == 1
    assert objects(host.target, "writing") == []
    host.check_trees()
    assert loops_under(host.places["loop"]) == {}
    assert host.backup("loop", "two").parent_uuid is not None


def test_the_end_of_the_daemon_ends_a_comparison_and_the_next_start_takes_it_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "THOROUGH_EVERY", 1)
    stopped, _ = ended_at_comparison(host, Job.stop)
    assert stopped.state is BackupState.CREATING
    host.restart()
    (again,) = host.store.creating_backups()
    made = backups.finish(host.engine, again, Job("backup"))
    assert (made.state, made.parent_uuid is None) == (BackupState.CREATED, False)


def test_a_backup_counts_anew_when_its_bytes_come(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "THOROUGH_EVERY", 1)
    host.backup("loop", "one")
    host.write("loop", "changed")
    job = Job("backup")
    made = backups.finish(host.engine, begun(host, "loop"), job)
    assert job.step is None
    assert job.done_bytes == made.content_bytes == job.total_bytes


def test_the_walk_before_an_archive_is_shown_and_a_cancel_ends_it(host: Host) -> None:
    job = EndedAt("backup", LOOKS, Job.cancel, after_bytes=1)
    cancelled = backups.finish(host.engine, begun(host, "directory"), job)
    assert (cancelled.state, cancelled.message) == (BackupState.REMOVED, "cancelled")
    assert job.said[-1].startswith(f"{LOOKS}: ")
    assert objects(host.target, "chunks") == []
    host.check_trees()


def test_zeros_that_are_read_and_not_sent_count_and_a_cancel_ends_them(host: Host) -> None:
    with host.written("loop") as root:
        (root / "zeros").write_bytes(bytes(24 * MIB))
    seen: list[int] = []

    class Seeing(Job):
        def advance(self, done_bytes: int) -> None:
            super().advance(done_bytes)
            seen.append(done_bytes)
            if done_bytes > 30 * MIB:
                self.cancel()

    cancelled = backups.finish(host.engine, begun(host, "loop"), Seeing("backup"))
    assert cancelled.state is BackupState.REMOVED
    assert seen[-1] > 30 * MIB  # of which 12 are no zeros


# Restores.


def cancelled_restore(host: Host, name: str, backup: model.Backup, step: str) -> None:
    """Cancel a restore at a step, and see that nothing has changed."""
    before = {volume.name: host.volume(volume.name).key for volume in host.store.volumes()}
    host.write(name, "as it was")
    with pytest.raises(InUse, match=f"cannot restore volume {name}: it was cancelled"):
        host.restore(name, backup, job=EndedAt("restore", step, Job.cancel))
    assert {volume.name: host.volume(volume.name).key for volume in host.store.volumes()} == before
    assert (host.volume(name).state, host.read(name)) == (VolumeState.INACTIVE, "as it was")
    host.check_trees()
    assert loops_under(host.places["loop"]) == {}


def test_the_check_of_an_image_that_was_restored_can_be_cancelled(host: Host) -> None:
    cancelled_restore(host, "loop", host.backup("loop", "one"), CHECKS)


def test_the_copy_of_what_a_restore_displaces_can_be_cancelled(host: Host) -> None:
    cancelled_restore(host, "directory", host.backup("directory", "one"), KEEPS)


def test_the_walk_of_what_was_unpacked_aside_can_be_cancelled(host: Host) -> None:
    cancelled_restore(host, "directory", host.backup("btrfs", "one"), LOOKS)


@pytest.mark.parametrize("name", ["btrfs", "loop"])
def test_what_takes_no_time_is_not_cut_off_when_the_daemon_ends(host: Host, name: str) -> None:
    backup = host.backup(name, "one")
    host.write(name, "later")
    host.restore(name, backup, job=EndedAt("restore", KEEPS, Job.stop))
    assert host.read(name) == ""


def test_the_growth_of_an_image_that_was_restored_can_be_cancelled(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = host.backup("loop", "one")
    monkeypatch.setattr(image, "may_grow_mounted_ext4", lambda: False)
    with pytest.raises(InUse, match="cannot restore volume new: it was cancelled"):
        host.restore_as("new", backup, {"size": "128M"}, job=EndedAt("restore", GROWS, Job.cancel))
    assert host.store.volume_named("new") is None
    host.check_trees()


def test_a_step_between_the_bytes_is_shown_until_they_go_on(host: Host) -> None:
    backup = host.backup("btrfs", "one")
    steps: list[str | None] = []

    class Seeing(EndedAt):
        def advance(self, done_bytes: int) -> None:
            super().advance(done_bytes)
            steps.append(self.step)

    job = Seeing("restore", LOOKS, lambda job: steps.append(job.step))
    host.restore("directory", backup, job=job)
    assert steps.count(LOOKS) == 1
    assert steps[0] is steps[-1] is None


def test_a_restore_shows_its_last_steps(host: Host) -> None:
    backup = host.backup("loop", "one")
    job = EndedAt("restore", CHECKS, lambda _: None)
    host.restore("loop", backup, job=job)
    assert [said.partition(":")[0] for said in job.said] == [CHECKS]
    assert job.step == KEEPS
