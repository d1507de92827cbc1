"""What a Go client demands, which cannot be built here (rancher-api 5.2): a checker as strict drives every type."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.strict import SHAPES, Refused, Strict, decode
from tests.test_clients import DRIVERS, Served, daemon, name

__all__ = ["daemon", "name"]
pytestmark = pytest.mark.root


@pytest.fixture
def client(daemon: Served) -> Iterator[Strict]:
    client = Strict(daemon.url(), daemon.key)
    yield client
    client.close()


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_whole_life_decodes(client: Strict, name: str, driver: str) -> None:
    options = {"size": "32M"} if driver == "loop" else {}
    volume = client.create("volume", name=name, driver=driver, driverOpts=options)
    volume = client.act(volume, "activate")
    Path(volume["mountpoint"], "file").write_text("old")
    volume = client.act(volume, "deactivate")
    snapshot = client.act(volume, "snapshot", {"name": "one"})
    assert client.by_id("snapshot", snapshot["id"])["volumeId"] == volume["id"]
    assert client.create("snapshot", volumeId=volume["id"])["state"] == "created"
    client.act(client.by_id("volume", volume["id"]), "reverttosnapshot", {"snapshotId": snapshot["id"]})
    assert client.update(volume, description="d")["description"] == "d"
    client.delete(client.by_id("snapshot", snapshot["id"]))
    client.delete(volume)
    removed = client.by_id("volume", volume["id"])
    assert removed["state"] == "removed"
    assert client.act(removed, "restore", {})["state"] == "inactive"


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_life_of_backups_decodes(client: Strict, name: str, tmp_path: Path, driver: str) -> None:
    options = {"size": "32M"} if driver == "loop" else {}
    volume = client.create("volume", name=name, driver=driver, driverOpts=options)
    target = client.create("backupTarget", name=f"strict-{driver}", url=f"file://{tmp_path}")
    assert target["nfsConfig"] is None
    snapshot = client.act(volume, "snapshot", {"name": "one"})
    answered = client.act(snapshot, "backup", {"backupTargetId": target["id"]})
    backup = client.settled(client.by_id("backup", answered["id"]))
    assert (backup["state"], backup["snapshotId"], backup["volumeId"]) == ("created", snapshot["id"], volume["id"])
    assert client.settled(client.act(snapshot, "backup"))["state"] == "created"
    client.settled(client.act(client.by_id("volume", volume["id"]), "restorefrombackup", {"backupId": backup["id"]}))
    verified = client.settled(client.act(client.by_id("backup", backup["id"]), "verify", {}))
    client.delete(verified)
    assert client.settled(client.by_id("backup", backup["id"]))["state"] == "removed"
    client.act(client.by_id("backupTarget", target["id"]), "scan")
    client.delete(target)
    assert client.by_id("backupTarget", target["id"])["state"] == "removed"


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/schemas"])
def test_every_form_of_the_url_answers_200_with_the_schemas(daemon: Served, path: str) -> None:
    client = Strict(daemon.url(path), daemon.key)
    assert set(SHAPES) <= set(client.schemas)
    client.close()


def test_every_list_decodes(client: Strict, name: str) -> None:
    volume = client.act(client.create("volume", name=name, driver="btrfs"), "activate")
    listed = {
        kind: client.list(kind, removed_null="")
        for kind in SHAPES
        if "GET" in client.schemas[kind]["collectionMethods"]
    }
    assert {kind for kind, found in listed.items() if found["data"]} >= {
        "volume",
        "mount",
        "storagePool",
        "host",
        "apiKey",
        "backupTarget",
    }
    client.act(volume, "deactivate")


def test_pages_lead_to_each_other(client: Strict, name: str) -> None:
    volume = client.create("volume", name=name, driver="btrfs")
    for number in range(3):
        client.act(volume, "snapshot", {"name": f"s{number}"})
    page, found = client.list("snapshot", volumeId=volume["id"], limit=2), []
    while page:
        found += [each["name"] for each in page["data"]]
        page = client.next("snapshot", page)
    assert found == ["s0", "s1", "s2"]


def test_404_is_nil_and_other_errors_are_resources(client: Strict) -> None:
    assert client.by_id("volume", "1v999999") is None
    with pytest.raises(Refused) as caught:
        client.create("volume", name="x", driver="zfs")
    assert (caught.value.status, caught.value.error["type"], caught.value.error["status"]) == (422, "error", 422)


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (SHAPES["volume"], {"links": {"self": None, "x": 1}}),
        (SHAPES["volume"], {"ISHOSTPATH": "false"}),
        (SHAPES["volume"], {"transitioningProgress": 1.5}),
        (SHAPES["volume"], {"id": 5}),
        (SHAPES["schema"], {"resourceMethods": "GET"}),
        (SHAPES["mount"], []),
    ],
)
def test_the_checker_sees_what_go_refuses(shape: object, value: object) -> None:
    with pytest.raises(AssertionError):
        decode(shape, value)
