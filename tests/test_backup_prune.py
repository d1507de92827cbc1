"""Removal and prune take nothing that a backup needs, whoever else is at work in between."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest

from tests import backups
from tests.backups import Site
from tests.s3 import Server
from voldriverd import errors
from voldriverd.backup import manifest as manifests
from voldriverd.backup import pruning, transfer, writing
from voldriverd.backup.faults import Damage, Damaged, Fault
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Entry
from voldriverd.backup.pruning import Pruned
from voldriverd.backup.repository import GRACE_S, Repository
from voldriverd.backup.retries import Retries
from voldriverd.backup.volumes import Folder
from voldriverd.backup.writing import Writing
from voldriverd.driver import PART_MAX

OLD_S = GRACE_S + 3600
"""The age of what is made old."""


class Meddled:
    """A store before whose n-th call something else happens."""

    def __init__(self, store: object, at: int, meddle: Callable[[], None]) -> None:
        self._store = store
        self._left = at
        self._meddle = meddle
        self.has_happened = False

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if not callable(found) or name == "close":
            return found

        def call(*arguments: object, **named: object) -> object:
            self._left -= 1
            if self._left == 0:
                self.has_happened = True
                self._meddle()
            return found(*arguments, **named)

        return call


@pytest.fixture(params=["directory", "s3-encrypted"])
def site(request: pytest.FixtureRequest, quick: Path, server: Server) -> Iterator[Site]:
    with backups.site(request.param, quick, server) as site:
        yield site


@pytest.fixture
def near(quick: Path, server: Server) -> Iterator[Site]:
    """Return a directory, whose clock can be set."""
    with backups.site("directory", quick, server) as site:
        yield site


@pytest.fixture
def repository(site: Site) -> Iterator[Repository]:
    with site.open() as repository:
        yield repository


def prune(
    repository: Repository, *, later_s: float = OLD_S, progress: Callable[[int], None] = backups.ignore
) -> Pruned:
    with target_clock_at(later_s):
        return repository.prune(progress=progress)


def prune_of(repository: Repository, volume_uuid: str, *, later_s: float) -> None:
    """Prune one volume."""
    with target_clock_at(later_s):
        repository._pruning(volume_uuid, GRACE_S).prune(backups.ignore)


@contextmanager
def target_clock_at(later_s: float) -> Iterator[None]:
    """Let whoever prunes see the clock of the target so much later."""
    time_of = pruning._time_of

    def later(marks: Iterable[Entry], name: str) -> datetime | None:
        found = time_of(marks, name)
        return found and found + timedelta(seconds=later_s)

    with mock.patch.object(pruning, "_time_of", later):
        yield


def age(site: Site, part: str = "/", seconds: float = OLD_S) -> None:
    """Make all objects old whose name has this part."""
    for name in site.names(part):
        when = time.time() - seconds
        os.utime(site.directory / name, (when, when))


def is_whole(repository: Repository, manifest: Manifest) -> bool:
    return all(repository.verify(link, sample=1, progress=backups.ignore) == [] for link in repository.chain(manifest))


def test_what_no_backup_names_goes_when_it_is_old(site: Site, repository: Repository) -> None:
    kept = backups.write(repository, backups.stream(backups.data(PART_MAX, 1)))
    gone = repository.write(
        backups.draft(after=kept), backups.stream(backups.data(2 * PART_MAX, 2)), progress=backups.ignore
    )
    repository.remove(gone)
    stored = {name: len(site.read(name)) for name in site.names("/chunks/")}
    assert prune(repository, later_s=0) == Pruned()
    assert prune(repository, later_s=GRACE_S - 60) == Pruned()
    seen: list[int] = []
    done = prune(repository, progress=seen.append)
    left = site.names("/chunks/")
    assert (done.chunks, done.stored_bytes) == (len(stored) - len(left), sum(stored.values()) - kept.stored_bytes)
    assert sum(seen) == done.stored_bytes
    assert is_whole(repository, kept)
    assert site.names("/pruning/") == []


def test_what_a_hidden_backup_names_stays(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = backups.write(repository, backups.stream(b"2", is_incremental=True), after=first)
    repository.remove(first)
    assert prune(repository) == Pruned()
    assert is_whole(repository, second)


def test_a_grace_period_that_writers_do_not_know_is_refused(repository: Repository) -> None:
    with pytest.raises(errors.Invalid, match="shorter than 86400 s"):
        repository.prune(grace_s=GRACE_S - 1, progress=backups.ignore)


def test_many_unnamed_chunks_go_in_batches(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(repository._store), "deletes_at_once", 3)
    clock = iter(range(0, 1_000_000, int(pruning.ROUND_S) // 3 - 1))
    monkeypatch.setattr(time, "clock_gettime", lambda _: next(clock))
    begun = backups.draft()
    folder = repository._folder(begun.volume.uuid)
    for number in range(10):
        folder.put_chunk(folder.sealer.name(bytes([number])), bytes([number]))
    assert prune(repository).chunks == 10


def test_what_a_broken_off_write_of_a_file_left_goes(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        part = f"{Path(near.names('/chunks/')[0]).parent}/.x.0123456789abcdef.part"
        near.write(part, b"half")
        prune(repository, later_s=0)
        assert part in near.names()
        assert prune(repository).chunks == 1
        assert part not in near.names()
        assert is_whole(repository, done)


def test_a_volume_that_is_written_is_left(site: Site, repository: Repository) -> None:
    _break_off(repository, backups.draft())
    done = prune(repository, later_s=GRACE_S - 60)
    assert done.chunks == 0
    assert len(site.names("/writing/")) == 1


def test_marks_of_the_dead_hold_nobody_and_go(near: Site) -> None:
    with near.open() as repository:
        begun = backups.draft()
        _break_off(repository, begun)
        near.write(f"volumes/{begun.volume.uuid}/pruning/{begun.uuid}", b"")
        age(near)
        assert prune(repository, later_s=0).chunks > 0
        assert near.names("/writing/") + near.names("/pruning/") == []


def test_a_volume_with_an_unreadable_backup_is_left_and_told(site: Site, repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b"1"))
    other = repository.write(backups.draft(after=done), backups.stream(b"2"), progress=backups.ignore)
    repository.remove(other)
    (name,) = site.names("/backups/")
    before = site.read(name)
    site.write(name, b"?")
    pruned = prune(repository)
    assert pruned.chunks == 0
    assert done.uuid in pruned.skipped[0]
    site.write(name, before)
    assert prune(repository).chunks == 2


def test_a_backup_with_damaged_lists_can_be_removed_and_pruned(site: Site, repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b"1"))
    for name in site.names("/chunks/"):
        site.write(name, b"?")
    assert prune(repository).skipped
    repository.remove(done)
    assert prune(repository).chunks == 2


def test_a_writer_does_not_rely_on_what_prune_may_take(near: Site) -> None:
    with near.open() as repository:
        first = backups.write(repository, backups.stream(backups.data(PART_MAX)))
        repository.remove(first)
        age(near, "/chunks/", GRACE_S / 2 + 60)
        again = repository.write(
            backups.draft(after=first), backups.stream(backups.data(PART_MAX)), progress=backups.ignore
        )
        assert again.stored_bytes >= first.stored_bytes - 10
        assert prune(repository, later_s=GRACE_S / 2) == Pruned()
        assert is_whole(repository, again)


def test_a_writer_relies_on_old_chunks_that_a_backup_names(near: Site) -> None:
    with near.open() as repository:
        first = backups.write(repository, backups.stream(backups.data(PART_MAX)))
        age(near)
        again = repository.write(
            backups.draft(after=first), backups.stream(backups.data(PART_MAX)), progress=backups.ignore
        )
        assert again.stored_bytes == 0


def test_a_writer_does_not_rely_on_a_chunk_that_is_named_and_not_there(site: Site, repository: Repository) -> None:
    first = backups.write(repository, backups.stream(backups.data(PART_MAX)))
    for name in site.names("/chunks/"):
        site.delete(name)
    again = repository.write(
        backups.draft(after=first), backups.stream(backups.data(PART_MAX)), progress=backups.ignore
    )
    assert is_whole(repository, again)
    assert is_whole(repository, first)


def test_a_writer_waits_until_somebody_has_pruned(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with near.open() as repository:
        begun = backups.draft()
        mark = f"volumes/{begun.volume.uuid}/pruning/{begun.uuid}"
        near.write(mark, b"")
        waited: list[float] = []

        def pause(_: object, seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                near.delete(mark)

        monkeypatch.setattr(Retries, "pause", pause)
        done = repository.write(begun, backups.stream(b"1"), progress=backups.ignore)
        assert len(waited) == 3
        assert is_whole(repository, done)


def test_a_writer_does_not_wait_for_the_dead(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with near.open() as repository:
        begun = backups.draft()
        near.write(f"volumes/{begun.volume.uuid}/pruning/{begun.uuid}", b"")
        age(near, "/pruning/", writing.PRUNING_S + 1)
        monkeypatch.setattr(Retries, "pause", lambda *_: pytest.fail("it waits"))
        repository.write(begun, backups.stream(b"1"), progress=backups.ignore)


def test_a_writer_that_slept_for_too_long_gives_up(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with near.open() as repository:
        clock = iter([1000.0])
        monkeypatch.setattr(time, "clock_gettime", lambda _: next(clock, 1000.0 + GRACE_S))
        with pytest.raises(Fault, match="nothing could be written for half a day"):
            backups.write(repository, backups.stream(b"1"))
        assert list(repository.manifests()) == []


def test_a_long_writer_makes_its_mark_anew(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with near.open() as repository:
        times = iter(range(0, 10_000_000, int(writing.REFRESH_S) + 1))
        monkeypatch.setattr(time, "clock_gettime", lambda _: next(times))
        folder = repository._folder((begun := backups.draft()).volume.uuid)
        made: list[str] = []
        put = folder.store.put

        def noted(name: str, content: bytes) -> None:
            made.append(name)
            put(name, content)

        monkeypatch.setattr(folder.store, "put", noted)
        pieces = (backups.data(PART_MAX, seed) for seed in range(5))
        repository.write(begun, backups.stream(pieces), progress=backups.ignore)
        assert made.count(folder.mark_path(begun.uuid)) >= 5


@pytest.mark.parametrize("clock_s", [-600.0, 0.0, 600.0])
def test_prune_at_any_step_of_a_writer_leaves_its_backup_whole(near: Site, clock_s: float) -> None:
    """The writer relies on old chunks of a backup that is removed while it writes."""

    def write_and(step: int) -> tuple[Repository, bool]:
        repository = near.open()
        other = near.open()
        begun = backups.draft()
        old = repository.write(begun, backups.stream(b"".join(CONTENT)), progress=backups.ignore)
        age(near, "/chunks/")

        def remove_and_prune() -> None:
            other.remove(old)
            prune_of(other, begun.volume.uuid, later_s=clock_s)

        store = Meddled(repository._store, step, remove_and_prune)
        _put_in(repository, store)
        done = repository.write(
            backups.draft(volume_uuid=begun.volume.uuid), backups.stream(iter(CONTENT)), progress=backups.ignore
        )
        assert is_whole(other, done), step
        assert backups.content(other, done) == b"".join(CONTENT)
        other.close()
        return repository, store.has_happened

    _at_every_step(write_and)


@pytest.mark.parametrize("clock_s", [-600.0, 0.0, 600.0])
def test_a_writer_at_any_step_of_prune_has_a_whole_backup(
    near: Site, clock_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune_and(step: int) -> tuple[Repository, bool]:
        repository = near.open()
        other = near.open()
        begun = backups.draft()
        old = repository.write(begun, backups.stream(b"".join(CONTENT)), progress=backups.ignore)
        age(near, "/chunks/")
        repository.remove(old)
        again = backups.draft(volume_uuid=begun.volume.uuid)

        def write() -> None:
            monkeypatch.setattr(Retries, "pause", _would_wait)
            try:
                other.write(again, backups.stream(iter(CONTENT)), progress=backups.ignore)
            except _Waits:  # and so it is for as long as the other prunes
                return

        store = Meddled(repository._store, step, write)
        _put_in(repository, store)
        prune_of(repository, begun.volume.uuid, later_s=clock_s)
        done = other.write(again, backups.stream(iter(CONTENT)), progress=backups.ignore)
        assert is_whole(other, done), step
        other.close()
        return repository, store.has_happened

    _at_every_step(prune_and)


def test_a_writer_that_is_at_work_from_any_step_of_prune_on_has_a_whole_backup(
    near: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends again what lies there unnamed and old, and goes on after the end of prune."""
    content = [backups.data(PART_MAX, seed) for seed in range(2)]
    monkeypatch.setattr(transfer, "WINDOW", 1)

    def prune_and(step: int) -> tuple[Repository, bool]:
        repository = near.open()
        other = near.open()
        has_sent, may_end = threading.Event(), threading.Event()
        begun = backups.draft()
        old = repository.write(begun, backups.stream(iter(content)), progress=backups.ignore)
        age(near, "/chunks/")
        repository.remove(old)

        def pieces() -> Iterator[bytes]:
            yield content[0]
            has_sent.set()  # it was taken from us again: the first one is there
            may_end.wait()
            yield content[1]

        def pause(_: object, __: float) -> None:
            has_sent.set()
            may_end.wait()

        monkeypatch.setattr(Retries, "pause", pause)
        again = backups.draft(volume_uuid=begun.volume.uuid)
        made: list[Manifest] = []
        writer = threading.Thread(
            target=lambda: made.append(other.write(again, backups.stream(pieces()), progress=backups.ignore))
        )

        def begin() -> None:
            writer.start()
            has_sent.wait()

        store = Meddled(repository._store, step, begin)
        _put_in(repository, store)
        prune_of(repository, begun.volume.uuid, later_s=0)
        may_end.set()
        if store.has_happened:
            writer.join()
            assert is_whole(other, made[0]), step
        other.close()
        return repository, store.has_happened

    _at_every_step(prune_and)


def test_a_child_written_at_any_step_of_a_removal_is_whole_or_refused(
    near: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retries, "pause", _would_wait)

    def remove_and(step: int) -> tuple[Repository, bool]:
        repository = near.open()
        other = near.open()
        parent = backups.write(repository, backups.stream(b"1"))
        made: list[Manifest] = []

        def write() -> None:
            with suppress(Damaged, _Waits):
                made.append(backups.write(other, backups.stream(b"2", is_incremental=True), after=parent))

        store = Meddled(repository._store, step, write)
        _put_in(repository, store)
        repository.remove(parent)
        assert all(is_whole(other, child) for child in made), step
        other.close()
        return repository, store.has_happened

    _at_every_step(remove_and)


def test_a_parent_removed_at_any_step_of_a_writer_stays_for_its_child(near: Site) -> None:
    def write_and(step: int) -> tuple[Repository, bool]:
        repository = near.open()
        other = near.open()
        parent = backups.write(repository, backups.stream(b"1"))

        def remove() -> None:
            other.remove(parent)
            prune_of(other, parent.volume.uuid, later_s=0)

        store = Meddled(repository._store, step, remove)
        _put_in(repository, store)
        try:
            child = backups.write(repository, backups.stream(b"2", is_incremental=True), after=parent)
        except Damaged as err:
            assert err.damage.backup_uuid == parent.uuid  # noqa: PT017 - one of both ends is right
        else:
            assert is_whole(other, child), step
        other.close()
        return repository, store.has_happened

    _at_every_step(write_and)


def test_a_child_whose_parent_is_removed_at_any_step_of_another_removal_is_whole(
    near: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retries, "pause", _would_wait)

    def remove_and(step: int) -> tuple[Repository, bool]:
        with near.open() as other:
            repository = near.open()
            old = backups.write(repository, backups.stream(b"0"))
            parent = repository.write(backups.draft(after=old), backups.stream(b"1"), progress=backups.ignore)
            made: list[Manifest] = []

            def write_and_remove() -> None:
                with suppress(_Waits):
                    made.append(backups.write(other, backups.stream(b"2", is_incremental=True), after=parent))
                    other.remove(parent)

            store = Meddled(repository._store, step, write_and_remove)
            _put_in(repository, store)
            repository.remove(old)
            assert [each.uuid for child in made for each in other.chain(child)][:1] == [parent.uuid] * len(made), step
            return repository, store.has_happened

    _at_every_step(remove_and)


@pytest.mark.parametrize("refresh_s", [0.0, writing.REFRESH_S])
def test_who_was_taken_for_dead_at_any_step_makes_no_backup_or_a_whole_one(
    near: Site, monkeypatch: pytest.MonkeyPatch, refresh_s: float
) -> None:
    """The writer's host stood still for days, or the clock of the target was set: its mark and chunks look old."""
    content = [backups.data(PART_MAX, seed) for seed in range(2)]
    monkeypatch.setattr(transfer, "WINDOW", 1)
    monkeypatch.setattr(writing, "REFRESH_S", refresh_s)
    marked = Writing._marked

    def write_and(step: int) -> tuple[Repository, bool]:
        with near.open() as other:
            repository = near.open()
            begun = backups.draft()

            def stand_still() -> None:
                age(near)
                monkeypatch.setattr(Writing, "_marked", lambda self: marked(self) + timedelta(seconds=OLD_S))
                prune_of(other, begun.volume.uuid, later_s=0)

            monkeypatch.setattr(Writing, "_marked", marked)
            store = Meddled(repository._store, step, stand_still)
            _put_in(repository, store)
            with suppress(Fault):
                repository.write(begun, backups.stream(iter(content)), progress=backups.ignore)
            assert all(isinstance(each, Manifest) and is_whole(other, each) for each in other.manifests()), step
            return repository, store.has_happened

    _at_every_step(write_and)


def test_prune_goes_on_for_no_longer_than_its_mark_counts(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target may be slow to delete, and a host may sleep: then another mark is made."""
    with near.open() as repository:
        folder = repository._folder(backups.draft().volume.uuid)
        for number in range(3):
            folder.put_chunk(folder.sealer.name(bytes([number])), bytes([number]))
        clock = iter(range(0, 1_000_000, int(pruning.ROUND_S) // 3 - 1))
        monkeypatch.setattr(time, "clock_gettime", lambda _: next(clock))
        deletes: list[str] = []
        delete = folder.store.delete

        def noted(names: Sequence[str]) -> None:
            deletes.extend(name.split("/")[2] for name in names)
            delete(names)

        monkeypatch.setattr(folder.store, "delete", noted)
        assert prune(repository).chunks == 3
        assert deletes == ["chunks", "pruning"] * 3


def test_a_backup_that_was_away_only_when_it_was_read_keeps_its_chunks(
    site: Site, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share may lose sight of its files for a moment."""

    def lose(folder: Folder, backup_uuid: str) -> Manifest:
        raise Damaged("read", Damage(folder.uuid, backup_uuid, "it", "it is missing", is_missing=True))

    backups.write(repository, backups.stream(b"1"))
    names = site.names()
    monkeypatch.setattr(Folder, "get_manifest", lose)
    assert prune(repository).chunks == 0
    assert site.names() == names


def test_nothing_is_deleted_where_it_takes_too_long_to_look(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with near.open() as repository:
        parent = backups.write(repository, backups.stream(b"1"))
        child = backups.write(repository, backups.stream(b"2", is_incremental=True), after=parent)
        for each in (parent, child):
            near.write(
                f"volumes/{each.volume.uuid}/backups/{each.uuid}",
                repository._folder(each.volume.uuid).sealer.pack_manifest(
                    each.uuid, manifests.to_json(backups.removed(each))
                ),
            )
        folder = repository._folder(parent.volume.uuid)
        folder.put_chunk(folder.sealer.name(b"3"), b"3")
        clock = iter(range(0, 1_000_000, int(pruning.ROUND_S)))
        monkeypatch.setattr(time, "clock_gettime", lambda _: next(clock))
        names = near.names()
        assert "too slowly" in prune(repository).skipped[0]
        assert near.names() == names


CONTENT = [b"a little"]


class _Waits(Exception):
    pass


def _would_wait(*_: object) -> None:
    raise _Waits


def _break_off(repository: Repository, begun: Manifest) -> None:
    def pieces() -> Iterator[bytes]:
        for seed in range(12):
            yield backups.data(PART_MAX, seed)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        repository.write(begun, backups.stream(pieces()), progress=backups.ignore)


def _put_in(repository: Repository, store: Meddled) -> None:
    repository._store = store  # type: ignore[assignment]
    repository._folders.clear()


def _at_every_step(run: Callable[[int], tuple[Repository, bool]]) -> None:
    """Run it with something in between before the first call to the store, the second, and so on until the end."""
    step = 0
    has_happened = True
    while has_happened:
        step += 1
        repository, has_happened = run(step)
        repository.close()
    assert step > 5
