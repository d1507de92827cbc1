"""The stores: the same promises by a directory and a real S3 server, and each way in which they fail."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import backups
from tests.backups import MIB, Site
from tests.s3 import SECRET_KEY, Server, free_ports
from tests.scratch import Scratch
from voldriverd import errors
from voldriverd.backup import bucket, directory, objects, repository, retries
from voldriverd.backup.faults import Cancelled, Fault, Kind
from voldriverd.backup.objects import Limits, Missing, Place, Store, Unreadable
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX
from voldriverd.kernel import fs, mount, run
from voldriverd.model import Secret

SHORT = Limits(connect_s=1, request_s=1, give_up_s=0.3)


@pytest.fixture(params=["directory", "s3"])
def site(request: pytest.FixtureRequest, quick: Path, server: Server) -> Iterator[Site]:
    with backups.site(request.param, quick, server) as site:
        yield site


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    with closing(connect(site.place)) as store:
        yield store


def connect(place: Place, limits: Limits = SHORT) -> Store:
    return repository.connect(place, limits, threading.Event())


def fault_of(place: Place, *, limits: Limits = SHORT) -> Fault:
    """Return what is wrong with a place, which is the same whatever one does first."""
    with closing(connect(place, limits)) as store:
        with pytest.raises(Fault) as reading:
            store.get("voldriver.json", most=100)
        with pytest.raises(Fault) as listing:
            list(store.list(""))
        with pytest.raises(Fault) as writing:
            store.put("x/y", b"1")
        found = [caught.value for caught in (reading, listing, writing)]
    kinds = [each.kind for each in found]
    if kinds[0] is Kind.MISSING:  # S3 does not tell the object from the bucket when it is asked for the object
        kinds[0] = kinds[1]
    assert len(set(kinds)) == 1, found
    assert SECRET_KEY not in " ".join(map(str, found))
    return found[1]


def test_an_object_is_what_was_put_last(store: Store) -> None:
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.get("a/b", most=3) == b"two"
    store.delete(["a/b", "a/never"])
    with pytest.raises(Missing, match=r"cannot read a/b in .*: "):
        store.get("a/b", most=3)


def test_an_empty_object_is_one(store: Store) -> None:
    store.put("a/b", b"")
    assert store.get("a/b", most=0) == b""
    assert [(entry.name, entry.size_bytes) for entry in store.list("a/")] == [("a/b", 0)]


def test_an_object_that_is_too_large_is_not_read(store: Store) -> None:
    store.put("a", bytes(100))
    with pytest.raises(Unreadable, match="it has 100 bytes, and at most 99 may be there"):
        store.get("a", most=99)


def test_who_creates_first_wins(store: Store) -> None:
    assert store.create("a", b"one")
    assert not store.create("a", b"two")
    assert store.get("a", most=10) == b"one"
    assert [entry.name for entry in store.list("")] == ["a"]


def test_lists_are_of_one_folder(store: Store) -> None:
    for name in ("a/b/c", "a/bc", "ab/c"):
        store.put(name, b"x")
    assert sorted(entry.name for entry in store.list("a/")) == ["a/b/c", "a/bc"]
    assert sorted(entry.name for entry in store.list("a/b/")) == ["a/b/c"]
    assert list(store.list("nowhere/")) == []
    assert sorted(store.folders("")) == ["a", "ab"]
    assert list(store.folders("a/")) == ["b"]
    assert list(store.folders("nowhere/")) == []


def test_a_list_may_be_longer_than_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_LISTED_AT_ONCE", 10)
    names = [f"a/{number:04}" for number in range(25)]
    for name in names:
        store.put(name, b"")
    assert sorted(entry.name for entry in store.list("a/")) == names
    store.delete(names)
    assert list(store.list("a/")) == []


def test_the_time_of_an_object_is_now(store: Store) -> None:
    store.put("a", b"1")
    (entry,) = store.list("")
    assert abs(entry.modified_at.timestamp() - time.time()) < 60


def test_a_bucket_that_is_not_there(server: Server) -> None:
    found = fault_of(replace(server.place(), url="s3://nonesuch/prefix"))
    assert found.kind is Kind.BUCKET
    assert "there is no such bucket" in str(found)


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = fault_of(Place(f"file://{tmp_path}/disk"))
    assert found.kind is Kind.BUCKET
    assert "there is no such directory" in str(found)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("keys", [("AKIDEXAMPLE", "wrong"), ("unknown", SECRET_KEY)])
def test_credentials_that_are_refused(server: Server, keys: tuple[str, str]) -> None:
    place = replace(server.place(), access_key=Secret(keys[0]), secret_key=Secret(keys[1]))
    found = fault_of(place)
    assert found.kind is Kind.CREDENTIALS
    assert "the credentials are refused" in str(found)
    assert keys[1] not in str(found)


def test_keys_are_not_mixed_with_those_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "of somebody else")
    with closing(connect(server.place("keys"))) as store:
        store.put("a", b"1")


def test_keys_of_the_environment_serve_where_none_are_given(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = server.place("environment")
    assert place.access_key is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.access_key.text)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    with closing(connect(replace(place, access_key=None, secret_key=None))) as store:
        store.put("a", b"1")


def test_a_server_that_is_not_there(server: Server) -> None:
    (port,) = free_ports(1, "127.0.0.1")
    found = fault_of(replace(server.place(), endpoint=f"http://127.0.0.1:{port}"))
    assert found.kind is Kind.UNREACHABLE
    assert "connection refused" in str(found)
    assert f"127.0.0.1:{port}" in str(found)


def test_a_server_that_does_not_answer(server: Server) -> None:
    server.stop()
    try:
        found = fault_of(server.place())
    finally:
        server.go_on()
    assert found.kind is Kind.UNREACHABLE
    assert "no answer within 1 s" in str(found)


def test_opening_does_not_take_longer_than_somebody_waits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    pause = retries.Retries.pause

    def noted(self: retries.Retries, seconds: float) -> None:
        paused.append(seconds)
        pause(self, seconds)

    monkeypatch.setattr(retries.Retries, "pause", noted)
    monkeypatch.setattr(objects, "OPENING", Limits(connect_s=1, request_s=1, give_up_s=1))
    (port,) = free_ports(1, "127.0.0.1")
    with pytest.raises(Fault, match="connection refused"):
        Repository.open(replace(server.place(), endpoint=f"http://127.0.0.1:{port}"), None)
    assert paused
    assert sum(paused) <= 1.1


def test_a_server_that_comes_back_is_not_noticed(tmp_path: Path) -> None:
    patient = Limits(connect_s=1, request_s=5, give_up_s=60)
    with Server(tmp_path / "s3") as server, closing(connect(server.place(), patient)) as store:
        store.put("a", b"1")
        server.kill()
        again = threading.Timer(0.5, server.start)
        again.start()
        store.put("b", b"2")
        again.join()
        assert sorted(entry.name for entry in store.list("")) == ["a", "b"]


def test_a_cancelled_wait_ends(server: Server) -> None:
    cancelled = threading.Event()
    (port,) = free_ports(1, "127.0.0.1")
    place = replace(server.place(), endpoint=f"http://127.0.0.1:{port}")
    with closing(repository.connect(place, objects.WORKING, cancelled)) as store:
        threading.Timer(0.2, cancelled.set).start()
        with pytest.raises(Cancelled):
            store.put("a", b"1")


@pytest.mark.root
def test_a_disk_that_cannot_be_written(scratch: Scratch) -> None:
    place = scratch.make("tmpfs", size_bytes=MIB)
    run.run(["mount", "-o", "remount,ro", str(place)])
    with closing(connect(Place(f"file://{place}"))) as store:
        with pytest.raises(Fault, match="read-only file system") as caught:
            store.put("a", b"1")
        assert caught.value.kind is Kind.PERMISSION


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["ext4", "tmpfs"])
def test_a_full_disk_leaves_nothing_half(scratch: Scratch, fs_type: str) -> None:
    place = scratch.make(fs_type, size_bytes=24 * MIB)
    with Repository.open(Place(f"file://{place}"), None) as opened:
        kept = backups.write(opened, backups.stream(b"".join(backups.data(PART_MAX, seed) for seed in range(2))))
        with pytest.raises(Fault, match="no space left on device") as caught:
            backups.write(opened, backups.stream(backups.data(PART_MAX, seed) for seed in range(2, 40)))
        assert caught.value.kind is Kind.FULL
        assert list(opened.manifests()) == [kept]
        assert opened.verify(kept, sample=1, progress=backups.ignore) == []
        assert list(place.rglob("*.part")) == []


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_a_listed_backup_survives_power_loss(scratch: Scratch, fs_type: str) -> None:
    place = scratch.make(fs_type)
    content = b"".join(backups.data(PART_MAX, seed) for seed in range(3))
    with Repository.open(Place(f"file://{place}"), None) as opened:
        done = backups.write(opened, backups.stream(content))
    after = scratch.power_cut(place, of=scratch)
    with Repository.open(Place(f"file://{after}"), None) as opened:
        assert backups.content(opened, opened.manifest(done.volume.uuid, done.uuid)) == content


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_what_has_a_name_after_power_loss_is_whole(scratch: Scratch, fs_type: str) -> None:
    place = scratch.make(fs_type)
    with closing(connect(Place(f"file://{place}"))) as store:
        for number in range(8):
            store.put(f"a/{number}", backups.data(MIB, number))
    fs.sync_directory(place / "a")  # as the journal does at any time
    after = scratch.power_cut(place, of=scratch)
    with closing(connect(Place(f"file://{after}"))) as store:
        there = [entry.name for entry in store.list("a/") if not entry.name.endswith(".part")]
        assert there
        assert all(store.get(name, most=MIB) == backups.data(MIB, int(name[2:])) for name in there)


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_what_another_wrote_and_was_listed_survives_power_loss_once_it_is_settled(
    scratch: Scratch, fs_type: str
) -> None:
    place = scratch.make(fs_type)
    with closing(connect(Place(f"file://{place}"))) as one, closing(connect(Place(f"file://{place}"))) as other:
        one.put("a/b/theirs", b"1")
        assert one.create("a/c/theirs too", b"2")
        assert {entry.name for entry in other.list("a/")} == {"a/b/theirs", "a/c/theirs too"}
        other.settle()
    after = scratch.power_cut(place, of=scratch)
    with closing(connect(Place(f"file://{after}"))) as store:
        assert store.get("a/b/theirs", most=1) == b"1"
        assert store.get("a/c/theirs too", most=1) == b"2"


def test_where_directories_cannot_be_synced_the_file_system_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []

    def refuse(_: Path) -> None:
        raise OSError(22, "invalid argument")

    monkeypatch.setattr(directory.fs, "sync_directory", refuse)  # type: ignore[attr-defined]
    monkeypatch.setattr(directory.fs, "sync_file_system", lambda path: synced.append(path.resolve()))  # type: ignore[attr-defined]
    with closing(connect(Place(f"file://{tmp_path}"))) as store:
        store.put("a/b", b"1")
        store.settle()
        assert set(synced) == {tmp_path}
        synced.clear()
        store.settle()
        assert synced == []


def test_a_share_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError(116, "stale"), OSError(110, "timed out")])
    written = directory.fs.write_data  # type: ignore[attr-defined]

    def away(path: Path, content: bytes) -> None:
        if err := next(answers, None):
            raise err
        written(path, content)

    monkeypatch.setattr(directory.fs, "write_data", away)  # type: ignore[attr-defined]
    with closing(connect(Place(f"file://{tmp_path}"), objects.WORKING)) as store:
        store.put("a", b"1")
        assert store.get("a", most=1) == b"1"


def test_a_lost_and_found_does_not_make_a_disk_one_in_use(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".voldriver.json.0123456789abcdef.part").write_bytes(b"of another")
    with Repository.open(Place(f"file://{tmp_path}"), None) as opened:
        assert list(opened.manifests()) == []


@pytest.mark.parametrize(
    "place",
    [
        Place("http://bucket/prefix"),
        Place("s3://"),
        Place("s3://bucket/a/../b"),
        Place("s3://bucket/a//b"),
        Place("s3://bucket/a b"),
        Place("s3://key:hidden@bucket/a"),
        Place("s3://bucket/a?x=hidden"),
        Place("s3://[bucket"),
        Place("s3://bucket", access_key=Secret("hidden")),
        Place("s3://bucket", endpoint="127.0.0.1:80"),
        Place("s3://bucket", endpoint="http://key:hidden@host"),
        Place("file://host/directory"),
        Place("file:relative"),
        Place("file:///a\0b"),
    ],
)
def test_a_place_that_cannot_be_is_refused_without_its_secrets(place: Place) -> None:
    with pytest.raises(errors.Invalid) as caught:
        Repository.open(place, None)
    assert "key:hidden" not in str(caught.value)
    assert caught.value.field in {"url", "access_key", "endpoint"}


def test_a_server_that_dies_in_the_middle_leaves_nothing_listed_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "WORKING", Limits(connect_s=1, request_s=2, give_up_s=0.5))
    begun = backups.draft()
    sent = [backups.data(PART_MAX, seed) for seed in range(16)]
    with Server(tmp_path / "s3") as server:

        def pieces() -> Iterator[bytes]:
            for number, piece in enumerate(sent):
                if number == 10:
                    server.kill()
                yield piece

        with Repository.open(server.place(), None) as opened:
            with pytest.raises(Fault, match="cannot write volumes/") as caught:
                opened.write(begun, backups.stream(pieces()), progress=backups.ignore)
            assert caught.value.kind is Kind.UNREACHABLE
        server.start()
        with Repository.open(server.place(), None) as opened:
            assert list(opened.manifests()) == []
            done = opened.write(begun, backups.stream(iter(sent)), progress=backups.ignore)
            assert done.stored_bytes < done.content_bytes / 2 - 2 * MIB
            assert backups.content(opened, done) == b"".join(sent)


@pytest.mark.parametrize("verb", ["write", "read", "verify", "list"])
def test_every_verb_ends_when_it_is_cancelled(site: Site, verb: str) -> None:
    cancelled = threading.Event()
    with Repository.open(site.place, site.passphrase, cancelled=cancelled) as opened:
        content = b"".join(backups.data(PART_MAX, seed) for seed in range(12))
        done = backups.write(opened, backups.stream(content))

        def at_first(_: int) -> None:
            cancelled.set()

        def read() -> None:
            with opened.read(done, progress=at_first) as found:
                list(found.parts)

        def listed() -> None:
            cancelled.set()
            list(opened.manifests())

        verbs = {
            "write": lambda: opened.write(backups.draft(), backups.stream(content), progress=at_first),
            "read": read,
            "verify": lambda: opened.verify(done, sample=1, progress=at_first),
            "list": listed,
        }
        with pytest.raises(Cancelled):
            verbs[verb]()
    with site.open() as opened:
        assert list(opened.manifests()) == [done]


def test_a_reader_that_leaves_early_leaves_nothing_running(site: Site) -> None:
    with site.open() as opened:
        done = backups.write(opened, backups.stream(b"".join(backups.data(PART_MAX, seed) for seed in range(12))))
        with opened.read(done, progress=backups.ignore) as found:
            next(found.parts)
        assert opened._transfer._pool._work_queue.empty()


def test_a_disk_that_is_taken_away_in_the_middle_gets_the_rest_too(tmp_path: Path) -> None:
    """As after `umount --lazy`: the directory that was under it is seen at its path from then on."""
    place = tmp_path / "target"
    place.mkdir()

    def pieces() -> Iterator[bytes]:
        yield backups.data(PART_MAX, 1)
        place.rename(tmp_path / "away")
        place.mkdir()
        yield backups.data(PART_MAX, 2)

    with Repository.open(Place(f"file://{place}"), None) as opened:
        done = backups.write(opened, backups.stream(pieces()))
        assert list(opened.manifests()) == [done]
        assert opened.prune(progress=backups.ignore).skipped == ()
        assert opened.manifest(done.volume.uuid, done.uuid) == done
    assert list(place.iterdir()) == []
    with Repository.open(Place(f"file://{tmp_path / 'away'}"), None) as opened:
        assert opened.verify(done, sample=1, progress=backups.ignore) == []


@pytest.mark.root
def test_a_disk_is_busy_as_long_as_a_repository_on_it_is_open(scratch: Scratch) -> None:
    place = scratch.make("tmpfs", size_bytes=MIB)
    with Repository.open(Place(f"file://{place}"), None), pytest.raises(OSError, match="busy"):
        mount.unmount(place)


def test_a_disk_that_is_taken_away_after_it_was_recognised_is_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "target"
    place.mkdir()
    master = repository._master

    def take_away(*arguments: Any) -> bytes | None:
        place.rename(tmp_path / "away")
        place.mkdir()
        return master(*arguments)

    monkeypatch.setattr(repository, "_master", take_away)
    with Repository.open(Place(f"file://{place}"), None) as opened:
        backups.write(opened, backups.stream(b"1"))
    assert list(place.iterdir()) == []
