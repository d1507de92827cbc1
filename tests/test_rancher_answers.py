"""How the API answers: include, child links, forms, `_method`, ETag, gzip, proxies, long addresses (rancher-api 1)."""

import gzip
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.running import Answer, Running, UnixConnection, scratch_config
from tests.scratch import Scratch
from voldriverd.api.rancher import answers, body

pytestmark = pytest.mark.root

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BASE = "http://localhost/v1"


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        for name in ("a1", "a2", "b1"):
            running.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"})
        for volume, name in ((1, "one"), (1, "two"), (2, "three")):
            running.api("POST", f"/v1/volumes/1v{volume}/?action=snapshot", {"name": name})
        yield running


def names(found: list[dict[str, str]]) -> list[str]:
    return [each["name"] for each in found]


# include


def test_a_link_to_many_is_included_as_a_list_in_place_of_the_link(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/volumes?include=Snapshots&name_prefix=a").body["data"]
    assert {each["name"]: names(each["snapshots"]) for each in listed} == {"a1": ["one", "two"], "a2": ["three"]}
    assert all("snapshots" not in each["links"] and "mounts" in each["links"] for each in listed)
    snapshot = listed[0]["snapshots"][0]
    assert snapshot == daemon.api("GET", f"/v1/snapshots/{snapshot['id']}").body


def test_what_has_none_of_the_included_has_an_empty_list(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/volumes?include=snapshots&sort=name&order=desc").body["data"]
    assert [(each["name"], names(each["snapshots"])) for each in listed] == [
        *(("b1", []), ("a2", ["three"]), ("a1", ["one", "two"])),
    ]


def test_a_link_to_one_is_included_as_an_object(daemon: Running) -> None:
    listed = daemon.api("GET", "/v1/snapshots?include=volume&limit=2").body
    assert [each["volume"]["name"] for each in listed["data"]] == ["a1", "a1"]
    assert "include=volume" in listed["pagination"]["next"]
    found = daemon.api("GET", "/v1/snapshots/1s3?include=volume").body
    assert (found["volume"]["name"], found["links"].get("volume")) == ("a2", None)


def test_several_links_are_included_and_unknown_ones_ignored(daemon: Running) -> None:
    found = daemon.api("GET", "/v1/volumes/1v1?include=storagepools&include=backups&include=frobs").body
    assert (names(found["storagepools"]), found["backups"], "frobs" in found) == (["fast"], [], False)


def test_what_is_below_a_link_is_included_too(daemon: Running) -> None:
    found = daemon.api("GET", "/v1/storagepools/1sp1/volumes?name=a1&include=snapshots").body["data"]
    assert names(found[0]["snapshots"]) == ["one", "two"]


# Child links


def test_a_child_link_says_what_a_creation_there_begins_with(daemon: Running) -> None:
    assert daemon.api("GET", "/v1/volumes/1v2/snapshots").body["createDefaults"] == {"volumeId": "1v2"}
    assert daemon.api("GET", "/v1/volumes/1v2/mounts").body["createDefaults"] == {}
    assert daemon.api("GET", "/v1/storagepools/1sp1/volumes").body["createDefaults"] == {}


def test_a_post_to_a_child_link_creates_there_whatever_the_body_says(daemon: Running) -> None:
    made = daemon.api("POST", "/v1/volumes/1v3/snapshots", {"name": "below", "volumeId": "1v1"})
    assert (made.status, made.body["type"], made.body["volumeId"]) == (201, "snapshot", "1v3")
    assert made.headers["Location"] == f"{BASE}/snapshots/{made.body['id']}"
    assert daemon.api("DELETE", f"/v1/snapshots/{made.body['id']}").status == 200


@pytest.mark.parametrize("path", ["/v1/volumes/1v1/backups", "/v1/volumes/1v1/mounts", "/v1/snapshots/1s1/volume"])
def test_a_post_to_another_link_is_405(daemon: Running, path: str) -> None:
    assert daemon.api("POST", path, {}).status == 405


# Methods and bodies


def test_a_post_may_say_which_method_it_stands_for(daemon: Running) -> None:
    made = daemon.api("POST", "/v1/volumes", {"name": "m1", "driver": "btrfs"}).body
    path = f"/v1/volumes/{made['id']}"
    assert daemon.api("POST", f"{path}?_method=put", {"description": "new"}).body["description"] == "new"
    assert daemon.api("POST", f"{path}?_method=GET").body["description"] == "new"
    assert daemon.api("POST", f"{path}?_method=DELETE").body["state"] == "removed"


@pytest.mark.parametrize(
    ("method", "wanted"), [("GET", "DELETE"), ("PUT", "DELETE"), ("POST", "FROB"), ("GET", "POST")]
)
def test_no_other_method_may(daemon: Running, method: str, wanted: str) -> None:
    assert daemon.api(method, f"/v1/volumes/1v3?_method={wanted}").status == 405
    assert daemon.api("GET", "/v1/volumes/1v3").body["state"] == "inactive"


def test_a_form_creates_and_acts(daemon: Running) -> None:
    given = urlencode({"name": "f1", "driver": "btrfs", "labels.tier": "db", "protected": "true", "description": ""})
    made = daemon.api("POST", "/v1/volumes", given.encode(), headers=FORM)
    assert (made.status, made.body["labels"], made.body["protected"], made.body["description"]) == (
        *(201, {"tier": "db"}, True, None),
    )
    snapshot = daemon.api("POST", f"/v1/volumes/{made.body['id']}?action=snapshot", b"name=x", headers=FORM)
    assert snapshot.body["name"] == "x"


def test_a_body_that_begins_with_a_brace_is_json_whatever_it_is_called(daemon: Running) -> None:
    answer = daemon.api("PUT", "/v1/volumes/1v3", b' {"description": "curl -d"}', headers=FORM)
    assert answer.body["description"] == "curl -d"


def test_a_multipart_form_is_read(daemon: Running) -> None:
    lines = ["--X", 'Content-Disposition: form-data; name="description"', "", "a b\u00e9", "--X--", ""]
    headers = {"Content-Type": "multipart/form-data; boundary=X"}
    answer = daemon.api("PUT", "/v1/volumes/1v3", "\r\n".join(lines).encode(), headers=headers)
    assert answer.body["description"] == "a b\u00e9"
    big = daemon.api("PUT", "/v1/volumes/1v3", b"--X" + b"x" * body.MULTIPART_MAX_BYTES, headers=headers)
    assert big.status == 413
    assert daemon.api("PUT", "/v1/volumes/1v3", b"nonsense", headers=headers).status == 200


@pytest.mark.parametrize("raw", [b"\xff=1", b"&".join([b"a=1"] * (body.FORM_FIELDS_MAX + 1))])
def test_a_form_that_is_none_is_400(daemon: Running, raw: bytes) -> None:
    answer = daemon.api("POST", "/v1/volumes", raw, headers=FORM)
    assert (answer.status, answer.body["code"]) == (400, "InvalidBodyContent")


# ETag and gzip


def test_who_has_an_answer_already_is_told_so(daemon: Running) -> None:
    first = daemon.api("GET", "/v1/volumes/1v1")
    tag = first.headers["ETag"]
    for wanted in (tag, f'"other", {tag}', "*", tag.removeprefix("W/")):
        again = daemon.api("GET", "/v1/volumes/1v1", headers={"If-None-Match": wanted})
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
        assert again.headers["X-API-Schemas"] == f"{BASE}/schemas"
    assert daemon.api("HEAD", "/v1/volumes/1v1", headers={"If-None-Match": tag}).status == 304


def test_what_has_changed_is_sent_anew(daemon: Running) -> None:
    tag = daemon.api("GET", "/v1/volumes/1v1").headers["ETag"]
    daemon.api("PUT", "/v1/volumes/1v1", {"description": "changed"})
    answer = daemon.api("GET", "/v1/volumes/1v1", headers={"If-None-Match": tag})
    assert (answer.status, answer.body["description"]) == (200, "changed")
    assert answer.headers["ETag"] != tag


def test_a_change_is_answered_in_full_whatever_the_client_has(daemon: Running) -> None:
    answer = daemon.api("PUT", "/v1/volumes/1v1", {"description": "x"}, headers={"If-None-Match": "*"})
    assert (answer.status, "ETag" in answer.headers) == (200, False)


def test_long_answers_are_compressed_for_who_asks(daemon: Running) -> None:
    plain = daemon.api("GET", "/v1/schemas")
    packed = _raw(daemon, "/v1/schemas", "deflate, gzip;q=0.5")
    assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert json.loads(gzip.decompress(packed.body)) == plain.body
    assert len(packed.body) < int(plain.headers["Content-Length"]) / 4
    assert packed.headers["ETag"] == plain.headers["ETag"]


@pytest.mark.parametrize(
    ("path", "accepted"), [("/v1/schemas", "deflate"), ("/v1/schemas", "gzip;q=0"), ("/v1/volumes/1v1", "gzip")]
)
def test_other_answers_are_not(daemon: Running, path: str, accepted: str) -> None:
    assert "Content-Encoding" not in daemon.api("GET", path, headers={"Accept-Encoding": accepted}).headers


def _raw(daemon: Running, path: str, accepted: str) -> Answer:
    """Ask without unpacking."""
    connection = UnixConnection(daemon.api_socket)
    connection.request("GET", path, headers={"Accept-Encoding": accepted})
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


def test_what_is_the_same_again_is_not_written_again_and_only_so_much_is_kept() -> None:
    def resource(number: int, **fields: object) -> dict[str, object]:
        return {"links": {"self": f"/{number}"}, **fields}

    written = answers.Written()
    first = written.write(resource(0, a=1))
    assert written.write(resource(0, a=1)) is first
    assert json.loads(written.write(resource(0, a=2))) == resource(0, a=2)
    long = resource(0, a="x" * answers.WRITTEN_MAX_BYTES)
    assert written.write(long) is not written.write(long)
    kept = [written.write(resource(number)) for number in range(answers.WRITTEN_MAX + 1)]
    assert written.write(resource(0)) is not kept[0]
    assert written.write(resource(answers.WRITTEN_MAX)) is kept[-1]


# Behind a proxy


class Transport:
    def __init__(self, peer: object) -> None:
        self._peer = peer

    def get_extra_info(self, _name: str) -> object:
        return self._peer


HERE, THERE, SOCKET = ("127.0.0.1", 5), ("192.0.2.7", 5), ""


@pytest.mark.parametrize(
    ("peer", "headers", "base"),
    [
        (SOCKET, {}, "http://box:9580"),
        (SOCKET, {"Proto": "https"}, "https://box:9580"),
        (HERE, {"Proto": "https", "Host": "api.example"}, "https://api.example"),
        (HERE, {"Proto": "https", "Host": "api.example", "Port": "443"}, "https://api.example"),
        (HERE, {"Host": "api.example:8443, other"}, "http://api.example:8443"),
        (HERE, {"Host": "api.example:80"}, "http://api.example"),
        (HERE, {"Host": "api.example", "Port": "8080"}, "http://api.example:8080"),
        (HERE, {"Proto": "HTTPS, http", "Host": "[2001:db8::1]:9580"}, "https://[2001:db8::1]:9580"),
        (("::1", 5, 0, 0), {"Host": "api.example"}, "http://api.example"),
        (("::ffff:127.0.0.1", 5, 0, 0), {"Host": "api.example"}, "http://api.example"),
        (("fe80::1%eth0", 5, 0, 0), {"Host": "api.example"}, "http://box:9580"),
        (THERE, {"Proto": "https", "Host": "evil.example"}, "http://box:9580"),
        (HERE, {"Proto": "gopher", "Host": 'a"b<', "Port": "x"}, "http://box:9580"),
        (HERE, {"Host": ":::"}, "http://:::"),
    ],
)
def test_links_begin_as_a_proxy_that_can_be_trusted_says(peer: object, headers: dict[str, str], base: str) -> None:
    given = {"Host": "box:9580"} | {f"X-Forwarded-{name}": value for name, value in headers.items()}
    request: Any = SimpleNamespace(scheme="http", headers=given, transport=Transport(peer))
    assert answers.base(request) == f"{base}/v1"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:1234, 10.0.0.1", "192.0.2.1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("nonsense", None),
        ("", None),
    ],
)
def test_the_client_s_address_is_told_without_its_port(daemon: Running, given: str, shown: str | None) -> None:
    answer = daemon.api("GET", "/v1", headers={"X-Forwarded-For": given})
    assert answer.headers["X-API-Client-IP"] == shown


# Whatever else a client may ask


@pytest.mark.parametrize("ask", [{"headers": {"X-API-Action-Links": "1"}}, {"query": "?_actionLinks=true"}])
def test_actions_come_under_the_name_that_is_asked_for(daemon: Running, ask: dict[str, Any]) -> None:
    found = daemon.api("GET", f"/v1/volumes/1v1{ask.get('query', '')}", headers=ask.get("headers")).body
    assert "actions" not in found
    assert found["actionLinks"]["snapshot"] == f"{BASE}/volumes/1v1/?action=snapshot"


@pytest.mark.parametrize("letters", [2_048, 8_192, 15_872])
def test_long_addresses_are_read(daemon: Running, letters: int) -> None:
    answer = daemon.api("GET", f"/v1/volumes?name={'x' * letters}")
    assert (answer.status, answer.body["data"]) == (200, [])
    assert answer.body["filters"]["name"] == [{"modifier": "eq", "value": "x" * letters}]


def test_what_is_removed_is_listed_for_who_asks(daemon: Running) -> None:
    made = daemon.api("POST", "/v1/volumes", {"name": "gone", "driver": "btrfs"}).body
    daemon.api("DELETE", f"/v1/volumes/{made['id']}")
    assert daemon.api("GET", "/v1/volumes?name=gone").body["data"] == []
    assert names(daemon.api("GET", "/v1/volumes?name=gone&_removed=1").body["data"]) == ["gone"]


def test_numbers_of_ids_are_sorted_and_compared_as_numbers(daemon: Running) -> None:
    for number in range(10):
        daemon.api("POST", "/v1/volumes/1v3/snapshots", {"name": f"n{number}"})
    ids = [each["id"] for each in daemon.api("GET", "/v1/snapshots?sort=id").body["data"]]
    assert ids == sorted(ids, key=lambda each: int(each.removeprefix("1s")))
    assert {int(each.removeprefix("1s")) > 9 for each in ids} == {True, False}
    volumes = daemon.api("GET", "/v1/volumes?id_gte=1v2&id_lt=3").body["data"]
    assert [each["id"] for each in volumes] == ["1v2"]


# The methods and fields of each type, as a project's key saw them (rancher-api 2)


METHODS = {
    "volume": ("GET POST", "GET PUT DELETE"),  # PUT is ours: v1 had none
    "snapshot": ("GET POST", "GET PUT DELETE"),  # both eras together, and PUT
    "backup": ("GET", "GET DELETE"),
    "backupTarget": ("GET POST", "GET DELETE"),
    "nfsConfig": ("", "GET"),
    "storagePool": ("GET", "GET"),
    "mount": ("GET", "GET"),
    "host": ("GET", "GET"),
    "schema": ("GET", "GET"),
    "error": ("", ""),
    "volumeSnapshotInput": ("", "GET"),
    "revertToSnapshotInput": ("", "GET"),
    "restoreFromBackupInput": ("", "GET"),
    "snapshotBackupInput": ("", "GET"),
}


@pytest.mark.parametrize(("type_", "methods"), METHODS.items())
def test_a_type_has_the_methods_of_the_reference(daemon: Running, type_: str, methods: tuple[str, str]) -> None:
    schema = daemon.api("GET", f"/v1/schemas/{type_}").body
    assert (" ".join(schema["collectionMethods"]), " ".join(schema["resourceMethods"])) == methods


COMMON = {
    "id": "int N",
    "uuid": "string N 128",
    "kind": "string N 255",
    "accountId": "reference[account] N",
    "created": "date N",
    "removed": "date N",
    "transitioning": "enum",
    "transitioningMessage": "string N",
    "transitioningProgress": "int N",
}
FIELDS = {
    "volume": COMMON
    | {
        "name": "string c R UQ 255",
        "driver": "string c R",
        "driverOpts": "map[string] c N",
        "description": "string c u N 1024",
        "accessMode": "string N 255",
        "externalId": "string N 128",
        "imageId": "reference[image] N",
        "instanceId": "reference[instance] N",
        "isHostPath": "boolean",
        "uri": "string N 512",
        "state": "enum",
    },
    "snapshot": COMMON
    | {
        "name": "string c u N 255",
        "description": "string c u N 1024",
        "volumeId": "reference[volume] c R",
        "managedVolumeUUID": "string N",
        "state": "enum",
    },
    "backup": COMMON
    | {
        "name": "string c u N 255",
        "description": "string c u N 1024",
        "backupTargetId": "reference[backupTarget] N",
        "snapshotId": "reference[snapshot] N",
        "volumeId": "reference[volume] N",
        "uri": "string N 4096",
        "state": "enum",
    },
    "backupTarget": COMMON
    | {
        "name": "string c u R 255",
        "description": "string c u N 1024",
        "nfsConfig": "nfsConfig c N",
        "state": "enum",
    },
    "nfsConfig": {"server": "string c R", "share": "string c R", "mountOptions": "string c N"},
    "volumeSnapshotInput": {"name": "string c 255"},
    "revertToSnapshotInput": {"snapshotId": "reference[snapshot] c R"},
    "restoreFromBackupInput": {"backupId": "reference[backup] c R"},
    "snapshotBackupInput": {"backupTargetId": "reference[backupTarget] c N 255", "name": "string c N 255"},  # D7
    "storagePool": COMMON
    | {
        "name": "string N 255",
        "blockDevicePath": "string N",
        "driverName": "string N 255",
        "externalId": "string N 128",
        "volumeAccessMode": "string N 255",
        "volumeCapabilities": "array[string] N",
    },
    "mount": COMMON
    | {
        "instanceId": "reference[instance] N",
        "path": "string N 512",
        "permissions": "string N 128",
        "volumeId": "reference[volume] N",
    },
    "apiKey": COMMON | {"publicValue": "string N 4096", "secretValue": "password N once"},
    "error": {"status": "int N", "code": "string N", "message": "string N", "detail": "string N"},
}


@pytest.mark.parametrize("type_", FIELDS)
def test_fields_have_the_marks_of_the_reference_and_others_are_called_additions(daemon: Running, type_: str) -> None:
    schema = daemon.api("GET", f"/v1/schemas/{type_}").body
    shown = {name: letters(field) for name, field in schema["resourceFields"].items()}
    assert {name: shown.get(name) for name in FIELDS[type_]} == FIELDS[type_]
    known = {"name", "description", "state", "fieldName", *FIELDS[type_]}
    others = {name: field.get("addition") for name, field in schema["resourceFields"].items() if name not in known}
    assert set(others.values()) <= {True}


def letters(field: dict[str, Any]) -> str:
    """Write the marks of a field as the reference does."""
    marks = {"c": "create", "u": "update", "R": "required", "N": "nullable", "UQ": "unique", "once": "readOnCreateOnly"}
    found = [field["type"], *(letter for letter, mark in marks.items() if field.get(mark))]
    return " ".join([*found, str(field["maxLength"])] if "maxLength" in field else found)


ACTIONS = {
    "volume": {
        "snapshot": ("volumeSnapshotInput", "snapshot"),
        "reverttosnapshot": ("revertToSnapshotInput", "volume"),
        "restorefrombackup": ("restoreFromBackupInput", "volume"),
        "activate": (None, "volume"),
        "deactivate": (None, "volume"),
        "remove": (None, "volume"),
        "restore": ("volumeRestoreInput", "volume"),
        "purge": (None, "volume"),
        "clone": ("volumeCloneInput", "volume"),
        "resize": ("volumeResizeInput", "volume"),
        "backup": ("volumeBackupInput", "backup"),
        "cancel": (None, "volume"),
    },
    "snapshot": {"backup": ("snapshotBackupInput", "snapshot"), "remove": (None, "snapshot")},
    "backup": {
        "remove": (None, "backup"),
        "cancel": (None, "backup"),
        "verify": ("backupVerifyInput", "backup"),
    },
    "backupTarget": {
        "remove": (None, "backupTarget"),
        "scan": (None, "backupTarget"),
        "prune": (None, "backupTarget"),
    },
    "mount": {},
}


@pytest.mark.parametrize(("type_", "actions"), ACTIONS.items())
def test_a_type_has_these_actions(daemon: Running, type_: str, actions: dict[str, tuple[str | None, str]]) -> None:
    found = daemon.api("GET", f"/v1/schemas/{type_}").body["resourceActions"]
    assert {name: (each["input"], each["output"]) for name, each in found.items()} == actions


LINKS = {
    "volume": ["backups", "mounts", "snapshots", "storagepools"],
    "snapshot": ["backups", "volume"],
    "backup": ["backuptarget", "snapshot", "volume"],
    "backupTarget": ["backups"],
    "storagePool": ["volumes"],
    "mount": ["volume"],
}


@pytest.mark.parametrize(("type_", "links"), LINKS.items())
def test_a_type_has_these_links_and_all_can_be_included(daemon: Running, type_: str, links: list[str]) -> None:
    assert daemon.api("GET", f"/v1/schemas/{type_}").body["includeableLinks"] == links


def test_a_boolean_default_is_a_boolean(daemon: Running) -> None:
    assert daemon.api("GET", "/v1/schemas/volume").body["resourceFields"]["isHostPath"]["default"] is False


# Whatever comes; the last one, for it may remove anything


PARTS = st.sampled_from(
    [
        *("v1", "V1", "v2", "", "..", "volumes", "snapshot", "backups", "backuptargets", "storagepools", "schemas"),
        *(
            "1v1",
            "1v2",
            "1s1",
            "1s99",
            "1v-1",
            "1",
            "1sp1",
            "nothing",
            "snapshots",
            "volume",
            "mounts",
            "archive",
            "%00",
        ),
    ]
)
KEYS = st.sampled_from(
    [
        *("action", "_method", "include", "sort", "order", "limit", "marker", "name", "name_like", "created_gt"),
        *("id_lt", "removed", "volumeId", "_removed", "_actionLinks", "state_ne", "sizeBytes_gte", "expires_null"),
    ]
)
WORDS = st.sampled_from(
    [
        *(
            "snapshot",
            "clone",
            "reverttosnapshot",
            "remove",
            "restore",
            "purge",
            "backup",
            "PUT",
            "DELETE",
            "snapshots",
        ),
        *("name", "created", "desc", "-1", "m5", "1v1", "%", "_", "x", "2026-01-01", "storagepools", "\0", "\ud800"),
    ]
)
BODIES = st.sampled_from(
    [b"", b"{}", b'{"name": "x"}', b"name=x&driver=btrfs", b"{", b"[]", b"a.b=1&a=2", b"--X\r\n\r\n"]
)
TYPES = st.sampled_from(["", "application/json", FORM["Content-Type"], "multipart/form-data; boundary=X", "\xff/*"])


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    parts=st.lists(PARTS, max_size=4),
    query=st.lists(st.tuples(KEYS, WORDS | st.text(max_size=4)), max_size=3),
    raw=BODIES | st.binary(max_size=20),
    content_type=TYPES,
)
def test_whatever_is_asked_is_answered_in_json_and_is_no_fault_of_ours(
    daemon: Running, method: str, parts: list[str], query: list[tuple[str, str]], raw: bytes, content_type: str
) -> None:
    asked = urlencode(query, errors="surrogatepass")
    path = f"/v1/{'/'.join(parts)}?{asked}"
    answer = daemon.api(method, path, raw, headers={"Content-Type": content_type})
    assert answer.status < 500, answer.body
    assert answer.headers["X-API-Schemas"] == f"{BASE}/schemas"
    if method != "HEAD" and answer.headers["Content-Type"].startswith("application/json"):
        assert answer.body["type"]
    assert "Traceback" not in daemon.log
