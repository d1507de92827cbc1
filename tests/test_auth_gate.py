"""The gate to TCP: places, time limits, the end. Real sockets, in this process, with limits made short."""

import asyncio
import errno
import socket
import ssl
from asyncio import selector_events
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.doors import basic, certificate
from voldriverd import sockets, store
from voldriverd.api import auth, middleware, rancher, tcp, tls
from voldriverd.engine import apikeys, pools
from voldriverd.engine.context import Engine
from voldriverd.model import Role
from voldriverd.service import Service

REQUEST = b"GET /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT_S = 0.3
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A site that answers with the path; a request for `/slow` waits until it is let go."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.may_go = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/slow":
            self.is_asked.set()
            await self.may_go.wait()
        return web.Response(text=request.path)

    def refuse(self, status: int, text: str) -> web.Response:
        return web.Response(status=status, text=text)


class Client:
    """Opens connections to a gate, and closes them all at the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, **options: Any) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            try:
                await writer.wait_closed()
            except OSError:
                continue


def serving(
    work: Callable[[Client, tcp.Gate, Any], Awaitable[None]],
    *,
    places: int = 8,
    context: ssl.SSLContext | None = None,
    make_site: Callable[[tcp.Connections], middleware.Site] | None = None,
    is_live: Callable[[str], bool] = lambda _: True,
) -> None:
    """Run a test against a gate."""

    async def run() -> None:
        connections = tcp.Connections(places)
        site = Echo() if make_site is None else make_site(connections)
        listeners = sockets.bind_tcp("127.0.0.1", 0)
        gate = tcp.Gate(site, listeners, connections, tls=context, is_live=is_live, stop_s=5.0)
        client = Client(listeners[0].getsockname()[1])
        await gate.start()
        try:
            async with asyncio.timeout(20):
                await work(client, gate, site)
        finally:
            await client.close()
            await gate.stop()

    asyncio.run(run())


async def is_served(streams: Streams) -> bool:
    reader, writer = streams
    try:
        writer.write(REQUEST)
        return (await reader.readuntil(b"/v1")).startswith(b"HTTP/1.1 200")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


# Time


def test_a_head_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE_S", SHORT_S)

    async def work(client: Client, _gate: tcp.Gate, _site: Any) -> None:
        reader, writer = await client.connect()
        end = asyncio.ensure_future(reader.read())
        writer.write(b"GET / HTTP/1.1\r\n")
        while not end.done():
            writer.write(b"a: b\r\n")
            await asyncio.wait([end], timeout=SHORT_S / 10)
        assert end.exception() is not None or end.result() == b""

    serving(work)


def test_a_connection_that_is_kept_alive_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "IDLE_S", SHORT_S)

    async def work(client: Client, _gate: tcp.Gate, _site: Any) -> None:
        streams = await client.connect()
        assert await is_served(streams)
        assert await is_served(streams)
        assert await streams[0].read() == b""

    serving(work)


def test_a_handshake_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "HANDSHAKE_S", SHORT_S)
    cert, key = certificate(tmp_path)

    async def work(client: Client, _gate: tcp.Gate, _site: Any) -> None:
        reader, _ = await client.connect()
        assert await reader.read() == b""
        trusting = ssl.create_default_context(cafile=cert)
        assert await is_served(await client.connect(ssl=trusting))

    serving(work, context=tls.context(cert, key))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    database = store.Store(tmp_path)
    yield Engine(tmp_path, database, pools.Pools(database, [], default_driver="btrfs"), "boot")
    database.close()


def test_a_body_that_does_not_come_is_not_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "BODY_S", SHORT_S)
    monkeypatch.setattr(tcp, "LINGER_S", SHORT_S)
    key, secret = apikeys.create(engine, name=None, description=None, role=Role.FULL)

    def make_site(connections: tcp.Connections) -> middleware.Site:
        service = Service(engine)
        return auth.Door(rancher.Api(service), auth.Basic(service, trust=connections.trust).identify)

    async def work(client: Client, _gate: tcp.Gate, site: auth.Door) -> None:
        reader, writer = await client.connect()
        authorization = f"Authorization: {basic((key.public, secret.text))}\r\n".encode()
        writer.write(b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n" + authorization + b"\r\n{")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"RequestTimeout"' in answer.replace(b" ", b"")
        await site._api._service.stop(within_s=5)

    serving(work, make_site=make_site)


# Places


class Transport:
    def __init__(self, ended: list[str], name: str) -> None:
        self.abort = lambda: ended.append(name)


def crowd(places: int, *addresses: str) -> tuple[tcp.Connections, list[str], list[socket.socket]]:
    """Return some connections, the list that names of ended ones go to, and their sockets."""
    connections = tcp.Connections(places)
    ended: list[str] = []
    opened: list[socket.socket] = []
    for number, address in enumerate(addresses):
        connection = tcp.Connection(socket.socket())
        opened.append(connection.socket)
        name = f"{address}#{number}"
        connection.transport = Transport(ended, name)  # type: ignore[assignment]
        connection.key = "KEY" if address.startswith("!") else None
        connections.add((address.removeprefix("!"), number), connection)
    return connections, ended, opened


@pytest.mark.parametrize(
    ("there", "ended"),
    [
        (["10.0.0.1", "10.0.0.2"], []),
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], ["10.0.0.1#0"]),
        (["10.0.0.1", "10.0.0.2", "10.0.0.2"], ["10.0.0.2#1"]),
        (["!10.0.0.1", "!10.0.0.1", "10.0.0.2"], ["10.0.0.2#2"]),
        (["!10.0.0.1", "10.0.0.1", "10.0.0.2"], ["10.0.0.1#1"]),
        (["10.0.0.1", "2001:db8::1", "2001:db8::2"], ["2001:db8::1#1"]),
    ],
)
def test_a_new_connection_gets_the_place_of_who_takes_most_without_a_key(there: list[str], ended: list[str]) -> None:
    connections, found, opened = crowd(3, *there)
    assert connections.make_room()
    for each in opened:
        each.close()
    assert found == ended


def test_there_is_no_place_among_right_keys_until_one_has_gone() -> None:
    connections, ended, opened = crowd(2, "!10.0.0.1", "!10.0.0.2")
    assert not connections.make_room()
    opened[1].close()
    assert connections.make_room()
    opened[0].close()
    assert ended == []


def test_who_floods_drives_out_himself_and_never_a_right_key() -> None:
    def make_site(connections: tcp.Connections) -> middleware.Site:
        site = Echo()
        handle = site.handle

        async def trusting(request: web.BaseRequest) -> web.StreamResponse:
            connections.trust(request, "KEY")
            return await handle(request)

        site.handle = trusting  # type: ignore[method-assign]
        return site

    async def work(client: Client, _gate: tcp.Gate, _site: Any) -> None:
        known = await client.connect()
        assert await is_served(known)
        flood = [await client.connect() for _ in range(6)]
        assert await asyncio.gather(*(reader.read() for reader, _ in flood[:4])) == [b""] * 4
        assert await is_served(flood[4])
        assert await is_served(flood[5])
        assert await is_served(known)
        refused, _ = await client.connect()
        assert await refused.read() == b"", "all have right keys now"
        assert await is_served(known)

    serving(work, places=3, make_site=make_site)


def test_a_connection_ends_a_round_after_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "WATCH_S", SHORT_S / 10)
    live, seen = {"KEPT", "GONE"}, []

    def make_site(connections: tcp.Connections) -> middleware.Site:
        seen.append(connections)
        return Echo()

    async def work(client: Client, _gate: tcp.Gate, site: Echo) -> None:
        kept, gone, stranger = [await client.connect() for _ in range(3)]
        for streams in (kept, gone, stranger):
            assert await is_served(streams)
        for connection, key in zip(seen[0]._open.values(), ("KEPT", "GONE"), strict=False):
            connection.key = key
        gone[1].write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await site.is_asked.wait()
        live.remove("GONE")
        assert await gone[0].read() == b""
        assert await is_served(kept)
        assert await is_served(stranger)
        site.may_go.set()

    serving(work, make_site=make_site, is_live=live.__contains__)


def test_a_revocation_is_answered_before_its_connection_ends() -> None:
    connections, ended, opened = crowd(2, "!10.0.0.1")
    connections.end_revoked(lambda _: False)
    assert ended == []
    connections.end_revoked(lambda _: False)
    opened[0].close()
    assert ended == ["!10.0.0.1#0"]


def test_an_accept_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tcp, "_SHORTAGE_S", 0.01)
    accept = selector_events.BaseSelectorEventLoop.sock_accept
    failures = [OSError(errno.EMFILE, "Too many open files")]

    async def failing(self: Any, listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return await accept(self, listener)

    monkeypatch.setattr(selector_events.BaseSelectorEventLoop, "sock_accept", failing)

    async def work(client: Client, _gate: tcp.Gate, _site: Any) -> None:
        assert await is_served(await client.connect())

    serving(work)
    assert "verb=accept result=[Errno 24] Too many open files" in caplog.text


# The end


def test_the_end_does_not_wait_for_strangers(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)

    async def work(client: Client, gate: tcp.Gate, _site: Any) -> None:
        silent, _ = await client.connect()
        trusting = ssl.create_default_context(cafile=cert)
        idle = await client.connect(ssl=trusting)
        assert await is_served(idle)
        async with asyncio.timeout(2):
            await gate.stop()
        assert await silent.read() == b""
        assert not await is_served(idle)
        with pytest.raises(ConnectionRefusedError):
            await client.connect()

    serving(work, context=tls.context(cert, key))


def test_the_end_waits_for_the_request_of_a_right_key() -> None:
    trusted: list[tcp.Connections] = []

    def make_site(connections: tcp.Connections) -> middleware.Site:
        trusted.append(connections)
        return Echo()

    async def work(client: Client, gate: tcp.Gate, site: Echo) -> None:
        reader, writer = await client.connect()
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await site.is_asked.wait()
        for connection in trusted[0]._open.values():
            connection.key = "KEY"
        stopping = asyncio.ensure_future(gate.stop())
        await asyncio.wait([stopping], timeout=0.1)
        assert not stopping.done()
        site.may_go.set()
        assert (await reader.read()).endswith(b"/slow")
        await stopping

    serving(work, make_site=make_site)
