"""What is removed from a repository: backups, and the chunks that no backup names any more.

A writer makes a mark, then looks whether somebody prunes, and waits. Who prunes makes a mark, then looks whether
somebody writes, and leaves off. One of both sees the other, whatever the clocks of their hosts say: the age of all
that lies there is counted by the clock of the target, as the own mark tells it. A mark of a writer that is older than
the grace period, and one of somebody who prunes that is older than `writing.PRUNING_S`, are of the dead.

Should a writer be at work whose mark is that old all the same (its host stood still for a day, the clock of the target
was set), then its mark is deleted first and the backups are looked through once more after that, while it writes its
manifest first and looks for its mark after that: one of both sees the other here too.

Removing a backup works the same way by its flag: a writer that builds on it looks at that after making its mark.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from voldriverd.backup.faults import Damaged, Fault, Kind
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Entry
from voldriverd.backup.reading import Reading
from voldriverd.backup.transfer import Transfer
from voldriverd.backup.volumes import Folder

ROUND_S: Final = 60.0
"""How long chunks are deleted under one mark; with what the last request may take it stays below PRUNING_S."""
_DIGEST_BYTES: Final = 8
"""Of a chunk's name; one that looks like a named one by chance is kept."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, and what could not be looked at."""

    chunks: int = 0
    stored_bytes: int = 0
    skipped: tuple[str, ...] = ()
    """For people: the volumes that were left as they are, each with the reason."""


class Pruning:
    """One volume's folder being cleaned up."""

    def __init__(self, folder: Folder, transfer: Transfer, *, grace_s: float) -> None:
        """Delete nothing yet."""
        self._folder = folder
        self._transfer = transfer
        self._grace_s = grace_s

    def remove(self, manifest: Manifest) -> None:
        """Hide a backup, and delete it and those that were kept for it alone."""
        if any(entry.name == manifest.uuid for entry in self._folder.backups()):
            self._folder.put_manifest(replace(manifest, is_removed=True))
            self._folder.store.settle()
        self._delete_hidden()

    def prune(self, progress: Callable[[int], None]) -> Pruned:
        """Delete what nothing names and is old enough."""
        self._delete_hidden()
        seen: set[str] = set()
        named: set[bytes] = set()
        try:
            for entry in self._folder.backups():
                found = self._named_by(entry.name)
                if found is not None:
                    seen.add(entry.name)
                    named |= found
        except Damaged as err:  # what it names is not known, so nothing may go
            return Pruned(skipped=(f"volume {self._folder.uuid}: {err}",))
        unnamed = [
            replace(entry, name=self._folder.chunk_path(entry.name))
            for entry in self._folder.chunks()
            if _digest(entry.name) not in named
        ]
        unnamed += self._folder.leftovers()
        done = Pruned()
        is_marked = bool(self._folder.marks() or self._folder.marks(is_pruning=True))
        while unnamed or is_marked:
            is_marked = False
            batch = self._delete_round(unnamed, seen, progress)
            if batch is None:
                return replace(
                    done, skipped=(f"volume {self._folder.uuid}: somebody writes to it, or it answers too slowly",)
                )
            done = Pruned(done.chunks + batch.chunks, done.stored_bytes + batch.stored_bytes)
        return done

    def _delete_round(self, unnamed: list[Entry], seen: set[str], progress: Callable[[int], None]) -> Pruned | None:
        """Delete some of the entries that are old and drop them and the young ones from the list; None: all stays."""
        store = self._folder.store
        began = _now_s()
        chunks = stored_bytes = 0
        with self._alone(seen) as now:
            if now is None:
                return None
            unnamed[:] = [entry for entry in unnamed if _age_s(entry, now) > self._grace_s]
            while unnamed and _now_s() - began < ROUND_S:
                batch = unnamed[: store.deletes_at_once]
                store.delete([entry.name for entry in batch])
                del unnamed[: store.deletes_at_once]
                size_bytes = sum(entry.size_bytes for entry in batch)
                progress(size_bytes)
                chunks, stored_bytes = chunks + len(batch), stored_bytes + size_bytes
        return Pruned(chunks, stored_bytes)

    @contextmanager
    def _alone(self, seen: set[str]) -> Iterator[datetime | None]:
        """Give the time by the clock of the target for a block in which no writer begins.

        None: somebody writes, or has written another backup than those that were seen, or to look took so long that
        the mark is used up. When the block fails the mark stays: what was asked for may still be done.
        """
        store = self._folder.store
        began = _now_s()
        name = str(uuid.uuid4())
        path = self._folder.mark_path(name, is_pruning=True)
        store.put(path, b"")
        pruning = self._folder.marks(is_pruning=True)
        now = _time_of(pruning, name)
        if now is None:
            raise Fault(
                f"cannot delete anything of volume {self._folder.uuid}: a mark is gone at once", kind=Kind.FAILING
            )
        writing = self._folder.marks()
        store.delete(
            [
                self._folder.mark_path(mark.name, is_pruning=is_pruning)
                for is_pruning, marks in ((False, writing), (True, pruning))
                for mark in marks
                if _age_s(mark, now) > self._grace_s and mark.name != name
            ]
        )
        is_written = any(_age_s(mark, now) <= self._grace_s for mark in writing)
        is_alone = not is_written and self._has_only(seen)
        yield now if is_alone and _now_s() - began < ROUND_S else None
        store.delete([path])

    def _has_only(self, seen: set[str]) -> bool:
        """Tell whether all backups that are there have been looked at."""
        return {entry.name for entry in self._folder.backups()} <= seen

    def _named_by(self, backup_uuid: str) -> set[bytes] | None:
        """Return what a backup names; None: it is gone meanwhile. Raises Damaged."""
        try:
            manifest = self._folder.get_manifest(backup_uuid)
        except Damaged as err:
            if err.damage.is_missing:
                return None
            raise
        named = {_digest(name) for name, _ in manifest.sent.lists}
        named.update(_digest(chunk.name) for chunk in Reading(self._folder, self._transfer, manifest).chunks())
        return named

    def _delete_hidden(self) -> None:
        """Delete the removed backups that no other needs, unless somebody writes, who may build on one."""
        found = {}
        for entry in self._folder.backups():
            try:
                found[entry.name] = self._folder.get_manifest(entry.name)
            except Damaged as err:
                if not err.damage.is_missing:
                    return  # it may build on any
        free = _not_needed(found)
        if not free:
            return
        with self._alone(set(found)) as now:
            if now is not None:
                self._folder.store.delete([self._folder.manifest_path(backup_uuid) for backup_uuid in free])


def _not_needed(found: dict[str, Manifest]) -> list[str]:
    """Return the removed ones that no other builds on, but for those that go too."""
    left = dict(found)
    gone: list[str] = []
    while True:
        needed = {manifest.parent for manifest in left.values()}
        free = [name for name, manifest in left.items() if manifest.is_removed and name not in needed]
        if not free:
            return gone
        gone += free
        for name in free:
            del left[name]


def _time_of(marks: Iterable[Entry], name: str) -> datetime | None:
    """Return when a mark was made, by the clock of the target; None if it is not there."""
    return next((mark.modified_at for mark in marks if mark.name == name), None)


def _age_s(entry: Entry, now: datetime) -> float:
    return (now - entry.modified_at).total_seconds()


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # it counts while the host sleeps


def _digest(name: str) -> bytes:
    return bytes.fromhex(name[: 2 * _DIGEST_BYTES])
