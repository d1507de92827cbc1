"""A daemon through a whole life, at log level debug: where its secrets are, its modes, and what a read-only key does.

Every door takes a secret that cannot be mistaken; afterwards it is looked for wherever somebody else may look.
"""

import json
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests import s3
from tests.commands import Voldriver
from tests.doors import Key, Tcp, free_port, listening, make_key
from tests.running import Running, UnixConnection, pools_config
from tests.scratch import Scratch
from voldriverd import store
from voldriverd.api.rancher import kinds

pytestmark = pytest.mark.root

DRIVERS: Final = ("btrfs", "loop", "directory")
IN_FILES: Final = ("SECRET-phrase-of-a-file-1", "SECRET-phrase-by-cli-2")
IN_API: Final = ("SECRET-phrase-by-api-3",)
WRONG: Final = (
    *("SECRET-wrong-key-4", "SECRET-wrong-phrase-5", "SECRET-of-a-wrong-type-6", "SECRET-in-a-query-7"),
    *("SECRET-wrong-basic-8", "SECRET-in-the-environment-9", f"SECRET-too-long-10-{'x' * 70_000}"),
)
KEYS: Final = {"accessKey": s3.ACCESS_KEY, "secretKey": s3.SECRET_KEY}
MARKER: Final = "content-of-a-volume"
_WAIT_S: Final = 60.0
_TICK_S: Final = 0.02
_GLANCE_S: Final = 0.001


class Debugging(Running):
    """A daemon that logs all it can, with a secret in its environment as S3's tools have it."""

    def _places(self) -> list[str]:
        return [*super()._places(), "--log-level", "debug"]


@dataclass
class Life:
    """What is left of it to look through."""

    daemon: Running
    base: Path
    pools: Path
    server: s3.Server
    full: Key
    reader: Key
    port: int
    said: list[str] = field(default_factory=list)
    """What the API and the commands said."""
    processes: set[bytes] = field(default_factory=set)
    """Arguments and environments of the daemon's children, as they were seen."""
    places: set[tuple[str, str]] = field(default_factory=set)
    """Names and modes of the directories that things are received in, as they were seen."""

    def secrets(self) -> list[str]:
        return [*IN_FILES, *IN_API, *(each[:40] for each in WRONG), s3.SECRET_KEY, self.full[1], self.reader[1]]


@pytest.fixture(scope="module")
def life(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    base, pools = tmp_path_factory.mktemp("life"), session_scratch.shared("life", "btrfs")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, s3.Server(base / "s3") as server:
        patch.setenv("AWS_SECRET_ACCESS_KEY", WRONG[5])
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        with Debugging(base / "d", config=configured(base, pools, server, port)) as daemon:
            keys = make_key(daemon, name="full"), make_key(daemon, name="reader", role="read-only")
            lived = Life(daemon, base, pools, server, *keys, port)
            is_over = threading.Event()
            watcher = threading.Thread(target=watch, args=(lived, is_over))
            watcher.start()
            try:
                live(lived)
            finally:
                is_over.set()
                watcher.join()
            yield lived


def configured(base: Path, pools: Path, server: s3.Server, port: int) -> str:
    files = {"access": s3.ACCESS_KEY, "secret": s3.SECRET_KEY, "phrase": IN_FILES[0], "by-cli": IN_FILES[1]}
    for name, text in files.items():
        (base / name).write_text(f"{text}\n")
        (base / name).chmod(0o600)
    for name in ("near", "far"):
        (base / name).mkdir()
    return f"""
default_target = "near"
{listening(port)}
[targets.near]
url = "file://{base}/near"
passphrase_file = "{base}/phrase"
[targets.bucket]
url = "{server.url("configured")}"
endpoint = "{server.endpoint}"
region = "us-east-1"
access_key_file = "{base}/access"
secret_key_file = "{base}/secret"
passphrase_file = "{base}/phrase"
{pools_config(**{name: (name, pools / name) for name in DRIVERS})}"""


def watch(life: Life, is_over: threading.Event) -> None:
    """Note what ps shows of the daemon's children, as often as that can be."""
    receiving = [life.pools / driver for driver in DRIVERS] + [life.pools / driver / "trees" for driver in DRIVERS]
    receiving += [life.pools / "btrfs" / "staging", life.daemon.root / "scratch", life.daemon.root / "mounts"]
    while not is_over.wait(_GLANCE_S):
        for path in receiving:
            with suppress(FileNotFoundError):
                life.places.add((path.name, stat.filemode(path.stat().st_mode)))
        try:
            for task in os.listdir(f"/proc/{life.daemon.pid}/task"):
                for pid in Path(f"/proc/{life.daemon.pid}/task/{task}/children").read_text().split():
                    shown = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
                    if not shown[0].startswith(os.fsencode(sys.executable)):  # else it is about to become a tool
                        life.processes.add(b"\0".join(shown))
        except (OSError, AssertionError, UnicodeDecodeError):  # something has ended, or the daemon just starts again
            continue


def live(life: Life) -> None:
    for driver in DRIVERS:
        made = asked(life, "POST", "volumes", {"name": driver, "driver": driver, "driverOpts": OPTIONS.get(driver, {})})
        place = Path(act(life, made, "activate")["mountpoint"])
        (place / "file").write_text(MARKER)
        act(life, made, "deactivate")
        act(life, made, "snapshot", name="monday")
        for target in targets(life)[: 2 if driver == "btrfs" else 1]:
            backup = act(life, made, "backup", backupTargetId=target["id"])
        act(life, backup, "verify")
        restored = asked(life, "POST", "volumes", {"name": f"{driver}-2", "driverOpts": {"from": "backup:1b1"}})
        act(life, restored, "remove")
        act(life, made, "restorefrombackup", backupId=backup["id"])
    targets_by_hand(life)
    fail(life)
    life.daemon.kill()
    life.daemon.start()
    for target in targets(life):
        act(life, target, "scan")


OPTIONS: Final = {"loop": {"size": "64M"}}


def targets_by_hand(life: Life) -> None:
    place = {"url": life.server.url("by-api"), "endpoint": life.server.endpoint, "region": "us-east-1"}
    made = asked(life, "POST", "backuptargets", {"name": "by-api", **place, **KEYS, "passphrase": IN_API[0]})
    volume = asked(life, "GET", "volumes?name=btrfs")["data"][0]
    act(life, volume, "backup", backupTargetId=made["id"])
    for action in ("scan", "prune"):
        act(life, made, action)
    files = ["--access-key-file", f"{life.base}/access", "--secret-key-file", f"{life.base}/secret"]
    where = ["--endpoint", life.server.endpoint, "--region", "us-east-1", "--passphrase-file", f"{life.base}/by-cli"]
    voldriver = Voldriver(life.daemon.api_socket)
    life.said.append(voldriver.out("target", "create", "by-cli", life.server.url("by-cli"), *files, *where))
    life.said.append(voldriver.out("target", "ls"))


def fail(life: Life) -> None:
    """Give wrong secrets at each door."""
    where = {"name": "x", "url": life.server.url("by-api"), "endpoint": life.server.endpoint, "region": "us-east-1"}
    for fields in (
        {"accessKey": s3.ACCESS_KEY, "secretKey": WRONG[0]},
        {**KEYS, "passphrase": WRONG[1]},
        {**KEYS, "passphrase": {"x": WRONG[2]}},
        {**KEYS, "passphrase": [WRONG[2]]},
        {"accessKey": {"x": WRONG[2]}, "secretKey": {"x": WRONG[2]}},
        {"secretKey": WRONG[0]},
        {**KEYS, "passphrase": WRONG[6]},
        {**KEYS, "passphrase": f"{WRONG[1]}\n\0"},
        {},  # the daemon's environment
    ):
        refused(life, "POST", "backuptargets", where | fields)
    refused(life, "PUT", "backuptargets/1bt1", {"secretKey": WRONG[0], "passphrase": WRONG[1]})
    refused(life, "POST", "backuptargets", f'{{"name": "x", "passphrase": "{WRONG[1]}"'.encode())
    near = {"name": "y", "url": f"file://{life.base}/near", "passphrase": WRONG[1]}
    refused(life, "POST", "backuptargets", near)
    refused(life, "POST", "backuptargets", {**near, "passphrase": None})
    with closing(Tcp(life.port, (life.full[0], WRONG[4])).connection) as connection:
        connection.request("GET", f"/v1/volumes?secret={WRONG[3]}", headers={"Authorization": f"Bearer {WRONG[4]}"})
        assert connection.getresponse().status == 401
    with Tcp(life.port, (life.full[0], WRONG[4])) as ask:
        assert ask("GET", "/v1/volumes").status == 401
    (life.base / "phrase").write_text(WRONG[1])
    life.daemon.restart()
    assert {each["name"]: each["health"] for each in targets(life, is_waited_for=True)}["near"] == "unavailable"
    (life.base / "phrase").write_text(IN_FILES[0])


def targets(life: Life, *, is_waited_for: bool = False) -> list[dict[str, Any]]:
    end_s = time.monotonic() + _WAIT_S
    while True:
        rows: list[dict[str, Any]] = asked(life, "GET", "backuptargets")["data"]
        if not is_waited_for or rows[0]["health"] == "unavailable":
            return rows
        assert time.monotonic() < end_s, rows
        time.sleep(_TICK_S)


def asked(life: Life, method: str, path: str, body: object = None) -> dict[str, Any]:
    answer = life.daemon.api(method, f"/v1/{path}", body)
    assert answer.status < 300, (path, answer.body)
    life.said.append(json.dumps(answer.body))
    found: dict[str, Any] = answer.body
    end_s = time.monotonic() + _WAIT_S
    while found.get("transitioning") == "yes":
        assert time.monotonic() < end_s, found
        time.sleep(_TICK_S)
        found = life.daemon.api("GET", f"/v1/{found['type']}s/{found['id']}").body
    assert found.get("transitioning", "no") == "no", found
    return found


def act(life: Life, row: dict[str, Any], action: str, **fields: object) -> dict[str, Any]:
    return asked(life, "POST", f"{row['type']}s/{row['id']}?action={action}", fields)


def refused(life: Life, method: str, path: str, body: object) -> None:
    answer = life.daemon.api(method, f"/v1/{path}", body)
    assert 400 <= answer.status < 500, (body, answer.body)
    assert answer.body["type"] == "error"
    life.said.append(json.dumps(answer.body))


def routes(life: Life) -> list[str]:
    """Return every route, as the types have them, with ids of what there is and of what is removed."""
    found = ["/", "/v1", "/v1/schemas", "/v1/openapi.json", "/v1/apiversions"]
    for kind in kinds.ALL.values():
        collection = f"/v1/{kind.schema.plural.lower()}"
        listed = {
            row["id"]
            for query in ("?limit=2", "?limit=1&removed_notnull=1")
            for row in rows(life, f"{collection}{query}")
        }
        found += [f"/v1/schemas/{kind.schema.id.lower()}", collection]
        for shown_id in sorted(listed) or ["1"]:
            found += [f"{collection}/{shown_id}"]
            found += [f"{collection}/{shown_id}/{name}" for name in (*kind.schema.links, *kind.streams)]
    return found


def rows(life: Life, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = life.daemon.api("GET", path).body["data"]
    return found


def found_in(life: Life, text: str) -> list[str]:
    return [secret for secret in life.secrets() if secret in text]


# Secrets


def test_no_answer_holds_a_secret(life: Life) -> None:
    for path in routes(life):
        for headers in ({}, {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}):
            body = life.daemon.api("GET", path, headers=headers).body
            text = body.decode(errors="replace") if isinstance(body, bytes) else json.dumps(body)
            assert found_in(life, text) == [], path
    connection = UnixConnection(life.daemon.api_socket)
    connection.request("GET", "/v1/events", headers={"Last-Event-ID": "1"})
    events = connection.getresponse()
    asked(life, "POST", "backuptargets", {"name": "event", "url": f"file://{life.base}/far", "passphrase": IN_API[0]})
    assert found_in(life, events.read1(1 << 16).decode()) == []
    events.close()
    connection.close()
    assert found_in(life, "\n".join(life.said)) == []


def test_no_log_holds_a_secret(life: Life) -> None:
    assert "DEBUG" in life.daemon.log
    assert found_in(life, life.daemon.log) == []
    assert "Traceback" not in life.daemon.log, life.daemon.log[life.daemon.log.find("Traceback") - 1_500 :][:4_000]


def test_ps_shows_no_secret(life: Life) -> None:
    tools = {each.partition(b"\0")[0].rpartition(b"/")[2].decode() for each in life.processes}
    assert tools & {"btrfs", "mkfs.ext4", "e2fsck"}, "no child was seen"
    for each in life.processes:
        assert found_in(life, each.decode(errors="replace")) == []
    assert found_in(life, Path(f"/proc/{life.daemon.pid}/cmdline").read_text()) == []


def test_no_file_but_the_database_holds_a_secret(life: Life) -> None:
    places = (
        life.daemon.root,
        life.daemon.run_dir,
        life.pools,
        life.base / "near",
        life.base / "far",
        life.base / "s3",
    )
    for path in (path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()):
        if not path.name.startswith(store.FILE_NAME):
            content = path.read_bytes()
            assert [secret for secret in life.secrets() if secret.encode() in content] == [], path
        elif path.name.endswith(".db"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    database = b"".join(path.read_bytes() for path in life.daemon.root.glob(f"{store.FILE_NAME}*"))
    for secret in (IN_FILES[0], *WRONG, life.full[1], life.reader[1]):
        assert secret.encode()[:40] not in database
    assert IN_API[0].encode() in database  # who made a target through the API has only the daemon to keep it


def test_what_a_target_holds_shows_nothing_of_a_volume(life: Life) -> None:
    content = b"".join(path.read_bytes() for path in (life.base / "near").rglob("*") if path.is_file())
    assert len(content) > 1_000
    assert MARKER.encode() not in content


# Modes

TABLE: Final = {
    ".": "drwx--x--x",
    "ballast": "-rw-------",
    "by-name": "drwx--x--x",
    "by-name/NAME": "lrwxrwxrwx",
    "lock": "-rw-------",
    "mounts": "drwx------",
    "mounts/KEY": "drwx------",
    "voldriver.db": "-rw-------",
    "voldriver.db-shm": "-rw-------",
    "voldriver.db-wal": "-rw-------",
}
RUN_TABLE: Final = {".": "drwxr-xr-x", "api.sock": "srw-rw----", "voldriver.sock": "srw-rw----"}
POOL_TABLE: Final = {
    ".": "drwx------",
    ".voldriver-catalogue": "-rw-------",
    ".voldriver-pool": "-rw-------",
    "trees": "drwx------",
}


def modes(place: Path, *, deepest: int = 2) -> dict[str, str]:
    """Return the mode of everything down to a depth, by its path with keys and names made one."""
    found = {}
    for path in (place, *place.rglob("*")):
        parts = path.relative_to(place).parts
        if len(parts) <= deepest:
            name = re.sub(r"^by-name/.+", "by-name/NAME", re.sub(r"\b[vs]\d+(\.\d+)?$", "KEY", "/".join(parts) or "."))
            status = path.lstat()
            assert status.st_uid == 0, path
            found[name] = stat.filemode(status.st_mode)
    return found


def test_the_modes_of_everything_are_these(life: Life) -> None:
    points = {"mounts/KEY": TABLE["mounts/KEY"]}  # those of trees that are just being removed
    assert points | modes(life.daemon.root) == TABLE
    assert modes(life.daemon.run_dir) == RUN_TABLE
    for driver in DRIVERS:
        staging = {"staging": "drwx------"} if driver == "btrfs" else {}
        assert modes(life.pools / driver, deepest=1) == POOL_TABLE | staging
    images = [path for path in (life.pools / "loop" / "trees").iterdir() if path.is_file()]
    assert {stat.filemode(path.stat().st_mode) for path in images} <= {"-rw-------", "-r--------"}
    assert {stat.filemode(path.stat().st_mode) for path in (life.pools / "directory" / "trees").iterdir()} == {
        "drwx------"
    }


def test_what_is_being_received_is_for_root_alone(life: Life) -> None:
    assert {mode for _, mode in life.places} == {"drwx------"}
    assert {name for name, _ in life.places} >= {"staging", "trees", "mounts", *DRIVERS}


def test_a_target_in_a_directory_is_for_its_owner_alone(life: Life) -> None:
    inside = list((life.base / "near").rglob("*"))
    assert {stat.filemode(path.stat().st_mode) for path in inside} == {"drwx------", "-rw-------"}


# Read-only keys

METHODS: Final = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")


def everything(life: Life) -> set[str]:
    """Return each field of all rows, the trees, and the objects in targets."""
    found = {str(path) for path in (life.base / "near").rglob("*")}
    found |= {path.name for path in life.pools.glob("*/trees/*")}
    for kind in kinds.ALL.values():
        for row in rows(life, f"/v1/{kind.schema.plural.lower()}?limit=1000"):
            found |= {f"{row['id']} {name}: {value}" for name, value in row.items() if name not in _MOVING}
    return found


_CLEAR_S: Final = 30.0
_MOVING: Final = {"usedBytes", "freeBytes", "stallMs", "longestStallMs"}
"""What changes by itself."""


def test_a_read_only_key_changes_nothing_by_any_route_and_method(life: Life) -> None:
    before, tried = everything(life), 0
    body = {"name": "made", "driver": "btrfs", "volumeId": "1v1", "snapshotId": "1s1", "backupId": "1b1", "size": "1G"}
    override = {"X-HTTP-Method-Override": "DELETE", "X-HTTP-Method": "DELETE", "X-Method-Override": "DELETE"}
    with Tcp(life.port, life.reader) as ask:
        for path in routes(life):
            kind = next((each for each in kinds.ALL.values() if each.schema.plural.lower() in path), None)
            actions = kind.schema.actions if kind is not None else ()
            for method in METHODS:
                answer = ask(method, path, body)
                assert answer.status in {403, 405, 400, 501}, (method, path, answer.status)
                tried += 1
            for name in actions:
                assert ask("POST", f"{path}?action={name}", body).status == 403, (path, name)
                tried += 1
            for method in ("DELETE", "PUT", "POST", "delete"):
                assert ask("GET", f"{path}?_method={method}", body).status == 403, (method, path)
            ask("GET", path, headers=override)
            tried += 5
    assert tried > 1_000
    end_s = time.monotonic() + _CLEAR_S
    while everything(life) != before and time.monotonic() < end_s:  # what was read stood still in trees of its own
        time.sleep(0.2)
    assert everything(life) ^ before == set()
    with Tcp(life.port, life.full) as ask:
        assert ask("POST", "/v1/volumes", {"name": "made", "driver": "directory"}).status == 201
    assert everything(life) != before
