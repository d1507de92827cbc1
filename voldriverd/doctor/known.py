"""What the daemon, or the database of one that is dead, knows: the same words whoever tells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd.model import BackupState
from voldriverd.store import look

VOLUME_LETTER: Final = "v"


@dataclass(frozen=True, slots=True)
class KnownPool:
    """One pool."""

    name: str
    driver: str
    path: Path
    uuid: str | None
    """None: it was never opened."""
    reason: str | None = None
    """Why the daemon does not serve it; None: it does, or there is no daemon to ask."""
    orphans: tuple[str, ...] | None = None
    """The trees on disk that the daemon does not know; None: no daemon was asked."""
    capacity_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """A volume, live or in the trash."""

    id: int
    name: str
    pool: str
    key: str | None
    """Its tree; None: whoever told does not tell that."""
    is_live: bool
    created_at: datetime
    fault: str | None = None
    """Why it needs an operator."""


@dataclass(frozen=True, slots=True)
class KnownBackups:
    """The backups of one volume."""

    newest_at: datetime | None = None
    """Of those that are whole."""
    failure: str | None = None
    """Why the latest one was given up; None: it was not."""


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """Where backups go."""

    name: str
    url: str
    fault: str | None = None
    """Why the daemon could not use it last; None: it could, or was not asked."""


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known."""

    is_served: bool
    """Whether a daemon told, or its database."""
    pools: tuple[KnownPool, ...]
    volumes: tuple[KnownVolume, ...]
    targets: tuple[KnownTarget, ...]
    backups: Mapping[int, KnownBackups] = field(default_factory=dict)
    """By volume."""
    newest_at: datetime | None = None
    """The latest time that is written down anywhere."""
    trees: Mapping[str, str] | None = None
    """Each key with the name of its pool; None: not told."""
    snapshots: Mapping[str, str] = field(default_factory=dict)
    """The trees of snapshots, each with its name as `volume@snapshot`; empty when not told."""
    settled: frozenset[str] = frozenset()
    """The trees that cannot be missing because of a loss of power; none when not told."""
    version: str | None = None
    """Of the daemon."""
    root: Path | None = None
    """Of the daemon."""

    def pool(self, name: str) -> KnownPool | None:
        """Return the pool of a name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def foreign(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that are certainly none of ours.

        A daemon that serves may have made a volume since it told, which then has a higher number than all that it told
        of; and it tells nothing of the trees of snapshots and backups.
        """
        if self.trees is not None:
            return set(keys) - self.trees.keys()
        ids = {volume.id for volume in self.volumes}
        newest = max(ids, default=0)
        numbers = {key: key[1:].partition(".")[0] for key in keys if key.startswith(VOLUME_LETTER)}
        return {
            key for key, text in numbers.items() if text.isdecimal() and int(text) < newest and int(text) not in ids
        }


def backups_of(rows: list[tuple[int, BackupState, datetime, str | None]]) -> dict[int, KnownBackups]:
    """Return the backups of each volume from (volume, state, begun at, message), oldest first."""
    found: dict[int, KnownBackups] = {}
    for volume_id, state, created_at, message in rows:
        before = found.get(volume_id, KnownBackups())
        if state is BackupState.CREATED:
            found[volume_id] = KnownBackups(created_at, None)
        elif state is BackupState.ERROR:
            found[volume_id] = KnownBackups(before.newest_at, message or "it was given up")
    return found


def from_contents(contents: look.Contents) -> Known:
    """Return what a database tells."""
    names = {pool.id: pool.name for pool in contents.pools}
    return Known(
        is_served=False,
        pools=tuple(KnownPool(pool.name, pool.driver, Path(pool.path), pool.uuid) for pool in contents.pools),
        volumes=tuple(
            KnownVolume(each.id, each.name, names[each.pool_id], each.key, each.is_live, each.created_at)
            for each in contents.volumes
        ),
        targets=tuple(KnownTarget(name, url) for name, url in contents.targets),
        backups=backups_of([(each.volume_id, each.state, each.created_at, each.message) for each in contents.backups]),
        newest_at=contents.newest_at,
        trees={key: names[pool_id] for key, pool_id in contents.trees.items()},
        snapshots={str(key): name for key, name in contents.snapshots.items()},
        settled=contents.settled,
    )
