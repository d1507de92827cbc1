"""An engine with a pool of each driver and a target in a directory: backups made, and restored, as calls."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from drivers.btrfs import Btrfs
from drivers.directory import Directory
from drivers.loop import Loop
from tests.scratch import unmount_under
from voldriverd import daemon, model, names, store
from voldriverd.driver import Driver, Key
from voldriverd.engine import (
    backups,
    creation,
    mounts,
    pools,
    recovery,
    restores,
    snapshots,
    supplies,
    targets,
    upkeep,
    volumes,
)
from voldriverd.engine.context import Engine, Limits
from voldriverd.errors import Error
from voldriverd.jobs import Job
from voldriverd.kernel import tree

MIB: Final = 1 << 20
DEFAULT_MIB: Final = 64
"""The size of a loop volume that asks for none."""

MAKERS: Final[Mapping[str, Callable[..., Driver]]] = {
    "btrfs": Btrfs,
    "loop": partial(Loop, default_size_bytes=DEFAULT_MIB * MIB),
    "directory": Directory,
}


class Host:
    """One host: its root on one file system, its pools on others; `restart` makes the next engine from the disk."""

    def __init__(self, base: Path, places: Mapping[str, Path], *, quota: str = "off") -> None:
        """Have a pool of each driver that is named, in a directory of its file system."""
        self.root = base / "root"
        self.target = base / "target"
        self.places = places
        self.limits = Limits(reserve=0.0)
        self._makers: dict[str, Callable[..., Driver]] = {**MAKERS, "btrfs": partial(Btrfs, quota=quota)}
        for directory in (self.root / "mounts", self.root / "by-name", self.target, *places.values()):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.restart()

    def restart(self) -> None:
        """End the old engine as a kill does, nothing is said to its parts, and start a new one."""
        self.close()
        self.store = store.Store(self.root)
        specs = [
            pools.Spec(name, name, place, partial(self._makers[name], mounts=self.root / "mounts"))
            for name, place in self.places.items()
        ]
        opened = pools.Pools(self.store, specs, default_driver=next(iter(self.places)))
        known = targets.Targets([targets.Spec("shelf", f"file://{self.target}")])
        self.engine = Engine(
            self.root, self.store, opened, "boot-1", self.limits, targets=known, make_scratch=daemon.make_scratch
        )
        recovery.recover(self.engine)
        targets.configure(self.engine)

    def close(self) -> None:
        """End the engine; what is mounted stays."""
        if hasattr(self, "store"):
            self.store.close()

    def vanish(self) -> None:
        """Leave nothing."""
        self.close()
        unmount_under(self.root)
        for name, place in self.places.items():
            driver = self._makers[name](place, mounts=self.root / "mounts")
            driver.open()
            for key in driver.trees():
                driver.remove(key)
            tree.vanish(place)
        tree.vanish(self.root)
        tree.vanish(self.target)

    def pool(self, driver: str) -> pools.Pool:
        """Return the pool of a driver."""
        return next(pool for pool in self.engine.pools if pool.row.driver == driver)

    def driver_of(self, volume: model.Volume) -> Driver:
        """Return the driver that keeps a volume."""
        return self.engine.pools.driver(volume.pool_id)

    def create(self, name: str, **options: str) -> model.Volume:
        """Make a new volume, empty or a clone."""
        request = creation.Request(name, names.parse_options(options), options)
        return volumes.create(self.engine, request, model.VolumeId(self.store.reserve_id("volumes")))

    def volume(self, name: str) -> model.Volume:
        """Return the live volume of a name."""
        volume = self.store.volume_named(name)
        assert volume is not None, f"no volume is named {name}"
        return volume

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Mount a volume for the block."""
        place = mounts.mount(self.engine, self.volume(name), "writer")
        try:
            yield place
        finally:
            mounts.unmount(self.engine, self.volume(name), "writer")

    @contextmanager
    def shown(self, volume: model.Volume, key: Key | None = None) -> Iterator[Path]:
        """Show a tree of a volume for reading, None: what it holds now."""
        driver = self.driver_of(volume)
        try:
            yield driver.attach(key or volume.tree, read_only=True)
        finally:
            driver.detach(key or volume.tree)

    def write(self, name: str, content: str) -> None:
        """Make `content` say something in a volume."""
        with self.written(name) as place:
            (place / "content").write_text(content)

    def read(self, name: str, key: Key | None = None) -> str:
        """Return what `content` says."""
        with self.shown(self.volume(name), key) as place:
            path = place / "content"
            return path.read_text() if path.exists() else ""

    def snapshot(self, volume: str, name: str) -> model.Snapshot:
        """Freeze a volume."""
        return snapshots.create(self.engine, self.volume(volume), snapshots.Wish(name))

    def backup(self, volume: str, name: str) -> model.Backup:
        """Freeze a volume and send that to the target."""
        (target,) = self.store.targets()
        begun = backups.begin(self.engine, self.snapshot(volume, name), target, backups.Wish())
        made = backups.finish(self.engine, begun, Job("backup"))
        assert made.state is model.BackupState.CREATED, made.message
        return made

    @contextmanager
    def supplied(self, backup: model.Backup, job: Job, what: str = "cannot restore") -> Iterator[supplies.Supply]:
        """Have a backup open for the block."""
        supply = supplies.look(self.engine, backup, work=job, what=what)
        with closing(supply):
            yield supply

    def restore(
        self, name: str, backup: model.Backup, *, job: Job | None = None, allow_holes: bool = False
    ) -> snapshots.Reverted:
        """Restore into an existing volume."""
        return restore(self.engine, self.volume(name), backup, job or Job("restore"), allow_holes=allow_holes)

    def restore_as(
        self, name: str, backup: model.Backup, options: Mapping[str, str] | None = None, *, job: Job | None = None
    ) -> model.Volume:
        """Restore into a new volume."""
        return restore_as(self.engine, name, backup, options or {}, job or Job("restore"))

    def upkeep(self) -> None:
        """Do what the worker does every few seconds, but for expiry."""
        upkeep.tidy(self.engine)

    def check_trees(self) -> None:
        """See that every tree is pointed to, and has a row, and no other has."""
        self.upkeep()
        for pool in self.engine.pools:
            assert pool.driver is not None, pool.reason
            pointed = self.store.pointed_keys(pool.row.id)
            assert pool.driver.trees() == pointed
            assert self.store.tree_keys(pool.row.id) == pointed
        scratch = self.root / "scratch"
        assert not scratch.exists() or not list(scratch.iterdir())


def restore(
    engine: Engine, volume: model.Volume, backup: model.Backup, job: Job, *, allow_holes: bool = False
) -> snapshots.Reverted:
    """Do what the service does for a restore into an existing volume, step by step."""
    with closing(supplies.look(engine, backup, work=job, what=f"cannot restore volume {volume.name}")) as supply:
        going = restores.begin(engine, volume, supply, allow_holes=allow_holes)
        try:
            arrived = restores.bring(engine, going, supply, job, allow_holes=allow_holes)
            return restores.finish(engine, going, supply, arrived)
        except Error as err:
            restores.give_up(engine, going, str(err))
            raise


def restore_as(engine: Engine, name: str, backup: model.Backup, options: Mapping[str, str], job: Job) -> model.Volume:
    """Do what the service does for a restore into a new volume, step by step."""
    given = {**options, "from": f"backup:{backup.shown_name}"}
    request = creation.Request(name, names.parse_options(given), given)
    volume_id = model.VolumeId(engine.store.reserve_id("volumes"))
    with closing(supplies.look(engine, backup, work=job, what=f"cannot create volume {name}")) as supply:
        plan = restores.begin_create(engine, request, volume_id, supply)
        try:
            arrived = restores.bring_new(engine, plan.volume, supply, job)
            return restores.finish_new(engine, volume_id, supply, arrived)
        except Error:
            restores.give_up_new(engine, volume_id)
            raise
