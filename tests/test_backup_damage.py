"""What lies in a target may be damaged, missing, swapped or hostile: it is found, named, and never believed."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from tests import backups
from tests.backups import KINDS, MIB, Site
from tests.s3 import Server
from voldriverd.backup import manifest as manifests
from voldriverd.backup.faults import Damage, Damaged, Fault, Kind
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX

FILES = {f"f{number}": backups.data(MIB // 4, number) for number in range(40)}


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, quick: Path, server: Server) -> Iterator[Site]:
    with backups.site(request.param, quick, server) as site:
        yield site


@pytest.fixture(params=["directory", "directory-encrypted"])
def near(request: pytest.FixtureRequest, quick: Path, server: Server) -> Iterator[Site]:
    """Return a directory: what is tried here is the same on a server."""
    with backups.site(request.param, quick, server) as site:
        yield site


def flip(content: bytes) -> bytes:
    return backups.flipped(content, 4 * len(content) + 3)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(_: bytes) -> bytes:
    return b""


def longer(content: bytes) -> bytes:
    return content + b"\0"


def chunks(site: Site, manifest: Manifest) -> list[str]:
    """Return the chunks of the body, in order."""
    with site.open() as repository:
        reading = repository._reading(manifest)
        return [reading._folder.chunk_path(chunk.name) for chunk in reading.chunks()]


def list_of(site: Site, manifest: Manifest) -> str:
    (name,) = [name for name, _ in manifest.sent.lists]
    (path,) = [path for path in site.names("/chunks/") if path.endswith(name)]
    return path


def found(repository: Repository, manifest: Manifest) -> list[Damage]:
    return repository.verify(manifest, sample=1, progress=backups.ignore)


@pytest.mark.parametrize("harm", [flip, cut, empty, longer])
def test_a_damaged_chunk_is_found_and_the_files_it_hits_are_named(site: Site, harm: Callable[[bytes], bytes]) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.archive(FILES))
        second = chunks(site, done)[1]
        site.write(second, harm(site.read(second)))
        (damage,) = found(repository, done)
        assert damage.name == second
        assert damage.backup_uuid == done.uuid
        assert damage.files
        assert set(damage.files) <= set(FILES)
        with pytest.raises(Damaged, match=f"object {second}: it.* of its stream, in {damage.files[0]}") as caught:
            backups.content(repository, done)
        assert caught.value.kind is Kind.DAMAGED


def test_damage_to_a_file_whose_name_is_no_utf8_can_be_written_down_anywhere(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.archive({os.fsdecode(b"caf\xe9"): b"content"}))
        for name in chunks(near, done):
            near.write(name, b"?")
        (damage,) = found(repository, done)
        assert r"in caf\udce9" in str(damage).encode().decode()


def test_a_missing_chunk_is_found_even_by_a_sample(site: Site) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.archive(FILES))
        gone = chunks(site, done)[3]
        site.delete(gone)
        for sample in (1, 0.0001):
            (damage,) = repository.verify(done, sample=sample, progress=backups.ignore)
            assert (damage.name, damage.cause, damage.is_missing) == (gone, "it is missing", True)
        with pytest.raises(Damaged) as caught:
            backups.content(repository, done)
        assert caught.value.kind is Kind.MISSING


def test_swapped_chunks_are_both_found(site: Site) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.stream(backups.data(3 * PART_MAX)))
        one, _, other = chunks(site, done)
        first, last = site.read(one), site.read(other)
        site.write(one, last)
        site.write(other, first)
        assert [(damage.name, damage.ranges) for damage in found(repository, done)] == [
            (one, ((0, PART_MAX),)),
            (other, ((2 * PART_MAX, PART_MAX),)),
        ]


def test_verify_lists_every_damage(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"".join(backups.data(PART_MAX, seed) for seed in range(12))))
        harmed = chunks(near, done)[::2]
        for name in harmed:
            near.write(name, flip(near.read(name)))
        assert [damage.name for damage in found(repository, done)] == harmed


def test_damage_of_an_image_says_where_in_the_image(site: Site) -> None:
    with site.open() as repository:
        whole = backups.image([(0, backups.data(PART_MAX, 1)), (16 * MIB, backups.data(PART_MAX, 2))])
        done = backups.write(repository, whole)
        harmed = chunks(site, done)[1]
        site.write(harmed, flip(site.read(harmed)))
        (damage,) = found(repository, done)
        assert (damage.ranges, damage.is_image) == (((16 * MIB, PART_MAX),), True)
        with pytest.raises(Damaged, match=f"bytes {16 * MIB} to {16 * MIB + PART_MAX} of its image"):
            backups.image_of(repository, done)
        seen: list[Damage] = []
        expected = backups.data(PART_MAX, 1) + bytes(60 * MIB)
        assert backups.image_of(repository, done, seen.append) == expected
        assert seen == [damage]


def test_an_archive_is_read_around_its_damage_when_asked(site: Site) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.archive(FILES))
        harmed = chunks(site, done)[2]
        site.write(harmed, flip(site.read(harmed)))
        seen: list[Damage] = []
        read = backups.content(repository, done, seen.append)
        assert len(read) == done.content_bytes
        (damage,) = seen
        untouched = FILES.keys() - set(damage.files)
        assert untouched
        assert all(FILES[name] in read for name in untouched)


def test_a_btrfs_stream_is_never_read_around_damage(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"stream"))
        near.delete(chunks(near, done)[0])
        with pytest.raises(Damaged):
            backups.content(repository, done, lambda damage: pytest.fail(str(damage)))


@pytest.mark.parametrize("harm", [flip, cut, empty, longer])
def test_a_damaged_list_is_found(site: Site, harm: Callable[[bytes], bytes]) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.archive(FILES))
        name = list_of(site, done)
        site.write(name, harm(site.read(name)))
        (damage,) = found(repository, done)
        assert damage.name == name
        assert "a part of the lists" in damage.cause
        for on_damage in (None, lambda _: None):
            with pytest.raises(Damaged, match="a part of the lists"):
                backups.content(repository, done, on_damage)


@pytest.mark.parametrize("harm", [flip, cut, empty, longer, lambda _: bytes(5 * MIB)])
def test_a_damaged_manifest_is_listed_as_such(site: Site, harm: Callable[[bytes], bytes]) -> None:
    with site.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        child = backups.write(repository, backups.stream(b"2", is_incremental=True), after=done)
        (name,) = site.names(f"/backups/{done.uuid}")
        site.write(name, harm(site.read(name)))
        listed = list(repository.manifests())
        assert child in listed
        (damaged,) = [each for each in listed if isinstance(each, Damaged)]
        assert (damaged.damage.volume_uuid, damaged.damage.backup_uuid) == (done.volume.uuid, done.uuid)
        assert damaged.damage.name == name
        for call in (lambda: repository.manifest(done.volume.uuid, done.uuid), lambda: repository.chain(child)):
            with pytest.raises(Damaged, match=f"backup {done.uuid}"):
                call()


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        (name,) = near.names("/backups/")
        content = near.read(name)
        for bit in range(8 * len(content)):
            near.write(name, backups.flipped(content, bit))
            (listed,) = repository.manifests()
            assert isinstance(listed, Damaged) or listed == done


def test_no_flipped_bit_of_the_header_changes_what_it_says(near: Site) -> None:
    with near.open() as repository:
        header = near.read("voldriver.json")
        kinds = set()
        for bit in range(0, 8 * len(header), 5):
            near.write("voldriver.json", backups.flipped(header, bit))
            try:
                with near.open() as again:
                    assert again.uuid == repository.uuid
            except Fault as err:
                kinds.add(err.kind)
        assert kinds <= {Kind.FORMAT, Kind.PASSPHRASE}


def test_a_manifest_under_another_name_is_none(site: Site) -> None:
    with site.open() as repository:
        one = backups.write(repository, backups.stream(b"1"))
        other = backups.write(repository, backups.stream(b"2"), after=one)
        elsewhere = backups.write(repository, backups.stream(b"3"))
        (name,) = site.names(f"/backups/{one.uuid}")
        for source in (other.uuid, elsewhere.uuid):
            site.write(name, site.read(site.names(f"/backups/{source}")[0]))
            with pytest.raises(Damaged, match=f"backup {one.uuid}"):
                repository.manifest(one.volume.uuid, one.uuid)


def test_a_manifest_of_another_volume_is_none(near: Site) -> None:
    with near.open() as repository:
        one = backups.write(repository, backups.stream(b"1"))
        other = backups.write(repository, backups.stream(b"2"))
        near.write(f"volumes/{other.volume.uuid}/backups/{one.uuid}", near.read(near.names(f"/backups/{one.uuid}")[0]))
        with pytest.raises(Damaged):
            repository.manifest(other.volume.uuid, one.uuid)


def test_a_backup_of_a_newer_format_is_told_as_such(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        forge(repository, done, {"format": 2})
        (listed,) = repository.manifests()
        assert isinstance(listed, Damaged)
        assert "it has format 2, and this version knows 1" in str(listed)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "../../../etc/passwd"},
        {"parent": "..", "depth": 1},
        {"depth": 3},
        {"depth": -1},
        {"depth": True},
        {"created_at": "yesterday"},
        {"created_at": 5},
        {"removed": "no"},
        {"host": None},
        {"host": "x" * 70_000},
        {"volume": []},
        {"tree": {}},
        {"body": None},
        {"name": 5},
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_damaged(near: Site, change: dict[str, object]) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        forge(repository, done, change)
        (listed,) = repository.manifests()
        assert isinstance(listed, Damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "zip"},
        {"format": "blocks"},
        {"image_bytes": 5},
        {"content_bytes": 1 << 63},
        {"content_bytes": 1.5},
        {"notes": [1]},
        {"notes": "text"},
        {"lists": [["../x", 1]]},
        {"lists": [["a" * 64, 0]]},
        {"lists": [["a" * 64]]},
        {"lists": 10_000 * [["a" * 64, 1]]},
    ],
)
def test_a_body_that_cannot_be_is_damaged(near: Site, change: dict[str, object]) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        forge(repository, done, {"body": json.loads(manifests.to_json(done))["body"] | change})
        (listed,) = repository.manifests()
        assert isinstance(listed, Damaged)


@pytest.mark.parametrize(
    "lines",
    [
        b'{"chunks":[["../../x",1]]}\n',
        b'{"chunks":[["%s",4194305]]}\n' % (b"a" * 64),
        b'{"chunks":[["%s",1]]}\n' % (b"a" * 64),  # not as many bytes as the manifest says
        b'{"chunks":[5]}\n',
        b'{"chunks":{"a":1}}\n',
        b'{"chunks":[[\n',
        b'{"chunks":' + b"[" * 100_000 + b"\n",
        b'{"chunks":[]}' + b" " * (1 << 20) + b"\n",
        b"",
    ],
)
def test_lists_that_cannot_be_are_damaged(near: Site, lines: bytes) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"123456"))
        forge_lists(repository, done, lines)
        again = repository.manifest(done.volume.uuid, done.uuid)
        assert len(found(repository, again)) == 1
        with pytest.raises(Damaged):
            backups.content(repository, again)


@pytest.mark.parametrize(
    "lines",
    [
        b'{"ranges":[[-4096,6]]}\n',
        b'{"ranges":[[67108860,6]]}\n',
        b'{"ranges":[[4096,3],[0,3]]}\n',
        b'{"ranges":[[0,0]]}\n',
        b'{"ranges":[[0,9223372036854775807]]}\n',
        b'{"ranges":[[0,5]]}\n',
    ],
)
def test_ranges_that_cannot_be_are_damaged(near: Site, lines: bytes) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.image([(0, b"123456")]))
        piece = repository._reading(done)._piece(*done.sent.lists[0])
        (chunks_line,) = [line for line in piece.splitlines(keepends=True) if b"chunks" in line]
        forge_lists(repository, done, chunks_line + lines)
        again = repository.manifest(done.volume.uuid, done.uuid)
        assert len(found(repository, again)) == 1


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_bomb_does_not_go_off(near: Site, says_its_length: bool) -> None:  # noqa: FBT001 - a case
    with near.open() as repository:
        done = backups.write(repository, backups.stream(b"1"))
        sealer = repository._folder(done.volume.uuid).sealer
        bomb = zstandard.ZstdCompressor(write_content_size=says_its_length).compress(bytes(1 << 30))
        name = chunks(near, done)[0]
        near.write(name, sealer._seal(bomb, name.rpartition("/")[2]))
        (damage,) = found(repository, done)
        assert "at most 4194304 may be there" in damage.cause


def test_a_link_is_not_followed_and_a_pipe_does_not_hold_us(near: Site) -> None:
    with near.open() as repository:
        done = backups.write(repository, backups.stream(backups.data(2 * PART_MAX)))
        one, other = (near.directory / name for name in chunks(near, done))
        one.rename(near.directory / "elsewhere")
        one.symlink_to(near.directory / "elsewhere")
        other.unlink()
        os.mkfifo(other)
        assert [damage.cause for damage in found(repository, done)] == [
            "too many levels of symbolic links",
            "it is no file",
        ]


def test_a_folder_that_is_a_link_is_neither_read_nor_written_nor_emptied(near: Site) -> None:
    """Who has the target, as an NFS server has, says where its links lead: on this host."""
    with near.open() as repository:
        done = backups.write(repository, backups.stream(backups.data(PART_MAX)))
        folder = (near.directory / chunks(near, done)[0]).parent.parent
        outside = near.directory.parent / "outside"
        folder.rename(outside)
        folder.symlink_to(outside)
        before = sorted(outside.rglob("*"))
        assert all("too many levels of symbolic links" in damage.cause for damage in found(repository, done))
        store = repository._folder(done.volume.uuid).store
        for write in (store.put, store.create):
            with pytest.raises(Fault, match="symbolic links"):
                write(f"{folder.relative_to(near.directory)}/aa/new", b"content")
        with pytest.raises(Fault, match="symbolic links"):
            list(store.list(f"{folder.relative_to(near.directory)}/"))
        with pytest.raises(Fault, match="symbolic links"):
            store.delete([str(folder.relative_to(near.directory) / before[-1].relative_to(outside))])
        assert sorted(outside.rglob("*")) == before


def forge(repository: Repository, manifest: Manifest, change: dict[str, object]) -> None:
    """Put a manifest with other fields in the place of one, as somebody with the key would."""
    folder = repository._folder(manifest.volume.uuid)
    content = json.dumps(json.loads(manifests.to_json(manifest)) | change).encode()
    folder.store.put(folder.manifest_path(manifest.uuid), folder.sealer.pack_manifest(manifest.uuid, content))


def forge_lists(repository: Repository, manifest: Manifest, lines: bytes) -> None:
    folder = repository._folder(manifest.volume.uuid)
    name = folder.sealer.name(lines)
    folder.put_chunk(name, lines)
    body = json.loads(manifests.to_json(manifest))["body"]
    forge(repository, manifest, {"body": body | {"lists": [[name, len(lines)]] if lines else []}})
