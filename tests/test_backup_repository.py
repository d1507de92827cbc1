"""A repository in a directory and on a real S3 server, encrypted and not: what is written is what is read."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests import backups
from tests.backups import KIB, KINDS, MIB, Site
from tests.s3 import Server
from voldriverd import errors
from voldriverd.backup import directory
from voldriverd.backup import manifest as manifests
from voldriverd.backup.faults import Damaged, Fault, Kind
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX, StreamFormat
from voldriverd.model import Secret


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, quick: Path, server: Server) -> Iterator[Site]:
    with backups.site(request.param, quick, server) as site:
        yield site


@pytest.fixture
def repository(site: Site) -> Iterator[Repository]:
    with site.open() as repository:
        yield repository


def test_a_stream_comes_back_as_it_was(repository: Repository) -> None:
    sent = backups.data(3 * PART_MAX + 5)
    seen: list[int] = []
    done = repository.write(backups.draft(), backups.stream(sent), progress=seen.append)
    assert backups.content(repository, done) == sent
    assert (sum(seen), done.content_bytes, done.depth, done.parent) == (len(sent), len(sent), 0, None)
    assert done.notes == ("a note",)


def test_progress_of_a_read_is_what_was_read(repository: Repository) -> None:
    done = backups.write(repository, backups.stream(backups.data(PART_MAX + 1)))
    seen: list[int] = []
    with repository.read(done, progress=seen.append) as found:
        assert [part.length for part in found.parts] == seen
    assert sum(seen) == PART_MAX + 1


def test_the_words_of_a_stream_come_back(repository: Repository) -> None:
    done = backups.write(repository, backups.image([(0, b"x")], size_bytes=MIB))
    with repository.read(done, progress=backups.ignore) as found:
        assert (found.format, found.version, found.is_incremental, found.image_bytes, found.expected_bytes) == (
            StreamFormat.BLOCKS,
            1,
            False,
            MIB,
            1,
        )


def test_an_empty_stream_is_a_backup(repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b""))
    assert backups.content(repository, done) == b""
    assert repository.verify(done, sample=1, progress=backups.ignore) == []


def test_what_was_written_is_listed_by_whoever_opens_it_later(site: Site, repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = backups.write(repository, backups.stream(b"2", is_incremental=True), after=first)
    other = backups.write(repository, backups.stream(b"3"))
    with site.open() as again:
        assert again.uuid == repository.uuid
        assert again.is_encrypted == (site.passphrase is not None)
        assert sorted(again.manifests(), key=str) == sorted([first, second, other], key=str)
        assert list(again.manifests(other.volume.uuid)) == [other]
        assert again.manifest(first.volume.uuid, second.uuid) == second
        assert again.chain(second) == [first, second]


def test_an_increment_has_its_parents_depth_and_one(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = backups.write(repository, backups.stream(b"2", is_incremental=True), after=first)
    third = backups.write(repository, backups.stream(b"3", is_incremental=True), after=second)
    assert [link.depth for link in (first, second, third)] == [0, 1, 2]


def test_a_stream_that_is_no_increment_has_no_parent(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = backups.write(repository, backups.stream(b"2"), after=first)
    assert (second.parent, second.depth) == (None, 0)


def test_an_image_comes_back_with_its_holes_and_its_changes(repository: Repository) -> None:
    first = backups.write(repository, backups.image([(0, backups.data(5 * MIB, 1)), (8 * MIB, 4 * MIB)]))
    changed = backups.image([(MIB, backups.data(MIB, 2)), (4 * MIB, 64 * KIB)], is_incremental=True)
    second = backups.write(repository, changed, after=first)
    expected = bytearray(64 * MIB)
    expected[: 5 * MIB] = backups.data(5 * MIB, 1)
    assert backups.image_of(repository, first) == expected
    expected[MIB : 2 * MIB] = backups.data(MIB, 2)
    expected[4 * MIB : 4 * MIB + 64 * KIB] = bytes(64 * KIB)
    assert backups.image_of(repository, second) == expected


def test_a_second_whole_one_shares_what_did_not_change(repository: Repository) -> None:
    files = {f"f{number}": backups.data(300 * KIB, number) for number in range(40)}
    first = backups.write(repository, backups.archive(files))
    files["f7"] = b"changed"
    second = backups.write(repository, backups.archive(files), after=first)
    assert second.stored_bytes < first.stored_bytes / 4
    assert backups.untarred(backups.content(repository, second)) == files


def test_equal_pieces_of_one_stream_are_stored_once(site: Site, repository: Repository) -> None:
    done = backups.write(repository, backups.stream(20 * backups.data(PART_MAX)))
    assert len(site.names("/chunks/")) == 2  # and the lists
    assert backups.content(repository, done) == 20 * backups.data(PART_MAX)


def test_hosts_share_nothing_between_volumes(site: Site, repository: Repository) -> None:
    for _ in range(2):
        backups.write(repository, backups.stream(b"the same"))
    assert len(site.names("/chunks/")) == 4


def test_a_file_and_a_folder_come_out_of_an_archive(repository: Repository) -> None:
    files = {f"dir/f{number}": backups.data(2 * MIB + number, number) for number in range(6)} | {"other": b"x"}
    done = backups.write(repository, backups.archive(files))
    assert backups.untarred(b"".join(repository.fetch(done, "dir/f3"))) == {"f3": files["dir/f3"]}
    assert backups.untarred(b"".join(repository.fetch(done, "dir"))) == {
        name: content for name, content in files.items() if name != "other"
    }
    with pytest.raises(errors.NotFound, match="'nowhere'"):
        repository.fetch(done, "nowhere")


def test_a_file_cannot_come_out_of_an_image(repository: Repository) -> None:
    done = backups.write(repository, backups.image([(0, b"x")]))
    with pytest.raises(errors.Unsupported, match="it is a blocks stream"):
        repository.fetch(done, "file")


def test_a_backup_that_is_not_there_is_not_found(repository: Repository) -> None:
    sought = backups.draft()
    with pytest.raises(errors.NotFound, match=f"cannot find backup {sought.uuid}"):
        repository.manifest(sought.volume.uuid, sought.uuid)


def test_nothing_is_listed_where_nothing_is(repository: Repository) -> None:
    assert list(repository.manifests()) == []


def test_a_parent_that_is_gone_is_told_and_named(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = backups.write(repository, backups.stream(b"2", is_incremental=True), after=first)
    folder = repository._folder(first.volume.uuid)
    folder.store.delete([folder.manifest_path(first.uuid)])
    for call in (lambda: repository.chain(second), lambda: _increment(repository, first)):
        with pytest.raises(Damaged, match=f"backup {first.uuid}: .* it is missing") as caught:
            call()
        assert caught.value.kind is Kind.MISSING


def test_no_backup_builds_on_a_removed_one(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    _increment(repository, first)
    repository.remove(first)
    with pytest.raises(Damaged, match=f"cannot build on backup {first.uuid}: .* it is removed"):
        _increment(repository, first)


def test_a_chain_that_goes_round_ends(repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = _increment(repository, first)
    folder = repository._folder(first.volume.uuid)
    folder.put_manifest(replace(first, parent=second.uuid, depth=1))
    with pytest.raises(Damaged, match="it has depth 1"):
        repository.chain(second)


def test_a_stream_that_fails_makes_no_backup(repository: Repository) -> None:
    def pieces() -> Iterator[bytes]:
        yield backups.data(PART_MAX)
        raise OSError(5, "the source is broken")

    with pytest.raises(OSError, match="the source is broken"):
        backups.write(repository, backups.stream(pieces()))
    assert list(repository.manifests()) == []


@pytest.mark.parametrize("again", ["", "again"], ids=["made", "write"])
def test_a_backup_that_was_made_before_a_crash_is_made_durable_and_its_mark_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    begun = backups.draft()
    with site.open() as repository:
        done = repository.write(begun, backups.stream(b"1"), progress=backups.ignore)
    site.write(f"volumes/{done.volume.uuid}/writing/{done.uuid}", b"")
    synced: list[str] = []
    monkeypatch.setattr(directory.fs, "sync_directory", lambda place: synced.append(place.resolve().name))  # type: ignore[attr-defined]
    with site.open() as repository:
        if again:
            assert repository.write(begun, backups.stream(b"1"), progress=backups.ignore) == done
        else:
            assert repository.made(done.volume.uuid, done.uuid) == done
            assert repository.made(done.volume.uuid, begun.snapshot.uuid) is None
    assert site.names("/writing/") == []
    assert site.server is not None or {"backups", done.volume.uuid} <= set(synced)


@pytest.mark.parametrize("excess", ["labels", "lists"])
def test_a_manifest_that_nobody_could_read_makes_no_backup(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, excess: str
) -> None:
    begun = backups.draft()
    if excess == "labels":
        labels = {str(number): "\N{DROMEDARY CAMEL}" * 4096 for number in range(100)}
        begun = replace(begun, volume=replace(begun.volume, labels=labels))
    else:
        monkeypatch.setattr(manifests, "LISTS_MAX", 0)
    with pytest.raises(Fault, match="its manifest could not be read again: it"):
        repository.write(begun, backups.stream(b"1"), progress=backups.ignore)
    assert list(repository.manifests()) == []


def test_a_call_whose_answer_was_lost_is_answered_again(repository: Repository) -> None:
    begun = backups.draft()
    done = repository.write(begun, backups.stream(b"content"), progress=backups.ignore)
    assert repository.write(begun, backups.stream(b"never read"), progress=backups.ignore) == done


def test_what_a_broken_off_call_sent_is_not_sent_again(site: Site, repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    begun = backups.draft(after=first)
    sent = [backups.data(PART_MAX, seed) for seed in range(14)]

    def pieces() -> Iterator[bytes]:
        yield from sent[:12]
        raise OSError(5, "the power is gone")

    with pytest.raises(OSError, match="the power is gone"):
        repository.write(begun, backups.stream(pieces(), is_incremental=True), progress=backups.ignore)
    there = len(site.names("/chunks/")) - 2
    assert 4 <= there <= 12  # those that were not under way any more
    with site.open() as again:
        done = again.write(begun, backups.stream(iter(sent), is_incremental=True), progress=backups.ignore)
        assert backups.content(again, done) == b"".join(sent)
    each = min(len(site.read(name)) for name in site.names("/chunks/") if len(site.read(name)) > MIB)
    assert done.stored_bytes < (14 - there) * each + 4 * KIB
    assert site.names("/writing/") == []


def test_an_abandoned_draft_leaves_no_mark(site: Site, repository: Repository) -> None:
    begun = backups.draft()
    with pytest.raises(ZeroDivisionError):
        repository.write(begun, backups.stream(bytes(1 // 0) for _ in range(1)), progress=backups.ignore)
    assert len(site.names("/writing/")) == 1
    repository.abandon(begun)
    repository.abandon(begun)
    assert site.names("/writing/") == []


def test_a_removed_backup_is_gone(site: Site, repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b"1"))
    repository.remove(done)
    repository.remove(done)
    assert list(repository.manifests()) == []
    assert site.names("/backups/") == []
    with pytest.raises(errors.NotFound):
        repository.manifest(done.volume.uuid, done.uuid)


def test_a_removed_backup_that_others_need_is_hidden_and_goes_with_the_last(site: Site, repository: Repository) -> None:
    first = backups.write(repository, backups.stream(b"1"))
    second = _increment(repository, first)
    third = _increment(repository, second)
    repository.remove(first)
    repository.remove(second)
    assert list(repository.manifests()) == [third]
    assert [link.uuid for link in repository.chain(third)] == [first.uuid, second.uuid, third.uuid]
    assert len(site.names("/backups/")) == 3
    with pytest.raises(errors.NotFound):
        repository.manifest(first.volume.uuid, first.uuid)
    repository.remove(third)
    assert site.names("/backups/") == []


def test_two_hosts_that_come_first_make_one_repository(site: Site) -> None:
    barrier = threading.Barrier(4)

    def come() -> str:
        barrier.wait()
        with site.open() as repository:
            return repository.uuid

    with ThreadPoolExecutor(4) as pool:
        uuids = {future.result() for future in [pool.submit(come) for _ in range(4)]}
    assert len(uuids) == 1
    assert site.names() == ["voldriver.json"]


@pytest.mark.parametrize("passphrase", [None, Secret("wrong"), Secret("")])
def test_the_passphrase_must_be_the_one_it_was_made_with(
    site: Site, repository: Repository, passphrase: Secret | None
) -> None:
    if site.passphrase is None and passphrase is None:
        passphrase = Secret("one too many")
    with pytest.raises(Fault, match="passphrase") as caught:
        Repository.open(site.place, passphrase)
    assert caught.value.kind is Kind.PASSPHRASE
    assert repository.uuid not in str(caught.value)


def test_a_newer_format_is_refused_and_nothing_is_written(site: Site) -> None:
    site.write("voldriver.json", b'{"format": 7, "uuid": "x", "encryption": null, "new": []}')
    with pytest.raises(Fault, match="it has format 7, and this version knows 1") as caught:
        site.open()
    assert caught.value.kind is Kind.FORMAT
    assert site.names() == ["voldriver.json"]


def test_a_place_with_something_else_is_refused_and_left(site: Site) -> None:
    site.write("photos/cat.jpg", b"meow")
    with pytest.raises(Fault, match="has something else in it") as caught:
        site.open()
    assert caught.value.kind is Kind.OCCUPIED
    assert site.names() == ["photos/cat.jpg"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"format": 1}',
        b'{"format": 1, "uuid": "x", "encryption": null}',
        b'{"format": "1", "uuid": "x", "encryption": null}',
        b"[" * 100_000,
        bytes(70_000),
    ],
)
def test_a_header_that_is_none_is_refused(site: Site, content: bytes) -> None:
    site.write("voldriver.json", content)
    with pytest.raises(Fault, match=r"voldriver\.json"):
        site.open()


def test_what_is_named_by_nobody_is_not_looked_at(site: Site, repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b"1"))
    folder = f"volumes/{done.volume.uuid}"
    for name in ("volumes/other/backups/x", f"{folder}/backups/notes.txt", f"{folder}/chunks/zz/x", "readme"):
        site.write(name, b"?")
    assert list(repository.manifests()) == [done]
    assert repository.verify(done, sample=0.01, progress=backups.ignore) == []


def test_a_sample_reads_less(repository: Repository) -> None:
    done = backups.write(repository, backups.stream(b"".join(backups.data(PART_MAX, seed) for seed in range(8))))
    all_of_it: list[int] = []
    some: list[int] = []
    assert repository.verify(done, sample=1, progress=all_of_it.append) == []
    assert repository.verify(done, sample=0.2, progress=some.append, seed=3) == []
    assert sum(all_of_it) == done.content_bytes
    assert 0 < sum(some) < done.content_bytes


def _increment(repository: Repository, parent: Manifest) -> Manifest:
    return backups.write(repository, backups.stream(b"more", is_incremental=True), after=parent)
