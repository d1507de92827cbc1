"""An engine on the in-memory driver, in temporary directories, with the power switch in all its parts."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from tests.memory import Memory, PowerCut, Switch, lose_power
from tests.scratch import unmount_under
from voldriverd import model, names, store
from voldriverd.driver import Key, TreeOptions
from voldriverd.engine import catalogue, creation, mounts, pools, recovery, trees, upkeep, volumes
from voldriverd.engine.context import Engine, Limits, utc_now
from voldriverd.kernel import tree
from voldriverd.store.write import Write

_T = TypeVar("_T")

LOSSES: Final = ("nothing", "of the pool", "of the database", "all")
"""What a loss of power may take of what was not waited for: a pool and the database lie on different disks."""

_JOURNAL_HEAD_BYTES: Final = 32
_FRAME_BYTES: Final = 24 + 4_096
"""With a page, of the journal (sqlite.org/fileformat2.html, 4)."""


class CutStore(store.Store):
    """A store whose power can go just before and just after every commit, and with it what was not waited for."""

    def __init__(self, root: Path, switch: Switch) -> None:
        self._switch = switch
        self._files = (root / store.FILE_NAME, root / f"{store.FILE_NAME}-wal")
        super().__init__(root)
        self._shorten_journal()
        self._synced_bytes = self._files[1].stat().st_size

    def commit(self, change: Callable[[Write], _T], *, is_vital: bool = False, is_implied: bool = False) -> _T:
        self._switch.step("before commit")
        result = super().commit(change, is_vital=is_vital, is_implied=is_implied)
        if not is_implied:
            self._synced_bytes = self._files[1].stat().st_size
        self._switch.step("after commit")
        return result

    def _shorten_journal(self) -> None:
        """Take away what was written out beforehand: the length of the journal tells then what a commit has added."""
        used_bytes = len(self._files[1].read_bytes().rstrip(b"\0"))
        frames = -(-max(0, used_bytes - _JOURNAL_HEAD_BYTES) // _FRAME_BYTES)
        os.truncate(self._files[1], _JOURNAL_HEAD_BYTES + frames * _FRAME_BYTES if used_bytes else 0)

    def lose_power(self) -> None:
        """End, and leave of the journal only what a commit has waited for."""
        content, journal = (file.read_bytes() for file in self._files)
        self.close()
        for file, data in zip(self._files, (content, journal[: self._synced_bytes]), strict=True):
            file.write_bytes(data)


class Bench:
    """One engine at a time; `restart` makes the next one from what is on disk, `renew` begins from nothing."""

    plain = TreeOptions()

    def __init__(self, base: Path) -> None:
        self._base = base / uuid.uuid4().hex
        self.limits = Limits(reserve=0.0)
        self.now: Callable[[], datetime] = utc_now
        self.boot_id = "boot-1"
        self.switch = Switch()
        self._count = 0
        self.renew()

    @property
    def pool_root(self) -> Path:
        return self.root / "pool"

    @property
    def driver(self) -> Memory:
        driver = next(iter(self.engine.pools)).driver
        assert isinstance(driver, Memory)
        return driver

    def renew(self) -> None:
        self.close()
        if self._base.exists():
            self.unmount_all()
            tree.vanish(self._base)
        self._count += 1
        self.root = self._base / str(self._count)
        for name in ("mounts", "by-name", "pool"):
            (self.root / name).mkdir(parents=True, mode=0o700)
        self.switch = Switch()
        self.restart()

    def restart(self) -> None:
        """Let the process end as after a kill (nothing is said to the old parts) and start a new one."""
        self.close()
        self.store = CutStore(self.root, self.switch)
        specs = [pools.Spec("memory", "memory", self.pool_root, self._make)]
        opened = pools.Pools(self.store, specs, default_driver="memory")
        self.engine = Engine(self.root, self.store, opened, self.boot_id, self.limits, self.now, uptime=self._uptime)
        recovery.recover(self.engine)
        self.catalogue = catalogue.Catalogue(self.engine)

    def _uptime(self) -> float:
        return self.now().timestamp()

    def close(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def is_cut(self, step: int, work: Callable[[], object]) -> bool:
        """Do something with the power cut before a step, if it has so many; tell whether it was cut."""
        self.switch.steps.clear()
        self.switch.cut_at = step
        try:
            work()
        except PowerCut:
            return True
        finally:
            self.switch.cut_at = None
        return False

    def lose_power(self, loss: str) -> None:
        """Leave on the disks what one of LOSSES may leave."""
        lose_power(self.pool_root, keeps_cache=loss in {"nothing", "of the database"})
        if loss in {"of the database", "all"}:
            self.store.lose_power()

    def unmount_all(self) -> None:
        unmount_under(self.root / "mounts")

    def upkeep(self) -> None:
        upkeep.tidy(self.engine)

    def create(self, name: str, **options: str) -> model.Volume:
        request = creation.Request(name, names.parse_options(options), options)
        volume_id = model.VolumeId(self.store.reserve_id("volumes"))
        return volumes.create(self.engine, request, volume_id)

    def volume(self, name: str) -> model.Volume:
        volume = self.store.volume_named(name)
        assert volume is not None, f"no volume {name}"
        return volume

    def trashed(self, name: str) -> model.Volume:
        return next(each for each in self.store.volumes() if each.name == name and not each.is_live)

    def snapshot(self, volume: str, name: str) -> model.Snapshot:
        snapshot = self.store.snapshot_named(self.volume(volume).id, name)
        assert snapshot is not None, f"no snapshot {volume}@{name}"
        return snapshot

    def mount(self, name: str, holder: str = "holder") -> Path:
        return mounts.mount(self.engine, self.volume(name), holder)

    def unmount(self, name: str, holder: str = "holder") -> None:
        mounts.unmount(self.engine, self.volume(name), holder)

    def write(self, name: str, content: str) -> None:
        path = self.mount(name, "writer") / "content"
        path.write_text(content)
        self.unmount(name, "writer")

    def read(self, name: str) -> str:
        return self.read_key(self.volume(name).tree)

    def read_snapshot(self, volume: str, name: str) -> str | None:
        row = self.store.volume_named(volume) or self.trashed(volume)
        snapshot = self.store.snapshot_named(row.id, name)
        return None if snapshot is None else self.read_key(snapshot.tree)

    def read_key(self, key: Key) -> str:
        path = self.driver.attach(key, read_only=True) / "content"
        try:
            return path.read_text()
        except FileNotFoundError:
            return ""
        finally:
            self.driver.detach(key)

    def size(self, name: str) -> tuple[int | None, int | None]:
        volume = self.volume(name)
        return volume.size_bytes, self.driver.usage(volume.tree).limit_bytes

    def tree_rows(self) -> set[Key]:
        return {key for pool in self.engine.pools for key in self.store.tree_keys(pool.row.id)}

    def waiting(self) -> set[Key]:
        garbage: trees.Garbage = self.engine.garbage
        return {key for pool in self.engine.pools for key in garbage.waiting(pool.row.id)}

    def _make(self, root: Path) -> Memory:
        return Memory(root, self.root / "mounts", self.switch)


@contextmanager
def bench_on(base: Path) -> Iterator[Bench]:
    """Give a bench under a directory on tmpfs, and leave nothing mounted."""
    bench = Bench(base)
    try:
        yield bench
    finally:
        bench.close()
        bench.unmount_all()
        tree.vanish(bench.root.parent)
