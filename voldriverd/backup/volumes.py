"""The folder of one volume in a repository: names, manifests and chunks, one at a time."""

from collections.abc import Iterator
from typing import Final

from voldriverd.backup import manifest as manifests
from voldriverd.backup import sealing
from voldriverd.backup.faults import Damage, Damaged
from voldriverd.backup.manifest import Malformed, Manifest
from voldriverd.backup.objects import Entry, Missing, Store, Unreadable

MANIFEST_MAX: Final = 4 << 20
"""Of its JSON: LISTS_MAX rows take 0.7 MiB."""
VOLUMES: Final = "volumes/"
_BACKUPS: Final = "backups/"
_WRITING: Final = "writing/"
_PRUNING: Final = "pruning/"
_CHUNKS: Final = "chunks/"


class Lost(Exception):
    """An object that is missing or not what was written."""

    def __init__(self, cause: str, *, is_missing: bool = False) -> None:
        """Keep the cause."""
        super().__init__(cause)
        self.is_missing = is_missing


class Folder:
    """One volume's objects in a store; safe to use from any thread."""

    def __init__(self, store: Store, master: bytes | None, volume_uuid: str) -> None:
        """Touch nothing yet."""
        assert manifests.is_uuid(volume_uuid), volume_uuid
        self.store = store
        self.uuid = volume_uuid
        self.sealer = sealing.Volume(master, volume_uuid)
        self._root = f"{VOLUMES}{volume_uuid}/"

    def chunk_path(self, name: str) -> str:
        """Return the object of a chunk."""
        return f"{self._root}{_CHUNKS}{name[:2]}/{name}"

    def manifest_path(self, backup_uuid: str) -> str:
        """Return the object of a manifest."""
        assert manifests.is_uuid(backup_uuid), backup_uuid
        return f"{self._root}{_BACKUPS}{backup_uuid}"

    def mark_path(self, uuid: str, *, is_pruning: bool = False) -> str:
        """Return the object of a mark."""
        assert manifests.is_uuid(uuid), uuid
        return f"{self._root}{_PRUNING if is_pruning else _WRITING}{uuid}"

    def put_chunk(self, name: str, content: bytes) -> int:
        """Write a chunk and return how many bytes its object has."""
        packed = self.sealer.pack_chunk(name, content)
        self.store.put(self.chunk_path(name), packed)
        return len(packed)

    def get_chunk(self, name: str, length: int) -> bytes:
        """Return the content of a chunk, verified. Raises Lost."""
        try:
            packed = self.store.get(self.chunk_path(name), most=sealing.OBJECT_MAX)
            return self.sealer.open_chunk(name, length, packed)
        except Missing as err:
            raise Lost("it is missing", is_missing=True) from err
        except Unreadable as err:
            raise Lost(err.cause) from err
        except sealing.Broken as err:
            raise Lost(str(err)) from err

    def put_manifest(self, manifest: Manifest) -> None:
        """Write a manifest."""
        content = manifests.to_json(manifest)
        self.store.put(self.manifest_path(manifest.uuid), self.sealer.pack_manifest(manifest.uuid, content))

    def get_manifest(self, backup_uuid: str) -> Manifest:
        """Return a manifest. Raises Damaged, also if there is none."""
        try:
            packed = self.store.get(self.manifest_path(backup_uuid), most=MANIFEST_MAX)
            content = self.sealer.open_manifest(backup_uuid, packed, MANIFEST_MAX)
            found = manifests.from_json(content)
        except Missing as err:
            raise self._damaged(backup_uuid, "it is missing", is_missing=True) from err
        except Unreadable as err:
            raise self._damaged(backup_uuid, err.cause) from err
        except (sealing.Broken, Malformed) as err:
            raise self._damaged(backup_uuid, str(err)) from err
        if (found.uuid, found.volume.uuid) != (backup_uuid, self.uuid):
            raise self._damaged(backup_uuid, f"it is the one of backup {found.uuid} of volume {found.volume.uuid}")
        return found

    def backups(self) -> list[Entry]:
        """Return the entries of all manifests, removed ones too; `name` is the backup's UUID."""
        return list(self._uuids(_BACKUPS))

    def marks(self, *, is_pruning: bool = False) -> list[Entry]:
        """Return the entries of the marks, `name` is the UUID of each."""
        return list(self._uuids(_PRUNING if is_pruning else _WRITING))

    def chunks(self) -> Iterator[Entry]:
        """Yield the entries of all chunks; `name` is the chunk's."""
        for entry in self.store.list(f"{self._root}{_CHUNKS}"):
            name = entry.name.rpartition("/")[2]
            if manifests.is_chunk_name(name) and entry.name == self.chunk_path(name):
                yield Entry(name, entry.size_bytes, entry.modified_at)

    def leftovers(self) -> Iterator[Entry]:
        """Yield the entries, under their whole names, of what a directory has of writes that broke off."""
        for entry in self.store.list(self._root):
            last = entry.name.rpartition("/")[2]
            if last.startswith(".") and last.endswith(".part"):
                yield entry

    def _uuids(self, kind: str) -> Iterator[Entry]:
        for entry in self.store.list(f"{self._root}{kind}"):
            name = entry.name.removeprefix(f"{self._root}{kind}")
            if manifests.is_uuid(name):
                yield Entry(name, entry.size_bytes, entry.modified_at)

    def _damaged(self, backup_uuid: str, cause: str, *, is_missing: bool = False) -> Damaged:
        name = self.manifest_path(backup_uuid)
        return Damaged("read", Damage(self.uuid, backup_uuid, name, cause, is_missing=is_missing))


def folders(store: Store) -> Iterator[str]:
    """Yield the UUIDs of all volumes in a store."""
    return (name for name in store.folders(VOLUMES) if manifests.is_uuid(name))
