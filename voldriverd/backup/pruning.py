"""What is removed from a repository: backups, and the chunks that no backup names any more.

A writer makes a mark, then looks whether somebody prunes, and waits. Who prunes makes a mark, then looks whether
somebody writes, and leaves off. One of both sees the other, whatever their clocks say; a mark of a writer that is
older than the grace period, and one of somebody who prunes that is older than `writing.PRUNING_S`, are of the dead.
Removing a backup works the same way by its flag: a writer that builds on it looks at that after making its mark.
"""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from voldriverd.backup.faults import Damaged
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Entry
from voldriverd.backup.reading import Reading
from voldriverd.backup.transfer import Transfer
from voldriverd.backup.volumes import Folder

ROUND_S: Final = 60.0
"""How long chunks are deleted under one mark; with what the last request may take it stays below PRUNING_S."""
_BATCH: Final = 500
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

    def __init__(self, folder: Folder, transfer: Transfer, *, grace_s: float, now: datetime) -> None:
        """Delete nothing yet. `now` is by this host's clock."""
        self._folder = folder
        self._transfer = transfer
        self._grace_s = grace_s
        self._now = now

    def remove(self, manifest: Manifest) -> None:
        """Hide a backup, and delete it and those that were kept for it alone."""
        if any(entry.name == manifest.uuid for entry in self._folder.backups()):
            self._folder.put_manifest(replace(manifest, is_removed=True))
            self._folder.store.settle()
        self._delete_hidden()

    def prune(self, progress: Callable[[int], None]) -> Pruned:
        """Delete what nothing names and is old enough."""
        self._delete_hidden()
        try:
            seen = {entry.name for entry in self._folder.backups()}
            named: set[bytes] = set()
            for backup_uuid in seen:
                named |= self._named_by(backup_uuid)
        except Damaged as err:  # what it names is not known, so nothing may go
            return Pruned(skipped=(f"volume {self._folder.uuid}: {err}",))
        old = [
            entry
            for entry in self._folder.chunks()
            if self._age_s(entry) > self._grace_s and _digest(entry.name) not in named
        ]
        unnamed = [replace(entry, name=self._folder.chunk_path(entry.name)) for entry in old]
        unnamed += [entry for entry in self._folder.leftovers() if self._age_s(entry) > self._grace_s]
        done = Pruned()
        while unnamed:
            batch = self._delete_round(unnamed, seen, progress)
            if batch is None:
                return replace(done, skipped=(f"volume {self._folder.uuid}: somebody writes to it",))
            done = Pruned(done.chunks + batch.chunks, done.stored_bytes + batch.stored_bytes)
        self._delete_dead_marks()
        return done

    def _delete_round(self, unnamed: list[Entry], seen: set[str], progress: Callable[[int], None]) -> Pruned | None:
        """Delete some of the entries and drop them from the list; None: somebody writes, and all stays."""
        store = self._folder.store
        began = time.monotonic()
        mark = self._folder.mark_path(str(uuid.uuid4()), is_pruning=True)
        store.put(mark, b"")
        if self._is_written() or not self._has_only(seen):
            store.delete([mark])
            return None
        chunks = stored_bytes = 0
        while unnamed and time.monotonic() - began < ROUND_S:
            batch = unnamed[:_BATCH]
            store.delete([entry.name for entry in batch])  # when this fails, the mark stays: it may still be done
            del unnamed[:_BATCH]
            size_bytes = sum(entry.size_bytes for entry in batch)
            progress(size_bytes)
            chunks, stored_bytes = chunks + len(batch), stored_bytes + size_bytes
        store.delete([mark])
        return Pruned(chunks, stored_bytes)

    def _has_only(self, seen: set[str]) -> bool:
        """Tell whether all backups that are there have been looked at."""
        return {entry.name for entry in self._folder.backups()} <= seen

    def _named_by(self, backup_uuid: str) -> set[bytes]:
        """Return what a backup names; one that is gone meanwhile names nothing. Raises Damaged."""
        try:
            manifest = self._folder.get_manifest(backup_uuid)
        except Damaged as err:
            if err.damage.is_missing:
                return set()
            raise
        named = {_digest(name) for name, _ in manifest.sent.lists}
        named.update(_digest(chunk.name) for chunk in Reading(self._folder, self._transfer, manifest).chunks())
        return named

    def _delete_hidden(self) -> None:
        """Delete the removed backups that no other needs, unless somebody writes, who may build on one."""
        if self._is_written():
            return
        found = {}
        for entry in self._folder.backups():
            try:
                found[entry.name] = self._folder.get_manifest(entry.name)
            except Damaged as err:
                if not err.damage.is_missing:
                    return  # it may build on any
        while True:
            needed = {manifest.parent for manifest in found.values()}
            free = [uuid for uuid, manifest in found.items() if manifest.is_removed and uuid not in needed]
            if not free:
                return
            self._folder.store.delete([self._folder.manifest_path(uuid) for uuid in free])
            for backup_uuid in free:
                del found[backup_uuid]

    def _is_written(self) -> bool:
        return any(self._age_s(mark) <= self._grace_s for mark in self._folder.marks())

    def _delete_dead_marks(self) -> None:
        for is_pruning in (False, True):
            marks = self._folder.marks(is_pruning=is_pruning)
            dead = [mark.name for mark in marks if self._age_s(mark) > self._grace_s]
            self._folder.store.delete([self._folder.mark_path(name, is_pruning=is_pruning) for name in dead])

    def _age_s(self, entry: Entry) -> float:
        return (self._now - entry.modified_at).total_seconds()


def _digest(name: str) -> bytes:
    return bytes.fromhex(name[: 2 * _DIGEST_BYTES])
