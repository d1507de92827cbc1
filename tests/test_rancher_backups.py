"""Backups through the API, on every driver: made, looked at, restored here and elsewhere, refused, ended."""

import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.running import Running, UnixConnection, scratch_config
from tests.scratch import Scratch
from tests.test_rancher_life import DRIVERS, Resource, act, again, create, listed, name, read, write
from tests.test_rancher_lists import NOW, backup, snapshot, target, volume
from voldriverd import model
from voldriverd import store as database
from voldriverd.api.rancher import backups, snapshots, volumes
from voldriverd.engine.ailments import Ailments
from voldriverd.model import BackupState, Health, SnapshotState, VolumeState

__all__ = ["name"]
pytestmark = pytest.mark.root

FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}
PATIENCE_S: Final = 60.0
TICK_S: Final = 0.02
SIZES: Final = {"btrfs": {}, "loop": {"size": "64M"}, "directory": {}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backups")


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, place: Path) -> Iterator[Running]:
    for directory in ("disk", "second"):
        (place / directory).mkdir()
    targets = f'[targets.disk]\nurl = "file://{place}/disk"\n[targets.second]\nurl = "file://{place}/second"\n'
    config = f'default_target = "disk"\n{targets}{scratch_config(session_scratch)}'
    with Running(place / "d", config=config) as running:
        yield running


def settled(daemon: Running, resource: Resource) -> Resource:
    """Return a resource as it is when nothing goes on with it any more."""
    end_s = time.monotonic() + PATIENCE_S
    while resource["transitioning"] == "yes":
        assert time.monotonic() < end_s, resource
        time.sleep(TICK_S)
        resource = again(daemon, resource)
    return resource


def made(daemon: Running, subject: Resource, **fields: object) -> Resource:
    """Back up a volume or snapshot, and return the backup when it is done."""
    begun = act(daemon, subject, "backup", **({"backupTargetId": "1bt1"} | fields))
    assert begun["type"] == "backup"
    done = settled(daemon, begun)
    assert (done["state"], done["transitioning"]) == ("created", "no"), done
    return done


def filled(daemon: Running, name: str, driver: str = "btrfs", text: str = "one") -> Resource:
    volume = create(daemon, name, driver, driverOpts=SIZES[driver])
    write(daemon, volume, text)
    return volume


def refused(daemon: Running, resource: Resource, action: str, **fields: object) -> tuple[int, str, str | None, str]:
    answer = daemon.api("POST", f"/v1/{resource['type']}s/{resource['id']}?action={action}", fields)
    body = answer.body
    return answer.status, body.get("code"), body.get("fieldName"), body.get("message")


# One backup


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_backup_tells_what_it_is_of(daemon: Running, name: str, place: Path, driver: str) -> None:
    volume = filled(daemon, name, driver)
    first = made(daemon, volume, name="first one", description="d")
    assert (first["name"], first["description"], first["driver"]) == ("first one", "d", driver)
    assert (first["volumeId"], first["volumeName"], first["volumeUUID"]) == (volume["id"], name, volume["uuid"])
    assert first["format"] == {"btrfs": "btrfs", "loop": "blocks", "directory": "tar"}[driver]
    assert (first["parentId"], first["verified"], first["backupTargetId"]) == (None, None, "1bt1")
    assert first["sizeBytes"] == again(daemon, volume)["sizeBytes"]
    assert first["contentBytes"] > 0
    assert first["storedBytes"] > 0
    assert first["uri"] == f"file://{place}/disk/volumes/{volume['uuid']}/backups/{first['uuid']}"
    assert sorted(first["actions"]) == ["remove", "verify"]
    found = daemon.api("GET", f"/v1/snapshots/{first['snapshotId']}").body
    assert (found["name"], found["automatic"]) == (first["snapshotName"], True)
    assert found["created"] == first["taken"]
    assert found["expires"] is not None
    write(daemon, volume, "two")
    second = made(daemon, volume)
    assert second["parentId"] == (None if driver == "directory" else first["id"])
    assert (second["name"], second["storedBytes"] < first["contentBytes"]) == (None, True)


def test_links_lead_to_what_a_backup_is_of_and_from_there_to_it(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    snapshot = act(daemon, volume, "snapshot", name="s")
    backup = made(daemon, snapshot)
    for link, thing in (("volume", volume), ("snapshot", snapshot)):
        path = backup["links"][link].partition("localhost")[2]
        assert daemon.api("GET", path).body["id"] == thing["id"]
        assert [each["id"] for each in daemon.api("GET", f"/v1/{link}s/{thing['id']}/backups").body["data"]] == [
            backup["id"]
        ]
    assert daemon.api("GET", f"/v1/backups/{backup['id']}/backuptarget").body["name"] == "disk"
    assert backup["id"] in [each["id"] for each in daemon.api("GET", "/v1/backuptargets/1bt1/backups").body["data"]]
    included = daemon.api("GET", f"/v1/volumes/{volume['id']}?include=backups").body["backups"]
    assert [each["id"] for each in included] == [backup["id"]]
    for query in (f"uri={backup['uri']}", f"snapshotId={snapshot['id']}", f"volumeName={name}&state=created"):
        assert [each["id"] for each in daemon.api("GET", f"/v1/backups?{query}").body["data"]] == [backup["id"]]


def test_a_backup_with_a_target_leaves_the_snapshot_as_it_is(daemon: Running, name: str) -> None:
    snapshot = act(daemon, filled(daemon, name), "snapshot")
    begun = act(daemon, snapshot, "backup", backupTargetId="1bt2", name="x")
    assert (begun["type"], begun["snapshotId"], begun["backupTargetId"]) == ("backup", snapshot["id"], "1bt2")
    assert again(daemon, snapshot)["state"] == "created"
    assert settled(daemon, begun)["state"] == "created"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"backupTargetId": null}'])
def test_a_backup_without_a_target_goes_to_the_default_one_and_answers_the_snapshot(
    daemon: Running, name: str, body: bytes
) -> None:
    snapshot = act(daemon, filled(daemon, name), "snapshot")
    answer = daemon.api("POST", f"/v1/snapshots/{snapshot['id']}?action=backup", body)
    assert (answer.status, answer.body["type"], answer.body["id"]) == (200, "snapshot", snapshot["id"])
    assert settled(daemon, answer.body)["state"] == "created"
    (backup,) = daemon.api("GET", f"/v1/snapshots/{snapshot['id']}/backups").body["data"]
    assert (backup["backupTargetId"], backup["state"]) == ("1bt1", "created")


def test_the_same_request_again_means_the_same_backup(daemon: Running, name: str) -> None:
    snapshot = act(daemon, filled(daemon, name), "snapshot")
    begun = act(daemon, snapshot, "backup", backupTargetId="1bt1")
    assert act(daemon, snapshot, "backup", backupTargetId="1bt1")["id"] == begun["id"]
    settled(daemon, begun)
    assert act(daemon, snapshot, "backup", backupTargetId="1bt1")["id"] == begun["id"]
    assert made(daemon, snapshot, backupTargetId="1bt2")["id"] != begun["id"]
    assert len(daemon.api("GET", f"/v1/snapshots/{snapshot['id']}/backups").body["data"]) == 2


def test_the_events_of_a_backup_and_its_snapshot_are_told(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    snapshot = act(daemon, volume, "snapshot")
    connection = UnixConnection(daemon.api_socket, timeout_s=PATIENCE_S)
    connection.request("GET", "/v1/events")
    response = connection.getresponse()
    settled(daemon, act(daemon, snapshot, "backup"))
    told: list[tuple[str, str]] = []
    while ("snapshot", "created") not in told:
        line = response.readline().decode()
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            told.append((event["resourceType"], event["state"]))
            assert (event["volumeId"], event["volumeName"]) == (volume["id"], name)
    response.close()
    connection.close()
    assert told[0] == ("backup", "creating")
    assert told[1] == ("snapshot", "backing-up")
    assert ("backup", "created") in told


def test_the_host_counts_backups_and_targets(daemon: Running, name: str) -> None:
    before = daemon.api("GET", "/v1/hosts/1h1").body
    backup = made(daemon, filled(daemon, name))
    after = daemon.api("GET", "/v1/hosts/1h1").body
    assert (after["targetCount"], after["backupCount"]) == (2, before["backupCount"] + 1)
    daemon.api("DELETE", f"/v1/backups/{backup['id']}")
    settled(daemon, again(daemon, backup))
    assert daemon.api("GET", "/v1/hosts/1h1").body["backupCount"] == before["backupCount"]


def test_a_browser_gets_forms_for_what_backups_can_do(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    backup = made(daemon, volume)
    page = daemon.api("GET", f"/v1/backups/{backup['id']}?_format=html").body.decode()
    assert all(f"<summary>{action}</summary>" in page for action in ("remove", "verify"))
    assert f"/v1/backuptargets/{backup['backupTargetId']}" in page
    page = daemon.api("GET", f"/v1/volumes/{volume['id']}?_format=html").body.decode()
    assert all(f'name="{field}"' in page for field in ("backupTargetId", "backupId", "allowHoles"))
    made_ = daemon.api(
        "POST",
        f"/v1/volumes/{volume['id']}?action=backup&_format=html",
        b"name=from+a+form&backupTargetId=",
        headers=FORM,
    )
    assert made_.status == 303
    (found,) = daemon.api("GET", f"/v1/volumes/{volume['id']}/backups?name=from+a+form").body["data"]
    assert made_.headers["Location"].endswith(f"/v1/backups/{found['id']}")
    settled(daemon, found)


# Verify, read, remove


@pytest.mark.parametrize("sample", [None, "50%", 0.5, 1, "1.0"])
def test_a_backup_is_verified(daemon: Running, name: str, sample: object) -> None:
    backup = made(daemon, filled(daemon, name))
    verified = settled(daemon, act(daemon, backup, "verify", **({} if sample is None else {"sample": sample})))
    assert (verified["state"], verified["transitioning"]) == ("created", "no"), verified
    assert (verified["verified"] is not None) == (sample not in {"50%", 0.5})


@pytest.mark.parametrize("sample", ["0", "0%", "101%", "2", "some", -0.5])
def test_what_is_no_part_of_a_backup_is_refused(daemon: Running, name: str, sample: object) -> None:
    backup = made(daemon, filled(daemon, name))
    assert refused(daemon, backup, "verify", sample=sample)[:3] == (422, "InvalidOption", "sample")


def test_damage_is_found_and_told(daemon: Running, name: str, place: Path) -> None:
    volume = filled(daemon, name, "directory")
    backup = made(daemon, volume)
    for chunk in (place / "disk" / "volumes" / volume["uuid"] / "chunks").rglob("*"):
        if chunk.is_file():
            content = bytearray(chunk.read_bytes())
            content[len(content) // 2] ^= 1
            chunk.write_bytes(content)
    answer = daemon.api("POST", f"/v1/backups/{backup['id']}?action=verify")
    assert (answer.status, answer.body["transitioning"]) == (202, "yes")  # however soon it ends: see how it ends
    found = settled(daemon, answer.body)
    assert (found["state"], found["transitioning"], found["verified"]) == ("created", "error", None)
    assert found["transitioningMessage"]


def test_a_file_is_read_out_of_a_backup(daemon: Running, name: str) -> None:
    backup = made(daemon, filled(daemon, name, "directory", "content"))
    answer = daemon.api("GET", f"/v1/backups/{backup['id']}/archive?path=file")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        (member,) = archive.getmembers()
        reader = archive.extractfile(member)
        assert reader is not None
        assert (member.name, reader.read()) == ("file", b"content")
    missing = daemon.api("GET", f"/v1/backups/{backup['id']}/archive?path=none")
    assert (missing.status, missing.body["code"]) == (404, "NotFound")


def test_a_removed_backup_is_a_tombstone(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    backup = made(daemon, volume)
    answer = daemon.api("DELETE", f"/v1/backups/{backup['id']}")
    assert (answer.status, answer.body["state"] in {"removing", "removed"}) == (200, True)
    gone = settled(daemon, answer.body)
    assert (gone["state"], gone["actions"]) == ("removed", {})
    assert gone["removed"].endswith("Z")
    assert daemon.api("GET", f"/v1/volumes/{volume['id']}/backups").body["data"] == []
    again_ = daemon.api("DELETE", f"/v1/backups/{backup['id']}")
    assert (again_.status, again_.body["message"]) == (405, f"cannot remove backup {backup['id']}: it is removed")
    assert refused(daemon, backup, "verify")[:2] == (422, "ActionNotAvailable")
    assert refused(daemon, backup, "cancel")[3] == f"cannot cancel backup {backup['id']}: it is removed"
    status, code, field, message = refused(daemon, volume, "restorefrombackup", backupId=backup["id"])
    assert (status, code, field) == (422, "InvalidReference", "backupId")
    assert message == f"cannot restore volume {name}: backup {backup['id']} is removed"
    assert again(daemon, volume)["state"] == "inactive"


def test_a_backup_that_cannot_be_made_is_an_error_that_says_why(daemon: Running, name: str, place: Path) -> None:
    volume = filled(daemon, name)
    (place / "lost").mkdir()
    target = daemon.api("POST", "/v1/backuptargets", {"name": "lost", "url": f"file://{place}/lost"}).body
    shutil.rmtree(place / "lost")
    (place / "lost").write_text("")
    failed = settled(daemon, act(daemon, volume, "backup", backupTargetId=target["id"]))
    assert (failed["state"], failed["transitioning"], sorted(failed["actions"])) == ("error", "error", ["remove"])
    assert failed["transitioningMessage"]
    assert refused(daemon, volume, "restorefrombackup", backupId=failed["id"])[:3] == (
        *(422, "InvalidReference", "backupId"),
    )
    assert settled(daemon, act(daemon, failed, "remove"))["state"] == "removed"
    assert daemon.api("DELETE", f"/v1/backuptargets/{target['id']}").status == 200
    (place / "lost").unlink()


# Restore


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_volume_gets_the_content_of_its_backup_and_keeps_what_it_had(daemon: Running, name: str, driver: str) -> None:
    volume = filled(daemon, name, driver, "old")
    backup = made(daemon, volume)
    write(daemon, volume, "new")
    begun = act(daemon, volume, "restorefrombackup", backupId=backup["id"])
    assert begun["state"] in {"restoring-inactive", "inactive"}
    rested = settled(daemon, begun)
    assert (rested["state"], rested["transitioning"]) == ("inactive", "no")
    assert read(daemon, rested) == "old"
    kept = [
        each for each in listed(daemon, f"/v1/volumes/{volume['id']}/snapshots") if each.startswith("before-restore-")
    ]
    assert len(kept) == 1
    found = daemon.api("GET", f"/v1/volumes/{volume['id']}/snapshots?name={kept[0]}").body["data"][0]
    assert found["id"] == begun["displacedSnapshotId"]
    settled(daemon, act(daemon, rested, "reverttosnapshot", snapshotId=found["id"]))
    assert read(daemon, rested) == "new"


@pytest.mark.parametrize("into", DRIVERS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_backup_becomes_a_new_volume_of_any_driver(daemon: Running, name: str, driver: str, into: str) -> None:
    backup = made(daemon, filled(daemon, name, driver, "content"))
    options = {"from": f"backup:{backup['id']}"}
    given = {} if driver == into else {"driver": into}
    answer = daemon.api("POST", "/v1/volumes", {"name": f"{name}-2", "driverOpts": options, **given})
    assert (answer.status, answer.body["driver"]) == (201, into), answer.body
    assert answer.body["state"] in {"restoring-inactive", "inactive"}
    volume = settled(daemon, answer.body)
    assert (volume["state"], volume["driverOpts"]) == ("inactive", options)
    assert read(daemon, volume) == "content"


def test_a_backup_of_one_volume_is_restored_into_another(daemon: Running, name: str) -> None:
    backup, other = made(daemon, filled(daemon, name)), filled(daemon, f"{name}-2", "directory", "other")
    settled(daemon, act(daemon, other, "restorefrombackup", backupId=backup["id"], allowHoles=False))
    assert read(daemon, other) == "one"


def test_a_mounted_volume_is_not_restored(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    backup = made(daemon, volume)
    act(daemon, volume, "activate")
    status, code, _, message = refused(daemon, volume, "restorefrombackup", backupId=backup["id"])
    assert (status, code) == (422, "ActionNotAvailable")
    assert f"cannot restore volume {name}: " in message
    assert "backup" in again(daemon, volume)["actions"]
    act(daemon, volume, "deactivate")


def test_no_restore_is_cancelled_where_none_runs(daemon: Running, name: str) -> None:
    volume = filled(daemon, name)
    assert refused(daemon, volume, "cancel")[3] == f"cannot cancel the restore of volume {name}: none is running"


# What another daemon has left


def test_a_scan_takes_up_what_another_daemon_has_made(
    daemon: Running, name: str, place: Path, session_scratch: Scratch
) -> None:
    volume = filled(daemon, name)
    first = made(daemon, volume, backupTargetId="1bt2")
    write(daemon, volume, "two")
    made(daemon, volume, backupTargetId="1bt2")
    config = f'[targets.found]\nurl = "file://{place}/second"\n{scratch_config(session_scratch)}'
    with Running(place / "other", config=config) as other:
        scanned = other.api("POST", "/v1/backuptargets/1bt1?action=scan")
        assert scanned.status in {200, 202}
        settled(other, scanned.body)
        found = other.api("GET", f"/v1/backups?volumeUUID={volume['uuid']}").body["data"]
        found.sort(key=lambda each: bool(each["uuid"] != first["uuid"]))  # both may be of the same second
        assert [(each["volumeId"], each["snapshotId"], each["volumeName"]) for each in found] == [
            (None, None, name)
        ] * 2
        assert (found[0]["uuid"], found[0]["host"]) == (first["uuid"], first["host"])
        assert found[1]["parentId"] == found[0]["id"]
        assert {"volume", "snapshot"} & found[0]["links"].keys() == set()
        answer = other.api("POST", "/v1/volumes", {"name": "here", "driverOpts": {"from": f"backup:{found[1]['id']}"}})
        assert answer.status == 201, answer.body
        assert read(other, settled(other, answer.body)) == "two"


def test_what_no_backup_needs_is_pruned(daemon: Running) -> None:
    pruned = daemon.api("POST", "/v1/backuptargets/1bt1?action=prune")
    assert pruned.status in {200, 202}
    assert (pruned.body["type"], pruned.body["freedBytes"]) == ("backupTarget", 0)


# What is shown while it goes on, which a test cannot wait for


class Job:
    """One that stands still."""

    percent = 42

    def message(self) -> str:
        return "42 % (1.2 of 2.9 GiB)"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Any]:
    """Give what is asked of a service: a store in which one backup is on its way, and its job."""
    store = database.Store(tmp_path)

    def fill(write: Any) -> None:
        write.add_pool(POOL)
        for number, state in ((1, VolumeState.INACTIVE), (2, VolumeState.RESTORING)):
            write.put_volume(volume(number, state))
        write.put_snapshot(replace(snapshot(1), volume_id=volume(1).id, state=SnapshotState.CREATED))
        write.put_target(target(1))
        write.put_backup(GOING)

    store.commit(fill)
    running = {"1b1": Job(), "1v2": Job()}
    runner = SimpleNamespace(fault=lambda _: None)
    pools = SimpleNamespace(get=lambda _: SimpleNamespace(health=Health.AVAILABLE))
    yield SimpleNamespace(
        store=store,
        jobs=SimpleNamespace(get=running.get),
        runner=runner,
        usages=SimpleNamespace(known=lambda _: None),
        engine=SimpleNamespace(pools=pools, mounts=tmp_path, ailments=Ailments()),
    )
    store.close()


POOL = model.Pool(model.PoolId(1), "u", "p", "btrfs", "/p")
GOING = replace(
    backup(1),
    state=BackupState.CREATING,
    target_id=target(1).id,
    volume_id=volume(1).id,
    snapshot_id=snapshot(1).id,
    is_of_snapshot=True,
)
SHOWN = {"transitioning": "yes", "transitioningMessage": "42 % (1.2 of 2.9 GiB)", "transitioningProgress": 42}


def part(shown: dict[str, Any]) -> dict[str, Any]:
    return {key: shown[key] for key in SHOWN}


def test_a_backup_on_its_way_shows_how_far_it_is_and_can_be_cancelled(service: Any) -> None:
    (row,) = backups._rows(service, [GOING])
    assert (backups.KIND.show(service, row)["state"], part(backups.KIND.show(service, row))) == ("creating", SHOWN)
    assert backups.KIND.offered(service, row) == {"cancel"}


def test_its_snapshot_is_backing_up_and_shows_the_same(service: Any) -> None:
    row = service.store.snapshot(snapshot(1).id)
    assert snapshots.KIND.show(service, row)["state"] == "backing-up"
    assert part(snapshots.KIND.show(service, row)) == SHOWN
    service.store.commit(lambda write: write.put_backup(replace(GOING, is_of_snapshot=False)))
    assert snapshots.KIND.show(service, row)["state"] == "created"
    assert snapshots.KIND.show(service, row)["transitioning"] == "no"


def test_a_volume_that_is_restored_shows_how_far_that_is_and_can_be_cancelled(service: Any) -> None:
    row = service.store.volume(volume(2).id)
    assert (volumes.KIND.show(service, row)["state"], part(volumes.KIND.show(service, row))) == (
        *("restoring-inactive", SHOWN),
    )
    assert volumes.KIND.offered(service, row) == {"cancel"}


def test_what_is_to_be_known_of_a_backup_is_no_fault(service: Any) -> None:
    done = replace(GOING, id=backup(2).id, state=BackupState.CREATED, message="whole: its base is missing")
    (row,) = backups._rows(service, [done])
    shown = backups.KIND.show(service, row)
    assert part(shown) == {
        "transitioning": "no",
        "transitioningMessage": "whole: its base is missing",
        "transitioningProgress": None,
    }
    (row,) = backups._rows(service, [replace(done, state=BackupState.REMOVED, message="cancelled", removed_at=NOW)])
    assert (backups.KIND.show(service, row)["transitioning"], backups.KIND.offered(service, row)) == ("no", frozenset())


@pytest.mark.parametrize(
    ("message", "transitioning"),
    [("restored from backup 1b1; owners were not kept", "no"), ("cannot restore volume v1: nobody answers", "error")],
)
def test_what_a_restore_could_not_keep_is_no_fault_of_the_volume(
    service: Any, message: str, transitioning: str
) -> None:
    shown = volumes.KIND.show(service, replace(volume(1), message=message))
    assert (shown["transitioning"], shown["transitioningMessage"]) == (transitioning, message)
