"""Targets through the API: configured ones, those that are made, and what cannot be made or removed."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.running import SMALL, Answer, Running
from tests.test_rancher_lists import target
from voldriverd import runner
from voldriverd import store as database
from voldriverd.api.rancher import targets
from voldriverd.errors import Unusable
from voldriverd.model import Health

pytestmark = pytest.mark.root

SECRETS = ("open sesame", "AKIA", "hush")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[Running]:
    (place / "nightly").mkdir()
    (place / "passphrase").write_text(f"{SECRETS[0]}\n")
    config = f"""
default_target = "nightly"
[targets.nightly]
url = "file://{place}/nightly"
passphrase_file = "{place}/passphrase"
"""
    with Running(place / "d", config=f"{config}\n{SMALL}") as running:
        yield running


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Running]:
    """Give a daemon without targets."""
    with Running(tmp_path / "d") as running:
        yield running


def make(daemon: Running, name: str, place: Path, **fields: object) -> dict[str, Any]:
    place.mkdir(exist_ok=True)
    made = daemon.api("POST", "/v1/backuptargets", {"name": name, "url": f"file://{place}", **fields})
    assert made.status == 201, made.body
    return dict(made.body)


def remove(daemon: Running, target: dict[str, Any]) -> Answer:
    return daemon.api("DELETE", f"/v1/backuptargets/{target['id']}")


def listed(daemon: Running) -> list[str]:
    return [each["name"] for each in daemon.api("GET", "/v1/backuptargets").body["data"]]


def test_a_configured_target_is_there_and_is_the_default_one(daemon: Running, place: Path) -> None:
    found = daemon.api("GET", "/v1/backuptargets?name=nightly").body["data"][0]
    assert (found["id"], found["url"], found["state"]) == ("1bt1", f"file://{place}/nightly", "created")
    assert (found["isConfigured"], found["isDefault"], found["health"]) == (True, True, "available")
    assert (found["nfsConfig"], found["passphrase"], found["freedBytes"]) == (None, None, None)
    assert sorted(found["actions"]) == ["prune", "scan"]
    assert daemon.api("GET", found["links"]["backups"].partition("localhost")[2]).body["data"] == []


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "?action=remove")])
def test_a_configured_target_cannot_be_removed(daemon: Running, method: str, path: str) -> None:
    refused = daemon.api(method, f"/v1/backuptargets/1bt1{path}")
    assert refused.status == (405 if method == "DELETE" else 422)
    assert refused.body["message"] == "cannot remove backup target nightly: the configuration file defines it"


def test_a_target_that_is_made_can_be_removed_and_made_again(daemon: Running, tmp_path: Path) -> None:
    target = make(daemon, "disk", tmp_path / "disk", description="in the cellar")
    assert (target["description"], target["isConfigured"], target["isDefault"]) == ("in the cellar", False, False)
    assert (target["health"], target["transitioning"]) == ("available", "no")
    assert sorted(target["actions"]) == ["prune", "remove", "scan"]
    assert daemon.api("GET", f"/v1/backuptargets/{target['id']}").body == target
    written = sorted(path.name for path in (tmp_path / "disk").iterdir())
    removed = remove(daemon, target)
    assert (removed.status, removed.body["state"], removed.body["actions"]) == (200, "removed", {})
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == written
    assert listed(daemon) == ["nightly"]
    assert daemon.api("GET", f"/v1/backuptargets/{target['id']}").body["removed"].endswith("Z")
    again = remove(daemon, target)
    assert (again.status, "it is removed" in again.body["message"]) == (405, True)
    remove(daemon, make(daemon, "disk", tmp_path / "disk"))


def test_secrets_come_in_and_are_never_seen_again(daemon: Running, tmp_path: Path) -> None:
    target = make(daemon, "sealed", tmp_path / "sealed", passphrase=SECRETS[0])
    shown = [
        target,
        daemon.api("GET", f"/v1/backuptargets/{target['id']}").body,
        daemon.api("GET", "/v1/backuptargets").body,
        remove(daemon, target).body,
    ]
    assert not any(secret in json.dumps(shown) for secret in SECRETS)
    assert not any(secret in daemon.log for secret in SECRETS)
    assert [each["passphrase"] for each in shown if "passphrase" in each] == [None, None, None]


REFUSED: list[tuple[dict[str, object], str, str | None]] = [
    ({}, "MissingRequired", "name"),
    ({"name": "t"}, "MissingRequired", "url"),
    ({"name": "", "url": "file:///x"}, "MinLengthExceeded", "name"),
    ({"name": "a b", "url": "file:///x"}, "InvalidCharacters", "name"),
    ({"name": "a\n", "url": "file:///x"}, "InvalidCharacters", "name"),
    ({"name": "-a", "url": "file:///x"}, "InvalidCharacters", "name"),
    ({"name": "nightly", "url": "file:///x"}, "NotUnique", "name"),
    ({"name": "t", "url": "ftp://x"}, "InvalidOption", "url"),
    ({"name": "t", "url": "file:///a/../b"}, "InvalidOption", "url"),
    ({"name": "t", "url": "file:///x", "region": "r"}, "InvalidOption", "region"),
    ({"name": "t", "url": "file:///x", "secretKey": "hush"}, "InvalidOption", "secretKey"),
    ({"name": "t", "url": "s3://bucket", "region": "R"}, "InvalidOption", "region"),
    ({"name": "t", "url": "s3://bucket", "endpoint": "host"}, "InvalidOption", "endpoint"),
    ({"name": "t", "url": "s3://bucket", "secretKey": "hush"}, "MissingRequired", "accessKey"),
    ({"name": "t", "url": "s3://bucket", "accessKey": "AKIA"}, "MissingRequired", "secretKey"),
    ({"name": "t", "url": "file:///x", "passphrase": ""}, "MinLengthExceeded", "passphrase"),
    ({"name": "t", "url": "s3://bucket", "accessKey": "", "secretKey": ""}, "MinLengthExceeded", "accessKey"),
    ({"name": "t", "nfsConfig": {"server": "s"}}, "MissingRequired", "share"),
    ({"name": "t", "nfsConfig": "s:/x"}, "InvalidFormat", "nfsConfig"),
    ({"name": "t", "nfsConfig": {"server": "s", "share": "x"}}, "InvalidOption", "nfsConfig"),
    ({"name": "t", "nfsConfig": {"server": "-s", "share": "/x"}}, "InvalidOption", "nfsConfig"),
    ({"name": "t", "nfsConfig": {"server": "s", "share": "/", "mountOptions": "a b"}}, "InvalidOption", "nfsConfig"),
    ({"name": "t", "nfsConfig": {"server": "s", "share": "/x"}, "url": "file:///x"}, "InvalidOption", "url"),
    ({"name": "t", "nfsConfig": {"server": "s", "share": "/x"}, "accessKey": "AKIA"}, "InvalidOption", "accessKey"),
]


@pytest.mark.parametrize(("fields", "code", "field"), REFUSED)
def test_a_target_is_refused_by_its_field(
    daemon: Running, fields: dict[str, object], code: str, field: str | None
) -> None:
    answer = daemon.api("POST", "/v1/backupTargets", fields)
    assert (answer.status, answer.body["code"], answer.body.get("fieldName")) == (422, code, field), answer.body
    assert answer.body["message"]
    assert not any(secret in json.dumps(answer.body) for secret in SECRETS)


def test_a_place_that_cannot_be_used_is_refused_with_the_cause_and_nothing_is_made(
    daemon: Running, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    (tmp_path / "file").write_text("")
    for name, url, field in (
        ("nothing", f"file://{tmp_path}/nothing", "url"),
        ("proc", "file:///proc", "url"),
        ("full", f"file://{tmp_path}/full", "url"),
        ("file", f"file://{tmp_path}/file", "url"),
        ("bucket", "s3://nobody", "url"),
    ):
        endpoint = {"endpoint": "http://127.0.0.1:9", "accessKey": "AKIA", "secretKey": SECRETS[2]}
        fields = {"name": name, "url": url, **(endpoint if url.startswith("s3") else {})}
        refused = daemon.api("POST", "/v1/backuptargets", fields)
        assert (refused.status, refused.body["code"], refused.body["fieldName"]) == (422, "InvalidOption", field), name
        assert refused.body["message"].startswith("cannot "), refused.body
    assert listed(daemon) == ["nightly"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_share_that_cannot_be_mounted_is_refused(daemon: Running) -> None:
    fields = {"name": "share", "nfsConfig": {"server": "127.0.0.1", "share": "/x", "mountOptions": "soft,retry=0"}}
    refused = daemon.api("POST", "/v1/backuptargets", fields)
    assert (refused.status, refused.body["fieldName"]) == (422, "nfsConfig"), refused.body
    assert "nfs://127.0.0.1/x" in refused.body["message"]
    assert listed(daemon) == ["nightly"]


def test_another_passphrase_than_that_of_the_place_is_refused(daemon: Running, tmp_path: Path) -> None:
    remove(daemon, make(daemon, "sealed", tmp_path / "sealed", passphrase=SECRETS[0]))
    for given in ({"passphrase": "another"}, {}):
        refused = daemon.api("POST", "/v1/backuptargets", {"name": "x", "url": f"file://{tmp_path}/sealed", **given})
        assert (refused.status, "passphrase" in refused.body["message"]) == (422, True), refused.body
    remove(daemon, make(daemon, "sealed", tmp_path / "sealed", passphrase=SECRETS[0]))


def test_a_place_has_one_target_under_whatever_name(daemon: Running, tmp_path: Path) -> None:
    target = make(daemon, "disk", tmp_path / "disk")
    (tmp_path / "link").symlink_to("disk")
    for name in ("disk", "link"):
        refused = daemon.api("POST", "/v1/backuptargets", {"name": "other", "url": f"file://{tmp_path}/{name}"})
        assert (refused.status, refused.body["code"], refused.body["fieldName"]) == (422, "InvalidOption", "url")
        assert refused.body["message"] == "cannot create target other: its place is that of target disk"
    remove(daemon, target)
    remove(daemon, make(daemon, "other", tmp_path / "link"))


def test_lists_are_filtered_and_sorted(daemon: Running, tmp_path: Path) -> None:
    made = [make(daemon, name, tmp_path / name) for name in ("b", "a")]
    found = daemon.api("GET", "/v1/backuptargets?isConfigured=false&sort=name").body["data"]
    assert [each["name"] for each in found] == ["a", "b"]
    assert [each["name"] for each in daemon.api("GET", "/v1/backuptargets?url_like=%/b").body["data"]] == ["b"]
    for each in made:
        remove(daemon, each)


def test_a_browser_gets_the_form_of_a_target(daemon: Running) -> None:
    page = daemon.api("GET", "/v1/backuptargets?_format=html").body.decode()
    for name in ("name", "url", "nfsConfig.server", "nfsConfig.share", "passphrase"):
        assert f'name="{name}"' in page
    assert 'type="password"' in page


def test_without_a_target_a_backup_says_what_to_do(bare: Running) -> None:
    bare.api("POST", "/v1/volumes", {"name": "db", "driver": "btrfs"})
    assert bare.api("GET", "/v1/hosts/1h1").body["targetCount"] == 0
    refused = bare.api("POST", "/v1/volumes/1v1?action=backup")
    assert (refused.status, refused.body["code"], refused.body["fieldName"]) == (
        *(422, "MissingRequired", "backupTargetId"),
    )
    assert "there is no target" in refused.body["message"]


def test_of_several_targets_without_a_default_one_the_choices_are_named(bare: Running, tmp_path: Path) -> None:
    bare.api("POST", "/v1/volumes", {"name": "db", "driver": "btrfs"})
    only = make(bare, "one", tmp_path / "one")
    assert only["isDefault"]
    make(bare, "two", tmp_path / "two")
    assert [each["isDefault"] for each in bare.api("GET", "/v1/backuptargets").body["data"]] == [False, False]
    bare.api("POST", "/v1/volumes/1v1?action=snapshot", {"name": "s"})
    for path in ("volumes/1v1", "snapshots/1s1"):
        refused = bare.api("POST", f"/v1/{path}?action=backup")
        assert (refused.status, refused.body["fieldName"]) == (422, "backupTargetId")
        assert "one, two" in refused.body["message"]
    assert bare.api("GET", "/v1/backups?_removed=1").body["data"] == []


def test_a_target_whose_place_has_gone_says_so_and_its_scan_too(daemon: Running, tmp_path: Path) -> None:
    target = make(daemon, "gone", tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "away")
    (tmp_path / "gone").write_text("")
    refused = daemon.api("POST", f"/v1/backuptargets/{target['id']}?action=scan")
    assert (refused.status, refused.body["code"]) == (503, "ServiceUnavailable")
    found = daemon.api("GET", f"/v1/backuptargets/{target['id']}").body
    assert (found["health"], found["transitioning"]) == ("unavailable", "error")
    assert found["transitioningMessage"] in refused.body["message"]
    (tmp_path / "gone").unlink()
    (tmp_path / "away").rename(tmp_path / "gone")
    scanned = daemon.api("POST", f"/v1/backuptargets/{target['id']}?action=scan")
    assert (scanned.status, scanned.body["health"], scanned.body["transitioning"]) == (200, "available", "no")
    remove(daemon, target)


def test_why_an_earlier_scan_failed_is_forgotten_by_the_next(tmp_path: Path) -> None:
    store, running = database.Store(tmp_path), runner.Runner()
    store.commit(lambda write: write.put_target(target(1)))

    async def fail(_: object) -> None:
        await asyncio.sleep(0)
        raise Unusable("cannot scan target t1: nobody answers")

    async def find(_: object) -> None:
        await asyncio.sleep(0)

    service: Any = SimpleNamespace(
        store=store,
        runner=running,
        jobs=SimpleNamespace(get=lambda _: None),
        backups=SimpleNamespace(health=lambda _: (Health.AVAILABLE, None), default_target=lambda: target(1)),
    )

    async def scenario() -> list[object]:
        told = []
        for work in (fail, find):
            service.backups.scan = work
            await targets.KIND.actions["scan"](service, target(1), {})
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
            told.append(targets.KIND.show(service, target(1))["transitioningMessage"])
        await running.stop(within_s=1)
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "API_ANSWER_S", 0)
        assert asyncio.run(scenario()) == ["cannot scan target t1: nobody answers", None]
    store.close()
