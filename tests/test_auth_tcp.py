"""A real daemon on TCP: who is let in, what is written down, and what nobody out there can take from the others."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.doors import Key, Tcp, audited, basic, certificate, free_port, listening, make_key
from tests.running import DAEMON, Answer, Running, scratch_config
from tests.scratch import Scratch
from voldriverd.api import docker, tcp
from voldriverd.api.rancher import schemas

pytestmark = pytest.mark.root

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"}
CHALLENGE = 'Basic realm="Enter API access key and secret key as username and password"'
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "GET")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Running]:
    config = listening(port) + scratch_config(session_scratch)
    with Running(tmp_path_factory.mktemp("d"), config=config) as running:
        running.api("POST", "/v1/volumes", {"name": "db", "driver": "btrfs"})
        running.api("POST", "/v1/volumes/1v1?action=snapshot", {"name": "monday"})
        yield running


@pytest.fixture(scope="module")
def full(daemon: Running) -> Key:
    return make_key(daemon, name="full-one")


@pytest.fixture(scope="module")
def reader(daemon: Running) -> Key:
    return make_key(daemon, name="reader", role="read-only")


def check_unauthorized(answer: Answer) -> None:
    assert answer.status == 401
    assert (answer.body["type"], answer.body["status"], answer.body["code"]) == ("error", 401, "Unauthorized")
    assert answer.headers["X-API-Schemas"].endswith("/v1/schemas")


def paths(method: str) -> list[str]:
    """Return every path at which something may change by a method, as the schemas have them, and others."""
    found = ["/", "/v1", "/x"]
    for schema in schemas.ALL.values():
        if schema.is_listable:
            collection, resource = f"/v1/{schema.plural.lower()}", f"/v1/{schema.plural.lower()}/1"
            found += [collection, resource, *(f"{resource}/{link}" for link in schema.links)]
            found += [f"{resource}?action={name}" for name in schema.actions]
    if method != "GET":
        return found
    return [f"{path}?_method={verb}" for path in found if "?" not in path for verb in ("DELETE", "PUT", "POST")]


# Who is let in


def test_without_a_key_nothing_but_the_versions_is_told(daemon: Running, port: int) -> None:
    del daemon
    with Tcp(port) as ask:
        for path in ("/", "//", "/?x=1"):
            assert ask("GET", path).body["links"]["latest"] == f"http://127.0.0.1:{port}/v1"
        assert ask("HEAD", "/").status == 200
        for path in ("/v1", "/v1/", "/v1/schemas", "/v1/volumes", "/v1/nothing", "/v2", "/nothing", "/v1%2F"):
            answer = ask("GET", path)
            check_unauthorized(answer)
            assert answer.headers["WWW-Authenticate"] == CHALLENGE
            assert "voldriver apikey create" in answer.body["message"]


@pytest.mark.parametrize("method", METHODS)
def test_without_a_key_nothing_changes(daemon: Running, port: int, method: str) -> None:
    before, rows = len(daemon.log), everything(daemon)
    with Tcp(port) as ask:
        for path in paths(method):
            check_unauthorized(ask(method, path, {"name": "db"}))
    assert everything(daemon) == rows
    assert audited(daemon, since=before) == [], "nobody tried a key, and nothing was changed"


@pytest.mark.parametrize("headers", [{"X-API-No-Challenge": "true"}, {"Upgrade": "websocket", "Connection": "upgrade"}])
def test_who_wants_no_challenge_gets_none(daemon: Running, port: int, headers: dict[str, str]) -> None:
    del daemon
    with Tcp(port) as ask:
        answer = ask("GET", "/v1", headers=headers)
        check_unauthorized(answer)
        assert answer.headers["WWW-Authenticate"] is None


def test_a_key_opens_everything_that_the_socket_does(daemon: Running, port: int, full: Key) -> None:
    with Tcp(port, full) as ask:
        for path in ("/", "/v1", "/v1/schemas", "/v1/volumes/1v1"):
            over_tcp = ask("GET", path)
            assert over_tcp.status == 200
            assert over_tcp.headers["X-API-Schemas"] == f"http://127.0.0.1:{port}/v1/schemas"
            over_socket = daemon.api("GET", path, headers={"Host": f"127.0.0.1:{port}"})
            assert over_tcp.body == over_socket.body
        made = ask("POST", "/v1/volumes", {"name": "mine", "driver": "btrfs"})
        assert (made.status, ask("DELETE", "/v1/volumes/mine").status) == (201, 404)
        assert ask("DELETE", f"/v1/volumes/{made.body['id']}").status == 200


def wrong(full: Key, reader: Key) -> list[str]:
    """Return what is no right Authorization header."""
    public, secret = full
    pairs = [(public, ""), (public, reader[1]), (public, secret[:-1]), (public, f"{secret} "), (secret, public)]
    pairs += [("", ""), ("A" * 20, secret), (public.lower(), secret), (f" {public}", secret)]
    others = ["Basic", "Basic %%%", f"Bearer {secret}", basic(full).removeprefix("Basic "), f"Basic {public}:{secret}"]
    return [basic(pair) for pair in pairs] + others + ["Basic " + b64encode(public.encode()).decode()]


def test_a_wrong_key_opens_nothing_not_even_the_root(daemon: Running, port: int, full: Key, reader: Key) -> None:
    before = len(daemon.log)
    messages = set()
    for number, header in enumerate(wrong(full, reader)):
        with Tcp(port, source=f"127.0.1.{number}") as ask:  # each the first failure of its source
            for path in ("/", "/v1", "/v1/volumes/1v1"):
                answer = ask("GET", path, headers={"Authorization": header})
                check_unauthorized(answer)
                messages.add(answer.body["message"].partition(": ")[2])
            check_unauthorized(ask("POST", "/v1/volumes", {"name": "x"}, headers={"Authorization": header}))
    assert messages == {"there is no such API key, or its secret is another"}, "none tells more than another"
    for half in (*full, *reader):
        assert half not in daemon.log[before:], "a secret may stand where the public value should"
    assert audited(daemon, since=before)[0] == {
        "by": "unknown",
        "from": audited(daemon, since=before)[0]["from"],
        "status": "401",
        "failed": "1",
    }


def asked(port: int, path: str, authorization: str) -> Answer:
    with Tcp(port) as ask:
        return ask("GET", path, headers={"Authorization": authorization})


def test_a_revoked_key_is_refused_at_once_on_a_connection_that_it_opened(daemon: Running, port: int) -> None:
    key = make_key(daemon, name="short")
    with Tcp(port, key) as ask:
        found = ask("GET", "/v1/apikeys?name=short").body["data"][0]
        local = ask.connection.sock.getsockname()
        assert daemon.api("DELETE", f"/v1/apikeys/{found['id']}").status == 200
        check_unauthorized(ask("GET", "/v1/apikeys"))
        assert ask.connection.sock.getsockname() == local


def test_what_a_revoked_key_still_listens_to_ends(daemon: Running, port: int) -> None:
    key = make_key(daemon, name="listener", role="read-only")
    with Tcp(port, key) as ask:
        ask.connection.request("GET", "/v1/events", headers={"Authorization": basic(key)})
        events = ask.connection.getresponse()
        found = daemon.api("GET", "/v1/apikeys?name=listener").body["data"][0]
        assert daemon.api("DELETE", f"/v1/apikeys/{found['id']}").status == 200
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            events.read()


def test_a_key_may_revoke_itself(daemon: Running, port: int) -> None:
    with Tcp(port, make_key(daemon, name="suicidal")) as ask:
        found = ask("GET", "/v1/apikeys?name=suicidal").body["data"][0]
        assert ask("POST", f"/v1/apikeys/{found['id']}?action=remove").status == 200
        check_unauthorized(ask("GET", "/v1"))


# What is done and written down


@pytest.mark.parametrize("method", METHODS)
def test_a_read_only_key_changes_nothing_and_the_try_is_written_down(
    daemon: Running, port: int, reader: Key, method: str
) -> None:
    before, rows = len(daemon.log), everything(daemon)
    with Tcp(port, reader) as ask:
        for path in paths(method):
            answer = ask(method, path, {"name": "made", "driver": "btrfs", "volumeId": "1v1", "size": "1G"})
            assert (answer.status, answer.body["code"]) == (403, "Forbidden"), path
            assert answer.body["message"].endswith("this API key is read-only")
    assert everything(daemon) == rows
    lines = [(line["by"], line["path"], line["status"]) for line in audited(daemon, since=before)]
    assert lines == [(f"key:{reader[0]}:reader", path.partition("?_")[0], "403") for path in paths(method)]


def everything(daemon: Running) -> list[dict[str, object]]:
    """Return all rows but for what a volume uses, which btrfs knows when it has written it down."""
    lists = [daemon.api("GET", f"/v1/{path}").body["data"] for path in ("volumes", "snapshots", "apikeys", "mounts")]
    return [row | {"usedBytes": None} for rows in lists for row in rows]


@pytest.mark.parametrize("path", ["/v1/volumes", "/v1/volumes/1v1", "/v1/snapshots/1s1", "/v1/apikeys", "/v1/schemas"])
def test_a_read_only_key_reads_and_leaves_no_line(daemon: Running, port: int, reader: Key, path: str) -> None:
    before = len(daemon.log)
    with Tcp(port, reader) as ask:
        assert ask("GET", path).status == ask("HEAD", path).status == 200
        assert ask("GET", "/v1/snapshots/1s1/archive").status == 200
    assert audited(daemon, since=before) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_request_that_may_change_something_is_one_line(
    daemon: Running, port: int, full: Key, method: str
) -> None:
    wanted = [path.replace("/1", "/99") for path in paths(method)]  # nothing is there
    before = len(daemon.log)
    by_socket = [(path.partition("?_")[0], str(daemon.api(method, path, {"role": "?"}).status)) for path in wanted]
    with Tcp(port, full) as ask:
        by_tcp = [(path.partition("?_")[0], str(ask(method, path, {"role": "?"}).status)) for path in wanted]
    lines = audited(daemon, since=before)
    assert [(line["path"], line["status"]) for line in lines] == by_socket + by_tcp
    assert by_socket == by_tcp
    who = {(line["by"], line["from"].partition(":")[0]) for line in lines}
    assert who == {(f"uid:{os.getuid()}", "pid"), (f"key:{full[0]}:full-one", "127.0.0.1")}
    assert lines[0]["from"] == f"pid:{os.getpid()}"


@pytest.mark.parametrize("path", docker.Plugin(None)._methods)  # type: ignore[arg-type] # nothing is called
def test_every_change_by_the_plugin_is_one_line(daemon: Running, path: str) -> None:
    before = len(daemon.log)
    answer = daemon.plugin(path.removeprefix("/"), Name="of-plugin", ID="c1")
    lines = audited(daemon, since=before)
    if path.rpartition(".")[2] in {"Get", "List", "Path", "Activate", "Capabilities"}:
        assert lines == []
        return
    (line,) = lines
    assert (line["path"], line["Name"], line["status"]) == (path, "of-plugin", str(answer.status))
    assert (line["by"], line["from"]) == (f"uid:{os.getuid()}", f"pid:{os.getpid()}")


def test_a_line_names_what_was_done_to_what(daemon: Running, port: int, full: Key) -> None:
    before = len(daemon.log)
    with Tcp(port, full) as ask:
        made = ask("POST", "/v1/volumes", {"name": "told", "driver": "btrfs", "driverOpts": {"label.x": "hidden"}}).body
        ask("POST", f"/v1/volumes/{made['id']}?action=snapshot", {"name": "first"})
        ask("PUT", f"/v1/volumes/{made['id']}", {"description": "hidden"})
        ask("DELETE", f"/v1/volumes/{made['id']}")
    lines = [
        (line["method"], line["path"].replace(made["id"], "ID"), line["name"], line["verb"], line["status"])
        for line in audited(daemon, since=before)
    ]
    assert lines == [
        ("POST", "/v1/volumes", "told", "create", "201"),
        ("POST", "/v1/volumes/ID?action=snapshot", "first", "snapshot", "200"),
        ("PUT", "/v1/volumes/ID", "told", "set", "200"),
        ("DELETE", "/v1/volumes/ID", "told", "remove", "200"),
    ]
    assert "hidden" not in daemon.log[before:]


def test_the_audit_does_not_depend_on_the_level_of_the_log(session_scratch: Scratch, tmp_path: Path) -> None:
    running = Running(tmp_path / "d", config=scratch_config(session_scratch))
    with running.log_file.open("ab") as log:
        argv = [sys.executable, "-c", DAEMON, *running._places(), "--log-level", "error"]
        process = subprocess.Popen(argv, stderr=log)
    try:
        assert patiently(process, running, "POST", "/v1/volumes", {"name": "loud", "driver": "btrfs"}).status == 201
    finally:
        process.terminate()
        process.wait(20)
        running.close()
    assert [line["name"] for line in audited(running)] == ["loud"]
    assert "verb=start" not in running.log


def patiently(process: subprocess.Popen[bytes], running: Running, method: str, path: str, body: object) -> Answer:
    """Ask a daemon that says nothing when it is ready."""
    for _ in range(1_000):
        try:
            return running.api(method, path, body)
        except (FileNotFoundError, ConnectionRefusedError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
    raise AssertionError(running.log)


# Failed tries


def test_a_right_key_passes_at_once_where_others_fail(session_scratch: Scratch, tmp_path: Path) -> None:
    port = free_port()
    with Running(tmp_path / "d", config=listening(port) + scratch_config(session_scratch)) as daemon:
        known, fresh = make_key(daemon, name="known"), make_key(daemon, name="fresh")
        asked(port, "/v1", basic(known))
        with ThreadPoolExecutor(24) as pool:
            begun_s = time.monotonic()
            guesses = [pool.submit(asked, port, "/v1", basic((known[0], f"guess{number}"))) for number in range(24)]
            for key in (known, fresh, known):
                assert asked(port, "/v1", basic(key)).status == 200
            passed_s = time.monotonic() - begun_s
            held = sum(not guess.done() for guess in guesses)
            begun_s = time.monotonic()
            daemon.stop()
            stopped_s = time.monotonic() - begun_s
            answers = [guess.result() for guess in guesses if guess.exception() is None]
        assert held >= 10
        assert passed_s < 3
        assert stopped_s < 3, "what is held back does not hold the daemon"
        assert {answer.status for answer in answers} == {401}
        failures = [int(line["failed"]) for line in audited(daemon) if "failed" in line]
        assert failures == [1, 2, 4, 8, 16], "a flood does not fill the log"


def test_a_sixth_failure_is_answered_later(session_scratch: Scratch, tmp_path: Path) -> None:
    port = free_port()
    with Running(tmp_path / "d", config=listening(port) + scratch_config(session_scratch)):
        taken_s = []
        with Tcp(port, ("A" * 20, "guess")) as ask:
            for _ in range(6):
                begun_s = time.monotonic()
                check_unauthorized(ask("GET", "/v1"))
                taken_s.append(time.monotonic() - begun_s)
        assert taken_s[4] < 0.4
        assert taken_s[5] >= 0.5


def test_no_key_is_no_failure(daemon: Running, port: int) -> None:
    before = len(daemon.log)
    begun_s = time.monotonic()
    with Tcp(port) as ask:
        for _ in range(100):
            check_unauthorized(ask("GET", "/v1"))
    assert time.monotonic() - begun_s < 5
    assert "failed=" not in daemon.log[before:]


# What nobody can take from the others


def descriptors(daemon: Running) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def test_idle_connections_are_bounded_and_keep_neither_the_plugin_nor_a_key_out(
    daemon: Running, port: int, full: Key
) -> None:
    before = descriptors(daemon)
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(Tcp(port, full))
        assert early("GET", "/v1").status == 200
        for _ in range(tcp.CONNECTIONS_MAX + 100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        late = stack.enter_context(Tcp(port, full))
        assert late("GET", "/v1").status == 200
        assert early("GET", "/v1").status == 200
        assert daemon.plugin("VolumeDriver.Get", Name="db").status == 200
        assert daemon.api("GET", "/v1").status == 200
        assert before < descriptors(daemon) <= before + tcp.CONNECTIONS_MAX + 8


def test_a_line_as_long_as_old_clients_send_is_read_and_a_longer_one_refused(
    daemon: Running, port: int, full: Key
) -> None:
    for ask in (daemon.api, Tcp(port, full)):
        for length in (8_192, 15_872):
            assert ask("GET", f"/v1/volumes?name={'x' * length}").status == 200
        refused = ask("GET", f"/v1/volumes?name={'x' * 40_000}")
        assert (refused.status, refused.body["type"]) == (400, "error")


@pytest.mark.parametrize(
    "text", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /v1 HTTP/1.1\r\nbad header\r\n\r\n"]
)
def test_what_is_no_request_is_refused_in_json(daemon: Running, port: int, text: bytes) -> None:
    del daemon
    answer = raw(port, text)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head[9:13] == b"400 "
    assert b"X-API-Schemas" in head
    assert json.loads(body)["type"] == "error"


def raw(port: int, text: bytes, *, is_cut_off: bool = False) -> bytes:
    """Return all that is answered to some bytes until the daemon closes; `is_cut_off`: we close first."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text)
        if is_cut_off:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def head(method: str, *lines: str) -> bytes:
    """Return the head of a request after which the daemon closes."""
    return "".join(f"{line}\r\n" for line in (f"{method} HTTP/1.1", "Connection: close", *lines, "")).encode()


def test_a_body_is_read_only_for_a_key_and_is_bounded(daemon: Running, port: int, full: Key) -> None:
    del daemon
    with Tcp(port, full) as ask:
        refused = ask("POST", "/v1/volumes", b"[" + b" " * (2 << 20) + b"]")
        assert (refused.status, refused.body["code"]) == (413, "RequestEntityTooLarge")
    waiting = ("Host: x", "Content-Length: 2", "Expect: 100-continue")
    assert raw(port, head("POST /v1/volumes", *waiting) + b"{}").startswith(b"HTTP/1.1 401 "), "not 100 Continue"
    known = raw(port, head("POST /v1/volumes", *waiting, f"Authorization: {basic(full)}") + b"{}")
    assert known.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 ")


@pytest.mark.parametrize(("chunk", "is_cut_off"), [(b"zz\r\nx\r\n", False), (b"5\r\nab", True)])
def test_a_body_that_cannot_be_read_is_no_fault_of_ours(
    daemon: Running, port: int, full: Key, chunk: bytes, *, is_cut_off: bool
) -> None:
    before = len(daemon.log)
    lines = ("Host: x", "Transfer-Encoding: chunked", f"Authorization: {basic(full)}")
    answer = raw(port, head("POST /v1/volumes", *lines) + chunk, is_cut_off=is_cut_off)
    assert answer[9:12] == (b"" if is_cut_off else b"400")
    assert daemon.api("GET", "/v1").status == 200
    assert "internal error" not in daemon.log[before:]


@pytest.mark.parametrize("header", [b"Authorization: Basic \xff", b"Cookie: CSRF=\xff", b"Origin: \xff", b"Host: \xff"])
def test_header_bytes_that_are_no_text_are_no_fault_of_ours(
    daemon: Running, port: int, full: Key, header: bytes
) -> None:
    before = len(daemon.log)
    lines = ["User-Agent: mozilla", "Content-Length: 0"]
    lines += [] if header.startswith(b"Auth") else [f"Authorization: {basic(full)}"]
    lines += [] if header.startswith(b"Host") else ["Host: localhost"]
    text = head("POST /v1/volumes", *lines).removesuffix(b"\r\n") + header + b"\r\n\r\n"
    assert raw(port, text)[9:12] in {b"401", b"403"}
    assert "internal error" not in daemon.log[before:]


# Browsers


def test_a_browser_is_given_a_token_that_its_changes_must_repeat(daemon: Running, port: int, full: Key) -> None:
    del daemon
    with Tcp(port, full) as ask:
        page = ask("GET", "/v1", headers=BROWSER)
        name, _, rest = page.headers["Set-Cookie"].partition("=")
        token, *attributes = rest.split("; ")
        assert (name, len(token), set(attributes)) == ("CSRF", 10, {"Path=/", "SameSite=Lax"})
        own = BROWSER | {"Cookie": f"CSRF={token}", "Origin": f"http://127.0.0.1:{port}"}
        assert ask("GET", "/v1", headers=own).headers["Set-Cookie"] is None
        forgotten = ask("POST", "/v1/volumes", {}, headers=own)
        assert (forgotten.status, forgotten.body["code"]) == (403, "InvalidCSRFToken")
        for headers, path, body in (
            ({"X-API-CSRF": token}, "/v1/volumes", b"{}"),
            ({}, f"/v1/volumes?CSRF={token}", b"{}"),
            ({}, "/v1/volumes", f"CSRF={token}".encode()),
        ):
            passed = ask("POST", path, body, headers=own | headers)
            assert passed.status in {400, 422}, "it went on to the dispatch"


def test_another_page_changes_nothing_through_a_browser(daemon: Running, port: int, full: Key) -> None:
    before = daemon.api("GET", "/v1/volumes").body["data"]
    evil = BROWSER | {"Origin": "http://evil.example"}
    with Tcp(port, full) as ask:
        for method, path in (("POST", "/v1/volumes"), ("DELETE", "/v1/volumes/1v1"), ("PUT", "/v1/volumes/1v1")):
            answer = ask(method, path, {"name": "evil", "driver": "btrfs"}, headers=evil)
            assert (answer.status, answer.body["code"]) == (403, "Forbidden")
        assert ask("POST", "/v1/volumes", {}, headers={"Origin": "http://evil.example"}).status == 422, "no browser"
    assert daemon.api("GET", "/v1/volumes").body["data"] == before


def test_the_same_holds_for_a_browser_behind_a_proxy_to_the_socket(daemon: Running) -> None:
    evil = BROWSER | {"Origin": "http://evil.example", "Host": "box.example"}
    assert daemon.api("POST", "/v1/volumes", {}, headers=evil).status == 403
    own = BROWSER | {"Origin": "https://box.example", "Host": "box.example"}
    assert daemon.api("POST", "/v1/volumes", {}, headers=own).status == 422


def test_a_name_that_was_led_to_loopback_is_refused_to_browsers(daemon: Running, port: int, full: Key) -> None:
    del daemon
    with Tcp(port, full) as ask:
        rebound = ask("GET", "/v1", headers=BROWSER | {"Host": "evil.example"})
        assert (rebound.status, rebound.body["code"]) == (403, "Forbidden")
        assert "Host header" in rebound.body["message"]
        assert ask("GET", "/v1", headers={"Host": "proxied.example"}).status == 200
        assert ask("GET", "/v1", headers=BROWSER | {"Host": "localhost"}).status == 200


# TLS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def encrypted(
    session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory, tls_port: int, pair: tuple[Path, Path]
) -> Iterator[Running]:
    lines = (f'tls_cert = "{pair[0]}"', f'tls_key = "{pair[1]}"')
    config = listening(tls_port, *lines, host="localhost") + scratch_config(session_scratch)
    with Running(tmp_path_factory.mktemp("e"), config=config) as running:
        yield running


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_https_is_served_on_both_loopback_addresses(
    encrypted: Running, tls_port: int, pair: tuple[Path, Path], host: str
) -> None:
    key = make_key(encrypted)
    trusting = ssl.create_default_context(cafile=pair[0])
    trusting.check_hostname = host != "::1"  # the certificate does not know it
    with Tcp(tls_port, key, trusting, host) as ask:
        answer = ask("GET", "/v1")
        assert answer.status == 200
        name = "[::1]" if host == "::1" else host
        assert answer.headers["X-API-Schemas"] == f"https://{name}:{tls_port}/v1/schemas"
        cookie = ask("GET", "/v1", headers=BROWSER).headers["Set-Cookie"]
        assert "; Secure" in cookie
        check_unauthorized(ask("GET", "/v1", headers={"Authorization": "Basic x"}))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(
    encrypted: Running, tls_port: int, pair: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    del encrypted
    old = ssl.create_default_context(cafile=pair[0])
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = version
    with Tcp(tls_port, None, old) as ask, pytest.raises(ssl.SSLError):
        ask("GET", "/")


def test_what_is_not_tls_is_cut_off_without_a_word_in_the_log(encrypted: Running, tls_port: int) -> None:
    before = len(encrypted.log)
    with Tcp(tls_port) as ask, pytest.raises((http.client.HTTPException, ConnectionError)):
        ask("GET", "/")
    with socket.create_connection(("127.0.0.1", tls_port)) as silent:
        silent.sendall(b"\x16\x03\x01\x02\x00")
    assert encrypted.api("GET", "/v1").status == 200
    assert encrypted.log[before:] == ""


def test_the_client_needs_to_know_whom_to_trust(encrypted: Running, tls_port: int, pair: tuple[Path, Path]) -> None:
    key = make_key(encrypted)
    keys = {"VOLDRIVER_ACCESS_KEY": key[0], "VOLDRIVER_SECRET_KEY": key[1], "VOLDRIVER_SOCKET": ""}
    url = f"https://localhost:{tls_port}"
    refused = encrypted.cli("--url", url, "volume", "ls", **keys)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"voldriver: cannot reach voldriverd at {url}: self-signed certificate; "
        "--ca-cert or VOLDRIVER_CA_CERT names the file of whom to trust\n"
    )
    assert encrypted.cli("--url", url, "--ca-cert", str(pair[0]), "volume", "ls", **keys).returncode == 0
    assert encrypted.cli("volume", "ls", VOLDRIVER_URL=url, VOLDRIVER_CA_CERT=str(pair[0]), **keys).returncode == 0


def test_the_client_says_when_url_and_port_do_not_go_together(
    encrypted: Running, tls_port: int, pair: tuple[Path, Path]
) -> None:
    plain = encrypted.cli("--url", f"http://localhost:{tls_port}", "volume", "ls", VOLDRIVER_SOCKET="")
    assert plain.returncode == 1
    assert plain.stderr.endswith("an answer; if it speaks TLS there, its url begins with https://\n")
    other = encrypted.cli("--url", f"https://[::1]:{tls_port}", "--ca-cert", str(pair[0]), "info", VOLDRIVER_SOCKET="")
    assert other.returncode == 1
    assert other.stderr.endswith("IP address mismatch, certificate is not valid for '::1'\n")


def test_the_client_does_everything_over_https(encrypted: Running, tls_port: int, pair: tuple[Path, Path]) -> None:
    key = make_key(encrypted)
    environment = {
        "VOLDRIVER_SOCKET": "",
        "CATTLE_URL": f"https://127.0.0.1:{tls_port}/v1",
        "VOLDRIVER_CA_CERT": str(pair[0]),
        "CATTLE_ACCESS_KEY": key[0],
        "CATTLE_SECRET_KEY": key[1],
    }
    for arguments in (
        *(
            "volume create -d btrfs far",
            "snapshot create far one",
            "snapshot diff far one",
            "volume set far --label a=b",
        ),
        *("volume rm far", "trash ls", "apikey create --name remote", "apikey rm remote", "info"),
    ):
        done = encrypted.cli(*arguments.split(), **environment)
        assert done.returncode == 0, (arguments, done.stderr)
    wrong_key = encrypted.cli("volume", "ls", **environment | {"CATTLE_SECRET_KEY": "wrong"})
    assert (wrong_key.returncode, wrong_key.stdout) == (1, "")
    assert "there is no such API key, or its secret is another" in wrong_key.stderr
    assert key[1] not in wrong_key.stderr


def test_an_archive_goes_over_https_and_is_refused_before_its_end(
    encrypted: Running, tls_port: int, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    key = make_key(encrypted)
    keys = {"VOLDRIVER_SOCKET": "", "VOLDRIVER_ACCESS_KEY": key[0], "VOLDRIVER_SECRET_KEY": key[1]}
    there = ("--url", f"https://localhost:{tls_port}", "--ca-cert", str(pair[0]))
    (tmp_path / "content").write_bytes(bytes(8 << 20))
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.add(tmp_path / "content", "content")
    taken = encrypted.cli(*there, "import", "tar", str(tmp_path / "archive"), "far-archive", **keys)
    assert (taken.returncode, taken.stdout, taken.stderr) == (0, "far-archive\n", "")
    again = encrypted.cli(*there, "import", "tar", str(tmp_path / "archive"), "far-archive", **keys)
    assert again.returncode == 1
    assert again.stderr == "voldriver: cannot import volume far-archive: a volume of this name exists\n"


# The start


def start(base: Path, config: str) -> tuple[int, str]:
    running = Running(base, config=config)
    argv = [sys.executable, "-c", DAEMON, *running._places()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    running.close()
    return done.returncode, done.stderr


def test_a_start_with_a_wrong_certificate_ends_with_its_cause_and_touches_nothing(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    _, other = certificate(tmp_path, "other")
    lines = (f'tls_cert = "{pair[0]}"', f'tls_key = "{other}"')
    status, text = start(tmp_path / "d", listening(free_port(), *lines))
    assert (status, text) == (1, f"voldriverd: cannot use api.tls_key '{other}': it is not the key of {pair[0]}\n")
    assert not (tmp_path / "d" / "root").exists()


def test_a_start_on_an_address_that_is_taken_ends_with_that_and_leaves_no_socket(
    daemon: Running, port: int, session_scratch: Scratch, tmp_path: Path
) -> None:
    status, text = start(tmp_path / "d", listening(port) + scratch_config(session_scratch))
    assert status == 1
    assert f"voldriverd: cannot listen on 127.0.0.1:{port}: address already in use\n" in text
    assert not list((tmp_path / "d").glob("run/*.sock"))
    assert daemon.api("GET", "/v1").status == 200
