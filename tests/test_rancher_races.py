"""Fifty clients at once on the same ten volumes, and requests that are cut off or repeated.

The long form: VOLDRIVER_RACE_ROUNDS=200 pytest tests/test_rancher_races.py
"""

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from json import dumps, loads
from pathlib import Path
from typing import Any, Final

import pytest

from tests.running import Running, UnixConnection, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

CLIENTS: Final = 50
ROUNDS: Final = int(os.environ.get("VOLDRIVER_RACE_ROUNDS", "12"))
DRIVERS: Final = ["btrfs"] * 4 + ["loop"] * 3 + ["directory"] * 3
FILES: Final = 3_000
Found = tuple[int, str | None]
"""The status of an answer, and the code if it is an error."""

BUSY: Final[Found] = (409, "Conflict")
NOT_NOW: Final[Found] = (422, "ActionNotAvailable")
DOCUMENTED: Final[dict[str, set[Found]]] = {
    "list": {(200, None)},
    "look": {(200, None)},
    "snapshot": {(200, None), BUSY, NOT_NOW},
    "revert": {(200, None), (202, None), BUSY, NOT_NOW, (422, "InvalidReference")},
    "remove": {(200, None), BUSY, (405, "MethodNotAllowed")},
    "trash": {(200, None), BUSY, (405, "MethodNotAllowed")},
    "restore": {(200, None), BUSY, NOT_NOW},
}


class Racer:
    """One client: works at random, and remembers what it was told."""

    def __init__(self, daemon: Running, volumes: list[str], known: list[str], seed: int) -> None:
        self._connection: HTTPConnection = UnixConnection(daemon.api_socket)
        self._random = random.Random(seed)
        self._volumes, self._known = volumes, known
        self.told: Counter[tuple[str, Found]] = Counter()
        self.made: set[str] = set()
        self.removed: set[str] = set()
        self.reverted = 0

    def run(self, rounds: int) -> None:
        verbs = {"snapshot": 5, "revert": 2, "remove": 3, "list": 2, "look": 2, "trash": 1, "restore": 2}
        for verb in self._random.choices(list(verbs), list(verbs.values()), k=rounds):
            getattr(self, f"_{verb}")()
        self._connection.close()

    def ask(self, verb: str, method: str, path: str, fields: object = None) -> tuple[int, Any]:
        self._connection.request(method, path, None if fields is None else dumps(fields))
        response = self._connection.getresponse()
        body = loads(response.read())
        self.told[verb, (response.status, body["code"] if body["type"] == "error" else None)] += 1
        return response.status, body

    def _snapshot(self) -> None:
        status, body = self.ask("snapshot", "POST", f"/v1/volumes/{self._volume()}/?action=snapshot", {})
        if status == 200:
            self.made.add(body["id"])
            self._known.append(body["id"])

    def _revert(self) -> None:
        fields = {"snapshotId": self._random.choice(self._known)}
        status, volume = self.ask("look", "GET", f"/v1/snapshots/{fields['snapshotId']}/volume")
        assert status == 200
        status, _ = self.ask("revert", "POST", f"/v1/volumes/{volume['id']}/?action=reverttosnapshot", fields)
        self.reverted += status in {200, 202}

    def _remove(self) -> None:
        snapshot_id = self._random.choice(self._known)
        if self.ask("remove", "DELETE", f"/v1/snapshots/{snapshot_id}")[0] == 200:
            assert snapshot_id not in self.removed
            self.removed.add(snapshot_id)

    def _list(self) -> None:
        self.ask("list", "GET", "/v1/volumes?include=snapshots&removed_null=1&limit=5")

    def _look(self) -> None:
        _, volume = self.ask("look", "GET", f"/v1/volumes/{self._volume()}")
        assert volume["name"].startswith("race-")

    def _trash(self) -> None:
        self.ask("trash", "DELETE", f"/v1/volumes/{self._volume()}")

    def _restore(self) -> None:
        self.ask("restore", "POST", f"/v1/volumes/{self._volume()}/?action=restore", {})

    def _volume(self) -> str:
        return self._random.choice(self._volumes)


@pytest.fixture
def daemon(session_scratch: Scratch, tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path, config=scratch_config(session_scratch)) as running:
        yield running


def create(daemon: Running, name: str, driver: str) -> str:
    size = {"driverOpts": {"size": "32M"}} if driver == "loop" else {}
    made = daemon.api("POST", "/v1/volumes", {"name": name, "driver": driver, **size})
    assert made.status == 201, made.body
    return str(made.body["id"])


def place(daemon: Running, volume_id: str) -> Path:
    return Path(daemon.api("POST", f"/v1/volumes/{volume_id}/?action=activate").body["mountpoint"])


def rest(daemon: Running, volume_id: str) -> dict[str, Any]:
    """Unmount a volume, and wait until nothing goes on."""
    daemon.api("POST", f"/v1/volumes/{volume_id}/?action=deactivate")
    while (shown := daemon.api("GET", f"/v1/volumes/{volume_id}").body)["transitioning"] == "yes":
        pass
    return dict(shown)


def race(daemon: Running, rounds: int) -> tuple[list[str], list[Racer]]:
    volumes = [create(daemon, f"race-{number}", driver) for number, driver in enumerate(DRIVERS)]
    known = []
    for number, volume_id in enumerate(volumes):
        (place(daemon, volume_id) / "whose").write_text(f"race-{number}")
        rest(daemon, volume_id)
        known.append(daemon.api("POST", f"/v1/volumes/{volume_id}/?action=snapshot").body["id"])
    racers = [Racer(daemon, volumes, known, seed) for seed in range(CLIENTS)]
    racers[0].made |= set(known)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(racer.run, rounds) for racer in racers]:
            done.result()
    return volumes, racers


def test_fifty_clients_on_ten_volumes_get_documented_answers_and_lose_nothing(daemon: Running) -> None:
    volumes, racers = race(daemon, ROUNDS)
    told = sum((racer.told for racer in racers), Counter[tuple[str, Found]]())
    assert {(verb, found): count for (verb, found), count in told.items() if found not in DOCUMENTED[verb]} == {}
    for verb in DOCUMENTED:
        assert told[verb, (200, None)] > 0
    for volume_id in volumes:
        daemon.api("POST", f"/v1/volumes/{volume_id}/?action=restore", {})
        shown = rest(daemon, volume_id)
        assert (shown["state"], shown["transitioning"], shown["transitioningMessage"]) == ("inactive", "no", None)

    made, removed = (set[str]().union(*found) for found in ([r.made for r in racers], [r.removed for r in racers]))
    assert sum(len(racer.removed) for racer in racers) == len(removed)
    _assert_as_told(daemon, made - removed, reverts=sum(racer.reverted for racer in racers))
    daemon.restart()
    _assert_as_told(daemon, made - removed, reverts=sum(racer.reverted for racer in racers))
    for number, volume_id in enumerate(volumes):
        assert (place(daemon, volume_id) / "whose").read_text() == f"race-{number}"
        rest(daemon, volume_id)
    assert [pool["orphans"] for pool in daemon.api("GET", "/v1/storagepools").body["data"]] == [[], [], []]
    assert "Traceback" not in daemon.log


def _assert_as_told(daemon: Running, expected: set[str], *, reverts: int) -> None:
    """Compare the list with what clients were told, and read the file of each snapshot."""
    listed = daemon.api("GET", "/v1/snapshots?limit=-1&include=volume").body["data"]
    assert {each["id"] for each in listed if not each["automatic"]} == expected
    assert sum(each["automatic"] for each in listed) == reverts
    assert {each["state"] for each in listed} == {"created"}
    for each in listed[:: max(1, len(listed) // 40)]:
        archive = daemon.api("GET", f"/v1/snapshots/{each['id']}/archive?path=whose").body
        name = daemon.api("GET", f"/v1/volumes/{each['volumeId']}").body["name"]
        assert name.encode() in archive


def test_a_revert_that_a_kill_cuts_off_ends_in_a_true_state_and_can_be_repeated(daemon: Running) -> None:
    volume_id = create(daemon, "cut", "directory")
    path = f"/v1/volumes/{volume_id}"
    here = place(daemon, volume_id)
    for number in range(FILES):
        (here / f"{number}").write_text("old")
    rest(daemon, volume_id)
    snapshot = daemon.api("POST", f"{path}/?action=snapshot", {"name": "one"}).body
    while daemon.api("GET", f"/v1/snapshots/{snapshot['id']}").body["transitioning"] == "yes":
        pass
    here = place(daemon, volume_id)
    (here / "0").write_text("new")
    rest(daemon, volume_id)

    def revert() -> tuple[int, str | None]:
        answer = daemon.api("POST", f"{path}/?action=reverttosnapshot", {"snapshotId": snapshot["id"]})
        return answer.status, answer.body.get("code")

    asking = threading.Thread(target=_quietly, args=(revert,))
    asking.start()
    while (shown := daemon.api("GET", path).body)["state"] == "inactive":
        pass
    assert (shown["state"], shown["transitioning"], shown["actions"]) == ("reverting-inactive", "yes", {})
    assert revert() in {NOT_NOW, BUSY}
    daemon.kill()
    asking.join()
    daemon.start()
    shown = daemon.api("GET", path).body
    assert (shown["state"], shown["transitioning"], shown["transitioningMessage"]) == ("inactive", "no", None)
    listed = daemon.api("GET", f"{path}/snapshots").body["data"]
    assert [each["name"] for each in listed] == ["one"]
    assert (place(daemon, volume_id) / "0").read_text() == "new"
    rest(daemon, volume_id)
    assert revert()[0] in {200, 202}
    rest(daemon, volume_id)
    here = place(daemon, volume_id)
    assert ((here / "0").read_text(), len(os.listdir(here))) == ("old", FILES)
    rest(daemon, volume_id)
    listed = daemon.api("GET", f"{path}/snapshots").body["data"]
    assert [each["automatic"] for each in listed] == [False, True]


def _quietly(work: Any) -> None:
    try:
        work()
    except (OSError, ValueError):
        return


def test_a_snapshot_that_is_asked_for_again_by_its_name_is_the_first_one(daemon: Running) -> None:
    volume_id = create(daemon, "again", "btrfs")
    path = f"/v1/volumes/{volume_id}"
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: daemon.api("POST", f"{path}/?action=snapshot", {"name": "s"}), range(8)))
    assert sorted(each.status for each in asked) == [200, *[422] * 7]
    assert {each.body["code"] for each in asked if each.status == 422} == {"NotUnique"}
    assert len(daemon.api("GET", f"{path}/snapshots").body["data"]) == 1
