"""Clients that hold connections, send a byte now and then, or never read: others are served, and nothing grows."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from tests.doors import Key, Tcp, basic, free_port, listening, make_key
from tests.engines import Bench
from tests.running import Running, pools_config
from tests.torture.count import rss_bytes
from tests.world import until
from voldriverd import sockets
from voldriverd.api import docker, middleware
from voldriverd.service import Service

CROWD: Final = 1_000
IDLE_BYTES: Final = 20 << 10
"""What one idle connection may cost the daemon, with room: it was 6 KB."""
GREEDY: Final = 20
GREEDY_BYTES: Final = 2 << 20
"""What one client may cost that asks without end and reads nothing: one answer of 300 KB, and what was read ahead."""
DOORS: Final = ("plugin", "api", "tcp")
SHORT_S: Final = 0.2


class Doors:
    """A daemon with its three doors."""

    def __init__(self, daemon: Running, port: int, key: Key) -> None:
        self.daemon = daemon
        self._port = port
        self._key = key

    def connect(self, door: str) -> socket.socket:
        if door == "tcp":
            return socket.create_connection(("127.0.0.1", self._port))
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(str({"plugin": self.daemon.plugin_socket, "api": self.daemon.api_socket}[door]))
        return opened

    def request(self, door: str) -> bytes:
        """Return a request whose answer is as long as there are any."""
        if door == "plugin":
            return b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        authorization = f"Authorization: {basic(self._key)}\r\n"
        return f"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n".encode()

    def serve_all(self) -> None:
        """Check that others are served, through each door."""
        assert self.daemon.plugin("VolumeDriver.Get", Name="db").status == 200
        assert self.daemon.api("GET", "/v1/volumes").status == 200
        with Tcp(self._port, self._key) as ask:
            assert ask("GET", "/v1/volumes").status == 200

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    place, port = tmp_path_factory.mktemp("slow"), free_port()
    config = listening(port) + pools_config(plain=("directory", place / "pool"))
    with Running(place / "daemon", config=config) as daemon:
        for name in ("db", *(f"{number:0>255}" for number in range(100))):
            daemon.plugin("VolumeDriver.Create", Name=name, Opts={"driver": "directory"})
        yield Doors(daemon, port, make_key(daemon, name="one"))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.root
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_connections_that_send_nothing_keep_nobody_out(doors: Doors, door: str) -> None:
    doors.serve_all()
    descriptors, memory = doors.descriptors(), rss_bytes(doors.daemon.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(doors.connect(door))
        doors.serve_all()
        assert doors.descriptors() <= descriptors + CROWD + 8
        assert rss_bytes(doors.daemon.pid) <= memory + CROWD * IDLE_BYTES
    until(lambda: doors.descriptors() <= descriptors, "the connections to be closed")


@pytest.mark.root
@pytest.mark.parametrize("door", DOORS)
def test_a_request_that_comes_a_byte_at_a_time_keeps_nobody_and_is_answered(doors: Doors, door: str) -> None:
    request = doors.request(door)
    with doors.connect(door) as slow:
        for position in range(len(request)):
            slow.sendall(request[position : position + 1])
            if position % 50 == 0:
                doors.serve_all()
        assert slow.recv(12) == b"HTTP/1.1 200"


def ask_without_end(client: socket.socket, request: bytes) -> None:
    """Send requests until the other end takes no more."""
    client.settimeout(SHORT_S)
    with contextlib.suppress(TimeoutError):
        while True:
            client.sendall(request * 100)


@pytest.mark.root
@pytest.mark.parametrize("door", DOORS)
def test_who_asks_without_end_and_never_reads_is_not_listened_to(doors: Doors, door: str) -> None:
    doors.serve_all()
    descriptors, memory = doors.descriptors(), rss_bytes(doors.daemon.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(GREEDY):
            ask_without_end(stack.enter_context(doors.connect(door)), doors.request(door))
        doors.serve_all()
        assert rss_bytes(doors.daemon.pid) <= memory + GREEDY * GREEDY_BYTES
    until(lambda: doors.descriptors() <= descriptors, "the connections to be closed")


# In this process, with other limits


class Big:
    """A site whose answers are longer than any buffer of a socket."""

    body = bytes(8 << 20)

    async def handle(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self.body)

    def refuse(self, status: int, text: str) -> web.Response:
        return web.Response(status=status, text=text)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Client:
    """Connects to a socket, and forgets nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_unix_connection(self._path)
        self._writers.append(writer)
        writer.write(sent)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def serving(
    tmp_path: Path,
    work: Callable[[Client, middleware.Server], Awaitable[None]],
    site: middleware.Site | None = None,
    **options: Any,
) -> None:
    """Run a test against a server on a unix socket."""

    async def run() -> None:
        path = tmp_path / "socket"
        server = middleware.Server(site or Big(), access_log=None, **options)
        runner = web.ServerRunner(server, shutdown_timeout=5.0)
        await runner.setup()
        await web.SockSite(runner, sockets.bind(path, group="root")).start()
        client = Client(path)
        try:
            async with asyncio.timeout(30):
                await work(client, server)
        finally:
            await client.close()
            await runner.cleanup()

    asyncio.run(run())


async def soon(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - whatever it is, there is no event for it
        await asyncio.sleep(0.005)


async def all_of(reader: asyncio.StreamReader) -> bool:
    """Read an answer; tells whether all of it came."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(Big.body))
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return head.startswith(b"HTTP/1.1 200")


def test_who_takes_nothing_of_an_answer_is_cut_off(tmp_path: Path) -> None:
    async def work(client: Client, server: middleware.Server) -> None:
        await client.connect(REQUEST)
        await soon(lambda: bool(server._unread._sizes))
        await soon(lambda: not server.connections)
        assert (server._unread._total_bytes, server._unread._timers) == (0, {})

    serving(tmp_path, work, stall_s=SHORT_S)


def test_who_reads_slowly_gets_all_of_it(tmp_path: Path) -> None:
    async def work(client: Client, server: middleware.Server) -> None:
        reader, _ = await client.connect(REQUEST)
        await soon(lambda: bool(server._unread._sizes))
        looks = 0
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        for _ in range(len(Big.body) // (64 << 10)):
            await reader.readexactly(64 << 10)
            looks += bool(server._unread._timers)
            await asyncio.sleep(0.01)
        assert looks

    serving(tmp_path, work, stall_s=SHORT_S)


def test_of_too_much_that_nobody_reads_the_oldest_goes(tmp_path: Path) -> None:
    async def work(client: Client, server: middleware.Server) -> None:
        readers = []
        for number in range(3):
            reader, _ = await client.connect(REQUEST)
            readers.append(reader)
            await soon(lambda number=number: len(server._unread._sizes) == min(number + 1, 2))  # type: ignore[misc]
        assert [await all_of(reader) for reader in readers] == [False, True, True]

    serving(tmp_path, work, unread_max_bytes=2 * len(Big.body))


def test_a_new_connection_gets_the_place_of_the_oldest_idle_one(tmp_path: Path) -> None:
    async def work(client: Client, server: middleware.Server) -> None:
        readers = [(await client.connect())[0] for _ in range(6)]
        await soon(lambda: server._places._count == 4)
        assert await readers[0].read() == await readers[1].read() == b""
        served, _ = await client.connect(REQUEST)
        assert await all_of(served)
        assert await readers[2].read() == b""

    serving(tmp_path, work, connections_max=4)


class Held:
    def __init__(self, *, is_idle: bool) -> None:
        self.is_idle = is_idle
        self.is_ended = False

    def force_close(self) -> None:
        self.is_ended = True


def ended(places: int, *taken: tuple[int, bool]) -> list[int]:
    """Return which of some connections, each with its process and whether it is idle, are ended."""
    kept = middleware.Places(places)
    connections = [Held(is_idle=is_idle) for _, is_idle in taken]
    for (pid, _), connection in zip(taken, connections, strict=True):
        kept.take(pid, connection)  # type: ignore[arg-type]
    assert kept._count == len(taken) - sum(each.is_ended for each in connections)
    return [number for number, each in enumerate(connections) if each.is_ended]


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([(1, True), (1, True), (1, True)], []),
        ([(1, True), (2, True), (2, True), (3, True)], [1]),
        ([(1, True), (2, False), (2, True), (3, True)], [2]),
        ([(1, True), (2, False), (2, False), (3, True)], [3]),
        ([(1, True), (2, True), (2, True), (2, True), (2, True)], [1, 2]),
    ],
)
def test_who_has_most_loses_the_oldest_that_is_idle(taken: list[tuple[int, bool]], expected: list[int]) -> None:
    assert ended(3, *taken) == expected


@pytest.mark.root
@pytest.mark.parametrize(("method", "answer"), [("Create", b"HTTP/1.1 408 "), ("Get", b"")])
def test_a_body_of_the_plugin_is_not_waited_for_without_end(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, answer: bytes
) -> None:
    monkeypatch.setattr(docker, "BODY_S", SHORT_S)

    async def work(client: Client, _server: middleware.Server) -> None:
        service = Service(bench.engine)
        plugin.append(docker.Plugin(service))
        head = f"POST /VolumeDriver.{method} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode()
        reader, _ = await client.connect(head)
        assert (await reader.read())[: len(answer) or None] == answer
        assert await service.stop(within_s=5)

    plugin: list[docker.Plugin] = []

    class Late:
        async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
            return await plugin[0].handle(request)

        def refuse(self, status: int, text: str) -> web.Response:
            return plugin[0].refuse(status, text)

    serving(tmp_path, work, Late(), lingering_time=SHORT_S)
