"""`/v1/openapi.json`: what it says of the API, and whether the API keeps to that (with schemathesis)."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests import doors
from tests.running import SMALL, Running
from voldriverd.api.rancher import kinds, openapi, schemas
from voldriverd.api.rancher.schema import Schema

BASE: Final = "http://h/v1"
DOCUMENT: Final = openapi.document(BASE)
SCHEMATHESIS_S: Final = 300
"""It takes some 20 s where little else runs."""
EXCLUDED: Final = {
    "negative_data_rejection": "as in Rancher, texts may be numbers, and fields that there are not are dropped",
    "positive_data_acceptance": "a schema does not say which names are free, or which sizes there are",
    "ignored_auth": "answers to wrong keys are held back; tests/test_auth_tcp.py looks at them",
    "use_after_free": "what is removed is still found by its id",
    "ensure_resource_availability": "a schema does not say that a volume may be made while another is removed",
}
REPEATED: Final = r"^/\w+/\{id\}/(backups|mounts|storagepools|volumes)$"
"""Lists that are tried elsewhere with all their filters; of those below a resource only a volume's snapshots are."""
TESTED: Final = """
[dictionaries]
driver = { values = ["btrfs", "directory", "loop"] }
size = { values = ["300M", "1G", "64k"] }
name = { values = ["a", "b", "c", "d-1", "e.2"] }
volume = { values = ["1v1", "1v2", "1v3", "1v4", "7"] }
snapshot = { values = ["1s1", "1s2", "1s3", "1s4"] }
backup = { values = ["1b1", "1b2", "1b3"] }
target = { values = ["1bt1", "1bt2", "1bt3"] }
url = { values = ["file://PLACE/one", "file://PLACE/two", "file:///proc/none", "s3://none", "nfs://127.0.0.1/none"] }
sample = { values = ["10%", "0.5", "1"] }

[parameters]
"body.driver" = { dictionary = "driver", probability = 0.8 }
"body.size" = { dictionary = "size", probability = 0.8 }
"body.name" = { dictionary = "name", probability = 0.5 }
"body.volumeId" = { dictionary = "volume", probability = 0.8 }
"body.snapshotId" = { dictionary = "snapshot", probability = 0.8 }
"body.backupId" = { dictionary = "backup", probability = 0.8 }
"body.backupTargetId" = { dictionary = "target", probability = 0.8 }
"body.url" = { dictionary = "url", probability = 0.9 }
"body.sample" = { dictionary = "sample", probability = 0.8 }

[[operations]]
include-path-regex = "^/volumes/"
parameters = { "path.id" = { dictionary = "volume", probability = 0.8 } }

[[operations]]
include-path-regex = "^/snapshots/"
parameters = { "path.id" = { dictionary = "snapshot", probability = 0.8 } }

[[operations]]
include-path-regex = "^/backups/"
parameters = { "path.id" = { dictionary = "backup", probability = 0.8 } }

[[operations]]
include-path-regex = "^/backuptargets/"
parameters = { "path.id" = { dictionary = "target", probability = 0.8 } }

[[operations]]
include-path-regex = "^/mounts/"
parameters = { id = "1m1" }

[[operations]]
include-path-regex = "^/hosts/"
parameters = { id = "1h1" }

[[operations]]
include-path-regex = "^/storagepools/"
parameters = { id = "1sp1" }

[[operations]]
include-path-regex = "^/apikeys/"
parameters = { id = "1c1" }

[phases.coverage]
unexpected-methods = ["trace"]
"""
"""What is tried more often than chance would: without it most requests end at a name or an id that there is not.

PLACE stands for a directory of the test's.
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("openapi")) as daemon:
        yield daemon


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation."""
    for path, item in DOCUMENT["paths"].items():
        yield from ((path, method, item[method]) for method in item.keys() - {"parameters"})


def references(value: Any) -> Iterator[str]:
    """Yield what is referred to."""
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    for each in value if isinstance(value, list) else []:
        yield from references(each)


def test_every_reference_leads_to_something() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        _, *parts = reference.split("/")
        target = DOCUMENT
        for part in parts:
            assert part in target, reference
            target = target[part]


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    assert {"listVolume", "createVolume", "getVolume", "updateVolume", "removeVolume", "actOnVolume"} <= set(names)


@pytest.mark.parametrize("kind", kinds.ALL.values(), ids=lambda kind: kind.schema.id)
def test_a_type_has_the_operations_of_its_schema(kind: Any) -> None:
    schema: Schema = kind.schema
    path = f"/{schema.plural.lower()}"
    methods = {method.upper() for where, method, _ in operations() if where == f"{path}/{{id}}"}
    assert {method.upper() for where, method, _ in operations() if where == path} == set(schema.collection_methods)
    assert methods - {"POST"} == set(schema.resource_methods)
    assert ("POST" in methods) == bool(schema.actions)
    assert {f"{path}/{{id}}/{name}" for name in (*schema.links, *kind.streams)} <= DOCUMENT["paths"].keys()
    if schema.actions:
        (parameter,) = DOCUMENT["paths"][f"{path}/{{id}}"]["post"]["parameters"]
        assert parameter["schema"]["enum"] == list(schema.actions)


@pytest.mark.parametrize("schema", schemas.ALL.values(), ids=lambda schema: schema.id)
def test_a_shape_has_the_fields_of_its_schema(schema: Schema) -> None:
    shapes = DOCUMENT["components"]["schemas"]
    assert schema.fields.keys() <= shapes[schema.id]["properties"].keys()
    for mark, name in (("create", f"{schema.id}Create"), ("update", f"{schema.id}Update")):
        marked = {name for name, field in schema.fields.items() if getattr(field, mark)}
        assert name not in shapes or shapes[name]["properties"].keys() == marked


def test_a_field_is_what_its_marks_say() -> None:
    shapes = DOCUMENT["components"]["schemas"]
    volume, create = shapes["volume"]["properties"], shapes["volumeCreate"]
    assert create["required"] == ["driver", "name"]
    assert create["properties"]["name"] == {"type": "string", "maxLength": 255}
    assert volume["description"] == {"type": ["string", "null"], "maxLength": schemas.DESCRIPTION_MAX}
    assert volume["labels"]["additionalProperties"] == {"type": "string"}
    assert volume["created"]["format"] == "date-time"
    assert volume["health"]["enum"] == list(schemas.HEALTHS)
    assert shapes["apiKeyCreate"]["properties"]["role"]["default"] == "full"
    assert "volumeCreate" in str(DOCUMENT["paths"]["/volumes"]["post"]["requestBody"])


@pytest.mark.root
def test_the_document_names_the_server_that_was_asked(daemon: Running) -> None:
    found = daemon.api("GET", "/v1/openapi.json", headers={"Host": "h"})
    assert (found.status, found.body) == (200, DOCUMENT)
    assert found.headers["ETag"]
    assert daemon.api("GET", "/v1").body["links"]["openapi.json"].endswith("/v1/openapi.json")
    refused = daemon.api("PUT", "/v1/openapi.json", {})
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.root
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/volumes", "GET, HEAD, POST"),
        ("PATCH", "/v1/hosts/1h1", "GET, HEAD"),
        ("PATCH", "/v1/storagepools/1sp1", "GET, HEAD, POST"),
        ("DELETE", "/v1/hosts", "GET, HEAD"),
        ("POST", "/v1/events", "GET"),
    ],
)
def test_who_uses_a_wrong_method_is_told_the_right_ones(daemon: Running, method: str, path: str, allowed: str) -> None:
    refused = daemon.api(method, path)
    assert (refused.status, refused.headers["Allow"]) == (405, allowed)


def prepare(daemon: Running, place: Path) -> None:
    """Make a volume that is free and one that a container holds, each with a snapshot, and a backup of one."""
    for number, name in enumerate(("free", "held"), 1):
        assert daemon.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"}).status == 201
        assert daemon.api("POST", "/v1/snapshots", {"volumeId": f"1v{number}", "name": name}).status == 201
    assert daemon.plugin("VolumeDriver.Mount", Name="held", ID="c1").status == 200
    for directory in ("t", "one", "two"):
        (place / directory).mkdir()
    assert daemon.api("POST", "/v1/backuptargets", {"name": "t", "url": f"file://{place}/t"}).status == 201
    assert daemon.api("POST", "/v1/snapshots/1s1?action=backup", {"backupTargetId": "1bt1"}).status == 200


@pytest.mark.root
def test_the_api_answers_as_the_document_says_whatever_it_is_asked(tmp_path: Path) -> None:
    port = doors.free_port()
    (tmp_path / "tested.toml").write_text(TESTED.replace("PLACE", str(tmp_path)))
    options = ["--phases=coverage,fuzzing", "--max-examples=5", "--seed=1", "--generation-database=none"]
    options += ["--continue-on-failure", "--no-color", "--exclude-path=/events", "--request-timeout=30"]
    options += [
        f"--exclude-checks={','.join(EXCLUDED)}",
        f"--exclude-path-regex={REPEATED}",
        f"http://127.0.0.1:{port}/v1/openapi.json",
    ]
    with Running(tmp_path / "daemon", config=SMALL + doors.listening(port)) as daemon:
        prepare(daemon, tmp_path)
        doors.make_key(daemon, name="removed")
        key = doors.make_key(daemon, name="schemathesis")
        program = [sys.executable, "-m", "schemathesis.cli", "--config-file", "tested.toml", "run"]
        done = subprocess.run(
            [*program, f"--auth={':'.join(key)}", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SCHEMATHESIS_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 2_000
    assert "Traceback" not in daemon.log
    assert "internal error" not in daemon.log
