"""An engine on a real driver, without the service: the verbs as calls, restarts, and what is on the disk."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from drivers.btrfs import Btrfs
from drivers.directory import Directory
from drivers.loop import Loop
from tests.engines import CutStore
from tests.memory import Switch
from tests.scratch import Scratch, unmount_under
from voldriverd import model, names
from voldriverd.driver import Driver, Key
from voldriverd.engine import catalogue, creation, mounts, pools, recovery, upkeep, volumes
from voldriverd.engine.context import Engine, Limits, utc_now
from voldriverd.kernel import fs, mount, tree

MIB: Final = 1 << 20
DEFAULT_MIB: Final = 32
"""The size of a loop volume that asks for none."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver as it is configured, on a scratch btrfs that is shared under `scratch`."""

    name: str
    driver: str
    make: Callable[..., Driver]
    scratch: str = "torture"
    quota: str = "off"


@dataclass(frozen=True, slots=True)
class Places:
    """Where roots go, and by the name of its kind where pools go."""

    base: Path
    pools: Mapping[str, Path]


KINDS: Final = (
    Kind("btrfs", "btrfs", Btrfs),
    Kind("btrfs-quota", "btrfs", partial(Btrfs, quota="simple"), "torture-quota", "simple"),
    Kind("loop", "loop", partial(Loop, default_size_bytes=DEFAULT_MIB * MIB)),
    Kind("directory", "directory", Directory),
)


@contextmanager
def places_in_memory(base: Path) -> Iterator[Places]:
    """Give a directory on tmpfs, and on it a scratch btrfs for each kind; a commit takes 1 ms there, on a disk 10."""
    memory = base / "memory"
    memory.mkdir()
    mount.mount("tmpfs", memory, fs_type="tmpfs", data="size=4g")
    scratch = Scratch(memory / "scratch")
    try:
        pools = {name: scratch.make("btrfs") for name in {kind.scratch for kind in KINDS}}
        yield Places(memory, {kind.name: pools[kind.scratch] for kind in KINDS})
    finally:
        scratch.close()
        mount.unmount(memory)
        memory.rmdir()


def daemon_config(places: Places, name: str = "daemon") -> str:
    """Return the configuration of a daemon of that name with a pool of each driver, and small sparse images."""
    configured = {kind.driver: places.pools[kind.name] for kind in KINDS if kind.name != "btrfs"}
    extra = {"btrfs": 'quota = "simple"', "loop": f'default_size = "{DEFAULT_MIB}M"', "directory": ""}
    sections = [
        f'[pools.{driver}]\ndriver = "{driver}"\npath = "{place / name / driver}"\n{extra[driver]}\n'
        for driver, place in configured.items()
    ]
    return 'reserve = "0%"\n' + "".join(sections)


class Bench:
    """One engine at a time on one pool; `restart` makes the next one from what is on disk."""

    def __init__(self, kind: Kind, base: Path, pool_root: Path) -> None:
        self.kind = kind
        self.base = base
        self.root = base / "root"
        self.pool_root = pool_root
        self.limits = Limits(reserve=0.0)
        self.now: Callable[[], datetime] = utc_now
        self.boot_id = "boot-1"
        self.switch = Switch()
        self._store: CutStore | None = None
        for name in ("mounts", "by-name"):
            (self.root / name).mkdir(parents=True, mode=0o700)
        pool_root.mkdir(mode=0o700)
        self.restart()

    def restart(self) -> None:
        """End the old engine as a kill does, nothing is said to its parts, and start a new one."""
        self.close()
        self.store = self._store = CutStore(self.root, self.switch)
        make = partial(self.kind.make, mounts=self.root / "mounts")
        spec = pools.Spec("pool", self.kind.driver, self.pool_root, make)
        opened = pools.Pools(self.store, [spec], default_driver=self.kind.driver)
        self.engine = Engine(self.root, self.store, opened, self.boot_id, self.limits, self._time)
        recovery.recover(self.engine)
        self.catalogue = catalogue.Catalogue(self.engine)

    def _time(self) -> datetime:
        return self.now()

    def reboot(self) -> None:
        """Restart as after a reboot of the host: another boot id, and nothing is mounted any more."""
        unmount_under(self.root)
        self.boot_id = f"boot-{int(self.boot_id.removeprefix('boot-')) + 1}"
        self.restart()

    def close(self) -> None:
        """End the engine; what is mounted stays."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def vanish(self) -> None:
        """Leave nothing."""
        self.close()
        unmount_under(self.root)
        self.driver.open()
        for key in self.driver.trees():
            self.driver.remove(key)
        tree.vanish(self.pool_root)
        tree.vanish(self.base)

    @property
    def driver(self) -> Driver:
        """The driver of the pool."""
        driver = next(iter(self.engine.pools)).driver
        assert driver is not None, "the pool is not available"
        return driver

    @property
    def has_sizes(self) -> bool:
        """Whether the driver keeps sizes."""
        return "size" in self.driver.options

    def create(self, name: str, **options: str) -> model.Volume:
        """Make a new volume from options as a user types them."""
        request = creation.Request(name, names.parse_options(options), options, must_be_new=True)
        return volumes.create(self.engine, request, model.VolumeId(self.store.reserve_id("volumes")))

    def volume(self, name: str) -> model.Volume:
        """Return the live volume of a name."""
        volume = self.store.volume_named(name)
        assert volume is not None, f"no volume is named {name}"
        return volume

    def snapshot(self, volume: str, name: str) -> model.Snapshot:
        """Return the snapshot of a live volume."""
        snapshot = self.store.snapshot_named(self.volume(volume).id, name)
        assert snapshot is not None, f"volume {volume} has no snapshot named {name}"
        return snapshot

    def mount(self, name: str, holder: str = "holder") -> Path:
        """Mount a volume for a holder."""
        return mounts.mount(self.engine, self.volume(name), holder)

    def unmount(self, name: str, holder: str = "holder") -> None:
        """Let a holder go."""
        mounts.unmount(self.engine, self.volume(name), holder)

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Mount a volume for the block."""
        place = self.mount(name, "writer")
        try:
            yield place
        finally:
            self.unmount(name, "writer")

    @contextmanager
    def shown(self, key: Key) -> Iterator[Path]:
        """Show a tree for reading, where it is attached or for the block."""
        if key in mounts.attached_keys(self.engine):
            yield self.root / "mounts" / key
            return
        try:
            yield self.driver.attach(key, read_only=True)
        finally:
            self.driver.detach(key)

    def upkeep(self) -> None:
        """Do what the worker does every few seconds, but for expiry."""
        upkeep.tidy(self.engine)
        self.catalogue.save()

    def pointed(self) -> set[Key]:
        """Return the trees that a volume or snapshot points to."""
        return {key for pool in self.engine.pools for key in self.store.pointed_keys(pool.row.id)}

    def rows(self) -> set[Key]:
        """Return the trees that the database knows."""
        return {key for pool in self.engine.pools for key in self.store.tree_keys(pool.row.id)}

    def check_trees(self) -> None:
        """Check, after upkeep, that the trees on disk are those that the database points to, and no part is left."""
        pointed = self.pointed()
        assert self.driver.trees() == pointed
        assert self.rows() == pointed
        assert not any(pool.orphans for pool in self.engine.pools)
        assert {name for name in os.listdir(self.pool_root / "trees") if name.startswith(".")} == set()
        assert {name for name in os.listdir(self.root / "mounts") if name.startswith(".")} == set()

    def attached(self) -> set[Key]:
        """Return the trees that are mounted at our mount points."""
        return mounts.attached_keys(self.engine)


def content_of(place: Path) -> dict[str, bytes]:
    """Return every file below a directory by its path."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def sync(place: Path) -> None:
    """Make all that was written so far durable."""
    fs.sync_file_system(place)
