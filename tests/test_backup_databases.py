"""Databases that are written to all the time, backed up ten times: each backup restored, and checked by the database.

What a database acknowledged before a backup began is in it. SQLite checks itself with `PRAGMA integrity_check`,
PostgreSQL with `pg_amcheck` (all tables and indexes, the keys of each index found in its table).
"""

import os
import pwd
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.running import Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

BACKUPS: Final = 10
DRIVERS: Final = ("btrfs", "loop")
_WAIT_S: Final = 60.0

_SQLITE: Final = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE IF NOT EXISTS lines (number INTEGER PRIMARY KEY, text TEXT, twin TEXT)")
database.execute("CREATE INDEX IF NOT EXISTS twins ON lines (twin)")
number = 0
while os.getppid() == int(sys.argv[2]):
    number += 1
    text = os.urandom(400).hex()
    database.execute("INSERT INTO lines VALUES (?, ?, ?)", (number, text, text[::-1]))
    os.write(1, b"%d\\n" % number)
"""
_POSTGRES: Final = """
import os, subprocess, sys
psql = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
number = 0
while os.getppid() == int(sys.argv[1]):
    number += 1
    sql = "INSERT INTO lines SELECT %d, repeat(md5(random()::text), 12) RETURNING number;" % number
    psql.stdin.write(sql + chr(10))
    psql.stdin.flush()
    os.write(1, psql.stdout.readline().encode())
psql.kill()
"""


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("d")
    (base / "target").mkdir()
    target = f'[targets.disk]\nurl = "file://{base}/target"\n'
    with Running(base, config=scratch_config(session_scratch) + target) as running:
        yield running


def settled(daemon: Running, resource: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + _WAIT_S
    path = f"/v1/{resource['type']}s/{resource['id']}"
    while resource["transitioning"] == "yes":
        assert time.monotonic() < deadline, resource
        time.sleep(0.05)
        resource = daemon.api("GET", path).body
    assert resource["transitioning"] == "no", resource["transitioningMessage"]
    return resource


def created(daemon: Running, name: str, **fields: object) -> dict[str, Any]:
    answer = daemon.api("POST", "/v1/volumes", {"name": name, **fields})
    assert answer.status == 201, answer.body
    return settled(daemon, answer.body)


def backed_up(daemon: Running, volume: dict[str, Any]) -> dict[str, Any]:
    return settled(daemon, daemon.api("POST", f"/v1/volumes/{volume['id']}?action=backup").body)


@contextmanager
def mounted(daemon: Running, volume: dict[str, Any]) -> Iterator[Path]:
    path = f"/v1/volumes/{volume['id']}?action="
    place = Path(daemon.api("POST", f"{path}activate").body["mountpoint"])
    try:
        yield place
    finally:
        daemon.api("POST", f"{path}deactivate")


def removed(daemon: Running, volume: dict[str, Any]) -> None:
    daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
    daemon.api("POST", f"/v1/volumes/{volume['id']}?action=purge")


class Writer:
    """A process that writes numbered lines and says each number when the database has acknowledged it."""

    def __init__(self, argv: list[str], said: Path) -> None:
        self._said = said
        with said.open("wb") as file:
            self._process = subprocess.Popen([sys.executable, "-c", *argv], stdout=file)
        while not self.acknowledged:
            assert self._process.poll() is None
            time.sleep(0.02)

    @property
    def acknowledged(self) -> int:
        """The last number that was said whole."""
        whole = self._said.read_text().rpartition("\n")[0]
        return int(whole.rpartition("\n")[2] or 0)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def ten_backups(daemon: Running, volume: dict[str, Any], writer: Writer) -> list[tuple[dict[str, Any], int]]:
    """Return ten backups, each with the number that was acknowledged before it was begun."""
    made = []
    for _ in range(BACKUPS):
        least = writer.acknowledged
        made.append((backed_up(daemon, volume), least))
        while writer.acknowledged < least + 5:
            time.sleep(0.02)
    return made


def check_each(daemon: Running, made: list[tuple[dict[str, Any], int]], counted: Callable[[Path], int]) -> None:
    for backup, least in made:
        copy = created(daemon, "copy", driverOpts={"from": f"backup:{backup['id']}"})
        with mounted(daemon, copy) as place:
            assert counted(place) >= least
        removed(daemon, copy)
    assert [backup["parentId"] is None for backup, _ in made] == [True] + [False] * (BACKUPS - 1)


@pytest.mark.parametrize("driver", DRIVERS)
def test_sqlite_is_whole_in_every_backup(daemon: Running, tmp_path: Path, driver: str) -> None:
    volume = created(daemon, "sqlite", driver=driver)
    with mounted(daemon, volume) as place:
        (place / "more").write_bytes(os.urandom(32 << 20))  # or ten increments are more than the whole
        writer = Writer([_SQLITE, f"{place}/db", str(os.getpid())], tmp_path / "said")
        try:
            made = ten_backups(daemon, volume, writer)
        finally:
            writer.end()
    check_each(daemon, made, sqlite_count)
    removed(daemon, volume)


def sqlite_count(place: Path) -> int:
    with closing(sqlite3.connect(place / "db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count, last), *_ = database.execute("SELECT count(*), max(number) FROM lines")
        assert count == last
        return int(count)


@pytest.mark.parametrize("driver", DRIVERS)
def test_postgresql_is_whole_in_every_backup(daemon: Running, tmp_path: Path, driver: str) -> None:
    volume = created(daemon, "postgres", driver=driver)
    with mounted(daemon, volume) as place:
        data = place / "data"
        postgres("initdb", "-D", str(data), "--no-sync", home=place)
        with serving(data) as sockets:
            psql(sockets, "CREATE TABLE lines (number int PRIMARY KEY, text text); CREATE INDEX texts ON lines (text)")
            writer = Writer([_POSTGRES, str(os.getpid()), *PSQL, "-qAtX", "-h", str(sockets)], tmp_path / "said")
            try:
                made = ten_backups(daemon, volume, writer)
            finally:
                writer.end()
    check_each(daemon, made, postgres_count)
    removed(daemon, volume)


def postgres_count(place: Path) -> int:
    data = place / "data"
    (data / "postmaster.pid").unlink(missing_ok=True)
    with serving(data) as sockets:
        psql(sockets, "CREATE EXTENSION amcheck")
        postgres("pg_amcheck", "-h", str(sockets), "--heapallindexed", "postgres", home=place)
        count, last = psql(sockets, "SELECT count(*), max(number) FROM lines").strip().split("|")
        assert count == last
        return int(count)


BIN: Final = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql/bin"))
SEEING_ALL: Final = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
"""The directories of tests are for root alone."""
AS_POSTGRES: Final = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *SEEING_ALL]
PSQL: Final = [*AS_POSTGRES, str(BIN / "psql"), "-d", "postgres"]


def postgres(tool: str, *arguments: str, home: Path) -> None:
    owner = pwd.getpwnam("postgres")
    home.chmod(0o755)
    if tool == "initdb":
        (home / "data").mkdir(0o700)
        _chown(home / "data", owner)
    subprocess.run([*AS_POSTGRES, str(BIN / tool), *arguments], check=True, capture_output=True)


def _chown(path: Path, owner: pwd.struct_passwd) -> None:
    os.chown(path, owner.pw_uid, owner.pw_gid)


def psql(sockets: Path, sql: str) -> str:
    argv = [*PSQL, "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", str(sockets), "-c", sql]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@contextmanager
def serving(data: Path) -> Iterator[Path]:
    """Run PostgreSQL on a data directory; gives the directory of its socket. It is ended quickly."""
    sockets = data / "sockets"
    if not sockets.exists():
        sockets.mkdir(0o755)
        _chown(sockets, pwd.getpwnam("postgres"))
    argv = [*AS_POSTGRES, str(BIN / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ready = [*AS_POSTGRES, str(BIN / "pg_isready"), "-q", "-h", str(sockets)]
            deadline = time.monotonic() + _WAIT_S
            while subprocess.run(ready, check=False).returncode != 0:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield sockets
        finally:
            process.send_signal(signal.SIGQUIT)
