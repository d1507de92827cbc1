"""Backups to an S3 server through the API: its keys, and what is seen and ended while the server keeps still."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests import s3
from tests.running import SMALL, Running, scratch_config
from tests.scratch import Scratch
from tests.test_rancher_backups import made, refused, settled
from tests.test_rancher_life import Resource, act, active, again, create, name, read, write

__all__ = ["name"]
pytestmark = pytest.mark.root

PATIENCE_S: Final = 60.0
TICK_S: Final = 0.005
LARGE_BYTES: Final = 96 << 20
"""What no server here takes or gives within the second that the API waits for."""
KEYS: Final = {"accessKey": s3.ACCESS_KEY, "secretKey": s3.SECRET_KEY}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(server: s3.Server, session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("b")
    with Running(place / "d", config=configured(place, server) + scratch_config(session_scratch)) as running:
        yield running


def configured(place: Path, server: s3.Server) -> str:
    (place / "access").write_text(f"{s3.ACCESS_KEY}\n")
    (place / "secret").write_text(f"{s3.SECRET_KEY}\n")
    return f"""
[targets.bucket]
url = "{server.url("nightly")}"
endpoint = "{server.endpoint}"
region = "us-east-1"
access_key_file = "{place}/access"
secret_key_file = "{place}/secret"
"""


def until(daemon: Running, resource: Resource, state: str) -> Resource:
    end_s = time.monotonic() + PATIENCE_S
    while (found := again(daemon, resource))["state"] != state:
        assert time.monotonic() < end_s, found
        time.sleep(TICK_S)
    return found


def test_a_configured_bucket_takes_backups_with_the_keys_of_its_files(
    daemon: Running, server: s3.Server, name: str
) -> None:
    volume = create(daemon, name)
    write(daemon, volume, "one")
    backup = made(daemon, volume)
    assert backup["uri"] == f"{server.url('nightly')}/volumes/{volume['uuid']}/backups/{backup['uuid']}"
    target = daemon.api("GET", "/v1/backuptargets/1bt1").body
    assert (target["endpoint"], target["region"], target["accessKey"]) == (server.endpoint, "us-east-1", None)
    write(daemon, volume, "two")
    settled(daemon, act(daemon, volume, "restorefrombackup", backupId=backup["id"]))
    assert read(daemon, volume) == "one"


def test_a_bucket_is_taken_with_its_keys_and_refused_with_others(daemon: Running, server: s3.Server) -> None:
    fields = {"name": "more", "url": server.url("more"), "endpoint": server.endpoint, "region": "us-east-1"}
    for wrong in ({**KEYS, "secretKey": "wrong"}, {**KEYS, "accessKey": "nobody"}, {**KEYS, "url": "s3://nothing"}):
        answer = daemon.api("POST", "/v1/backuptargets", {**fields, **wrong})
        assert (answer.status, answer.body["code"], answer.body["fieldName"]) == (422, "InvalidOption", "url")
        assert "wrong" not in str(answer.body)
    taken = daemon.api("POST", "/v1/backuptargets", {**fields, **KEYS})
    assert (taken.status, taken.body["url"], taken.body["isDefault"]) == (201, server.url("more"), False), taken.body
    assert s3.SECRET_KEY not in str(taken.body) + daemon.log
    assert daemon.api("DELETE", f"/v1/backuptargets/{taken.body['id']}").status == 200


def test_a_snapshot_is_backing_up_across_a_kill_until_the_backup_is_cancelled(
    server: s3.Server, name: str, tmp_path: Path
) -> None:
    with Running(tmp_path / "d", config=configured(tmp_path, server) + SMALL) as daemon:
        volume = create(daemon, name)
        snapshot = act(daemon, volume, "snapshot", name="s")
        server.stop()
        try:
            cancelled = seen_and_cancelled(daemon, volume, snapshot)
        finally:
            server.go_on()
        gone = until(daemon, cancelled, "removed")
        assert (gone["transitioning"], gone["transitioningMessage"], gone["actions"]) == ("no", "cancelled", {})
        assert again(daemon, snapshot)["state"] == "created"


def seen_and_cancelled(daemon: Running, volume: Resource, snapshot: Resource) -> Resource:
    """Look at a backup that hangs, before and after a kill, and return it cancelled."""
    begun = act(daemon, snapshot, "backup")
    assert (begun["type"], begun["state"], begun["transitioning"]) == ("snapshot", "backing-up", "yes")
    assert act(daemon, snapshot, "backup")["state"] == "backing-up"
    daemon.kill()
    daemon.start()
    assert again(daemon, snapshot)["state"] == "backing-up"
    listed = daemon.api("GET", f"/v1/snapshots?state=backing-up&volumeId={volume['id']}").body["data"]
    assert [each["id"] for each in listed] == [snapshot["id"]]
    (backup,) = daemon.api("GET", f"/v1/snapshots/{snapshot['id']}/backups").body["data"]
    assert (backup["state"], sorted(backup["actions"])) == ("creating", ["cancel"])
    deleted = daemon.api("DELETE", f"/v1/backups/{backup['id']}")
    assert (deleted.status, "cancel it" in deleted.body["message"]) == (405, True)
    assert refused(daemon, volume, "restorefrombackup", backupId=backup["id"])[:3] == (
        *(422, "InvalidReference", "backupId"),
    )
    return act(daemon, backup, "cancel")


def test_a_target_that_keeps_still_is_not_made(daemon: Running, server: s3.Server) -> None:
    server.stop()
    try:
        fields = {"name": "still", "url": server.url("still"), "endpoint": server.endpoint, **KEYS}
        begun_s = time.monotonic()
        answer = daemon.api("POST", "/v1/backuptargets", fields)
        assert time.monotonic() - begun_s < 10  # what a Go client waits
    finally:
        server.go_on()
    assert (answer.status, answer.body["fieldName"]) == (422, "url"), answer.body
    assert daemon.api("GET", "/v1/backuptargets?name=still").body["data"] == []


@pytest.fixture(scope="module")
def large(daemon: Running) -> Resource:
    """Give a backup that takes a while to be read."""
    volume = create(daemon, "large", "directory")
    with active(daemon, volume) as place:
        (place / "large").write_bytes(os.urandom(LARGE_BYTES))
    return made(daemon, volume)


def test_a_restore_is_cancelled_and_the_volume_is_as_it_was(
    daemon: Running, server: s3.Server, name: str, large: Resource
) -> None:
    volume = create(daemon, name, "directory")
    write(daemon, volume, "kept")
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(
            daemon.api, "POST", f"/v1/volumes/{volume['id']}?action=restorefrombackup", {"backupId": large["id"]}
        )
        going = until(daemon, volume, "restoring-inactive")
        server.stop()
        try:
            assert (going["transitioning"], sorted(going["actions"])) == ("yes", ["cancel"])
            threads.submit(act, daemon, volume, "cancel")
            again(daemon, volume)  # by then the cancel is there too
        finally:
            server.go_on()
        answer.result()
    rested = until(daemon, volume, "inactive")
    assert "cancelled" in rested["transitioningMessage"]
    assert read(daemon, volume) == "kept"
    assert daemon.api("GET", f"/v1/volumes/{volume['id']}/snapshots").body["data"] == []


def test_a_new_volume_goes_when_its_restore_is_cancelled(
    daemon: Running, server: s3.Server, name: str, large: Resource
) -> None:
    fields = {"name": name, "driver": "directory", "driverOpts": {"from": f"backup:{large['id']}"}}
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(daemon.api, "POST", "/v1/volumes", fields)
        end_s = time.monotonic() + PATIENCE_S
        while not (found := daemon.api("GET", f"/v1/volumes?name={name}").body["data"]):
            assert time.monotonic() < end_s
        server.stop()
        try:
            assert found[0]["state"] == "restoring-inactive"
            cancelled = threads.submit(act, daemon, found[0], "cancel")
            again(daemon, found[0])
        finally:
            server.go_on()
        answer.result()
        assert cancelled.result()["state"] == "purged"
    assert daemon.api("GET", f"/v1/volumes?name={name}").body["data"] == []
