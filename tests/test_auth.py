"""The parts of the doors: the brake by a clock of our own, keys in memory, the audit line, browsers, certificates."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from tests.doors import certificate, fields_of, free_port
from voldriverd import logs, sockets, store, verbs
from voldriverd.api import auth, docker, tls
from voldriverd.api.auth import audit, brake, browsers, keyring
from voldriverd.api.auth.audit import Caller
from voldriverd.api.auth.brake import Brake
from voldriverd.api.auth.keyring import Keyring
from voldriverd.api.rancher.problems import Problem
from voldriverd.engine import apikeys, pools
from voldriverd.engine.context import Engine
from voldriverd.errors import InUse, Invalid, Unusable
from voldriverd.model import ApiKey, Role, Secret
from voldriverd.service import Service

BROWSER = "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"


class Clock:
    """Goes as far as it is told."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    database = store.Store(tmp_path)
    yield Engine(tmp_path, database, pools.Pools(database, [], default_driver="btrfs"), "boot")
    database.close()


def with_service(engine: Engine, work: Callable[[Service], Awaitable[None]]) -> None:
    async def run() -> None:
        service = Service(engine)
        try:
            await work(service)
        finally:
            await service.stop(within_s=5)

    asyncio.run(run())


def request(method: str = "GET", path: str = "/v1", **headers: str) -> web.BaseRequest:
    return make_mocked_request(method, path, {name.replace("_", "-"): value for name, value in headers.items()})


def make(engine: Engine, name: str = "ci") -> tuple[ApiKey, Secret]:
    return apikeys.create(engine, name=name, description=None, role=Role.FULL)


# The brake


def delays(brakes: Brake, count: int, *, source: str = "10.0.0.1") -> list[float]:
    return [brakes.fail(source).delay_s for _ in range(count)]


def test_slips_are_free_and_each_further_failure_waits_twice_as_long(clock: Clock) -> None:
    assert delays(Brake(clock), 12) == [0, 0, 0, 0, 0, 0.5, 1, 2, 4, 8, 8, 8]


def test_failures_are_counted_for_ever_and_forgotten_one_by_one(clock: Clock) -> None:
    brakes = Brake(clock)
    delays(brakes, 10)
    clock.now_s += 3 * brake.FORGET_S
    failure = brakes.fail("10.0.0.1")
    assert (failure.count, failure.delay_s) == (11, 2)
    clock.now_s += 1_000 * brake.FORGET_S
    failure = brakes.fail("10.0.0.1")
    assert (failure.count, failure.delay_s) == (12, 0)


def test_one_source_does_not_pay_for_another(clock: Clock) -> None:
    brakes = Brake(clock)
    delays(brakes, 20)
    assert delays(brakes, 1, source="10.0.0.2") == [0]


def test_the_longest_wait_ends_before_a_go_client_gives_up() -> None:
    assert brake.LONGEST_S < 10


def test_a_flood_from_everywhere_takes_bounded_memory(clock: Clock) -> None:
    brakes = Brake(clock)
    delays(brakes, 10, source="first")
    for number in range(brake.SOURCES_MAX):
        brakes.fail(str(number))
    assert len(brakes._sources) == brake.SOURCES_MAX
    assert delays(brakes, 1, source="first") == [0], "it failed longest ago and was forgotten"


def test_who_failed_last_is_remembered_longest(clock: Clock) -> None:
    brakes = Brake(clock)
    delays(brakes, 10, source="first")
    for number in range(brake.SOURCES_MAX - 1):
        brakes.fail(str(number))
        brakes.fail("first")
    brakes.fail("another")
    assert brakes.fail("first").delay_s == brake.LONGEST_S


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_a_source_is_an_address_or_a_network_of_ipv6(address: str, source: str) -> None:
    assert brake.source(address) == source


# The keyring


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the public values of keys whose secrets were hashed, as they are."""
    computed: list[str] = []
    slow = apikeys.is_secret

    def counted(key: ApiKey, secret: Secret) -> bool:
        computed.append(key.public)
        return slow(key, secret)

    monkeypatch.setattr(apikeys, "is_secret", counted)
    return computed


def test_a_proven_secret_costs_no_hash_again(engine: Engine, hashes: list[str]) -> None:
    key, secret = make(engine)

    async def work(service: Service) -> None:
        ring = Keyring(service)
        for _ in range(5):
            assert await ring.find(key.public, secret) == key

    with_service(engine, work)
    assert hashes == [key.public]


def test_a_guess_costs_no_hash_whether_the_key_exists_or_not(engine: Engine, hashes: list[str]) -> None:
    key, secret = make(engine)
    guesses = [
        (key.public, Secret("x" * len(secret.text))),
        (key.public, Secret("")),
        ("A" * len(key.public), secret),
        ("A" * len(key.public), Secret("x" * len(secret.text))),
        ("", Secret("")),
    ]

    async def work(service: Service) -> None:
        ring = Keyring(service)
        for guess in guesses:
            assert await ring.find(*guess) is None

    with_service(engine, work)
    assert hashes == []


def test_a_sealed_secret_that_is_not_the_hashed_one_is_refused(engine: Engine, hashes: list[str]) -> None:
    key, _ = make(engine)
    random = "x" * apikeys.RANDOM_LENGTH
    forged = Secret(random + apikeys._seal(engine.store.seal, key.public, random))

    async def work(service: Service) -> None:
        assert await Keyring(service).find(key.public, forged) is None

    with_service(engine, work)
    assert hashes == [key.public], "the seal is no proof"


def test_many_first_requests_at_once_cost_few_hashes(engine: Engine, hashes: list[str]) -> None:
    key, secret = make(engine)

    async def work(service: Service) -> None:
        ring = Keyring(service)
        found = await asyncio.gather(*(ring.find(key.public, secret) for _ in range(50)))
        assert found == [key] * 50

    with_service(engine, work)
    assert 1 <= len(hashes) <= keyring.CHECKS_MAX


def test_no_more_hashes_than_that_are_computed_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [make(engine, f"key{number}") for number in range(6)]
    together = threading.Barrier(keyring.CHECKS_MAX, timeout=10)
    running: list[int] = []
    most: list[int] = []

    def counted(_key: ApiKey, _secret: Secret) -> bool:
        running.append(1)
        most.append(len(running))
        together.wait()
        running.pop()
        return True

    monkeypatch.setattr(apikeys, "is_secret", counted)

    async def work(service: Service) -> None:
        ring = Keyring(service)
        await asyncio.gather(*(ring.find(key.public, secret) for key, secret in keys))

    with_service(engine, work)
    assert max(most) == keyring.CHECKS_MAX


def test_the_event_loop_goes_on_while_a_secret_is_hashed(engine: Engine) -> None:
    key, secret = make(engine)
    gaps: list[float] = []

    async def beat() -> None:
        while True:
            begun_s = time.monotonic()
            await asyncio.sleep(0)
            gaps.append(time.monotonic() - begun_s)

    async def work(service: Service) -> None:
        task = asyncio.create_task(beat())
        await Keyring(service).find(key.public, secret)
        task.cancel()

    with_service(engine, work)
    assert len(gaps) > 100, "the loop had many turns during some 50 ms"


def test_a_revoked_key_is_found_no_more_and_its_digest_is_dropped(engine: Engine) -> None:
    key, secret = make(engine)

    async def work(service: Service) -> None:
        ring = Keyring(service)
        assert await ring.find(key.public, secret) == key
        await service.revoke_api_key(key.id)
        assert await ring.find(key.public, secret) is None
        assert ring._proven == {}

    with_service(engine, work)


def test_a_key_that_is_revoked_while_its_secret_is_hashed_is_not_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = make(engine)

    def revoked_meanwhile(_key: ApiKey, _secret: Secret) -> bool:
        apikeys.revoke(engine, key.id)
        return True

    monkeypatch.setattr(apikeys, "is_secret", revoked_meanwhile)

    async def work(service: Service) -> None:
        assert await Keyring(service).find(key.public, secret) is None

    with_service(engine, work)


def test_memory_holds_digests_of_live_keys_only_and_no_secret(engine: Engine) -> None:
    made = [make(engine, f"key{number}") for number in range(3)]

    async def work(service: Service) -> None:
        ring = Keyring(service)
        for key, secret in made[:2]:
            await ring.find(key.public, secret)
        await service.revoke_api_key(made[0][0].id)
        await ring.find(made[2][0].public, made[2][1])
        assert set(ring._proven) == {made[1][0].public, made[2][0].public}
        assert not any(secret.text in str(vars(ring)) for _, secret in made)

    with_service(engine, work)


def test_a_change_of_its_name_needs_no_new_proof(engine: Engine, hashes: list[str]) -> None:
    key, secret = make(engine)

    async def work(service: Service) -> None:
        ring = Keyring(service)
        await ring.find(key.public, secret)
        await service.set_api_key(key.id, {"name": "new"})
        found = await ring.find(key.public, secret)
        assert found is not None
        assert found.name == "new"

    with_service(engine, work)
    assert len(hashes) == 1


# Credentials


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic YTpi", ("a", "b")),
        ("basic  YTpi", ("a", "b")),
        ("Basic YTpiOmM=", ("a", "b:c")),
        ("Basic Og==", ("", "")),
        ("Basic w7w6w7w=", ("ü", "ü")),
        ("Basic YWI=", None),
        ("Basic", None),
        ("Basic ===", None),
        ("Basic YTpi!", None),
        ("Basic /zr/", None),
        ("Bearer YTpi", None),
        ("Basic \udcff", None),
        ("", None),
    ],
)
def test_credentials_are_those_of_http_basic(header: str, expected: tuple[str, str] | None) -> None:
    found = auth._decode(header)
    assert (None if found is None else (found[0], found[1].text)) == expected


@given(st.text())
def test_no_header_breaks_the_reading_of_credentials(header: str) -> None:
    auth._decode(header)
    auth._decode(f"Basic {header}")


def test_requests_without_a_key_are_answered_one_after_the_other(engine: Engine) -> None:
    count = 100

    async def work(service: Service) -> None:
        door = auth.Basic(service, trust=lambda _request, _key: None)
        begun_s = time.monotonic()
        await asyncio.gather(*(door.identify(request("GET", "/")) for _ in range(count)))
        assert time.monotonic() - begun_s >= count * auth.STRANGER_S

    with_service(engine, work)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1", "/v1?_method=GET", "/v1?_method=head", "/v1/volumes/1v1?action=remove"])
def test_reading_is_no_change(method: str, path: str) -> None:
    assert not auth.is_change(request(method, path))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, "/v1") for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "REPLACE")),
        *(("GET", f"/v1?{query}") for query in ("_method=DELETE", "_method=put", "%5Fmethod=POST", "x=1&_method=X")),
        *(("GET", "/v1?_method="), ("POST", "/v1?_method=GET")),
    ],
)
def test_all_else_may_be_a_change(method: str, path: str) -> None:
    assert auth.is_change(request(method, path))


def test_the_calls_of_the_plugin_are_known_to_change_or_not() -> None:
    calls = docker.Plugin(None)._methods  # type: ignore[arg-type] # nothing is called
    changes = {path for path in calls if docker.is_change(request("POST", path))}
    assert changes == {f"/VolumeDriver.{verb}" for verb in ("Create", "Remove", "Mount", "Unmount")}
    assert docker.is_change(request("POST", "/VolumeDriver.Later"))


# The audit line


def written(
    caplog: pytest.LogCaptureFixture, asked: web.BaseRequest, answer: Callable[[], Awaitable[web.StreamResponse]]
) -> dict[str, Any]:
    with caplog.at_level(logging.INFO, audit.LOGGER), contextlib.suppress(ValueError, asyncio.CancelledError):
        asyncio.run(audit.written(asked, Caller("uid:7", "pid:8"), answer()))
    (line,) = [record.getMessage() for record in caplog.records if record.name == audit.LOGGER]
    assert "\n" not in line
    return fields_of(line)


def test_a_line_says_who_from_where_what_and_the_result(caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> web.StreamResponse:
        return web.Response(status=201, body=b'{"id": "1v1", "name": "db", "secretValue": "s"}')

    line = written(caplog, request("POST", "/v1/volumes/1v3?action=clone&x=y"), answer)
    assert float(line.pop("duration_ms")) >= 0
    assert line == {
        "by": "uid:7",
        "from": "pid:8",
        "method": "POST",
        "path": "/v1/volumes/1v3?action=clone",
        "id": "1v1",
        "name": "db",
        "status": "201",
        "result": "ok",
    }


def test_a_line_is_that_of_the_last_verb_that_ended_before_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    counted, answered = verbs.Verbs(), asyncio.Event()
    later: list[asyncio.Task[None]] = []

    async def go_on() -> None:
        await answered.wait()
        counted.note("backup", {"volume": "db"}, 0.5)

    async def answer() -> web.StreamResponse:
        later.append(asyncio.create_task(go_on()))
        counted.note("snapshot", {"volume": "db", "driver": "loop"}, 0.25, error=InUse('cannot "so"'))
        return web.Response(status=500, body=b'{"Err": "cannot \\"so\\""}')

    async def ask() -> None:
        await audit.written(request("POST", "/v1/volumes"), Caller("uid:7", "pid:8"), answer())
        answered.set()
        await asyncio.gather(*later)

    with caplog.at_level(logging.INFO):
        asyncio.run(ask())
    lines = [str(record.msg) for record in caplog.records if isinstance(record.msg, logs.Line)]
    asked = "audit by=uid:7 from=pid:8 method=POST path=/v1/volumes status=500 verb=snapshot volume=db driver=loop "
    assert sorted(lines) == [
        f'{asked}result=in_use duration_ms=250.0 error="cannot \\"so\\""',
        "verb=backup volume=db result=ok duration_ms=500.0 by=uid:7 from=pid:8",
    ]


def test_a_line_says_why_it_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def answer() -> web.StreamResponse:
        return web.Response(status=409, body=b'{"type": "error", "id": "uuid", "message": "cannot \\"so\\"\\nfaked=1"}')

    line = written(caplog, request("DELETE", "/v1/volumes/1v3"), answer)
    assert (line["status"], line["result"], line["error"]) == ("409", "refused", 'cannot "so"\nfaked=1')
    assert not {"id", "faked"} & set(line)


@pytest.mark.parametrize(
    ("error", "result"), [(asyncio.CancelledError(), "cut off"), (ValueError("a secret"), "ValueError")]
)
def test_what_is_cut_off_or_fails_is_a_line_too(
    caplog: pytest.LogCaptureFixture, error: BaseException, result: str
) -> None:
    async def answer() -> web.StreamResponse:
        raise error

    line = written(caplog, request("POST", "/v1/volumes"), answer)
    assert line["result"] == result
    assert "secret" not in str(line)


@pytest.mark.parametrize("body", [b"", b"[1]", b"\xff", b"text", b"[" * 100_000, b'"name"'])
def test_an_answer_that_is_no_resource_is_a_line_without_a_name(caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    async def answer() -> web.StreamResponse:
        return web.Response(body=body)

    assert set(written(caplog, request("POST"), answer)) == {
        "by",
        "from",
        "method",
        "path",
        "status",
        "result",
        "duration_ms",
    }


# Browsers


def problem_of(asked: web.BaseRequest, *, is_loopback: bool = False) -> Problem | None:
    try:
        browsers.check_origin(asked, is_change=auth.is_change(asked), is_loopback=is_loopback)
        if auth.is_change(asked):
            asyncio.run(browsers.check_token(asked))
    except Problem as err:
        return err
    return None


@pytest.mark.parametrize(
    ("agent", "expected"),
    [(BROWSER, True), ("x MOZILLA", True), ("python-requests/2", False), ("Go-http-client/1.1", False), ("", False)],
)
def test_a_browser_is_known_by_its_name(agent: str, *, expected: bool) -> None:
    assert browsers.is_browser(request(User_Agent=agent)) is expected


SAME = [
    ("box:9580", "http://box:9580"),
    ("box", "http://box"),
    ("BOX:9580", "http://box:9580"),
    ("box", "https://box:443"),
    ("[::1]:9580", "http://[::1]:9580"),
]
OTHER = [
    ("box:9580", "http://evil:9580"),
    ("box:9580", "http://box:9581"),
    ("box:9580", "http://box"),
    ("box:9580", "null"),
    ("box:9580", ""),
    ("box:9580", "http://box:9580.evil"),
    ("box:9580", "http://box:x"),
    ("box:9580", "http://[evil"),
    ("", "null"),
    ("box", "file://"),
]


@pytest.mark.parametrize(("host", "origin"), SAME)
def test_a_change_from_a_page_of_ours_passes(host: str, origin: str) -> None:
    assert problem_of(request("POST", Host=host, Origin=origin)) is None


@pytest.mark.parametrize(("host", "origin"), OTHER)
def test_a_change_from_another_page_is_refused(host: str, origin: str) -> None:
    problem = problem_of(request("POST", Host=host, Origin=origin))
    assert problem is not None
    assert (int(problem.status), problem.code) == (403, "Forbidden")
    assert problem_of(request("GET", Host=host, Origin=origin)) is None, "nobody else can read the answer"


@pytest.mark.parametrize(
    ("method", "site", "mode", "passes"),
    [
        *(("GET", "same-origin", "cors", True), ("POST", "same-origin", "cors", True), ("POST", "none", "", True)),
        *(("GET", "cross-site", "navigate", True), ("GET", "cross-site", "no-cors", False)),
        *(("POST", "cross-site", "navigate", False), ("POST", "same-site", "cors", False)),
        ("GET", "same-site", "cors", False),
    ],
)
def test_what_the_browser_says_of_the_page_counts(method: str, site: str, mode: str, *, passes: bool) -> None:
    asked = request(method, Host="box", Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)
    assert (problem_of(asked) is None) is passes


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9580", "127.0.0.1:9580", "127.9.9.9", "[::1]:9580", "a.localhost"]
)
def test_a_loopback_name_passes_on_a_loopback_address(host: str) -> None:
    assert problem_of(request(Host=host), is_loopback=True) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9580", "10.0.0.1", "", "localhost.evil", "127.0.0.1.evil"]
)
def test_another_name_does_not_pass_on_a_loopback_address(host: str) -> None:
    problem = problem_of(request(Host=host), is_loopback=True)
    assert problem is not None
    assert int(problem.status) == 403
    assert problem_of(request(Host=host)) is None


def token_cases() -> list[tuple[str, Mapping[str, str], bool]]:
    cookie = {"Cookie": "a=b; CSRF=0123456789"}
    return [
        ("/v1", {}, True),
        ("/v1", cookie, False),
        ("/v1", cookie | {"X_API_CSRF": "0123456789"}, True),
        ("/v1?CSRF=0123456789", cookie, True),
        ("/v1", cookie | {"X_API_CSRF": "012345678"}, False),
        ("/v1?CSRF=x", cookie, False),
        ("/v1", {"Cookie": "CSRF="}, True),
    ]


@pytest.mark.parametrize(("path", "headers", "passes"), token_cases())
def test_a_change_repeats_the_cookie_that_there_is(path: str, headers: Mapping[str, str], *, passes: bool) -> None:
    problem = problem_of(request("POST", path, Host="box", **headers))
    assert (problem is None) is passes
    assert problem is None or (int(problem.status), problem.code) == (403, "InvalidCSRFToken")
    assert problem_of(request("GET", path, Host="box", **headers)) is None


@pytest.mark.parametrize(
    ("body", "token"),
    [
        *((b"CSRF=abc", "abc"), (b"name=x&CSRF=abc", "abc"), (b"CSRF=x&CSRF=abc", "abc"), (b"name=x", "")),
        *((b'{"CSRF": "abc"}', ""), (b' {"a":"&CSRF=abc"}', ""), (b"\xff", ""), (b"a=1&" * 2_000, "")),
    ],
)
def test_a_form_brings_the_token_in_its_body(body: bytes, token: str) -> None:
    assert browsers._form_token(body) == token


def test_a_page_knows_the_token_that_its_cookie_will_be() -> None:
    asked, response = request(), web.Response()
    token = browsers.token(asked)
    browsers.hand_token(asked, response)
    cookie = response.cookies[browsers.COOKIE]
    assert cookie.value == token == browsers.token(asked)
    assert (len(token), cookie["path"], cookie["samesite"], cookie["httponly"]) == (10, "/", "Lax", "")


def test_a_cookie_that_is_there_is_left_alone() -> None:
    asked, response = request(Cookie="CSRF=0123456789"), web.Response()
    browsers.hand_token(asked, response)
    assert browsers.token(asked) == "0123456789"
    assert not response.cookies


# Certificates and addresses


def test_a_certificate_serves_tls_1_2_and_later(tmp_path: Path) -> None:
    assert tls.context(*certificate(tmp_path)).minimum_version is ssl.TLSVersion.TLSv1_2


def wrong_certificates(directory: Path) -> list[tuple[Path, Path, str, str]]:
    right, key = certificate(directory)
    _, other_key = certificate(directory, "other")
    _, encrypted = certificate(directory, "encrypted", "-passout", "pass:word")
    missing, text, broken = directory / "missing", directory / "text", directory / "broken"
    text.write_text("no PEM")
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return [
        (missing, key, "api.tls_cert", "No such file or directory"),
        (right, missing, "api.tls_key", "No such file or directory"),
        (directory, key, "api.tls_cert", "Is a directory"),
        (text, key, "api.tls_cert", "it holds no certificate in PEM form"),
        (right, text, "api.tls_key", "it holds no private key in PEM form"),
        (key, right, "api.tls_cert", "it holds no certificate in PEM form"),
        (right, encrypted, "api.tls_key", "it is encrypted, and nobody is there to be asked for its passphrase"),
        (right, other_key, "api.tls_key", f"it is not the key of {right}"),
        (broken, key, "api.tls_cert", "OpenSSL says of it or of its key: "),
    ]


def test_a_wrong_certificate_is_refused_by_what_is_wrong_with_it(tmp_path: Path) -> None:
    for cert, key, field, cause in wrong_certificates(tmp_path):
        with pytest.raises(Invalid) as caught:
            tls.context(cert, key)
        at_fault = cert if field == "api.tls_cert" else key
        assert caught.value.field == field
        assert str(caught.value).startswith(f"cannot use {field} '{at_fault}': {cause}")


def closed(listeners: list[socket.socket]) -> list[str]:
    addresses = [str(listener.getsockname()[0]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


@pytest.mark.parametrize(
    ("host", "addresses"),
    [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("localhost", ["127.0.0.1", "::1"]), ("::", ["::"])],
)
def test_localhost_is_both_loopback_addresses_and_any_other_one_itself(host: str, addresses: list[str]) -> None:
    assert closed(sockets.bind_tcp(host, free_port())) == addresses


def test_an_address_that_is_taken_is_said_and_nothing_stays_open() -> None:
    (first,) = sockets.bind_tcp("127.0.0.1", 0)
    port = first.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(InUse, match=rf"cannot listen on 127\.0\.0\.1:{port}: address already in use"):
            sockets.bind_tcp(host, port)
    first.close()


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(Unusable, match=r"cannot listen on 192\.0\.2\.1:9580: cannot assign requested address"):
        sockets.bind_tcp("192.0.2.1", 9580)


def test_accepted_connections_inherit_the_limit_of_a_stall() -> None:
    (listener,) = sockets.bind_tcp("127.0.0.1", 0)
    listener.setblocking(True)
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == sockets._STALL_MS
    closed([listener, client, accepted])
