"""The dialect of the Rancher v1 API: addresses, schemas, lists, errors (rancher-api 1.1 to 1.6, 2)."""

import http.client
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.running import Answer, Running, UnixConnection, scratch_config
from tests.scratch import Scratch
from voldriverd.api.rancher import filters, ids, schemas, times

pytestmark = pytest.mark.root

NAMES = ["a1", "a2", "b_1", "b-2", "c3"]
VALIDATION = 422


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        for name in NAMES:
            running.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs", "description": f"of {name}"})
        running.api("POST", "/v1/volumes/1v1/?action=snapshot", {"name": "first"})
        running.api("POST", "/v1/volumes/1v2/?action=snapshot", {"name": "other"})
        running.api("PUT", "/v1/volumes/1v3", {"protected": True, "description": None})
        yield running


def names(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [each["name"] for each in answer.body["data"]]


# Addresses


def test_the_root_leads_to_the_version_and_that_to_every_list(daemon: Running) -> None:
    root = daemon.api("GET", "/").body
    assert root["links"]["latest"] == "http://localhost/v1"
    assert [each["type"] for each in root["data"]] == ["apiVersion"]
    version = daemon.api("GET", "/v1").body
    assert (version["id"], version["type"]) == ("v1", "apiVersion")
    for link in version["links"].keys() - {"events"}:  # that one does not end
        assert daemon.api("GET", version["links"][link].removeprefix("http://localhost")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/volumes/1v1",
        "/v1/volume/1v1",
        "/v1/VOLUMES/1v1/",
        "//v1//Volumes//1v1//",
        "/V1/volume/1",
        "/v1/volumes/1v1?",
    ],
)
def test_a_resource_is_found_in_singular_or_plural_any_case_with_any_slashes(daemon: Running, path: str) -> None:
    answer = daemon.api("GET", path)
    assert (answer.status, answer.body["id"], answer.body["name"]) == (200, "1v1", "a1")


@pytest.mark.parametrize(
    "path",
    [
        *("/v2", "/v1/nothing", "/v1/volumes/1s1", "/v1/volumes/v1", "/v1/volumes/1v", "/v1/volumes/1v99999"),
        *("/v1/volumes/1v1/nothing", "/v1/volumes/1v1/snapshots/1s1", "/v1/snapshots/1v1", "/v1/mounts/1m9"),
        *(
            "/v1/storagepools/1sp99",
            "/v1/hosts/1h2",
            "/v1/schemas/nothing",
            "/v1/schemas/volume/x",
            "/v1/volumes/1v1%00",
        ),
        *("/v1/volumes/1v-1", "/v1/volumes/" + "9" * 30, "/v1/volumes/1v٣", "/v1/snapshots/1s1/snapshot"),
    ],
)
def test_what_is_not_there_is_404_with_an_error_resource(daemon: Running, path: str) -> None:
    answer = daemon.api("GET", path.replace("٣", "%D9%A3"))
    assert answer.status == 404
    assert (answer.body["type"], answer.body["status"], answer.body["code"]) == ("error", 404, "NotFound")
    assert answer.body["message"]


def test_links_and_actions_are_absolute_by_the_name_that_the_client_uses(daemon: Running) -> None:
    volume = daemon.api("GET", "/v1/volumes/1v1", headers={"Host": "box.example:8080"})
    assert volume.headers["X-API-Schemas"] == "http://box.example:8080/v1/schemas"
    assert volume.body["links"]["snapshots"] == "http://box.example:8080/v1/volumes/1v1/snapshots"
    assert volume.body["actions"]["snapshot"] == "http://box.example:8080/v1/volumes/1v1/?action=snapshot"


@pytest.mark.parametrize("host", ['evil"<>', "a b", "", "x" * 300, "h/v2"])
def test_a_host_that_is_none_does_not_get_into_urls(daemon: Running, host: str) -> None:
    assert daemon.api("GET", "/v1", headers={"Host": host}).body["links"]["self"] == "http://localhost/v1"


@pytest.mark.parametrize("separator", ["?", "/?", "//?"])
def test_an_action_works_with_and_without_a_slash_before_it(daemon: Running, separator: str) -> None:
    assert daemon.api("POST", f"/v1/volumes/1v4{separator}action=SNAPSHOT").body["type"] == "snapshot"


def test_head_is_get_without_the_body(daemon: Running) -> None:
    answer = daemon.api("HEAD", "/v1/volumes/1v1")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["X-API-Schemas"]


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/v1/volumes/1v1/snapshots", ["first"]),
        ("/v1/volumes/1v1/Snapshots/", ["first"]),
        ("/v1/volumes/1v1/mounts", []),
        ("/v1/volumes/1v1/storagepools", ["fast"]),
        ("/v1/storagepools/1sp1/volumes?name_prefix=a", ["a1", "a2"]),
    ],
)
def test_a_link_to_many_leads_to_their_list(daemon: Running, path: str, there: list[str]) -> None:
    assert names(daemon.api("GET", path)) == there


def test_a_link_to_one_leads_to_it(daemon: Running) -> None:
    assert daemon.api("GET", "/v1/snapshots/1s1/volume").body["name"] == "a1"


# Schemas


def test_each_schema_is_listed_and_found_by_its_link(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/schemas").body
    assert (listed["type"], listed["resourceType"]) == ("collection", "schema")
    assert {each["id"] for each in listed["data"]} == set(schemas.ALL)
    for each in listed["data"]:
        assert daemon.api("GET", each["links"]["self"].removeprefix("http://localhost")).body == each
        assert each["type"] == "schema"


def test_a_schema_says_what_lists_and_actions_there_are(daemon: Running) -> None:
    volume = daemon.api("GET", "/v1/schemas/Volume").body
    assert volume["links"] == {
        "self": "http://localhost/v1/schemas/volume",
        "collection": "http://localhost/v1/volumes",
    }
    assert (volume["collectionMethods"], volume["resourceMethods"]) == (["GET", "POST"], ["GET", "PUT", "DELETE"])
    assert volume["resourceActions"]["snapshot"] == {"input": "volumeSnapshotInput", "output": "snapshot"}
    assert volume["resourceActions"]["reverttosnapshot"] == {"input": "revertToSnapshotInput", "output": "volume"}
    assert volume["collectionFilters"]["name"] == {
        "modifiers": ["eq", "ne", "prefix", "like", "notlike", "null", "notnull"]
    }
    assert "driverOpts" not in volume["collectionFilters"]
    assert "collection" not in daemon.api("GET", "/v1/schemas/volumesnapshotinput").body["links"]


MARKS = [
    ("volume", "name", "string", {"create": True, "required": True, "unique": True, "maxLength": 255}),
    ("volume", "driver", "string", {"create": True, "required": True}),
    ("volume", "driverOpts", "map[string]", {"create": True, "nullable": True}),
    ("volume", "description", "string", {"create": True, "update": True, "nullable": True, "maxLength": 1024}),
    ("volume", "accessMode", "string", {"nullable": True, "maxLength": 255}),
    ("volume", "externalId", "string", {"nullable": True, "maxLength": 128}),
    ("volume", "imageId", "reference[image]", {"nullable": True}),
    ("volume", "instanceId", "reference[instance]", {"nullable": True}),
    ("volume", "isHostPath", "boolean", {"default": False}),
    ("volume", "uri", "string", {"nullable": True, "maxLength": 512}),
    ("volume", "labels", "map[string]", {"create": True, "update": True, "nullable": True, "addition": True}),
    ("snapshot", "name", "string", {"create": True, "update": True, "nullable": True, "maxLength": 255}),
    ("snapshot", "description", "string", {"create": True, "update": True, "nullable": True, "maxLength": 1024}),
    ("snapshot", "volumeId", "reference[volume]", {"create": True, "required": True}),
    ("snapshot", "managedVolumeUUID", "string", {"nullable": True}),
    ("volumeSnapshotInput", "name", "string", {"create": True, "maxLength": 255}),
    ("revertToSnapshotInput", "snapshotId", "reference[snapshot]", {"create": True, "required": True}),
    ("mount", "path", "string", {"nullable": True, "maxLength": 512}),
    ("storagePool", "driverName", "string", {"nullable": True, "maxLength": 255}),
]


@pytest.mark.parametrize(("type_", "name", "kind", "marks"), MARKS)
def test_a_field_has_the_marks_of_the_reference(
    daemon: Running, type_: str, name: str, kind: str, marks: dict[str, object]
) -> None:
    field = daemon.api("GET", f"/v1/schemas/{type_}").body["resourceFields"][name]
    assert field.pop("type") == kind
    del field["description"]
    assert field == {"create": False, "update": False, "readOnCreateOnly": False, **marks}


@pytest.mark.parametrize("schema", schemas.ALL.values(), ids=lambda schema: schema.id)
def test_no_field_bears_the_name_of_a_link_or_an_action(schema: Any) -> None:
    assert not set(schema.fields) & {*schema.links, *schema.actions, "links", "actions", "type"}


@pytest.mark.parametrize("path", ["/v1/volumes/1v1", "/v1/snapshots/1s1", "/v1/storagepools/1sp1", "/v1/hosts/1h1"])
def test_a_resource_has_the_fields_of_its_schema_and_no_others(daemon: Running, path: str) -> None:
    shown = daemon.api("GET", path).body
    known = set(daemon.api("GET", f"/v1/schemas/{shown['type']}").body["resourceFields"])
    assert {name for name in shown if not name.endswith("TS")} == known | {"type", "links", "actions"}
    assert list(shown)[:6] == ["id", "type", "links", "actions", "name", "state"]


# Lists


def test_a_list_has_the_envelope_of_a_collection(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/volumes?name=a1&limit=2").body
    assert listed.pop("data")[0]["name"] == "a1"
    known = schemas.VOLUME.filters()
    assert listed.pop("sortLinks") == {name: f"http://localhost/v1/volumes?sort={name}" for name in known}
    found = listed.pop("filters")
    assert set(found) == set(known)
    assert found["name"] == [{"modifier": "eq", "value": "a1"}]
    assert found["state"] is None
    assert listed == {
        "type": "collection",
        "resourceType": "volume",
        "links": {"self": "http://localhost/v1/volumes"},
        "createTypes": {},
        "actions": {},
        "pagination": {"first": None, "previous": None, "next": None, "limit": 2, "total": None, "partial": False},
        "sort": None,
        "createDefaults": {},
    }


def test_pages_lead_to_each_other_and_keep_the_filters(daemon: Running) -> None:
    found, path = [], "/v1/volumes?limit=2&name_ne=c3"
    for _ in range(2):
        page = daemon.api("GET", path).body
        found += [each["name"] for each in page["data"]]
        path = str(page["pagination"]["next"]).removeprefix("http://localhost")
    assert (found, path, page["pagination"]["partial"]) == (["a1", "a2", "b_1", "b-2"], "None", False)
    first = daemon.api("GET", page["pagination"]["first"].removeprefix("http://localhost"))
    assert names(first) == names(daemon.api("GET", page["pagination"]["previous"].removeprefix("http://localhost")))
    assert first.body["pagination"]["partial"] is True


@pytest.mark.parametrize(
    ("query", "limit"),
    [("", 100), ("limit=0", 3000), ("limit=-1", 3000), ("limit=9999", 3000), ("limit=x", 100), ("limit=-", 100)],
)
def test_the_limit_is_rancher_s(daemon: Running, query: str, limit: int) -> None:
    assert daemon.api("GET", f"/v1/volumes?{query}").body["pagination"]["limit"] == limit


@pytest.mark.parametrize("marker", ["x", "m", "mm1", "m-1", "", "m" + "9" * 40])
def test_a_marker_that_is_none_begins_at_the_start(daemon: Running, marker: str) -> None:
    assert names(daemon.api("GET", f"/v1/volumes?marker={marker}"))[0] == "a1"


FILTERS = [
    ("name=a1", ["a1"]),
    ("name_eq=a1", ["a1"]),
    ("name=nothing", []),
    ("name=A1", []),
    ("name_ne=a1", ["a2", "b_1", "b-2", "c3"]),
    ("name_prefix=b", ["b_1", "b-2"]),
    ("name_like=%251", ["a1", "b_1"]),
    ("name_like=b_2", ["b-2"]),
    ("name_like=%25", NAMES),
    ("name_notlike=%251", ["a2", "b-2", "c3"]),
    ("name_prefix=a&name_ne=a1", ["a2"]),
    ("name_prefix=a&name_prefix=b", []),
    ("name=a1&name=a2", []),
    ("description_null=", ["b_1"]),
    ("description_notnull=1", ["a1", "a2", "b-2", "c3"]),
    ("protected=true", ["b_1"]),
    ("protected=false&name_prefix=b", ["b-2"]),
    ("protected=maybe", []),
    ("id=1v2", ["a2"]),
    ("id=2", ["a2"]),
    ("id=1s2", []),
    ("id_ne=1v2&name_prefix=a", ["a1"]),
    ("storagePoolId=1sp1&name=a1", ["a1"]),
    ("storagePoolId=1v1", []),
    ("state=inactive&name=a1", ["a1"]),
    ("state_ne=inactive", []),
    ("snapshotCount_gt=0&name_prefix=a", ["a1", "a2"]),
    ("snapshotCount_gte=1&snapshotCount_lt=2&name_prefix=a", ["a1", "a2"]),
    ("snapshotCount_lte=0", ["b_1", "c3"]),
    ("snapshotCount=x", []),
    ("created_gt=2020-01-01T00:00:00Z&created_lt=2100-01-01&name=a1", ["a1"]),
    ("created_lt=2020-01-01T00:00:00Z", []),
    ("created_gt=1577836800000&name=a1", ["a1"]),
    ("created_gt=yesterday", []),
    ("removed_null=1", NAMES),
    ("removed_notnull=1", []),
    ("nothing=1&name_frob=2&name_=3", NAMES),
    ("driverOpts=1", NAMES),
    ("accountId=1a1&name=a1", ["a1"]),
]


@pytest.mark.parametrize(("query", "found"), FILTERS)
def test_a_filter_finds(daemon: Running, query: str, found: list[str]) -> None:
    assert [name for name in names(daemon.api("GET", f"/v1/volumes?{query}")) if name in NAMES] == found


def test_snapshots_are_filtered_by_their_volume(daemon: Running) -> None:
    assert names(daemon.api("GET", "/v1/snapshots?volumeId=1v1")) == ["first"]
    assert names(daemon.api("GET", "/v1/snapshots?volumeId=2")) == ["other"]
    assert names(daemon.api("GET", "/v1/snapshots?volumeId=nothing")) == []
    assert names(daemon.api("GET", "/v1/snapshots?volumeId=1v99")) == []


def test_a_list_is_sorted_either_way_and_ties_by_id(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/volumes?sort=name&order=desc")
    assert names(listed) == sorted(NAMES, reverse=True)
    assert listed.body["sort"] == {
        "name": "name",
        "order": "desc",
        "reverse": "http://localhost/v1/volumes?sort=name&order=asc",
    }
    by_description = names(daemon.api("GET", "/v1/volumes?sort=description&order=asc"))
    assert by_description == ["b_1", "a1", "a2", "b-2", "c3"]
    assert names(daemon.api("GET", "/v1/volumes?sort=protected")) == ["a1", "a2", "b-2", "c3", "b_1"]
    assert daemon.api("GET", "/v1/volumes?sort=nothing").body["sort"] is None


@pytest.mark.parametrize(
    ("text", "pattern", "is_like"),
    [("a.c", "a.c", True), ("abc", "a.c", False), ("abc", "a_c", True), ("a\nc", "a%c", True), ("", "%%", True)],
)
def test_like_is_that_of_sql(text: str, pattern: str, *, is_like: bool) -> None:
    assert filters._is_like(text, pattern) is is_like


def test_like_takes_no_longer_for_a_hostile_pattern() -> None:
    assert not filters._is_like("a" * 1_000, "%a" * 500 + "%b")


# Errors


BAD = [
    ("POST", "/v1/volumes", {"name": "x1"}, VALIDATION, "MissingRequired", "driver"),
    ("POST", "/v1/volumes", {"driver": "btrfs"}, VALIDATION, "MissingRequired", "name"),
    ("POST", "/v1/volumes", {"name": None, "driver": "btrfs"}, VALIDATION, "NotNullable", "name"),
    ("POST", "/v1/volumes", {"name": "a1", "driver": "btrfs"}, VALIDATION, "NotUnique", "name"),
    ("POST", "/v1/volumes", {"name": "", "driver": "btrfs"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/volumes", {"name": "a b", "driver": "btrfs"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/volumes", {"name": "\ud800", "driver": "btrfs"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/volumes", {"name": "x" * 256, "driver": "btrfs"}, VALIDATION, "MaxLengthExceeded", "name"),
    ("POST", "/v1/volumes", {"name": ["x"], "driver": "btrfs"}, VALIDATION, "InvalidFormat", "name"),
    ("POST", "/v1/volumes", {"name": "x", "driver": "zfs"}, VALIDATION, "InvalidOption", "driver"),
    ("POST", "/v1/volumes", {"name": "x", "driver": {}}, VALIDATION, "InvalidFormat", "driver"),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"sise": "1"}}),
        *(VALIDATION, "InvalidOption", "driverOpts"),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"size": "much"}}),
        *(VALIDATION, "InvalidOption", "size"),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"driver": "loop"}}),
        *(VALIDATION, "InvalidOption", "driver"),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "loop", "driverOpts": {"pool": "fast"}}),
        *(VALIDATION, "InvalidOption", "driver"),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"pool": "none"}}),
        *(VALIDATION, "InvalidOption", "driverOpts"),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"size": ["1"]}}),
        *(VALIDATION, "InvalidFormat", "driverOpts.size"),
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driver": "btrfs", "driverOpts": "x"},
        VALIDATION,
        "InvalidFormat",
        "driverOpts",
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "directory", "driverOpts": {"size": "1G"}}),
        *(VALIDATION, "Unsupported", None),
    ),
    (
        *("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"from": "none"}}),
        *(404, "NotFound", None),
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driver": "btrfs", "labels": {"": "1"}},
        VALIDATION,
        "InvalidOption",
        "labels",
    ),
    ("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "labels": [1]}, VALIDATION, "InvalidFormat", "labels"),
    (
        *(
            "POST",
            "/v1/volumes",
            {"name": "x", "driver": "btrfs", "labels": {"a": "1"}, "driverOpts": {"label.a": "2"}},
        ),
        *(VALIDATION, "InvalidOption", "labels"),
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driver": "btrfs", "protected": "perhaps"},
        VALIDATION,
        "InvalidFormat",
        "protected",
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driver": "btrfs", "description": "x" * 1025},
        VALIDATION,
        "MaxLengthExceeded",
        "description",
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driver": "btrfs", "description": "a\0b"},
        VALIDATION,
        "InvalidCharacters",
        "description",
    ),
    ("PUT", "/v1/volumes/1v1", {"protected": None}, VALIDATION, "NotNullable", "protected"),
    ("PUT", "/v1/volumes/1v1", {"labels": {"a\nb": "1"}}, VALIDATION, "InvalidOption", "labels"),
    ("POST", "/v1/volumes/1v1?action=frob", {}, VALIDATION, "InvalidAction", "action"),
    ("POST", "/v1/volumes/1v1?action=", {}, VALIDATION, "InvalidAction", "action"),
    ("POST", "/v1/volumes/1v1?action=restore", {}, VALIDATION, "ActionNotAvailable", "action"),
    ("POST", "/v1/volumes/1v1?action=purge", {}, VALIDATION, "ActionNotAvailable", "action"),
    ("POST", "/v1/volumes/1v1?action=deactivate", {}, VALIDATION, "ActionNotAvailable", "action"),
    ("POST", "/v1/volumes/1v99?action=frob", {}, 404, "NotFound", None),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"name": "first"}, VALIDATION, "NotUnique", "name"),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"name": "a@b"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"name": None}, VALIDATION, "NotNullable", "name"),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"expires": "soon"}, VALIDATION, "InvalidDateFormat", "expires"),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"expires": True}, VALIDATION, "InvalidDateFormat", "expires"),
    ("POST", "/v1/volumes/1v1?action=snapshot", {"expires": "2020-01-01"}, VALIDATION, "InvalidOption", "expires"),
    ("POST", "/v1/volumes/1v1?action=reverttosnapshot", {}, VALIDATION, "MissingRequired", "snapshotId"),
    (
        "POST",
        "/v1/volumes/1v1?action=reverttosnapshot",
        {"snapshotId": "x"},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    (
        "POST",
        "/v1/volumes/1v1?action=reverttosnapshot",
        {"snapshotId": [1]},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    (
        "POST",
        "/v1/volumes/1v1?action=reverttosnapshot",
        {"snapshotId": "1v1"},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    (
        "POST",
        "/v1/volumes/1v1?action=reverttosnapshot",
        {"snapshotId": "1s99"},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    (
        "POST",
        "/v1/volumes/1v1?action=reverttosnapshot",
        {"snapshotId": "1s2"},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    ("POST", "/v1/volumes/1v1?action=clone", {"name": "a2"}, VALIDATION, "NotUnique", "name"),
    ("POST", "/v1/volumes/1v1?action=clone", {}, VALIDATION, "MissingRequired", "name"),
    (
        "POST",
        "/v1/volumes/1v1?action=clone",
        {"name": "x", "snapshotId": "1s2"},
        VALIDATION,
        "InvalidReference",
        "snapshotId",
    ),
    ("POST", "/v1/volumes/1v1?action=clone", {"name": "x", "size": "wide"}, VALIDATION, "InvalidOption", "size"),
    ("POST", "/v1/volumes/1v1?action=resize", {"size": "1"}, VALIDATION, "InvalidOption", "size"),
    ("POST", "/v1/volumes/1v1?action=resize", {}, VALIDATION, "MissingRequired", "size"),
    ("POST", "/v1/snapshots", {"name": "x"}, VALIDATION, "MissingRequired", "volumeId"),
    ("POST", "/v1/snapshots", {"volumeId": "1v99"}, VALIDATION, "InvalidReference", "volumeId"),
    ("POST", "/v1/snapshots", {"volumeId": True}, VALIDATION, "InvalidReference", "volumeId"),
    ("PUT", "/v1/snapshots/1s1", {"name": "not a name"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/snapshots/1s1?action=backup", {}, VALIDATION, "MissingRequired", "backupTargetId"),
    (
        "POST",
        "/v1/snapshots/1s1?action=backup",
        {"backupTargetId": "1bt9"},
        VALIDATION,
        "InvalidReference",
        "backupTargetId",
    ),
    ("POST", "/v1/volumes/1v1?action=backup", {}, VALIDATION, "MissingRequired", "backupTargetId"),
    ("POST", "/v1/volumes/1v1?action=backup", {"name": "a\nb"}, VALIDATION, "InvalidCharacters", "name"),
    ("POST", "/v1/volumes/1v1?action=restorefrombackup", {}, VALIDATION, "MissingRequired", "backupId"),
    (
        "POST",
        "/v1/volumes/1v1?action=restorefrombackup",
        {"backupId": "1b9"},
        VALIDATION,
        "InvalidReference",
        "backupId",
    ),
    ("POST", "/v1/volumes/1v1?action=cancel", {}, VALIDATION, "ActionNotAvailable", "action"),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driverOpts": {"from": "backup:1b9"}},
        VALIDATION,
        "InvalidReference",
        "driverOpts",
    ),
    (
        "POST",
        "/v1/volumes",
        {"name": "x", "driverOpts": {"from": "backup:it"}},
        VALIDATION,
        "InvalidReference",
        "driverOpts",
    ),
    ("GET", "/v1/backups/1b1", None, 404, "NotFound", None),
    ("DELETE", "/v1/backups/1b1", None, 404, "NotFound", None),
    ("POST", "/v1/backups", {}, 405, "MethodNotAllowed", None),
    ("GET", "/v1/backuptargets/1bt1", None, 404, "NotFound", None),
    ("POST", "/v1/storagepools/1sp1?action=grow", {"size": "1T"}, VALIDATION, "ActionNotAvailable", "action"),
    ("POST", "/v1/hosts/1h1?action=evacuate", {}, VALIDATION, "InvalidAction", "action"),
    ("GET", "/v1/snapshots/1s1/difference?to=1s2", None, VALIDATION, "InvalidReference", "to"),
    ("GET", "/v1/snapshots/1s1/difference?to=x", None, VALIDATION, "InvalidReference", "to"),
    ("GET", "/v1/snapshots/1s1/archive?path=none", None, 404, "NotFound", None),
    ("GET", "/v1/snapshots/1s1/archive?path=../x", None, VALIDATION, "InvalidOption", "path"),
    ("POST", "/v1/volumes/1v1", {}, 405, "MethodNotAllowed", None),
    ("PATCH", "/v1/volumes/1v1", {}, 405, "MethodNotAllowed", None),
    ("PUT", "/v1/volumes", {}, 405, "MethodNotAllowed", None),
    ("DELETE", "/v1/volumes", None, 405, "MethodNotAllowed", None),
    ("POST", "/v1", {}, 405, "MethodNotAllowed", None),
    ("POST", "/v1/schemas", {}, 405, "MethodNotAllowed", None),
    ("DELETE", "/v1/storagepools/1sp1", None, 405, "MethodNotAllowed", None),
    ("PUT", "/v1/storagepools/1sp1", {}, 405, "MethodNotAllowed", None),
    ("POST", "/v1/storagepools", {}, 405, "MethodNotAllowed", None),
    ("DELETE", "/v1/mounts/1m1", None, 404, "NotFound", None),
    ("POST", "/v1/volumes/1v1/mounts", {}, 405, "MethodNotAllowed", None),
    ("DELETE", "/v1/snapshots/1s1/difference", None, 405, "MethodNotAllowed", None),
    ("POST", "/v1/volumes", b"{", 400, "InvalidBodyContent", None),
    ("POST", "/v1/volumes", b"[1]", 400, "InvalidBodyContent", None),
    ("POST", "/v1/volumes", b"\xff\xfe{", 400, "InvalidBodyContent", None),
    ("POST", "/v1/volumes", b"[" * 100_000, 400, "InvalidBodyContent", None),
    ("PUT", "/v1/volumes/1v1", b"nonsense", 400, "InvalidBodyContent", None),
    ("POST", "/v1/volumes/1v1?action=snapshot", b"'x'", 400, "InvalidBodyContent", None),
    ("POST", "/v1/volumes", b" " * (10 << 20), 413, "RequestEntityTooLarge", None),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code", "field"), BAD)
def test_a_bad_request_is_an_error_resource_and_changes_nothing(
    daemon: Running, method: str, path: str, body: object, status: int, code: str, field: str | None
) -> None:
    before = names(daemon.api("GET", "/v1/volumes")), names(daemon.api("GET", "/v1/snapshots"))
    answer = daemon.api(method, path, body)
    error = answer.body
    assert (answer.status, error["status"], error["code"]) == (status, status, code), error
    assert error.get("fieldName") == field
    assert (error["type"], error["links"], error["actions"], error["detail"]) == ("error", {}, {}, None)
    assert error["id"]
    assert "\n" not in error["message"]
    assert answer.headers["X-API-Schemas"] == "http://localhost/v1/schemas"
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (names(daemon.api("GET", "/v1/volumes")), names(daemon.api("GET", "/v1/snapshots"))) == before


@pytest.mark.parametrize(
    ("method", "path", "body", "texts"),
    [
        ("POST", "/v1/volumes", {"name": "x", "driver": "zfs"}, ["zfs", "btrfs, directory, loop"]),
        ("POST", "/v1/volumes", {"name": "x", "driver": "btrfs", "driverOpts": {"sise": "7"}}, ["sise", "7", "size"]),
        ("POST", "/v1/volumes", {"name": "a1", "driver": "btrfs"}, ["a1", "exists"]),
        ("DELETE", "/v1/storagepools/1sp1", None, ["configuration file"]),
        ("POST", "/v1/volumes/1v1?action=frob", None, ["frob", "snapshot, reverttosnapshot"]),
        ("POST", "/v1/volumes/1v1?action=purge", None, ["cannot purge volume a1", "remove it first"]),
        ("POST", "/v1/storagepools/1sp1?action=grow", {"size": "1T"}, ["cannot grow pool fast", "not ours"]),
        ("DELETE", "/v1/volumes/1v3", None, ["b_1", "protected", "--no-protected"]),
        ("GET", "/v1/nothing", None, ["nothing", "volume"]),
    ],
)
def test_the_message_says_what_is_wrong_and_what_would_be_right(
    daemon: Running, method: str, path: str, body: object, texts: list[str]
) -> None:
    message = daemon.api(method, path, body).body["message"]
    assert [text for text in texts if text not in message] == [], message


@pytest.mark.parametrize(
    "raw",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"POST /v1/volumes HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_in_json_too(daemon: Running, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.api_socket))
        client.sendall(raw)
        response = http.client.HTTPResponse(client)
        response.begin()
        error = json.loads(response.read())
        response.close()
    assert (error["type"], error["status"]) == ("error", response.status)
    assert 400 <= response.status < 500
    assert response.headers["X-API-Schemas"]


def test_the_plugin_too_refuses_what_is_no_request_in_its_own_words(daemon: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.plugin_socket))
        client.sendall(b"NONSENSE\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert json.loads(response.read())["Err"]
        response.close()


def test_a_client_that_goes_in_the_middle_of_its_body_disturbs_nobody(daemon: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.api_socket))
        client.sendall(b"POST /v1/volumes HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
    assert names(daemon.api("GET", "/v1/volumes?name=a1")) == ["a1"]
    assert "internal error" not in daemon.log


def test_the_content_type_of_a_request_is_ignored(daemon: Running) -> None:
    answer = daemon.api("PUT", "/v1/volumes/1v1", b'{"description": "of a1"}', headers={"Content-Type": "text/csv"})
    assert (answer.status, answer.body["description"]) == (200, "of a1")


def test_unknown_fields_are_dropped_and_numbers_become_text(daemon: Running) -> None:
    changed = daemon.api("PUT", "/v1/volumes/1v1", {"name": "other", "id": "1v9", "frob": 1, "description": 5})
    assert (changed.body["id"], changed.body["name"], changed.body["description"]) == ("1v1", "a1", "5")
    daemon.api("PUT", "/v1/volumes/1v1", {"description": "of a1"})


# Ids and times


def test_ids_are_read_as_they_are_written() -> None:
    assert ids.show(schemas.VOLUME, 5) == "1v5"
    assert [ids.parse(schemas.STORAGE_POOL, text) for text in ("1sp7", "7", "1s7", "sp7", "1sp", "")] == [
        *(7, 7, None, None, None, None)
    ]
    assert ids.parse(schemas.ALL["volumeSnapshotInput"], "7") is None


def test_times_are_whole_seconds_with_milliseconds_beside_them(daemon: Running) -> None:
    volume = daemon.api("GET", "/v1/volumes/1v1").body
    assert (
        datetime.strptime(volume["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp() * 1000
        == (volume["createdTS"])
    )
    assert volume["removed"] is None
    assert "removedTS" not in volume


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2024-05-06T07:08:09Z", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024-05-06T09:08:09+02:00", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024-05-06", datetime(2024, 5, 6, tzinfo=UTC)),
        (1715000000000, datetime(2024, 5, 6, 12, 53, 20, tzinfo=UTC)),
        ("1715000000000", datetime(2024, 5, 6, 12, 53, 20, tzinfo=UTC)),
        ("", None),
        ("x", None),
        (True, None),
        (1.5, None),
        (10**30, None),
        ("9999-12-31T23:59:59-23:00", None),
    ],
)
def test_times_are_read_as_iso_dates_or_milliseconds(value: object, time: datetime | None) -> None:
    assert times.parse(value) == time


# Whatever comes


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    ["name", "driver", "driverOpts", "description", "labels", "protected", "volumeId", "snapshotId", "size", "expires"]
)
_PATHS = st.sampled_from(
    [
        *("/v1/volumes", "/v1/snapshots", "/v1/volumes/1v1", "/v1/snapshots/1s1", "/v1/storagepools/1sp1?action=grow"),
        *(f"/v1/volumes/1v1?action={action}" for action in ("snapshot", "clone", "resize", "reverttosnapshot")),
    ]
)


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(["POST", "PUT"]), path=_PATHS, body=st.dictionaries(_FIELDS, _VALUES, max_size=4))
def test_no_body_makes_an_internal_error(daemon: Running, method: str, path: str, body: dict[str, object]) -> None:
    answer = daemon.api(method, path, body)
    assert answer.status < 500, answer.body
    assert answer.body["type"]


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60))
def test_no_address_makes_an_internal_error(daemon: Running, raw: bytes) -> None:
    path = "/v1/volumes?" + "".join(f"%{byte:02x}" if byte % 3 else chr(0x21 + byte % 90) for byte in raw)
    connection = UnixConnection(daemon.api_socket)
    connection.putrequest("GET", path.replace(" ", "+"))
    connection.endheaders()
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    assert response.status < 500, body
