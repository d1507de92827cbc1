"""Pools: opened, told apart by their marker files, chosen for new volumes.

A pool's root holds a marker file with its uuid. A configured pool whose marker is missing although
the database knows the pool is not mounted, and is never taken for an empty one: it stays
`unavailable`, its volumes are listed and refuse to mount, and the others are served. A pool that is
unmounted while it is served becomes so with the next verb: what is seen at its path then is not what
was opened. It is opened again, with all that recovery does, when it is back.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd import model, store
from voldriverd.driver import Driver, Key
from voldriverd.engine import failures, markers, remembered
from voldriverd.errors import Error, Invalid, Unsupported, Unusable
from voldriverd.kernel import counters, fs

_TABLES: Final = {"v": "volumes", "s": "snapshots", "b": "backups"}
"""Whose ids the letters of keys belong to."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What is configured of a pool."""

    name: str
    driver: str
    path: Path
    make: Callable[[Path], Driver]
    """Makes the driver for the pool's root; touches nothing."""
    allow_live_copy: bool = False
    is_embedded: bool = False
    """It is one of those of a host where none is configured."""
    prepare: Callable[[], None] | None = None
    """Brings the file system there (the embedded image); raises Unusable."""
    grow: Callable[[int], None] | None = None
    """Grows the file system to a number of bytes; None if that is not ours to do."""


@dataclass(slots=True)
class Pool:
    """A pool at run time; `driver` is None as long as it could not be opened, and `reason` says why."""

    row: model.Pool
    spec: Spec | None
    driver: Driver | None = None
    reason: str | None = None
    orphans: frozenset[Key] = frozenset()
    """Trees on disk that no row knows: reported, never deleted."""
    identity: tuple[int, int] | None = None
    """Device and inode of its root directory when it was opened."""
    ailments: tuple[model.Ailment, ...] = ()
    """What the kernel told of its file system and devices when it was asked last (`health`)."""
    counts: tuple[counters.Count, ...] = ()
    """The errors that its file system has counted; pools on one file system have the same."""
    has_served: bool = False
    """Whether this process had it open before: nothing in it is left of an earlier one, and verbs may still run."""

    @property
    def health(self) -> model.Health:
        """Whether it can be used."""
        return model.Health.UNAVAILABLE if self.driver is None else model.health_of(self.ailments)

    @property
    def trouble(self) -> str | None:
        """What is wrong with it; None if nothing is."""
        return self.reason if self.driver is None else model.told(self.ailments)


class Pools:
    """All pools that are configured or that some volume lies in."""

    def __init__(
        self,
        database: store.Store,
        specs: list[Spec],
        *,
        default_driver: str,
        root: Path | None = None,
        is_rebuilding: bool = False,
    ) -> None:
        """Take what is configured and what the database knows; nothing is opened yet.

        `root`: whose pools they are; None: nobody's, and nobody is asked. `is_rebuilding`: pools with volumes that the
        database does not know are what one is here for, and nothing in them is changed.
        """
        self._root = root
        self._is_rebuilding = is_rebuilding
        self._store = database
        self._specs = {spec.name: spec for spec in specs}
        self._default_driver = default_driver
        self._pools: dict[model.PoolId, Pool] = {
            row.id: Pool(row, self._specs.get(row.name), reason=_unopened(row, self._specs.get(row.name)))
            for row in database.pools()
        }
        self._listeners: list[Callable[[Pool], None]] = []

    def __iter__(self) -> Iterator[Pool]:
        return iter(list(self._pools.values()))

    def get(self, pool_id: model.PoolId) -> Pool:
        """Return the pool of a row."""
        return self._pools[pool_id]

    def driver(self, pool_id: model.PoolId) -> Driver:
        """Return the driver of a pool. Raises Unusable with the reason if the pool is unavailable."""
        pool = self._pools[pool_id]
        driver = self._driver_if_there(pool)
        if driver is None:
            raise Unusable(f"pool {pool.row.name} is unavailable: {pool.reason}")
        return driver

    def available(self) -> list[Pool]:
        """Return the pools that are open and still there."""
        return [pool for pool in self if self._driver_if_there(pool) is not None]

    def watch(self, listener: Callable[[Pool], None]) -> None:
        """Have a function called with each pool whose health has changed or whose device was resized.

        Whichever thread finds that calls it; it does not raise.
        """
        self._listeners.append(listener)

    def note(self, pool: Pool, ailments: tuple[model.Ailment, ...], counts: tuple[counters.Count, ...]) -> None:
        """Keep what ails a pool, and tell the listeners where the kinds of trouble are others than before."""
        has_turned = {each.trouble for each in pool.ailments} != {each.trouble for each in ailments}
        pool.ailments, pool.counts = ailments, counts
        if has_turned:
            self.tell(pool)

    def tell(self, pool: Pool) -> None:
        """Call the listeners with a pool."""
        for listener in self._listeners:
            listener(pool)

    def drivers(self) -> set[str]:
        """Return the names of the configured drivers."""
        return {spec.driver for spec in self._specs.values()}

    @property
    def default_driver(self) -> str:
        """The driver of a volume that asks for none."""
        return self._default_driver

    def grow(self, pool_id: model.PoolId, size_bytes: int) -> None:
        """Grow the file system of a pool. Raises Unsupported (it is not ours to grow), Invalid, Unusable."""
        pool = self._pools[pool_id]
        self.driver(pool_id)
        what = f"cannot grow pool {pool.row.name}"
        if pool.spec is None or pool.spec.grow is None:
            raise Unsupported(f"{what}: its file system is not ours; grow what lies under {pool.row.path}")
        with failures.told_as(what):
            pool.spec.grow(size_bytes)

    def honouring(self, option: str) -> list[str]:
        """Return the drivers of available pools that honour an option."""
        able = {pool.row.driver for pool in self if pool.driver is not None and option in pool.driver.options}
        return sorted(able)

    def open_all(self, recover: Callable[[Pool, Driver], None]) -> None:
        """Open every configured pool that is not open, and let `recover` end in it what a crash left.

        Only then can verbs reach it; those that began before it went away may still run. A pool that fails stays
        unavailable with the reason; no Error passes.
        """
        rows = {row.name: row for row in self._store.pools()}  # what opening a pool adds is of its own name
        for spec in self._specs.values():
            known = next((pool for pool in self._pools.values() if pool.row.name == spec.name), None)
            if known is not None and known.driver is not None:
                continue
            try:
                pool, driver = self._open(spec, rows.get(spec.name))
                if known is not None:
                    pool.has_served = known.has_served
                    if known.row.id < 0:
                        del self._pools[known.row.id]
                known = self._pools[pool.row.id] = pool
                recover(pool, driver)
            except Error as err:
                self._note_failure(spec, known, str(err))
            else:
                pool.driver, pool.has_served = driver, True
                self.tell(pool)

    def choose(self, *, driver: str | None, name: str | None) -> tuple[Pool, Driver]:
        """Return the pool for a new volume: the named one, or the driver's one with the most free space.

        One that ails is taken where there is no other. Raises Invalid (no such pool or driver, or the two contradict)
        and Unusable (none is available).
        """
        if name is not None:
            pool = next((pool for pool in self if pool.row.name == name and pool.spec is not None), None)
            if pool is None:
                raise Invalid(f"no pool is named {name!r}; valid: {', '.join(sorted(self._specs))}", field="pool")
            if driver is not None and driver != pool.row.driver:
                raise Invalid(f"pool {name} has driver {pool.row.driver}, not {driver}", field="driver")
            return pool, self.driver(pool.row.id)
        wanted = driver or self._default_driver
        if wanted not in self.drivers():
            valid = ", ".join(sorted(self.drivers()))
            raise Invalid(f"no pool is configured for driver {wanted!r}; valid: {valid}", field="driver")
        there = [(pool, self._driver_if_there(pool)) for pool in self if pool.row.driver == wanted]
        candidates = [(pool, found) for pool, found in there if found is not None]
        if not candidates:
            asked = [pool for pool in self if wanted in {pool.row.driver, pool.spec and pool.spec.driver}]
            reasons = "; ".join(f"{pool.row.name}: {pool.reason}" for pool in asked)
            raise Unusable(f"no pool of driver {wanted} is available: {reasons}")
        if len(candidates) == 1:
            return candidates[0]
        sound = [each for each in candidates if each[0].health is model.Health.AVAILABLE] or candidates
        return max(sound, key=lambda each: fs.capacity(each[0].row.path)[1])

    def _open(self, spec: Spec, row: model.Pool | None) -> tuple[Pool, Driver]:
        with failures.told_as(f"cannot open pool {spec.name}"):
            if spec.prepare is not None:
                spec.prepare()
            row = self._identify(spec, row)
            if self._root is not None and not self._is_rebuilding:
                markers.sign(spec.path, self._root)
            identity = _identity(spec.path)
            driver = spec.make(spec.path)
            driver.open()
            on_disk = driver.trees()
            if _identity(spec.path) != identity or markers.read(spec.path) is None:
                raise Unusable(_why_gone(spec.path))  # what was opened may be the directory beneath, and empty
        for letter, number in map(model.key_number, filter(model.is_key, on_disk)):
            self._store.raise_id(_TABLES[letter], number)
        return Pool(row, spec, reason="it is being recovered", identity=identity), driver

    def _identify(self, spec: Spec, row: model.Pool | None) -> model.Pool:
        found = markers.read(spec.path)
        if found is not None and self._root is not None:
            markers.ensure_left(spec.path, found, self._root)
        if row is None and not (self._is_rebuilding and found is None):
            return self._begin(spec, found)
        if row is None or found is None:
            raise Unusable(f"{spec.path} is not mounted or was emptied: its marker file {markers.MARKER} is missing")
        if found["uuid"] != row.uuid:
            raise Unusable(f"{spec.path} holds another pool: uuid {found['uuid']} instead of {row.uuid}")
        _check_driver(spec, found)
        if row.path != str(spec.path):
            self._store.commit(lambda write: write.put_pool_path(row.id, str(spec.path)), is_vital=True)
        return model.Pool(row.id, row.uuid, row.name, spec.driver, str(spec.path))

    def _begin(self, spec: Spec, found: dict[str, str] | None) -> model.Pool:
        if found is None:
            spec.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            foreign = [entry for entry in spec.path.iterdir() if entry.name != "lost+found"]
            if foreign:
                raise Unusable(f"{spec.path} is neither empty nor a pool: it holds {foreign[0].name}")
            spec.path.chmod(0o700)
            found = {"uuid": str(uuid.uuid4()), "driver": spec.driver, "version": "1"}
            markers.write(spec.path, found)
        other = next((row for row in self._store.pools() if row.uuid == found["uuid"]), None)
        if other is not None:
            raise Unusable(f"{spec.path} is pool {other.name}; its section is [pools.{other.name}]")
        told = remembered.Remembered() if self._is_rebuilding else remembered.read(spec.path)
        if told.volume_count or told.unreadable:
            what = f"tells of volumes ({told.volume_count})" if told.volume_count else "cannot be read"
            raise Unusable(
                f"the database does not know this pool, and its catalogue {what}: was it lost? "
                f"voldriverd rebuild makes it anew; to give these volumes up, remove {spec.path / remembered.FILE_NAME}"
            )
        _check_driver(spec, found)
        row = model.Pool(
            model.PoolId(self._store.reserve_id("pools")), found["uuid"], spec.name, spec.driver, str(spec.path)
        )
        self._store.commit(lambda write: write.add_pool(row))
        return row

    def _driver_if_there(self, pool: Pool) -> Driver | None:
        self._look(pool)
        return pool.driver

    def _look(self, pool: Pool) -> None:
        """Take a pool out of service that is not at its path any more: an empty directory must not be taken for it."""
        if pool.driver is None or _identity(pool.row.path) == pool.identity:
            return
        pool.reason = _why_gone(Path(pool.row.path))
        pool.driver = None
        self.tell(pool)

    def _note_failure(self, spec: Spec, known: Pool | None, reason: str) -> None:
        if known is not None:
            known.reason = reason
            return
        row = model.Pool(model.PoolId(-len(self._pools) - 1), "", spec.name, spec.driver, str(spec.path))
        self._pools[row.id] = Pool(row, spec, reason=reason)


def _check_driver(spec: Spec, found: dict[str, str]) -> None:
    """Refuse a pool that another driver keeps: it would make trees among those that are no trees for it."""
    if found["driver"] != spec.driver:
        raise Unusable(f"{spec.path} is a pool of driver {found['driver']}, not {spec.driver}")


def _unopened(row: model.Pool, spec: Spec | None) -> str:
    return "it is not opened yet" if spec is not None else f"it is not configured any more (it was at {row.path})"


def _identity(path: Path | str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # it went away
        return None
    return status.st_dev, status.st_ino


def _why_gone(path: Path) -> str:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as err:  # a file system that was shut down (xfs), or a server that died
        return f"{path} fails: {err.strerror}"
    return f"{path} was unmounted, or something else was mounted there"
