"""One backup being written: everything that its manifest names first, and the manifest last."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from voldriverd.backup import cutting, lists, manifest
from voldriverd.backup.faults import Damage, Damaged, Fault, Kind
from voldriverd.backup.lists import Kind as ListKind
from voldriverd.backup.manifest import Body, Manifest
from voldriverd.backup.reading import Reading
from voldriverd.backup.retries import Retries
from voldriverd.backup.transfer import Transfer
from voldriverd.backup.volumes import MANIFEST_MAX, Folder
from voldriverd.driver import Stream

GRACE_S: Final = 86_400.0
"""The shortest grace period of `prune`: how long what no manifest names may be relied on, twice over."""
REFRESH_S: Final = 600.0
"""How often a mark is made anew."""
PRUNING_S: Final = 900.0
"""How old the mark of somebody who prunes is when that has ended whatever its end was."""
SHARED_FROM: Final = 4
"""How many of the volume's newest backups a whole one looks for its chunks in: older ones share less and less."""
_DIGEST_BYTES: Final = 16
"""Of a chunk's name, kept in memory for each that is there; two of 2**64 chunks may have the same."""
_TICK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Sent:
    """One chunk that is in the target now."""

    name: str
    length: int
    added_bytes: int
    """0 if it was there already."""


class Writing:
    """One run of `write`."""

    def __init__(self, folder: Folder, transfer: Transfer, retries: Retries, draft: Manifest, stream: Stream) -> None:
        """Write nothing yet."""
        assert draft.body is None, f"backup {draft.uuid} has been sent"
        assert draft.parent is not None or not stream.is_incremental, f"backup {draft.uuid} has no parent"
        self._folder = folder
        self._transfer = transfer
        self._retries = retries
        self._draft = draft if stream.is_incremental else replace(draft, parent=None, depth=0)
        self._stream = stream
        self._mark = folder.mark_path(draft.uuid)
        self._marked_at = 0.0
        """By our own clock."""
        self._made_at: datetime | None = None
        """The mark, by the clock of the target."""
        self._known: set[bytes] = set()
        self._lock = threading.Lock()
        self._stored_bytes = 0

    def run(self, progress: Callable[[int], None], *, is_afresh: bool) -> Manifest:
        """Write it; what is there already of the same backup is taken up, or all sent again."""
        store = self._folder.store
        is_first = store.create(self._mark, b"")
        if not is_first:
            store.put(self._mark, b"")
        self._marked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        now = self._note_mark()
        done = self._done()
        if done is None:
            self._wait_for_pruning(now)
            draft = self._after_parent()
            is_new_to_all = is_first and self._stream.is_incremental  # nobody else has sent what only changed now
            if not (is_afresh or is_new_to_all):
                self._look_for_chunks(now)
            done = replace(draft, body=self._send(progress))
            store.settle()
            if draft.parent is not None:
                self._folder.get_manifest(draft.parent)  # one that was removed meanwhile is there as long as our mark
            self._keep_mark()
            _ensure_readable(done)
            self._folder.put_manifest(done)
            store.settle()
            self._ensure_marked(done)
        else:
            store.settle()
        store.delete([self._mark])
        return done

    def _note_mark(self) -> datetime:
        """Return when the mark was made just now. Raises Fault if the one before was so old by the target's clock.

        Ours may have stood still with a virtual machine, or that of the target was set.
        """
        made_at = self._marked()
        if self._made_at is not None and (made_at - self._made_at).total_seconds() > GRACE_S / 2:
            raise self._slept()
        self._made_at = made_at
        return made_at

    def _marked(self) -> datetime:
        """Return when the mark was made, by the clock of the target."""
        for entry in self._folder.marks():
            if entry.name == self._draft.uuid:
                return entry.modified_at
        raise Fault(f"cannot write backup {self._draft.uuid}: its mark is gone at once", kind=Kind.FAILING)

    def _done(self) -> Manifest | None:
        """Return the manifest if an earlier call wrote it."""
        if all(entry.name != self._draft.uuid for entry in self._folder.backups()):
            return None
        return self._folder.get_manifest(self._draft.uuid)

    def _wait_for_pruning(self, now: datetime) -> None:
        """Return when nobody prunes here; who begins to after our mark is there sees it and leaves off."""
        began = time.monotonic()
        while any(
            (now - entry.modified_at).total_seconds() + time.monotonic() - began < PRUNING_S
            for entry in self._folder.marks(is_pruning=True)
        ):
            self._retries.pause(_TICK_S)

    def _after_parent(self) -> Manifest:
        """Return the draft with its depth. Raises Damaged: the parent is gone, or may go, which is the same."""
        if self._draft.parent is None:
            return self._draft
        parent = self._folder.get_manifest(self._draft.parent)
        if parent.is_removed:
            name, cause = self._folder.manifest_path(parent.uuid), "it is removed"
            raise Damaged("build on", Damage(self._folder.uuid, parent.uuid, name, cause, is_missing=True))
        return replace(self._draft, depth=parent.depth + 1)

    def _look_for_chunks(self, now: datetime) -> None:
        """Note the chunks that may be relied on: there, and young or named by a manifest."""
        there = {}
        for entry in self._folder.chunks():
            self._retries.check()
            is_young = (now - entry.modified_at).total_seconds() < GRACE_S / 2
            there[_digest(entry.name)] = is_young
        self._known = {digest for digest, is_young in there.items() if is_young}
        if len(self._known) < len(there):
            self._known.update(digest for digest in self._named() if digest in there)

    def _named(self) -> Iterator[bytes]:
        newest = sorted(self._folder.backups(), key=lambda entry: entry.modified_at, reverse=True)
        for entry in newest[:SHARED_FROM]:
            try:
                found = self._folder.get_manifest(entry.name)
                yield from (_digest(name) for name, _ in found.sent.lists)
                for chunk in Reading(self._folder, self._transfer, found).chunks():
                    yield _digest(chunk.name)
            except Damaged:  # whoever reads that backup is told; there is nothing in it to share
                continue

    def _send(self, progress: Callable[[int], None]) -> Body:
        """Send the stream and its lists."""
        cut = cutting.Cut(self._stream)
        named: list[tuple[str, int]] = []
        content_bytes = 0
        writer = lists.Writer(lambda piece: named.append(self._send_piece(piece)))
        sent = self._transfer.in_order(cut.chunks(), self._send_chunk)
        with closing(sent):
            for chunk in sent:
                self._keep_mark()
                writer.add(ListKind.CHUNKS, chunk.name, chunk.length)
                content_bytes += chunk.length
                self._stored_bytes += chunk.added_bytes
                progress(chunk.length)
        for kind, rows in ((ListKind.RANGES, cut.ranges), (ListKind.HOLES, cut.holes), (ListKind.INDEX, cut.index)):
            for row in rows:
                writer.add(kind, *row)
        writer.close()
        return Body(
            format=self._stream.format,
            version=self._stream.version,
            image_bytes=self._stream.image_bytes,
            content_bytes=content_bytes,
            stored_bytes=self._stored_bytes,
            notes=_fitting(self._stream.notes),
            lists=tuple(named),
        )

    def _send_chunk(self, content: bytes) -> _Sent:
        name = self._folder.sealer.name(content)
        digest = _digest(name)
        with self._lock:
            is_known = digest in self._known
            self._known.add(digest)
        added_bytes = 0 if is_known else self._folder.put_chunk(name, content)
        return _Sent(name, len(content), added_bytes)

    def _send_piece(self, piece: bytes) -> tuple[str, int]:
        """Send a piece of the lists."""
        self._retries.check()
        self._keep_mark()
        sent = self._send_chunk(piece)
        self._stored_bytes += sent.added_bytes
        return sent.name, sent.length

    def _keep_mark(self) -> None:
        """Make the mark anew when it is due. Raises Fault if it is so old that others may have taken it for dead."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)  # it counts while the host sleeps
        if now - self._marked_at > GRACE_S / 2:
            raise self._slept()
        if now - self._marked_at > REFRESH_S:
            self._folder.store.put(self._mark, b"")
            self._marked_at = now
            self._note_mark()

    def _ensure_marked(self, done: Manifest) -> None:
        """Take the manifest back if our mark went before it was there: who prunes did not know of it (see `pruning`).

        Raises Fault.
        """
        if all(entry.name != self._draft.uuid for entry in self._folder.marks()):
            self._folder.store.delete([self._folder.manifest_path(done.uuid)])
            self._folder.store.settle()
            raise self._slept()

    def _slept(self) -> Fault:
        cause = "nothing could be written for half a day, and what was sent may be gone"
        return Fault(f"cannot write backup {self._draft.uuid}: {cause}", kind=Kind.FAILING)


def _ensure_readable(done: Manifest) -> None:
    """Raise Fault if a manifest is one that nobody would read: of endless labels, or of too many lists."""
    content = manifest.to_json(done)
    cause = f"it has {len(content)} bytes" if len(content) > MANIFEST_MAX else None
    try:
        manifest.from_json(content)
    except manifest.Malformed as err:
        cause = str(err)
    if cause is not None:
        message = f"cannot write backup {done.uuid}: its manifest could not be read again: {cause}"
        raise Fault(message, kind=Kind.FORMAT)


def _digest(name: str) -> bytes:
    return bytes.fromhex(name[: 2 * _DIGEST_BYTES])


def _fitting(notes: tuple[str, ...]) -> tuple[str, ...]:
    """Return as many notes as a manifest may have."""
    more = len(notes) - manifest.NOTES_MAX
    return notes if more <= 0 else (*notes[: manifest.NOTES_MAX - 1], f"and {more + 1} more")
