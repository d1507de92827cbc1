"""Backups made through an engine without the service, on whatever driver it has, and read back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voldriverd import model
from voldriverd.driver import Key, TreeOptions
from voldriverd.engine import backups, snapshots, supplies, targets
from voldriverd.engine.context import Engine
from voldriverd.jobs import Job


class Tripped(Job):
    """A job that is ended, or that something happens to, when so many bytes have gone."""

    def __init__(self, after_bytes: int, act: Callable[["Tripped"], None]) -> None:
        super().__init__("backup")
        self._after_bytes = after_bytes
        self._act = act

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        if done_bytes >= self._after_bytes:
            self._act(self)


def add_target(engine: Engine, place: Path, name: str = "near") -> model.Target:
    """Make a target of a directory, which is made too."""
    place.mkdir(exist_ok=True)
    return targets.create(engine, model.TargetDraft(name, f"file://{place}"))


def freeze(engine: Engine, volume: model.Volume, name: str | None = None) -> model.Snapshot:
    """Make a snapshot."""
    return snapshots.create(engine, volume, snapshots.Wish(name))


def begin(engine: Engine, snapshot: model.Snapshot, target: model.Target, **wish: object) -> model.Backup:
    """Begin a backup."""
    return backups.begin(engine, snapshot, target, backups.Wish(**wish))  # type: ignore[arg-type]


def back_up(engine: Engine, volume: model.Volume, target: model.Target, job: Job | None = None) -> model.Backup:
    """Make a backup of what a volume holds now, from beginning to end."""
    backup = begin(engine, freeze(engine, volume), target)
    return backups.finish(engine, backup, job or Job("backup"))


def present(engine: Engine, backup: model.Backup) -> model.Backup:
    """Return a row as it is now."""
    row = engine.store.backup(backup.id)
    assert row is not None, f"backup {backup.id} has no row"
    return row


@contextmanager
def shown(engine: Engine, backup: model.Backup) -> Iterator[Path]:
    """Restore a backup into a tree of its own and show it for the block."""
    job = Job("restore")
    what = "cannot read it back"
    supply = supplies.look(engine, backup, work=job, what=what)
    key = Key("s999999")
    driver = next(pool.driver for pool in engine.pools if pool.driver is not None)
    try:
        options = driver.complete(TreeOptions(size_bytes=backup.size_bytes if "size" in driver.options else None))
        supplies.unpack(engine, supplies.Order(supply, options, what), driver, key, job)
    finally:
        supply.close()
    try:
        yield driver.attach(key, read_only=True)
    finally:
        driver.detach(key)
        driver.remove(key)


def read(engine: Engine, backup: model.Backup, name: str = "content") -> bytes:
    """Return the content of one file of a backup."""
    with shown(engine, backup) as place:
        return (place / name).read_bytes()


def objects(place: Path, kind: str) -> list[Path]:
    """Return the objects of a kind (`chunks`, `backups`, `writing`) that lie in a directory."""
    return sorted(path for path in place.glob(f"volumes/*/{kind}/**/*") if path.is_file())
