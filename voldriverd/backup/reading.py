"""Backups read: as a stream to restore from, for verification, and one file at a time."""

import random
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from voldriverd.backup import cutting, index, lists
from voldriverd.backup.faults import HITS_MAX, Damage, Damaged
from voldriverd.backup.lists import Kind
from voldriverd.backup.manifest import Malformed, Manifest
from voldriverd.backup.ranges import Ranges
from voldriverd.backup.transfer import Transfer
from voldriverd.backup.volumes import Folder, Lost
from voldriverd.driver import Part, StreamFormat

OnDamage = Callable[[Damage], None]
_NAME_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a body."""

    name: str
    position: int
    """In the body."""
    length: int


class Reading:
    """One backup being read. Raises Damaged where nothing else is said."""

    def __init__(self, folder: Folder, transfer: Transfer, manifest: Manifest) -> None:
        """Read nothing yet."""
        self._folder = folder
        self._transfer = transfer
        self._manifest = manifest
        self._body = manifest.sent

    def parts(self, progress: Callable[[int], None], on_damage: OnDamage | None) -> Generator[Part, None, None]:
        """Yield the parts of its stream, verified; `progress` gets their bytes."""
        if self._body.format is StreamFormat.BTRFS:
            on_damage = None
        contents = self._contents(self.chunks(), progress, on_damage)
        with closing(contents):
            yield from cutting.parts(
                self._body.format,
                (Part(content, chunk.length) for chunk, content in contents),
                ranges=self.ranges(Kind.RANGES),
                holes=self.ranges(Kind.HOLES),
                index=None if on_damage is None else self.members(),
            )

    def verify(self, progress: Callable[[int], None], *, sample: float, seed: int) -> list[Damage]:
        """Return what is wrong."""
        damages = self._damaged_lists()
        if damages:
            return damages  # they say which chunks it has
        chooser = random.Random(f"{seed} {self._manifest.uuid}")  # noqa: S311 - a sample
        present = None if sample >= 1 else {bytes.fromhex(entry.name) for entry in self._folder.chunks()}
        if present is None:
            chosen = self.chunks()
        else:
            chosen = (
                chunk
                for chunk in self.chunks()
                if chooser.random() < sample or chunk.position == 0 or bytes.fromhex(chunk.name) not in present
            )
        for _ in self._contents(chosen, progress, damages.append):
            pass
        return damages

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield an archive of one file or folder of a TAR. Raises NotFound at once, and what `index.extract` does."""
        names, ends = bytearray(), array("Q")
        for chunk in self.chunks():
            names += bytes.fromhex(chunk.name)
            ends.append(chunk.position + chunk.length)

        def chunk_at(number: int) -> Chunk:
            name = names[number * _NAME_BYTES : (number + 1) * _NAME_BYTES].hex()
            position = ends[number - 1] if number else 0
            return Chunk(name, position, ends[number] - position)

        def read(start: int, length: int) -> Iterator[bytes]:
            wanted = (chunk_at(number) for number in range(bisect_right(ends, start), len(ends)))
            for chunk, content in self._contents(_before(wanted, start + length), lambda _: None, None):
                assert content is not None, "damage is raised"
                yield content[max(0, start - chunk.position) : start + length - chunk.position]

        return index.extract(self.members(), path, read)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks of its body, which are as long together as the manifest says."""
        position = 0
        for name, length in self.rows(Kind.CHUNKS):
            yield Chunk(name, position, length)
            position += length
            if position > self._body.content_bytes:
                break
        if position != self._body.content_bytes:
            raise self._bad_lists(f"its chunks have {position} bytes and not {self._body.content_bytes}")

    def ranges(self, kind: Kind) -> Ranges:
        """Return the ranges or the holes of an image."""
        found = Ranges()
        for offset, length in self.rows(kind):
            try:
                found.add(offset, length)
            except ValueError as err:
                raise self._bad_lists(str(err)) from err
        if found.end > (self._body.image_bytes or 0):
            raise self._bad_lists(f"its {kind} end at {found.end}, behind the image")
        return found

    def members(self) -> Iterable[index.Row]:
        """Return the members of a TAR, which may be gone through again and again."""
        return _Members(self)

    def _contents(
        self, chunks: Iterator[Chunk], progress: Callable[[int], None], on_damage: OnDamage | None
    ) -> Generator[tuple[Chunk, bytes | None], None, None]:
        """Yield the content of chunks in order; with `on_damage` None for a lost one."""
        found = self._transfer.in_order(chunks, self._get)
        with closing(found):
            for chunk, content in found:
                if isinstance(content, Lost):
                    damage = self._damage(chunk, content)
                    if on_damage is None:
                        raise Damaged("read", damage) from content
                    on_damage(damage)
                yield chunk, None if isinstance(content, Lost) else content
                progress(chunk.length)

    def _get(self, chunk: Chunk) -> tuple[Chunk, bytes | Lost]:
        try:
            return chunk, self._folder.get_chunk(chunk.name, chunk.length)
        except Lost as err:
            return chunk, err

    def rows(self, kind: Kind) -> Iterator[lists.Row]:
        """Yield the rows of one list."""
        pieces = (self._piece(name, length) for name, length in self._body.lists)
        try:
            yield from lists.rows(pieces, kind)
        except Malformed as err:
            raise self._bad_lists(str(err)) from err

    def _piece(self, name: str, length: int) -> bytes:
        try:
            return self._folder.get_chunk(name, length)
        except Lost as err:
            raise Damaged("read", self._damage_of_list(name, err)) from err

    def _damaged_lists(self) -> list[Damage]:
        """Return what is wrong with the lists, all of them."""
        damages = []
        for name, length in self._body.lists:
            try:
                self._folder.get_chunk(name, length)
            except Lost as err:
                damages.append(self._damage_of_list(name, err))
        if damages:
            return damages
        try:
            held = self.ranges(Kind.RANGES).total_bytes
            self.ranges(Kind.HOLES)
            if self._body.format is StreamFormat.BLOCKS and held != self._body.content_bytes:
                raise self._bad_lists(f"its ranges have {held} bytes and not {self._body.content_bytes}")
            for _ in self.chunks():
                pass
            for _ in self.members():
                pass
        except Damaged as err:
            return [err.damage]
        return []

    def _damage(self, chunk: Chunk, lost: Lost) -> Damage:
        """Say what a lost chunk hits; what a damaged list would have told is left out."""
        ranges: tuple[tuple[int, int], ...] = ((chunk.position, chunk.length),)
        files: tuple[str, ...] = ()
        is_image = self._body.format is StreamFormat.BLOCKS
        try:
            if is_image:
                ranges = tuple(self.ranges(Kind.RANGES).within(chunk.position, chunk.length))[:HITS_MAX]
            if self._body.format is StreamFormat.TAR:
                files = self._files(chunk)
        except Damaged:
            is_image = False
        return Damage(
            volume_uuid=self._folder.uuid,
            backup_uuid=self._manifest.uuid,
            name=self._folder.chunk_path(chunk.name),
            cause=str(lost),
            is_missing=lost.is_missing,
            ranges=ranges,
            is_image=is_image,
            files=files,
        )

    def _files(self, chunk: Chunk) -> tuple[str, ...]:
        end = chunk.position + chunk.length
        hit = (path for path, start, length in self.members() if start < end and start + length > chunk.position)
        return tuple(path for path, _ in zip(hit, range(HITS_MAX), strict=False))

    def _damage_of_list(self, name: str, lost: Lost) -> Damage:
        path = self._folder.chunk_path(name)
        cause = f"{lost}, and it holds a part of the lists"
        return Damage(self._folder.uuid, self._manifest.uuid, path, cause, is_missing=lost.is_missing)

    def _bad_lists(self, cause: str) -> Damaged:
        path = self._folder.manifest_path(self._manifest.uuid)
        return Damaged("read", Damage(self._folder.uuid, self._manifest.uuid, path, cause))


class _Members:
    """The rows of the index, read anew each time."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __iter__(self) -> Iterator[index.Row]:
        return iter(self._reading.rows(Kind.INDEX))


def _before(chunks: Iterator[Chunk], end: int) -> Iterator[Chunk]:
    for chunk in chunks:
        if chunk.position >= end:
            return
        yield chunk
