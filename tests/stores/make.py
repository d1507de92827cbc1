"""Writes down, as SQL, a store with one of everything in it, made by the code beside it: `v<version>.sql`.

    mkdir /tmp/old && git archive COMMIT | tar -x -C /tmp/old
    mkdir /tmp/m && mount -t tmpfs none /tmp/m
    PYTHONPATH=/tmp/old python tests/stores/make.py /tmp/m > tests/stores/vN.sql

`v1.sql` was made by the last commit before version 2 (65b618c), `v2.sql` when that version was released. It is run once
for each version, and its output is never changed: tests/test_upgrade.py opens them all.
"""

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.engines import Bench, bench_on
from voldriverd import model, store
from voldriverd.engine import apikeys, snapshots, trash, volumes
from voldriverd.store import schema

BEGIN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class Clock:
    """A minute later each time."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


def fill(bench: Bench) -> None:
    """Do one of everything."""
    engine = bench.engine
    bench.create("db", size="64M", **{"label.team": "red"})
    bench.write("db", "first")
    snapshots.create(engine, bench.volume("db"), snapshots.Wish("one", "before the change"))
    snapshots.create(engine, bench.volume("db"), snapshots.Wish(expires_at=BEGIN + timedelta(days=300)))
    gone = snapshots.create(engine, bench.volume("db"), snapshots.Wish("gone"))
    snapshots.remove(engine, bench.volume("db"), gone)
    bench.write("db", "second")
    snapshots.revert(engine, bench.volume("db"), bench.snapshot("db", "one"))
    bench.create("copy", **{"from": "db@one"})
    bench.create("kept")
    volumes.set_properties(engine, bench.volume("kept"), is_protected=True, description="the ledger")
    bench.create("trashed", mode="0750")
    snapshots.create(engine, bench.volume("trashed"), snapshots.Wish("last"))
    trash.remove(engine, bench.volume("trashed"))
    bench.create("purged")
    trash.purge(engine, trash.remove(engine, bench.volume("purged")))
    for holder in ("container-1", "container-1", "container-2"):
        bench.mount("db", holder)
    bench.mount("copy", model.HOST_HOLDER)
    apikeys.create(engine, name="robot", description="of the build", role=model.Role.FULL)
    apikeys.create(engine, name=None, description=None, role=model.Role.READ_ONLY)
    revoked, _ = apikeys.create(engine, name="lost", description=None, role=model.Role.FULL)
    apikeys.revoke(engine, revoked.id)


def fill_backups(bench: Bench) -> None:
    """Do one of everything that came with version 2."""
    from tests import backing  # noqa: PLC0415 - version 1 has none of them
    from voldriverd.engine import backups, targets  # noqa: PLC0415

    engine = bench.engine
    near = backing.add_target(engine, bench.root / "target")
    first = backing.back_up(engine, bench.volume("kept"), near)
    bench.write("kept", "more")
    backing.back_up(engine, bench.volume("kept"), near)
    failed = backing.begin(engine, backing.freeze(engine, bench.volume("kept"), "late"), near, name="nightly")
    backups.fail(engine, failed, "the target is full")
    backing.begin(engine, bench.snapshot("kept", "late"), near, description="cut off")
    verified = replace(backing.present(engine, first), verified_at=engine.now(), message="all well")
    engine.store.commit(lambda write: write.put_backup(verified))
    draft = model.TargetDraft("old", f"file://{bench.root / 'old'}", passphrase=model.Secret("open sesame"))
    (bench.root / "old").mkdir()
    targets.remove(engine, targets.create(engine, draft).id)


def main() -> None:
    """Fill a store below a directory on tmpfs, and print it."""
    with bench_on(Path(sys.argv[1])) as bench:
        bench.now = Clock()
        bench.renew()
        fill(bench)
        if schema.VERSION >= 2:
            fill_backups(bench)
        root = bench.root
        bench.store.close()
        with closing(sqlite3.connect(root / store.FILE_NAME)) as connection:
            text = "\n".join(connection.iterdump()).replace(str(root), "/srv")
        sys.stdout.write(f"{text}\nPRAGMA user_version = {schema.VERSION};\n")


if __name__ == "__main__":
    main()
