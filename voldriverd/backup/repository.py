"""Backups in a place: made, read, verified, removed. `voldriverd.backup` specifies what lies there."""

import functools
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Final, Self

from voldriverd import errors
from voldriverd.backup import objects, sealing, volumes, writing
from voldriverd.backup.bucket import BucketStore
from voldriverd.backup.directory import DirectoryStore
from voldriverd.backup.faults import Damage, Damaged, Fault, Kind
from voldriverd.backup.keys import Keys
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Limits, Missing, Place, Store
from voldriverd.backup.pruning import Pruned, Pruning
from voldriverd.backup.reading import Reading
from voldriverd.backup.retries import Retries
from voldriverd.backup.transfer import Transfer
from voldriverd.driver import Stream, StreamFormat
from voldriverd.model import Secret

GRACE_S: Final = writing.GRACE_S
"""The shortest grace period that `prune` takes."""
HEADER: Final = "voldriver.json"
_HEADER_MAX: Final = 64 << 10

Progress = Callable[[int], None]
"""Gets the bytes of content that were done since the call before, in the thread that called the verb."""


class Repository:
    """One repository, open. Its verbs block, and one thread at a time calls them.

    All raise Fault (an Unusable with a `kind`) when the target does not do what it should, and Cancelled when the
    event of `open` is set, at the next chunk or while they wait to try again.
    """

    def __init__(self, store: Store, retries: Retries, header: sealing.Header, master: bytes | None) -> None:
        """For `open`."""
        self.uuid = header.uuid
        self.is_encrypted = master is not None
        self._store = store
        self._retries = retries
        self._transfer = Transfer(retries)
        self._master = master
        self._folders: dict[str, volumes.Folder] = {}

    @classmethod
    def open(
        cls,
        place: Place,
        passphrase: Secret | None,
        *,
        keys: Keys | None = None,
        cancelled: threading.Event | None = None,
    ) -> "Repository":
        """Open what lies at a place, and make a repository there if nothing does; `keys` make it quick the next time.

        Takes seconds at most, also where nobody answers. Raises Fault: also for a passphrase that is wrong, missing
        or one too many (PASSPHRASE), for what a newer version wrote (FORMAT), and for a place where something else
        lies (OCCUPIED). Raises Invalid (the URL).
        """
        event = threading.Event() if cancelled is None else cancelled
        with closing(connect(place, objects.OPENING, event)) as store:
            header = _header(store, place, passphrase)
            master = _master(header, place, passphrase, keys or Keys())
            retries = Retries(objects.WORKING.give_up_s, event)
            return cls(store.again(objects.WORKING, retries), retries, header, master)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the threads and connections; what a request takes is waited for."""
        self._transfer.close()
        self._store.close()

    def manifests(self, volume_uuid: str | None = None) -> Iterator[Manifest | Damaged]:
        """Yield the backups of one volume or of all, those that are removed left out; an unreadable one as Damaged."""
        found = self._all_manifests(volume_uuid)
        return (each for each in found if isinstance(each, Damaged) or not each.is_removed)

    def manifest(self, volume_uuid: str, backup_uuid: str) -> Manifest:
        """Return one backup that is not removed. Raises NotFound, Damaged."""
        gone = errors.NotFound(f"cannot find backup {backup_uuid} of volume {volume_uuid} in the target")
        try:
            found = self._folder(volume_uuid).get_manifest(backup_uuid)
        except Damaged as err:
            raise (gone if err.damage.is_missing else err) from err
        if found.is_removed:
            raise gone
        return found

    def chain(self, manifest: Manifest) -> list[Manifest]:
        """Return what it takes to restore a backup, the whole one first. Raises Damaged (a link is missing)."""
        folder = self._folder(manifest.volume.uuid)
        links = [manifest]
        while (parent_uuid := links[-1].parent) is not None:
            parent = folder.get_manifest(parent_uuid)
            if parent.depth != links[-1].depth - 1:  # and so it ends
                cause = f"it has depth {parent.depth} and backup {links[-1].uuid} builds on it"
                name = folder.manifest_path(parent_uuid)
                raise Damaged("read", Damage(folder.uuid, parent_uuid, name, cause))
            links.append(parent)
        return links[::-1]

    def write(self, draft: Manifest, stream: Stream, *, progress: Progress, is_afresh: bool = False) -> Manifest:
        """Send a stream and return the manifest with its body, which is in the target then, for good.

        A stream that is no increment makes a whole backup, whatever parent the draft has; depth is filled in. What a
        call for the same draft that broke off has sent is not sent again, and if it was that call's answer that was
        lost, the manifest is returned at once. `is_afresh`: every chunk is sent, and takes the place of the one that is
        there, which may be damaged. Raises Damaged (the parent is gone), and what the stream raises.
        """
        folder = self._folder(draft.volume.uuid)
        return writing.Writing(folder, self._transfer, self._retries, draft, stream).run(progress, is_afresh=is_afresh)

    def made(self, volume_uuid: str, backup_uuid: str) -> Manifest | None:
        """Return a backup that a call of `write` has made before a crash, and which is in the target for good now.

        None: there is none, or it is removed. Raises Damaged.
        """
        folder = self._folder(volume_uuid)
        if all(entry.name != backup_uuid for entry in folder.backups()):
            return None
        found = folder.get_manifest(backup_uuid)
        if found.is_removed:
            return None
        self._store.settle()
        self._store.delete([folder.mark_path(backup_uuid)])
        return found

    def abandon(self, draft: Manifest) -> None:
        """Let `prune` have what broken off calls of `write` sent for a draft; repeatable."""
        folder = self._folder(draft.volume.uuid)
        self._store.delete([folder.mark_path(draft.uuid)])

    @contextmanager
    def read(
        self, manifest: Manifest, *, progress: Progress, on_damage: Callable[[Damage], None] | None = None
    ) -> Generator[Stream, None, None]:
        """Give the stream of one link of a chain, its bytes verified, for the block.

        Damage raises Damaged. With `on_damage` it is reported there, and its bytes come as zeros (TAR) or as a hole
        (BLOCKS); BTRFS streams have no use for that, and damage to a list or manifest raises all the same.
        """
        parts = self._reading(manifest).parts(progress, on_damage)
        body = manifest.sent
        with closing(parts):
            yield Stream(
                format=body.format,
                version=body.version,
                is_incremental=manifest.parent is not None,
                image_bytes=body.image_bytes,
                expected_bytes=body.content_bytes,
                parts=parts,
                notes=body.notes,
            )

    def verify(self, manifest: Manifest, *, sample: float, progress: Progress, seed: int = 0) -> list[Damage]:
        """Read a backup (one link of a chain) and return what is wrong with it; `sample` is the share to read.

        Which chunks those are depends on `seed`; that all are there, and the lists, is looked at always. Damage does
        not end it, a Fault does.
        """
        assert 0 < sample <= 1, sample
        return self._reading(manifest).verify(progress, sample=sample, seed=seed)

    def remove(self, manifest: Manifest) -> None:
        """Remove a backup; repeatable. Others that build on it stay whole, and it is hidden until they are gone."""
        self._pruning(manifest.volume.uuid, GRACE_S).remove(manifest)

    def prune(self, *, progress: Progress, grace_s: float = GRACE_S) -> Pruned:
        """Delete the chunks that no backup names and that are older than the grace period. Raises Invalid (too short).

        All by the clock of the target. A volume that somebody writes to is left for the next time. `progress` gets the
        bytes deleted.
        """
        if grace_s < GRACE_S:
            message = f"cannot prune: a grace period of {grace_s:g} s is shorter than {GRACE_S:g} s"
            raise errors.Invalid(message, field="grace")
        done = Pruned()
        for volume_uuid in list(volumes.folders(self._store)):
            more = self._pruning(volume_uuid, grace_s).prune(progress)
            done = Pruned(done.chunks + more.chunks, done.stored_bytes + more.stored_bytes, done.skipped + more.skipped)
        return done

    def fetch(self, manifest: Manifest, path: str) -> Iterator[bytes]:
        """Yield a tar archive of one file or folder of a TAR. Raises NotFound, Unsupported (another format)."""
        if manifest.format is not StreamFormat.TAR:
            cause = f"it is a {manifest.format} stream, which must be restored as a whole"
            raise errors.Unsupported(f"cannot read {path!r} of backup {manifest.uuid}: {cause}")
        return self._reading(manifest).fetch(path)

    def _all_manifests(self, volume_uuid: str | None) -> Iterator[Manifest | Damaged]:
        for each in [volume_uuid] if volume_uuid else list(volumes.folders(self._store)):
            folder = self._folder(each)
            found = self._transfer.in_order(
                [entry.name for entry in folder.backups()], functools.partial(_manifest_or_damaged, folder)
            )
            with closing(found):
                yield from (manifest for manifest in found if manifest is not None)

    def _folder(self, volume_uuid: str) -> volumes.Folder:
        if volume_uuid not in self._folders:
            self._folders[volume_uuid] = volumes.Folder(self._store, self._master, volume_uuid)
        return self._folders[volume_uuid]

    def _reading(self, manifest: Manifest) -> Reading:
        return Reading(self._folder(manifest.volume.uuid), self._transfer, manifest)

    def _pruning(self, volume_uuid: str, grace_s: float) -> Pruning:
        return Pruning(self._folder(volume_uuid), self._transfer, grace_s=grace_s)


def connect(place: Place, limits: Limits, cancelled: threading.Event) -> Store:
    """Return the store of a place. Raises Invalid, Fault."""
    retries = Retries(limits.give_up_s, cancelled)
    where = objects.parse(place)
    if isinstance(where, objects.Directory):
        return DirectoryStore(place, where, retries)
    return BucketStore(place, where, limits, retries)


def _manifest_or_damaged(folder: volumes.Folder, backup_uuid: str) -> Manifest | Damaged | None:
    """Return a manifest, what is wrong with it, or None if it went while the list was read."""
    try:
        return folder.get_manifest(backup_uuid)
    except Damaged as err:
        return None if err.damage.is_missing else err


def _header(store: Store, place: Place, passphrase: Secret | None) -> sealing.Header:
    """Return what the place says it is; if it is empty, make it a repository first."""
    content = _read_header(store)
    if content is None:
        others = (entry.name for entry in store.list("") if not _is_part_of_header(entry.name))
        other = next(others, None)
        if other is None:
            store.create(HEADER, sealing.new(str(uuid.uuid4()), passphrase))
            store.settle()
        elif other != HEADER and _read_header(store) is None:
            cause = f"it is no repository, and has something else in it ({other[:80]})"
            raise objects.fault("use", "", place, cause, Kind.OCCUPIED)
        content = _read_header(store)
    if content is None:
        raise objects.fault("use", "", place, f"{HEADER} cannot be read after it was written", Kind.FAILING)
    try:
        return sealing.parse(content)
    except sealing.Broken as err:
        raise objects.fault("use", HEADER, place, str(err), Kind.FORMAT) from err


def _read_header(store: Store) -> bytes | None:
    try:
        return store.get(HEADER, most=_HEADER_MAX)
    except Missing:
        return None


def _is_part_of_header(name: str) -> bool:
    return name.startswith(f".{HEADER}.")


def _master(header: sealing.Header, place: Place, passphrase: Secret | None, keys: Keys) -> bytes | None:
    if header.encryption is None and passphrase is None:
        return None
    cause = "the passphrase is wrong"
    if header.encryption is None:
        cause = "it is not encrypted, and a passphrase is given"
    elif passphrase is None:
        cause = "it is encrypted, and no passphrase is given"
    else:
        try:
            return keys.unwrap(header, passphrase)
        except sealing.WrongPassphrase:
            pass
    raise Fault(f"cannot use {place.url}: {cause}", kind=Kind.PASSPHRASE)
