"""The clients of Rancher's API from PyPI, unchanged: `cattle` 0.5.4 and `gdapi-python` 0.5.3 over TCP with a key."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cattle
import gdapi
import pytest

from tests.doors import free_port, listening, make_key
from tests.running import Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

DRIVERS = ["btrfs", "loop", "directory"]
Client = Any
Thing = Any
"""What the clients make of a resource: an object with its fields, links and actions."""


class Served(Running):
    """A daemon with a TCP port, and a key for it."""

    port = 0
    key = ("", "")

    def url(self, path: str = "/v1") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, place = free_port(), tmp_path_factory.mktemp("d")
    (place / "backups").mkdir()
    config = f'[targets.disk]\nurl = "file://{place}/backups"\n{scratch_config(session_scratch)}\n{listening(port)}'
    with Served(place, config=config) as running:
        running.port, running.key = port, make_key(running, name="clients")
        yield running


@contextmanager
def connected(daemon: Served, kind: Callable[..., Client], path: str = "/v1", **options: object) -> Iterator[Client]:
    access, secret = daemon.key
    client = kind(url=daemon.url(path), access_key=access, secret_key=secret, **options)
    try:
        yield client
    finally:
        client._session.close()


@pytest.fixture(scope="module")
def client(daemon: Served) -> Iterator[Client]:
    with connected(daemon, cattle.Client) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a name that no other test has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[-200:].lstrip("-")


def create(client: Client, name: str, driver: str = "btrfs", **fields: object) -> Thing:
    if driver == "loop":
        fields = {"driverOpts": {"size": "32M"}, **fields}
    return client.wait_success(client.create_volume(name=name, driver=driver, **fields))


@contextmanager
def active(client: Client, volume: Thing) -> Iterator[Path]:
    held = client.wait_success(client.reload(volume).activate())
    assert held.state == "active"
    try:
        yield Path(held.mountpoint)
    finally:
        rested = client.wait_success(client.reload(volume).deactivate())
        assert (rested.state, rested.mountpoint) == ("inactive", None)


def write(client: Client, volume: Thing, text: str) -> None:
    with active(client, volume) as place:
        (place / "file").write_text(text)


def read(client: Client, volume: Thing) -> str:
    with active(client, volume) as place:
        return (place / "file").read_text()


def names(listed: Thing) -> list[str]:
    return [each.name for each in listed.data]


# The whole life


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_volume_lives_its_life_through_cattle(client: Client, name: str, driver: str) -> None:
    volume = create(client, name, driver, description="first")
    assert (volume.state, volume.uri, volume.driver) == ("inactive", f"local:///{name}", driver)
    write(client, volume, "old")
    one = client.wait_success(client.reload(volume).snapshot(name="one"))
    assert (one.type, one.state, one.volumeId, one.managedVolumeUUID) == ("snapshot", "created", volume.id, volume.uuid)
    write(client, volume, "new")
    two = client.wait_success(client.create_snapshot(volumeId=volume.id, name="two"))
    assert two.volume().id == volume.id
    assert names(client.list_snapshot(volumeId=volume.id, sort="name", order="desc")) == ["two", "one"]
    reverted = client.wait_success(client.reload(volume).reverttosnapshot(snapshotId=one.id))
    assert (reverted.id, reverted.state) == (volume.id, "inactive")
    assert read(client, volume) == "old"
    assert client.reload(two).state == "created"
    changed = client.update(client.reload(volume), description="second", labels={"tier": "db"})
    assert (changed.description, changed.labels.tier) == ("second", "db")
    removed = client.wait_success(client.delete(client.reload(volume)))
    assert removed.state == "removed"
    assert client.reload(one).state == "removed"
    assert names(client.list_volume(name=name)) == []
    back = client.wait_success(client.reload(volume).restore())
    assert (back.state, back.removed) == ("inactive", None)
    assert read(client, volume) == "old"
    assert client.wait_success(client.reload(one).remove()).state == "removed"
    client.delete(client.reload(volume))
    assert client.wait_success(client.reload(volume).purge()).state == "purged"
    assert client.by_id_volume(volume.id).state == "purged"


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_volume_lives_its_life_through_gdapi(daemon: Served, name: str, driver: str) -> None:
    with connected(daemon, gdapi.Client) as client:
        size = {"size": "32M"} if driver == "loop" else {}
        volume = client.create_volume(name=name, driver=driver, driverOpts=size)
        volume = client.reload(client.action(volume, "activate"))
        Path(volume.mountpoint, "file").write_text("old")
        volume = volume.deactivate()
        snapshot = volume.snapshot(name="one")
        clone = volume.clone(name=f"{name}-2", snapshotId=snapshot.id)
        assert (clone.type, clone.driver) == ("volume", driver)
        assert client.update_by_id_snapshot(snapshot.id, name="first").name == "first"
        assert names(volume.snapshots()) == ["first"]
        assert client.reload(volume).reverttosnapshot(snapshotId=snapshot.id).id == volume.id
        assert client.delete(client.reload(volume)).state == "removed"
        assert client.reload(volume).restore().state == "inactive"
        assert client.by_id("volume", volume.id).name == name


@pytest.mark.parametrize("driver", DRIVERS)
def test_backups_live_their_life_through_cattle(client: Client, name: str, tmp_path: Path, driver: str) -> None:
    volume = create(client, name, driver)
    write(client, volume, "old")
    target = client.wait_success(client.create_backup_target(name=f"t-{driver}", url=f"file://{tmp_path}"))
    snapshot = client.wait_success(client.reload(volume).snapshot(name="one"))
    backup = client.wait_success(snapshot.backup(backupTargetId=target.id, name="first"))
    assert (backup.type, backup.state, backup.name, backup.volumeId) == ("backup", "created", "first", volume.id)
    assert backup.uri == f"file://{tmp_path}/volumes/{volume.uuid}/backups/{backup.uuid}"
    assert (backup.snapshot().id, backup.volume().id, backup.backuptarget().id) == (snapshot.id, volume.id, target.id)
    assert client.wait_success(backup.verify()).verified is not None
    assert names(snapshot.backups()) == names(target.backups()) == ["first"]
    write(client, volume, "new")
    second = client.wait_success(client.reload(volume).backup(backupTargetId=target.id))
    assert second.parentId == (None if driver == "directory" else backup.id)
    restored = client.wait_success(client.reload(volume).restorefrombackup(backupId=backup.id))
    assert (restored.id, restored.state) == (volume.id, "inactive")
    assert read(client, volume) == "old"
    clone = create(client, f"{name}-2", driver, driverOpts={"from": f"backup:{second.id}"})
    assert read(client, clone) == "new"
    assert client.wait_success(client.delete(client.reload(backup))).state == "removed"
    assert client.by_id_backup(backup.id).state == "removed"
    again = create(client, f"{name}-3", driver, driverOpts={"from": f"backup:{second.id}"})
    assert read(client, again) == "new"
    assert client.wait_success(client.reload(second).remove()).state == "removed"
    assert client.wait_success(client.reload(target).prune()).state == "created"
    assert client.wait_success(client.delete(client.reload(target))).state == "removed"


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_snapshot_is_backed_up_by_the_contract_of_the_seed(client: Client, name: str, driver: str) -> None:
    """Without an input: the answer is the snapshot, and the backup is found behind its link."""
    volume = create(client, name, driver)
    write(client, volume, "old")
    snapshot = client.wait_success(client.reload(volume).snapshot())
    backed_up = client.wait_success(snapshot.backup())
    assert (backed_up.type, backed_up.id, backed_up.state) == ("snapshot", snapshot.id, "created")
    (backup,) = backed_up.backups().data
    assert (backup.state, backup.backuptarget().name) == ("created", "disk")
    write(client, volume, "new")
    client.wait_success(client.reload(volume).restorefrombackup(backupId=backup.id))
    assert read(client, volume) == "old"


def settled(client: Client, thing: Thing) -> Thing:
    """Wait as whoever has no `wait_success` does."""
    while thing.transitioning == "yes":
        thing = client.reload(thing)
    assert thing.transitioning == "no"
    return thing


@pytest.mark.parametrize("driver", DRIVERS)
def test_backups_live_their_life_through_gdapi(daemon: Served, name: str, driver: str) -> None:
    with connected(daemon, gdapi.Client) as client:
        size = {"size": "32M"} if driver == "loop" else {}
        volume = client.create_volume(name=name, driver=driver, driverOpts=size)
        (target,) = client.list_backup_target(name="disk").data
        assert (target.isDefault, target.isConfigured, hasattr(target, "remove")) == (True, True, False)
        backup = settled(client, client.action(volume, "backup", name="of it"))
        assert names(client.list_backup(volumeId=volume.id, state="created")) == ["of it"]
        restored = settled(client, client.reload(volume).restorefrombackup(backupId=backup.id))
        assert restored.snapshots(name_prefix="before-restore-").data
        assert client.by_id("backup", backup.id).uri == backup.uri
        assert settled(client, client.delete(client.reload(backup))).state == "removed"
        assert names(client.list_backup(volumeId=volume.id)) == []


# How they find us


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/V1", "/v1/schemas"])
@pytest.mark.parametrize("kind", [cattle.Client, gdapi.Client])
def test_a_client_finds_the_schemas_from_every_form_of_the_url(daemon: Served, kind: type[Client], path: str) -> None:
    with connected(daemon, kind, path) as client:
        assert client.valid()
        assert client.list_volume(limit=1).type == "collection"


def test_a_client_is_configured_by_the_environment(daemon: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in zip(("URL", "ACCESS_KEY", "SECRET_KEY"), (daemon.url(), *daemon.key), strict=True):
        monkeypatch.setenv(f"CATTLE_{variable}", value)
    client = cattle.from_env()
    assert client.list_host().data[0].id == "1h1"
    client._session.close()


def test_methods_are_bound_to_what_a_type_can_do(client: Client) -> None:
    for method in ("create_volume", "update_by_id_volume", "list_volume", "create_snapshot", "list_snapshot"):
        assert callable(getattr(client, method))
    for method in ("list_backup", "list_backupTarget", "create_backup_target", "list_storage_pool", "list_mount"):
        assert callable(getattr(client, method))
    for method in ("create_backup", "create_storage_pool", "create_mount", "create_host", "create_snapshotBackupInput"):
        assert not hasattr(client, method)


def test_no_field_link_or_action_is_bound_under_another_name(client: Client, name: str) -> None:
    volume = create(client, name)
    snapshot = client.wait_success(volume.snapshot())
    pool, host = client.list_storage_pool().data[0], client.list_host().data[0]
    backup, target = client.wait_success(volume.backup()), client.list_backup_target().data[0]
    for thing in (client.reload(volume), snapshot, pool, host, backup, target):
        assert [each for each in vars(thing) if each.endswith(("_link", "_action"))] == []
        assert all(
            callable(getattr(thing, each)) for each in (*vars(thing.links), *vars(thing.actions)) if each != "self"
        )


def test_a_strict_client_knows_the_filters(daemon: Served) -> None:
    with connected(daemon, cattle.Client, strict=True) as client:
        assert names(client.list_volume(name_like="nothing%", removed_null=True)) == []
        with pytest.raises(gdapi.ClientApiError):
            client.list_volume(frobs=1)


# Lists


def test_pages_are_turned(client: Client, name: str) -> None:
    volume = create(client, name)
    for number in range(5):
        client.wait_success(client.reload(volume).snapshot(name=f"s{number}"))
    page = client.list_snapshot(volumeId=volume.id, limit=2)
    found = names(page)
    while hasattr(page, "next") and callable(page.next):
        page = page.next()
        found += names(page)
    assert found == [f"s{number}" for number in range(5)]
    assert (page.pagination.partial, [each.name for each in page]) == (False, ["s4"])


def test_filters_and_modifiers_are_keywords(client: Client, name: str) -> None:
    volume = create(client, name)
    for each in ("a1", "a2", "b1"):
        client.wait_success(client.reload(volume).snapshot(name=each))
    assert names(client.list_snapshot(volumeId=volume.id, name_prefix="a", name_ne="a1")) == ["a2"]
    assert names(client.list_snapshot(volumeId=volume.id, name_like="%1", state="created")) == ["a1", "b1"]
    assert names(client.reload(volume).snapshots(name="b1")) == ["b1"]
    assert names(client.list_volume(removed_null=True, name=name)) == [name]


def test_what_is_included_is_a_field_and_no_method(client: Client, name: str) -> None:
    volume = create(client, name)
    client.wait_success(volume.snapshot(name="one"))
    found = client.list_volume(name=name, include="snapshots").data[0]
    assert [each.name for each in found.snapshots] == ["one"]
    assert found.snapshots[0].volume().id == volume.id


# Errors


def test_what_is_not_there_is_none(client: Client) -> None:
    assert client.by_id_volume("1v99999") is None
    assert client.by_id_snapshot("nothing") is None
    assert client.by_id_backup("1b99999") is None


REFUSALS: list[tuple[Callable[[Client, Thing], object], int, str, str | None]] = [
    (lambda client, _: client.create_volume(name="x"), 422, "MissingRequired", "driver"),
    (lambda client, volume: client.create_volume(name=volume.name, driver="btrfs"), 422, "NotUnique", "name"),
    (lambda client, _: client.create_volume(name="x", driver="zfs"), 422, "InvalidOption", "driver"),
    (lambda client, volume: client.action(volume, "snapshot", name="a b"), 422, "InvalidCharacters", "name"),
    (lambda _, volume: volume.reverttosnapshot(snapshotId="1s99999"), 422, "InvalidReference", "snapshotId"),
    (lambda client, _: client.create_backupTarget(name="t"), 422, "MissingRequired", "url"),
    (lambda client, _: client.create_backupTarget(name="t", url="file:///proc/x"), 422, "InvalidOption", "url"),
    (lambda client, _: client.delete(client.list_backupTarget().data[0]), 405, "MethodNotAllowed", None),
    (lambda _, volume: volume.backup(backupTargetId="1bt99"), 422, "InvalidReference", "backupTargetId"),
    (lambda _, volume: volume.restorefrombackup(backupId="1b99999"), 422, "InvalidReference", "backupId"),
    (lambda client, _: client.delete(client.list_storage_pool().data[0]), 405, "MethodNotAllowed", None),
    (lambda client, _: client._get(client._url + "/frobs"), 404, "NotFound", None),
]


@pytest.mark.parametrize(("work", "status", "code", "field"), REFUSALS)
def test_a_refusal_is_an_api_error(
    client: Client, name: str, work: Callable[[Client, Thing], object], status: int, code: str, field: str | None
) -> None:
    volume = create(client, name)
    with pytest.raises(gdapi.ApiError) as caught:
        work(client, volume)
    error = caught.value.error
    assert (error.type, error.status, error.code, getattr(error, "fieldName", None)) == ("error", status, code, field)
    assert error.message


def test_a_wrong_key_is_an_api_error(daemon: Served) -> None:
    with pytest.raises(gdapi.ApiError) as caught:
        cattle.Client(url=daemon.url(), access_key=daemon.key[0], secret_key="wrong")
    assert caught.value.error.status == 401


def test_an_action_that_is_not_offered_is_no_attribute(client: Client, name: str) -> None:
    volume = create(client, name)
    assert not hasattr(volume, "cancel")
    assert not hasattr(client.list_backup_target().data[0], "remove")
    with active(client, volume):
        held = client.reload(volume)
        for action in ("reverttosnapshot", "restorefrombackup", "remove", "restore", "purge"):
            with pytest.raises(AttributeError):
                getattr(held, action)()


def test_what_fails_after_the_answer_is_raised_by_wait_success(client: Client, name: str) -> None:
    class Failed:
        type, id = "volume", create(client, name).id

    failed = client.reload(Failed)
    failed.transitioning, failed.transitioningMessage = "error", "the disk is full"
    client_of_one = type("One", (cattle.Client,), {"__init__": lambda _: None, "reload": lambda _, __: failed})()
    with pytest.raises(gdapi.ClientApiError, match="the disk is full"):
        client_of_one.wait_success(failed)


# Tests of Rancher and of its kin that hold here, told anew (rancher-api 6, 7.7)


def test_snapshot_lifecycle(client: Client, name: str) -> None:
    """Of cattle: but the newest snapshot may go, and newer ones stay after a revert (docs/deviations.md)."""
    volume, other = create(client, name), create(client, f"{name}-2")
    snapshots = []
    for number in range(4):
        write(client, volume, f"content {number}")
        snapshots.append(client.wait_success(client.reload(volume).snapshot(name=f"s{number}")))
    assert [each.state for each in snapshots] == ["created"] * 4
    assert client.wait_success(client.delete(snapshots[3])).state == "removed"
    assert client.wait_success(snapshots[0].remove()).state == "removed"
    foreign = client.wait_success(other.snapshot())
    with pytest.raises(gdapi.ApiError) as caught:
        client.reload(volume).reverttosnapshot(snapshotId=foreign.id)
    assert (caught.value.error.status, caught.value.error.code) == (422, "InvalidReference")
    assert "another volume" in caught.value.error.message
    assert client.wait_success(client.reload(volume).reverttosnapshot(snapshotId=snapshots[1].id)).state == "inactive"
    assert read(client, volume) == "content 1"
    assert [client.reload(each).state for each in snapshots] == ["removed", "created", "created", "removed"]


def test_volume_create_with_opts(client: Client, name: str) -> None:
    volume = create(client, name, "loop", driverOpts={"size": "48M"})
    assert (volume.state, volume.uri, volume.driverOpts.size, volume.sizeBytes) == (
        *("inactive", f"local:///{name}", "48M", 48 << 20),
    )
    assert client.wait_success(client.delete(volume)).state == "removed"


def test_volume_basic(client: Client, name: str) -> None:
    """Of longhorn-manager: created, listed and found are one and the same."""
    made = create(client, name)
    listed, found = client.list_volume(name=name).data[0], client.by_id_volume(made.id)
    plain = [
        {key: value for key, value in vars(each).items() if key in fields_of(client)} for each in (made, listed, found)
    ]
    assert [str(each) for each in plain[1:]] == [str(plain[0])] * 2
    client.delete(made)
    assert names(client.list_volume(name=name)) == []


def fields_of(client: Client) -> set[str]:
    return set(vars(client.schema.types["volume"].resourceFields)) - {"usedBytes"}


@pytest.mark.parametrize("letters", ["a.b", "a_b", "a-b", "ab", "0", "x" * 255])
def test_volume_name(client: Client, letters: str) -> None:
    """Of convoy: names, also of two letters and of one; free again after the removal."""
    first = create(client, letters)
    with pytest.raises(gdapi.ApiError):
        client.create_volume(name=letters, driver="btrfs")
    client.delete(first)
    second = create(client, letters)
    assert second.id != first.id
    assert second.created.endswith("Z")
    client.delete(second)


def test_what_is_mounted_is_gone_from_the_mount_point_after_the_unmount(client: Client, name: str) -> None:
    volume = create(client, name)
    with active(client, volume) as place:
        (place / "file").write_text("text")
    assert not (place / "file").exists()
    assert read(client, volume) == "text"


def test_each_volume_lists_its_own_snapshots(client: Client, name: str) -> None:
    volumes = [create(client, f"{name}-{number}") for number in range(2)]
    for number, volume in enumerate(volumes):
        client.wait_success(volume.snapshot(name=f"of-{number}"))
    assert [names(client.reload(volume).snapshots()) for volume in volumes] == [["of-0"], ["of-1"]]


@pytest.mark.parametrize("at_once", [1, 10])
def test_create_snapshot_and_delete_many_times(daemon: Served, name: str, at_once: int) -> None:
    def work(number: int) -> str:
        with connected(daemon, cattle.Client) as client:
            volume = create(client, f"{name}-{number}")
            snapshot = client.wait_success(volume.snapshot())
            client.wait_success(client.delete(snapshot))
            return str(client.wait_success(client.delete(client.reload(volume))).state)

    with ThreadPoolExecutor(at_once) as pool:
        assert set(pool.map(work, range(20))) == {"removed"}
