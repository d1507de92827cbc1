"""API keys as clients see them: made, shown once, listed, changed, revoked, by the API and the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Voldriver
from tests.doors import Tcp, audited, free_port, listening, make_key
from tests.running import Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

PUBLIC_LENGTH = 20
SECRET_LENGTH = 46


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Running]:
    config = listening(port) + scratch_config(session_scratch)
    with Running(tmp_path_factory.mktemp("d"), config=config) as running:
        yield running


# The API


def test_a_secret_is_in_the_answer_to_the_creation_only(daemon: Running) -> None:
    made = daemon.api("POST", "/v1/apikey", {"name": "once", "description": "for one"})
    assert made.status == 201
    shown = {name: made.body[name] for name in ("type", "kind", "name", "description", "state", "role")}
    assert shown == {
        "type": "apiKey",
        "kind": "apiKey",
        "name": "once",
        "description": "for one",
        "state": "active",
        "role": "full",
    }
    assert (len(made.body["publicValue"]), len(made.body["secretValue"])) == (PUBLIC_LENGTH, SECRET_LENGTH)
    again = daemon.api("GET", f"/v1/apikeys/{made.body['id']}").body
    assert again == {**made.body, "secretValue": None}
    changed = daemon.api("PUT", f"/v1/apikeys/{made.body['id']}", {"description": "x", "secretValue": "y"}).body
    listed = daemon.api("GET", "/v1/apikeys?name=once").body
    removed = daemon.api("DELETE", f"/v1/apikeys/{made.body['id']}").body
    for later in (changed, listed, removed):
        assert made.body["secretValue"] not in str(later)
        assert "scrypt" not in str(later)


def test_a_secret_is_neither_on_disk_nor_in_the_log_nor_in_ps(daemon: Running) -> None:
    _, secret = make_key(daemon, name="hidden")
    for file in daemon.root.glob("voldriver.db*"):
        assert secret.encode() not in file.read_bytes()
    process = Path(f"/proc/{daemon.pid}")
    for file in (process / "cmdline", process / "environ", daemon.log_file):
        assert secret.encode() not in file.read_bytes()


def test_the_schema_says_that_the_secret_is_shown_once(daemon: Running) -> None:
    schema = daemon.api("GET", "/v1/schemas/apikey").body
    assert (schema["collectionMethods"], schema["resourceMethods"]) == (["GET", "POST"], ["GET", "PUT", "DELETE"])
    secret = schema["resourceFields"]["secretValue"]
    assert (secret["type"], secret["readOnCreateOnly"]) == ("password", True)
    assert "secretValue" not in schema["collectionFilters"]
    role = schema["resourceFields"]["role"]
    assert (role["options"], role["default"], role["create"], role["update"]) == (
        *(["full", "read-only"], "full"),
        *(True, False),
    )


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"name": "-x"}, "InvalidCharacters", "name"),
        ({"name": "a b"}, "InvalidCharacters", "name"),
        ({"name": "x" * 256}, "MaxLengthExceeded", "name"),
        ({"name": ["x"]}, "InvalidFormat", "name"),
        ({"name": "taken"}, "NotUnique", "name"),
        ({"role": "root"}, "InvalidOption", "role"),
        ({"role": ""}, "InvalidOption", "role"),
        ({"role": None}, "NotNullable", "role"),
        ({"role": ["full"]}, "InvalidFormat", "role"),
    ],
)
def test_a_wrong_key_is_refused_by_its_field(daemon: Running, fields: dict[str, object], code: str, field: str) -> None:
    daemon.api("POST", "/v1/apikeys", {"name": "taken"})
    before = len(daemon.api("GET", "/v1/apikeys").body["data"])
    answer = daemon.api("POST", "/v1/apikeys", fields)
    assert (answer.status, answer.body["code"], answer.body["fieldName"]) == (422, code, field)
    assert len(daemon.api("GET", "/v1/apikeys").body["data"]) == before


def test_a_key_needs_no_name_and_no_body(daemon: Running) -> None:
    for body in (None, {"name": ""}, {"name": None}):
        made = daemon.api("POST", "/v1/apikeys", body)
        assert (made.status, made.body["name"], made.body["role"]) == (201, None, "full")


def test_name_and_description_change_and_the_role_never_does(daemon: Running) -> None:
    make_key(daemon, name="other")
    made = daemon.api("POST", "/v1/apikeys", {"name": "old", "role": "read-only"}).body
    url = f"/v1/apikeys/{made['id']}"
    changed = daemon.api("PUT", url, {"name": "new", "description": "d", "role": "full", "publicValue": "x"})
    assert changed.status == 200
    shown = {name: changed.body[name] for name in ("name", "description", "role", "publicValue")}
    assert shown == {**shown, "name": "new", "description": "d", "role": "read-only"}
    assert shown["publicValue"] == made["publicValue"]
    assert daemon.api("PUT", url, {}).body == changed.body
    assert daemon.api("PUT", url, {"name": "other"}).body["code"] == "NotUnique"
    assert daemon.api("PUT", url, {"name": "a/b"}).body["code"] == "InvalidCharacters"
    assert daemon.api("PUT", url, {"name": None}).body["name"] is None


@pytest.mark.parametrize(("method", "suffix"), [("DELETE", ""), ("POST", "?action=remove")])
def test_a_removed_key_is_found_by_id_and_nowhere_else(daemon: Running, method: str, suffix: str) -> None:
    url = f"/v1/apikeys/{daemon.api('POST', '/v1/apikeys', {}).body['id']}"
    assert list(daemon.api("GET", url).body["actions"]) == ["remove"]
    removed = daemon.api(method, url + suffix)
    assert (removed.status, removed.body["state"], removed.body["actions"]) == (200, "removed", {})
    assert removed.body["removedTS"]
    assert daemon.api("GET", url).body == removed.body
    ids = [key["id"] for key in daemon.api("GET", "/v1/apikeys").body["data"]]
    assert removed.body["id"] not in ids
    again = daemon.api(method, url + suffix)
    assert again.status in {405, 422}
    assert "it is removed" in again.body["message"]
    assert daemon.api("PUT", url, {"name": "x"}).status == 405


@pytest.mark.parametrize("path", ["/v1/apikeys/1c999", "/v1/apikeys/1v1", "/v1/apikeys/x"])
def test_a_key_that_is_not_there_is_404(daemon: Running, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert daemon.api(method, path).status == 404


def test_keys_stay_through_restarts_and_crashes(scratch: Scratch, tmp_path: Path) -> None:
    port = free_port()
    config = listening(port) + scratch_config(scratch)
    with Running(tmp_path / "d", config=config) as daemon:
        key, gone = make_key(daemon, name="stays"), make_key(daemon, name="gone")
        gone_id = daemon.api("GET", "/v1/apikeys?name=gone").body["data"][0]["id"]
        assert daemon.api("DELETE", f"/v1/apikeys/{gone_id}").status == 200
        daemon.kill()
        for _ in range(2):
            daemon.restart()
            with Tcp(port, key) as tcp, Tcp(port, gone) as revoked:
                assert tcp("GET", "/v1/volumes").status == 200
                assert revoked("GET", "/v1/volumes").status == 401
        assert f"listen=127.0.0.1:{port} " in daemon.log


# The command line


def test_the_command_line_makes_lists_and_removes_keys(daemon: Running) -> None:
    voldriver = Voldriver(daemon.api_socket)
    made = voldriver.json("apikey", "create", "--name", "cli", "--role", "read-only", "--description", "d")
    assert (made["name"], made["role"], made["description"]) == ("cli", "read-only", "d")
    assert (len(made["publicValue"]), len(made["secretValue"])) == (PUBLIC_LENGTH, SECRET_LENGTH)
    line = next(line for line in voldriver.out("apikey", "ls").splitlines() if made["id"] in line.split())
    assert line.split()[:4] == ["cli", made["id"], made["publicValue"], "read-only"]
    assert made["secretValue"] not in voldriver.out("apikey", "ls") + voldriver.out("--json", "apikey", "ls")
    assert made["id"] in voldriver.out("apikey", "ls", "-q").split()
    assert voldriver.out("apikey", "rm", made["id"]) == f"{made['id']}\n"
    assert voldriver.refused("apikey", "rm", made["id"]) == f"there is no API key '{made['id']}'"


def test_a_new_key_is_printed_as_the_variables_that_the_client_reads(daemon: Running, port: int) -> None:
    made = Voldriver(daemon.api_socket)("apikey", "create", "--name", "printed")
    assert made.exit_code == 0
    variables = dict(line.split("=", 1) for line in made.stdout.splitlines())
    assert list(variables) == ["VOLDRIVER_ACCESS_KEY", "VOLDRIVER_SECRET_KEY"]
    assert "not shown again" in made.stderr
    environment = variables | {"VOLDRIVER_SOCKET": "", "VOLDRIVER_URL": f"http://127.0.0.1:{port}"}
    listed = daemon.cli("apikey", "rm", "printed", variables["VOLDRIVER_ACCESS_KEY"], **environment)
    assert listed.returncode == 1, "its own key was removed by the first"
    assert "there is no such API key" in listed.stderr


def test_a_key_is_removed_by_id_name_or_access_key(daemon: Running) -> None:
    voldriver = Voldriver(daemon.api_socket)
    for field in ("id", "name", "publicValue"):
        made = voldriver.json("apikey", "create", "--name", "again")
        assert voldriver.json("apikey", "rm", made[field])["id"] == made["id"]


def test_a_wrong_name_or_role_is_refused_by_the_command_line(daemon: Running) -> None:
    voldriver = Voldriver(daemon.api_socket)
    assert "name '-x'" in voldriver.refused("apikey", "create", "--name", "-x")
    assert voldriver("apikey", "create", "--name", "x", "--role", "root").exit_code == 2
    assert voldriver("apikey", "create").exit_code == 2


# Who may make keys


def test_a_full_key_makes_keys_and_a_read_only_key_does_not(daemon: Running, port: int) -> None:
    before = len(daemon.log)
    full, reader = make_key(daemon, name="full"), make_key(daemon, name="reader", role="read-only")
    with Tcp(port, full) as tcp:
        made = tcp("POST", "/v1/apikeys", {"name": "child"})
    assert made.status == 201
    with Tcp(port, (made.body["publicValue"], made.body["secretValue"])) as tcp:
        assert tcp("GET", "/v1/apikeys").status == 200
    with Tcp(port, reader) as tcp:
        assert tcp("POST", "/v1/apikeys", {"name": "grandchild"}).status == 403
    with Tcp(port) as tcp:
        assert tcp("POST", "/v1/apikeys", {"name": "anyones"}).status == 401
    names = [key["name"] for key in daemon.api("GET", "/v1/apikeys").body["data"]]
    assert not {"grandchild", "anyones"} & set(names)
    made_by = {line["name"]: line["by"] for line in audited(daemon, since=before) if line["status"] == "201"}
    assert made_by["child"] == f"key:{full[0]}:full"
    assert made_by["full"] == "uid:0"
