"""What is looked at, and what was found out before the first check: configuration, daemon, database, places."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from voldriverd import embedded, store
from voldriverd.config import Config, PoolConfig
from voldriverd.doctor import known
from voldriverd.doctor.known import Known
from voldriverd.engine import markers
from voldriverd.errors import Error
from voldriverd.kernel import fs, mount
from voldriverd.store import look

_LOCKS: Final = Path("/proc/locks")


class DatabaseState(StrEnum):
    """What can be said of the database."""

    SERVED = "served"
    """A daemon has it open, and nobody else can."""
    SOUND = "sound"
    ABSENT = "absent"
    DAMAGED = "damaged"
    NEWER = "newer"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Place:
    """A pool, and where it should be."""

    config: PoolConfig
    is_embedded: bool = False
    """It lies in the image that the daemon makes and mounts."""


@dataclass(frozen=True, slots=True)
class Scope:
    """All that a check is given."""

    config: Config
    now: datetime
    is_root: bool = True
    is_remote: bool = False
    """Only the API is there, at another host perhaps."""
    config_fault: str | None = None
    """Why the configuration could not be read; then it is the default one."""
    daemon_pid: int | None = None
    """Who holds the root; None: nobody."""
    api_fault: str | None = None
    """Why the API does not answer; None: it does."""
    database: DatabaseState = DatabaseState.SERVED
    database_fault: str | None = None
    known: Known | None = None
    """What is known of this root; None: neither daemon nor database tell."""
    daemon: Known | None = None
    """What the daemon that answered told, though it may be one of another root."""
    places: tuple[Place, ...] = field(default=())

    @property
    def is_api_only(self) -> bool:
        """Whether pools and files can be neither seen nor entered."""
        return self.is_remote or not self.is_root


def explore(
    config: Config, *, now: datetime, served: Known | None, api_fault: str | None, config_fault: str | None
) -> Scope:
    """Return the scope of this host; `served` is what the API told, of whichever root."""
    is_root = os.geteuid() == 0
    root = config.root.resolve()
    pid = lock_holder(root / "lock")
    where = places(config)
    is_other = served is None or served.root is None or served.root.resolve() != root
    state, fault, found = DatabaseState.SERVED, None, None if is_other else served
    if is_other and pid is None and is_root:
        state, fault, found = _read(root / store.FILE_NAME)
    return Scope(
        config=config,
        now=now,
        is_root=is_root,
        config_fault=config_fault,
        daemon_pid=pid,
        api_fault=api_fault,
        database=state,
        database_fault=fault,
        known=found,
        daemon=served,
        places=tuple(where),
    )


def places(config: Config) -> list[Place]:
    """Return the pools that the daemon would open with a configuration, and where."""
    if config.pools:
        return [Place(pool) for pool in config.pools]
    root, image = config.root.resolve(), embedded.Embedded(config.root)
    if os.access(root, os.X_OK) and not image.exists() and fs.magic(root) == fs.BTRFS_MAGIC:
        return [Place(PoolConfig(name, name, root / "pools" / name)) for name in embedded.POOLS]
    return [
        Place(PoolConfig(name, name, image.mount_point / name, quota="simple"), is_embedded=True)
        for name in embedded.POOLS
    ]


def lock_holder(path: Path) -> int | None:
    """Return the process that has a file locked by flock(2), as /proc/locks says; None if nobody has.

    To try the lock would be to hold it for a moment, and a daemon that starts then would give up.
    """
    try:
        inode, device = path.stat().st_ino, mount.containing(path).device
    except OSError:  # there is no such file, or we may not see it
        return None
    major, _, minor = device.partition(":")
    wanted = f"{int(major):02x}:{int(minor):02x}:{inode}"
    for line in _LOCKS.read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and wanted in words and "->" not in words:
            return int(words[words.index(wanted) - 1])
    return None


def is_there(pool: Path) -> bool:
    """Tell whether a pool's file system is mounted where it should be, by its marker."""
    return (pool / markers.MARKER).exists()


def on_disk(pool: Path) -> set[str] | None:
    """Return the keys of the trees in a pool; None if the pool is not there."""
    trees = pool / "trees"
    if not is_there(pool) or not trees.is_dir():
        return None
    return {name for name in os.listdir(trees) if not name.startswith(".")}


def with_keys(served: Known, where: Iterable[Place]) -> Known:
    """Add the keys that the API does not tell (of volumes that are not mounted), where the disk leaves no doubt."""
    found: dict[tuple[str, str], list[str]] = {}
    for place in where:
        for key in on_disk(place.config.path) or ():
            found.setdefault((place.config.name, key.partition(".")[0]), []).append(key)

    def with_key(volume: known.KnownVolume) -> known.KnownVolume:
        keys = found.get((volume.pool, f"{known.VOLUME_LETTER}{volume.id}"), [])
        return replace(volume, key=keys[0]) if volume.key is None and len(keys) == 1 else volume

    return replace(served, volumes=tuple(map(with_key, served.volumes)))


def _read(path: Path) -> tuple[DatabaseState, str | None, Known | None]:
    if not path.exists():
        return DatabaseState.ABSENT, None, None
    try:
        return DatabaseState.SOUND, None, known.from_contents(look.look(path))
    except look.Damaged as err:
        return DatabaseState.DAMAGED, str(err), None
    except look.Newer as err:
        return DatabaseState.NEWER, str(err), None
    except (Error, OSError) as err:
        return DatabaseState.UNREADABLE, str(err), None
