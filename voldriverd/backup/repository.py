"""Backups in a place: made, read, verified, removed. `voldriverd.backup` specifies what lies there."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from voldriverd.backup.faults import Damage, Damaged
from voldriverd.backup.manifest import Manifest
from voldriverd.backup.objects import Place
from voldriverd.driver import Stream
from voldriverd.model import Secret

Progress = Callable[[int], None]
"""Gets the bytes of content that were done since the call before; called in the thread that called the verb."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` deleted."""

    chunks: int
    stored_bytes: int


class Repository:
    """One repository, open. Its verbs block, and one thread at a time calls them.

    All raise Fault (an Unusable with a `kind`) when the target does not do what it should, and Cancelled when the
    event of `open` is set, at the next chunk or while they wait to try again.
    """

    uuid: str
    is_encrypted: bool

    @classmethod
    def open(cls, place: Place, passphrase: Secret | None, *, cancelled: threading.Event | None = None) -> "Repository":
        """Open what lies at a place, and make a repository there if nothing does.

        Raises Fault: also for a wrong passphrase, for one that is missing or one too many (PASSPHRASE), for what a
        newer version wrote (FORMAT), and for a place where something else lies (OCCUPIED). Raises Invalid (the URL).
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the threads and connections."""
        raise NotImplementedError

    def manifests(self, volume_uuid: str | None = None) -> Iterator[Manifest | Damaged]:
        """Yield the backups of one volume or of all, those that are removed left out; an unreadable one as Damaged."""
        raise NotImplementedError

    def manifest(self, volume_uuid: str, backup_uuid: str) -> Manifest:
        """Return one backup that is not removed. Raises NotFound, Damaged."""
        raise NotImplementedError

    def chain(self, manifest: Manifest) -> list[Manifest]:
        """Return what it takes to restore a backup, the whole one first. Raises Damaged (a link is missing)."""
        raise NotImplementedError

    def write(self, draft: Manifest, stream: Stream, *, progress: Progress) -> Manifest:
        """Send a stream and return the manifest with its body, which is in the target then, for good.

        A stream that is no increment makes a whole backup, whatever parent the draft has. What a broken off call for
        the same draft has sent is not sent again. Raises Damaged (the parent is gone), and what the stream raises.
        """
        raise NotImplementedError

    def read(
        self, manifest: Manifest, *, progress: Progress, on_damage: Callable[[Damage], None] | None = None
    ) -> AbstractContextManager[Stream]:
        """Give the stream of one link of a chain, its bytes verified, for the block.

        Damage raises Damaged. With `on_damage` it is reported there, and its bytes come as zeros (TAR) or as a hole
        (BLOCKS); BTRFS streams have no use for that, and damage to a list or manifest raises all the same.
        """
        raise NotImplementedError

    def verify(self, manifest: Manifest, *, sample: float, progress: Progress, seed: int = 0) -> list[Damage]:
        """Read a backup (one link of a chain) and return what is wrong with it; `sample` is the share to read.

        Which chunks those are depends on `seed`; lists are read always. Damage does not end it, a Fault does.
        """
        raise NotImplementedError

    def remove(self, manifest: Manifest) -> None:
        """Remove a backup; repeatable. Others that build on it stay whole, and it is hidden until they are gone."""
        raise NotImplementedError

    def prune(self, *, grace_s: float, now: datetime, progress: Progress) -> Pruned:
        """Delete the chunks that no backup names and that are older than the grace period. Raises Invalid (too short).

        A volume that somebody writes to is left for the next time. `progress` gets the bytes deleted.
        """
        raise NotImplementedError

    def fetch(self, manifest: Manifest, path: str) -> Iterator[bytes]:
        """Yield a tar archive of one file or folder of a TAR. Raises NotFound, Unsupported (another format)."""
        raise NotImplementedError
