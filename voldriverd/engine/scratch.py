"""Room for a tree that is wanted for a moment only: what another driver's stream is unpacked in.

In a pool of this host whose driver takes the format, if one has room: a tree that a row knows and nothing points to,
which recovery removes. Else under the root, in what the maker of the configuration makes there:

    <root>/scratch/<uuid>/       one for each use; swept at start
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voldriverd import model, names
from voldriverd.driver import Driver, Key, StreamFormat, TreeOptions
from voldriverd.engine import failures, pools, trees
from voldriverd.engine.context import Engine
from voldriverd.errors import Unsupported, Unusable
from voldriverd.kernel import fs, mount, tree

_log = logging.getLogger(__name__)

SLACK: Final = 1.1
"""How much more room than data is asked for: metadata, and what a file system keeps for itself."""
SLACK_BYTES: Final = 64 << 20
"""And that much in any case; a new btrfs takes 30 MiB before anything is in it."""
KEY: Final = Key("s1")
"""Of the one tree under the root."""


@contextmanager
def room(engine: Engine, wanted: StreamFormat, needed_bytes: int, what: str) -> Iterator[tuple[Driver, Key]]:
    """Give a driver that takes a format and a free key in it; what is made under the key goes after the block.

    `what` is "cannot VERB THING NAME". Raises Unusable (nowhere is so much free, with the figures) and Unsupported
    (this host lacks what it takes).
    """
    asked_bytes = int(needed_bytes * SLACK) + SLACK_BYTES
    pool = _roomiest(engine, wanted, asked_bytes)
    if pool is None:
        with _under_root(engine, wanted, asked_bytes, what) as driver:
            yield driver, KEY
        return
    driver = engine.pools.driver(pool.row.id)
    key = model.snapshot_key(model.SnapshotId(engine.store.reserve_id("snapshots")))
    row = model.Tree(key, pool.row.id, TreeOptions(), None, is_settled=True)
    engine.store.commit(lambda write: write.add_tree(row))
    try:
        yield driver, key
    finally:
        trees.discard(engine, pool.row.id, key)


def sweep(engine: Engine) -> None:
    """Remove what a crash left under the root; for the start, when nobody uses it yet."""
    base = _base(engine)
    if not base.exists():
        return
    inside = [Path(entry.mount_point) for entry in mount.table() if Path(entry.mount_point).is_relative_to(base)]
    try:
        for place in reversed(inside):  # the newest first: they stand in one another
            mount.unmount(place)
        for left in base.iterdir():
            tree.vanish(left)
    except OSError as err:  # somebody stands in it: the next start tries again, and nothing else needs the place
        _log.warning("verb=recover directory=%s result=%s", base, err)


@contextmanager
def _under_root(engine: Engine, wanted: StreamFormat, asked_bytes: int, what: str) -> Iterator[Driver]:
    if engine.make_scratch is None:
        raise Unsupported(f"{what}: no pool of this host has room for a stream of format {wanted}")
    with failures.told_as(what):
        _, free_bytes = fs.capacity(engine.root)
        if free_bytes < asked_bytes:
            free, asked = names.format_size(free_bytes), names.format_size(asked_bytes)
            raise Unusable(
                f"{what}: a stream of format {wanted} is unpacked aside first, which needs {asked}, and neither a pool "
                f"that takes it has so much free nor {engine.root}, which has {free}"
            )
        base = _base(engine)
        fs.make_directory(base, mode=0o700)
        directory = base / str(uuid.uuid4())
        directory.mkdir(0o700)
    try:
        with engine.make_scratch(wanted, directory, what) as driver:
            yield driver
            driver.remove(KEY)
    finally:
        _vanish(directory)


def _vanish(directory: Path) -> None:
    try:
        tree.vanish(directory)
    except OSError as err:  # the next start sweeps it
        _log.warning("verb=scratch directory=%s result=%s", directory, err)


def _roomiest(engine: Engine, wanted: StreamFormat, asked_bytes: int) -> pools.Pool | None:
    """Return the pool with the most room of those that take a format and keep their reserve with so much in them."""
    found = None
    most_bytes = 0
    for pool in engine.pools:
        if pool.driver is None or wanted not in pool.driver.formats:
            continue
        try:
            total_bytes, free_bytes = fs.capacity(Path(pool.row.path))
        except OSError:  # it has just gone
            continue
        left_bytes = free_bytes - asked_bytes - int(total_bytes * engine.limits.reserve)
        if left_bytes >= 0 and free_bytes > most_bytes:
            found, most_bytes = pool, free_bytes
    return found


def _base(engine: Engine) -> Path:
    return engine.root / "scratch"
