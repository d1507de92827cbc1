"""Repositories for tests: drafts, streams, and places of both kinds whose objects can be looked at and damaged."""

import io
import itertools
import random
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import obstore

from tests.s3 import Server
from voldriverd.backup.manifest import Manifest, SnapshotCard, VolumeCard
from voldriverd.backup.objects import Place
from voldriverd.backup.repository import Repository
from voldriverd.driver import PART_MAX, Part, Stream, StreamFormat, TreeOptions
from voldriverd.model import Secret

KIB: Final = 1024
MIB: Final = 1 << 20
PASSPHRASE: Final = Secret("correct horse battery staple")
_numbers = itertools.count()


@dataclass(frozen=True)
class Site:
    """A place for a repository of one test, and whether it is to be encrypted."""

    place: Place
    passphrase: Secret | None
    server: Server | None
    """None: it is a directory."""

    def open(self) -> Repository:
        return Repository.open(self.place, self.passphrase)

    @property
    def directory(self) -> Path:
        return Path(self.place.url.removeprefix("file://"))

    def names(self, part: str = "") -> list[str]:
        """Return the objects whose name has this part."""
        if self.server is None:
            found = (path for path in self.directory.rglob("*") if path.is_file())
            names = (str(path.relative_to(self.directory)) for path in found)
        else:
            listed = obstore.list(self.server.store(), self._prefix).collect()
            names = (entry["path"].removeprefix(f"{self._prefix}/") for entry in listed)
        return sorted(name for name in names if part in name)

    def read(self, name: str) -> bytes:
        if self.server is None:
            return (self.directory / name).read_bytes()
        return bytes(obstore.get(self.server.store(), f"{self._prefix}/{name}").bytes())

    def write(self, name: str, content: bytes) -> None:
        if self.server is None:
            (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / name).write_bytes(content)
        else:
            obstore.put(self.server.store(), f"{self._prefix}/{name}", content)

    def delete(self, name: str) -> None:
        if self.server is None:
            (self.directory / name).unlink()
        else:
            obstore.delete(self.server.store(), f"{self._prefix}/{name}")

    @property
    def _prefix(self) -> str:
        return self.place.url.removeprefix("s3://").partition("/")[2]


KINDS: Final = ("directory", "directory-encrypted", "s3", "s3-encrypted")


@contextmanager
def site(kind: str, base: Path, server: Server) -> Iterator[Site]:
    """Give an empty place for one test: `target` in a directory of its own below `base`, or a part of the bucket."""
    passphrase = PASSPHRASE if kind.endswith("encrypted") else None
    if kind.startswith("s3"):
        yield Site(server.place(f"test{next(_numbers)}"), passphrase, server)
        return
    own = base / f"site{next(_numbers)}"
    directory = own / "target"
    directory.mkdir(parents=True)
    try:
        yield Site(Place(f"file://{directory}"), passphrase, None)
    finally:
        shutil.rmtree(own)


def draft(*, after: Manifest | None = None, volume_uuid: str | None = None) -> Manifest:
    """Return a draft of a new volume's backup, or of a later one of the same volume."""
    now = datetime.now(UTC)
    volume = VolumeCard(
        uuid=volume_uuid or str(uuid.uuid4()),
        name="db",
        driver="loop",
        description="what it holds: “ü”",
        options={"size": "1G"},
        labels={"team": "a"},
        size_bytes=1 << 30,
    )
    return Manifest(
        uuid=str(uuid.uuid4()),
        created_at=now,
        taken_at=now - timedelta(seconds=5),
        host="box",
        volume=volume if after is None else after.volume,
        tree=TreeOptions(fs="ext4", thick=True),
        snapshot=SnapshotCard(str(uuid.uuid4()), "monday", None),
        name="nightly",
        description=None,
        parent=None if after is None else after.uuid,
    )


def data(length: int, seed: int = 0) -> bytes:
    """Return bytes, half of which compress."""
    return random.Random(seed).randbytes(length // 2) + bytes(length - length // 2)


def stream(
    content: bytes | Iterable[bytes],
    *,
    form: StreamFormat = StreamFormat.BTRFS,
    is_incremental: bool = False,
) -> Stream:
    """Return a stream of bytes without places."""
    pieces = _pieces(content) if isinstance(content, bytes) else content
    parts = (Part(piece, len(piece)) for piece in pieces)
    return Stream(form, 1, is_incremental, None, None, parts, ("a note",))


def image(
    ranges: Iterable[tuple[int, bytes | int]], *, size_bytes: int = 64 * MIB, is_incremental: bool = False
) -> Stream:
    """Return a stream of blocks: (offset, data), or (offset, length) of a hole."""
    parts = (
        Part(None, what, offset) if isinstance(what, int) else Part(piece, len(piece), offset + start)
        for offset, what in ranges
        for start, piece in enumerate_pieces(what)
    )
    return Stream(StreamFormat.BLOCKS, 1, is_incremental, size_bytes, None, parts)


def enumerate_pieces(what: bytes | int) -> Iterator[tuple[int, bytes]]:
    """Yield pieces of PART_MAX with their offset; one empty one for a hole."""
    if isinstance(what, int):
        yield 0, b""
        return
    for start in range(0, len(what), PART_MAX):
        yield start, what[start : start + PART_MAX]


def archive(files: dict[str, bytes]) -> Stream:
    """Return a stream of an archive of these files."""
    return stream(tar_of(files), form=StreamFormat.TAR)


def tar_of(files: dict[str, bytes]) -> bytes:
    """Return a tar archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def untarred(archived: bytes) -> dict[str, bytes]:
    """Return the files of an archive."""
    with tarfile.open(fileobj=io.BytesIO(archived)) as tar:
        opened = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in opened.items() if file is not None}


def write(repository: Repository, made_of: Stream, *, after: Manifest | None = None) -> Manifest:
    """Back up a stream."""
    return repository.write(draft(after=after), made_of, progress=ignore)


def content(repository: Repository, manifest: Manifest, on_damage: Callable[..., None] | None = None) -> bytes:
    """Read one backup back, without places."""
    with repository.read(manifest, progress=ignore, on_damage=on_damage) as found:
        return b"".join(part.data or b"" for part in found.parts)


def image_of(repository: Repository, manifest: Manifest, on_damage: Callable[..., None] | None = None) -> bytearray:
    """Put the image of a chain together."""
    made = bytearray(manifest.image_bytes or 0)
    for link in repository.chain(manifest):
        with repository.read(link, progress=ignore, on_damage=on_damage) as found:
            for part in found.parts:
                assert part.offset is not None
                made[part.offset : part.offset + part.length] = part.data or bytes(part.length)
    return made


def removed(manifest: Manifest) -> Manifest:
    """Return a manifest as it stands in the target after its removal."""
    return replace(manifest, is_removed=True)


def flipped(content: bytes, bit: int) -> bytes:
    """Return bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def ignore(_: int) -> None:
    """Take no notice of progress."""


def _pieces(content: bytes) -> Iterator[bytes]:
    return (content[start : start + MIB] for start in range(0, len(content), MIB))
