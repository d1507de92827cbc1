"""`GET /v1/events` and `voldriver events`: what is told, to whom, and how one goes on after it was cut off."""

import asyncio
import json
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self

import pytest
from aiohttp import web

from tests import commands, doors
from tests.engines import Bench
from tests.running import CLIENT, SMALL, Running, UnixConnection
from voldriverd.api.rancher import events, schemas
from voldriverd.api.rancher.problems import Problem
from voldriverd.cli import events as cli_events
from voldriverd.cli.connection import Connection, Place
from voldriverd.engine import markers
from voldriverd.errors import Unusable
from voldriverd.runner import CAUSE
from voldriverd.service import Service
from voldriverd.store.write import Write

pytestmark = pytest.mark.root

PATIENCE_S: Final = 20.0
PAUSED_BYTES: Final = 64 << 10
"""What asyncio has waiting for a socket before it tells a writer to wait."""


@dataclass
class Message:
    """One server-sent event."""

    name: str = "message"
    id: str | None = None
    data: Any = None

    @property
    def what(self) -> tuple[str, str, str]:
        """What happened, in three words."""
        return self.data["resourceType"], self.data["state"], self.data["cause"]


class Stream:
    """One reader of a daemon's events."""

    def __init__(self, path: Path, *, last_id: str | None = None) -> None:
        self._connection = UnixConnection(path, timeout_s=PATIENCE_S)
        self._connection.request("GET", "/v1/events", headers={"Last-Event-ID": last_id} if last_id else {})
        self.response = self._connection.getresponse()
        self.begin = self.next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()

    def next(self) -> Message:
        """Return the next event, or what stands before the first."""
        message = Message()
        while line := self.response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            if name in {"event", "id", "data"}:
                setattr(message, "name" if name == "event" else name, json.loads(value) if name == "data" else value)
        return message

    def until(self, *wanted: tuple[str, str, str]) -> list[Message]:
        """Return the next events up to the first that is wanted."""
        found = [self.next()]
        while found[-1].what not in wanted:
            found.append(self.next())
        return found


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port = doors.free_port()
    with Running(tmp_path_factory.mktemp("events"), config=SMALL + doors.listening(port)) as daemon:
        daemon.port = port  # type: ignore[attr-defined]
        yield daemon


def create(daemon: Running, name: str) -> dict[str, Any]:
    made = daemon.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"})
    assert made.status == 201, made.body
    return dict(made.body)


def act(daemon: Running, resource: dict[str, Any], action: str, **fields: object) -> dict[str, Any]:
    path = f"/v1/{resource['type']}s/{resource['id']}/?action={action}"
    made = daemon.api("POST", path, fields)
    assert made.status in {200, 201, 202}, made.body
    return dict(made.body)


def test_a_life_is_told_verb_by_verb(daemon: Running) -> None:
    with Stream(daemon.api_socket) as stream:
        volume = create(daemon, "life")
        snapshot = act(daemon, volume, "snapshot", name="one")
        act(daemon, volume, "activate")
        act(daemon, volume, "deactivate")
        daemon.api("PUT", f"/v1/volumes/{volume['id']}", {"labels": {"k": "v"}})
        act(daemon, volume, "reverttosnapshot", snapshotId=snapshot["id"])
        daemon.api("PUT", f"/v1/snapshots/{snapshot['id']}", {"description": "d"})
        act(daemon, snapshot, "remove")
        copy = act(daemon, volume, "clone", name="life-2")
        for action in ("remove", "restore", "remove", "purge"):
            act(daemon, volume, action)
        told = stream.until(("volume", "purged", "purge"))
    assert [each.what for each in told] == [
        ("volume", "registering", "create"),
        ("volume", "inactive", "create"),
        ("snapshot", "creating", "snapshot"),
        ("snapshot", "created", "snapshot"),
        ("mount", "active", "mount"),
        ("volume", "active", "mount"),
        ("mount", "removed", "unmount"),
        ("volume", "inactive", "unmount"),
        ("volume", "inactive", "set"),
        ("volume", "reverting-inactive", "revert"),
        ("volume", "inactive", "revert"),
        ("snapshot", "created", "revert"),
        ("snapshot", "created", "set"),
        ("snapshot", "removed", "remove"),
        ("volume", "registering", "clone"),
        ("volume", "inactive", "clone"),
        ("volume", "removed", "remove"),
        ("volume", "inactive", "restore"),
        ("volume", "removed", "remove"),
        ("volume", "purged", "purge"),
    ]
    assert {each.data["volumeId"] for each in told} == {volume["id"], copy["id"]}
    assert [told[index].data["name"] for index in (0, 2, 4)] == ["life", "one", None]
    assert (told[4].data["holder"], told[4].data["volumeName"]) == ("host", "life")
    assert told[2].data["resourceId"] == snapshot["id"]
    assert all(each.id == each.data["id"] for each in told)


def test_the_stream_is_not_to_be_kept_and_an_event_has_the_fields_of_its_schema(daemon: Running) -> None:
    with Stream(daemon.api_socket) as stream:
        create(daemon, "fields")
        event = stream.next().data
        headers = stream.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-API-Schemas"].endswith("/v1/schemas")
    assert event.keys() - {"type", "timeTS"} == schemas.EVENT.fields.keys()
    assert event["type"] == "event"


def test_a_second_mount_of_a_volume_does_not_make_it_active_again(daemon: Running) -> None:
    create(daemon, "twice")
    with Stream(daemon.api_socket) as stream:
        for verb, holder in [("Mount", "a"), ("Mount", "b"), ("Mount", "b"), ("Unmount", "a")]:
            daemon.plugin(f"VolumeDriver.{verb}", Name="twice", ID=holder)
        for _ in range(2):
            daemon.plugin("VolumeDriver.Unmount", Name="twice", ID="b")
        told = stream.until(("volume", "inactive", "unmount"))
    assert [(each.data["holder"] or "-", *each.what[:2]) for each in told] == [
        ("a", "mount", "active"),
        ("-", "volume", "active"),
        ("b", "mount", "active"),
        ("a", "mount", "removed"),
        ("b", "mount", "removed"),
        ("-", "volume", "inactive"),
    ]


def test_a_snapshot_whose_time_has_come_is_told_as_expired(daemon: Running) -> None:
    volume = create(daemon, "expiring")
    soon = int((time.time() + 1.5) * 1_000)
    with Stream(daemon.api_socket) as stream:
        act(daemon, volume, "snapshot", name="short", expires=soon)
        told = stream.until(("snapshot", "removed", "expire"))
    assert told[-1].data["name"] == "short"


def test_who_comes_back_gets_what_happened_meanwhile(daemon: Running) -> None:
    with Stream(daemon.api_socket) as stream:
        begin = stream.begin.id
        create(daemon, "meanwhile")
        first = stream.next()
    with Stream(daemon.api_socket, last_id=first.id) as stream:
        assert stream.next().what == ("volume", "inactive", "create")
    with Stream(daemon.api_socket, last_id=begin) as stream:
        assert stream.begin.id == begin
        assert stream.next() == first


@pytest.mark.parametrize("last_id", ["nonsense", "0-1", "-", "٣", "é" * 500])
def test_who_names_an_event_that_is_not_known_is_told_of_a_gap(daemon: Running, last_id: str) -> None:
    with Stream(daemon.api_socket, last_id=last_id.encode().decode("latin-1")) as stream:
        gap = stream.next()
        assert (gap.name, gap.data["message"]) == ("gap", "events are missing here: read the lists again")
        create(daemon, f"after-{abs(hash(last_id))}")
        assert stream.next().what == ("volume", "registering", "create")
    with Stream(daemon.api_socket, last_id=gap.id) as stream:
        assert stream.next().what == ("volume", "registering", "create")


def test_events_are_only_read(daemon: Running) -> None:
    refused = daemon.api("POST", "/v1/events", {})
    assert (refused.status, refused.body["code"]) == (405, "MethodNotAllowed")
    assert daemon.api("GET", "/v1/events/1").status == 404
    assert daemon.api("GET", "/v1").body["links"]["events"].endswith("/v1/events")


def test_a_read_only_key_is_enough_over_tcp_and_no_key_is_not(daemon: Running) -> None:
    port: int = daemon.port  # type: ignore[attr-defined]
    key = doors.make_key(daemon, name="reader", role="read-only")
    with doors.Tcp(port) as stranger:
        assert stranger("GET", "/v1/events").status == 401
    with doors.Tcp(port, key=key) as reader:
        reader.connection.request("GET", "/v1/events", headers={"Authorization": doors.basic(key)})
        response = reader.connection.getresponse()
        assert response.status == 200
        assert response.readline().startswith(b"retry: ")
        response.close()


def test_open_streams_do_not_hold_the_daemon_up_and_a_restart_is_a_gap(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon, Stream(daemon.api_socket) as stream:
        create(daemon, "one")
        last_id = stream.next().id
        begun_s = time.monotonic()
        daemon.stop()
        assert time.monotonic() - begun_s < 3.0
        assert stream.response.read().decode().count("data: ") == 1
        daemon.start()
        with Stream(daemon.api_socket, last_id=last_id) as later:
            assert later.next().name == "gap"


# The command.


def events_command(daemon: Running, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", CLIENT, "--socket", str(daemon.api_socket), *options, "events"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """End a command with Ctrl-C; returns the rest of what it printed, and its status."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    return out, err, process.returncode


def first_line(process: subprocess.Popen[str], daemon: Running, path: str) -> str:
    """Change a volume until the command, which takes its time to start, prints that."""
    assert process.stdout is not None
    for count in range(200):
        daemon.api("PUT", path, {"description": str(count)})
        if select.select([process.stdout], [], [], 0.1)[0]:
            return process.stdout.readline()
    raise AssertionError("nothing is printed")


def test_the_command_prints_a_line_for_each_event_until_ctrl_c(daemon: Running) -> None:
    volume = create(daemon, "shown")
    with events_command(daemon) as process:
        line = first_line(process, daemon, f"/v1/volumes/{volume['id']}")
        snapshot = act(daemon, volume, "snapshot", name="one")
        act(daemon, volume, "activate")
        act(daemon, volume, "deactivate")
        act(daemon, snapshot, "remove")
        for expected in ("shown@one", "shown@one", "shown by host"):
            while not (line := process.stdout.readline()).rstrip().endswith(expected):  # type: ignore[union-attr]
                assert line, "it has ended"
        _, err, status = end(process)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  mount +active +mount +shown by host$", line)
    assert (err, status) == ("", 0)


def test_the_command_prints_json_and_goes_on_after_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        volume = create(daemon, "db")
        with events_command(daemon, "--json") as process:
            path = f"/v1/volumes/{volume['id']}"
            event = json.loads(first_line(process, daemon, path))
            daemon.restart()
            while event["cause"] != "snapshot":
                act(daemon, volume, "snapshot")
                event = json.loads(first_line(process, daemon, path))
            _, err, status = end(process)
    assert (event["type"], event["volumeName"], status) == ("event", "db", 0)
    assert [line.partition(":")[2].strip() for line in err.splitlines()] == [
        "no events come, trying again: the daemon has stopped",
        "events are missing here: read the lists again",
    ]


def test_the_command_fails_where_no_daemon_is(tmp_path: Path) -> None:
    result = commands.Voldriver(tmp_path / "no.sock").refused("events")
    assert "it does not run" in result


def test_the_command_gives_up_on_a_daemon_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_events, "RETRY_S", 0.05)
    monkeypatch.setattr(cli_events, "_PAUSE_S", 0.03)
    answers = [[b"id: r-7", b'data: {"a": 1}', b""]]

    @contextmanager
    def stream(*_: object, **__: object) -> Iterator[Any]:
        if not answers:
            raise Unusable("cannot reach it")
        yield SimpleNamespace(lines=answers.pop)

    monkeypatch.setattr(Connection, "stream", stream)
    messages = cli_events._messages(Connection(Place()))
    assert next(messages).data == '{"a": 1}'
    with pytest.raises(Unusable, match="cannot reach it"):
        next(messages)


def test_the_command_takes_no_other_answer_for_events() -> None:
    with commands.pretending([(200, b"{}")], []) as url, pytest.raises(Unusable, match="is it voldriverd"):
        next(cli_events._messages(Connection(Place(url=url))))


# A feed in this process: few events are kept, and readers are slow.


@dataclass
class Served:
    """A feed that is served on a socket."""

    feed: events.Feed
    path: Path
    bench: Bench

    async def connect(self, *, buffer: int = 2 << 20) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Begin to read; returns behind what stands before the first event."""
        reader, writer = await asyncio.open_unix_connection(self.path, limit=buffer)
        writer.write(b"GET /v1/events HTTP/1.0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == b"200", head
        await reader.readuntil(b"\n\n")
        return reader, writer

    async def change(self, count: int) -> None:
        """Have so many events in one commit, as by a verb: in a thread."""
        volume = self.bench.volume("db")

        def change(write: Write) -> None:
            for _ in range(count):
                write.put_volume(volume)

        await asyncio.to_thread(self.bench.store.commit, change)


def served(bench: Bench, scenario: Callable[[Served], Awaitable[None]], **limits: Any) -> None:
    """Serve a feed with some limits for as long as a scenario takes."""

    async def run() -> None:
        service = Service(bench.engine)
        feed = events.Feed(service, **limits)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await feed.stream(request, "http://h/v1/schemas")
            except Problem as err:
                return web.Response(status=err.status, text=str(err))

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)
        await runner.setup()
        path = bench.root / "feed.sock"
        await web.UnixSite(runner, path).start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await scenario(Served(feed, path, bench))
        finally:
            feed.close()
            await runner.cleanup()
            await service.stop(within_s=1.0)

    bench.create("db")
    asyncio.run(run())


def test_a_reader_that_is_too_far_behind_is_dropped_and_told_so(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        reader, writer = await served.connect()
        await served.change(3)
        await reader.readuntil(b"-3\ndata:")
        await served.change(51)
        *_, last = (await reader.read()).decode().strip().split("\n\n")
        writer.close()
        name, last_id, data = last.splitlines()
        assert (name, last_id.endswith("-3")) == ("event: dropped", True)
        assert "more than 50 events behind" in data

    served(bench, scenario, kept_max=50)


def test_a_reader_that_stops_reading_for_a_while_gets_all_in_order_and_then_the_end(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        reader, writer = await served.connect(buffer=1 << 10)
        for _ in range(100):
            await served.change(40)
        messages = (await reader.read()).decode().strip().split("\n\n")
        writer.close()
        numbers = [int(each.partition("\n")[0].rpartition("-")[2]) for each in messages[:-1]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert 200 < len(numbers) < 4_000
        assert messages[-1].startswith("event: dropped\n")

    served(bench, scenario, kept_max=60)


def test_a_reader_that_takes_nothing_is_cut_off(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        reader, writer = await served.connect(buffer=1 << 10)
        while served.feed._readers:
            await served.change(40)
        assert b"dropped" not in await reader.read()
        writer.close()

    served(bench, scenario, kept_max=50, stall_s=0.2)


def test_the_end_does_not_wait_for_a_reader_that_takes_nothing(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        _, writer = await served.connect(buffer=1 << 10)
        (transport,) = served.feed._readers
        while transport.get_write_buffer_size() <= PAUSED_BYTES:
            await served.change(40)
        served.feed.close()
        while served.feed._readers:
            await served.change(1)
        writer.close()

    served(bench, scenario)


def test_where_nothing_happens_there_are_comments(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        reader, writer = await served.connect()
        assert await reader.readexactly(6) == b":\n\n:\n\n"
        writer.close()

    served(bench, scenario, keepalive_s=0.02)


def test_readers_are_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(served: Served) -> None:
        monkeypatch.setattr(events, "READERS_MAX", 1)
        _, writer = await served.connect()
        reader, refused = await asyncio.open_unix_connection(served.path)
        refused.write(b"GET /v1/events HTTP/1.0\r\n\r\n")
        assert b" 503 " in await reader.readline()
        refused.close()
        writer.close()

    served(bench, scenario)


def test_a_reader_that_has_gone_makes_room(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        _, writer = await served.connect()
        writer.close()
        while served.feed._readers:
            await served.change(1)

    served(bench, scenario)


def test_three_readers_get_what_twenty_threads_commit_at_once_in_the_same_order(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        readers = [await served.connect() for _ in range(3)]
        await asyncio.gather(*(served.change(5) for _ in range(20)))
        for reader, writer in readers:
            told = [await reader.readuntil(b"\n\n") for _ in range(100)]
            assert [int(each.partition(b"\n")[0].rpartition(b"-")[2]) for each in told] == list(range(1, 101))
            writer.close()

    served(bench, scenario)


def test_a_pool_that_comes_back_is_told_and_one_that_does_not_is_not(bench: Bench) -> None:
    async def scenario(served: Served) -> None:
        service = Service(bench.engine)
        reader, writer = await served.connect()
        (pool,) = bench.engine.pools
        assert pool.driver is not None
        pool.driver = None
        marker = bench.pool_root / markers.MARKER
        marker.rename(bench.pool_root / "away")
        await service.open_pools()
        (bench.pool_root / "away").rename(marker)
        await service.open_pools()
        event = json.loads((await reader.readuntil(b"\n\n")).partition(b"data: ")[2])
        await service.stop(within_s=1.0)
        writer.close()
        facts = (event["resourceType"], event["resourceId"], event["name"], event["state"], event["cause"])
        assert facts == ("storagePool", f"1sp{pool.row.id}", "memory", "active", "recover")

    served(bench, scenario)


def test_a_thread_that_ran_a_verb_does_not_put_it_down_as_the_cause_of_others(bench: Bench) -> None:
    causes: list[str] = []

    async def run() -> None:
        service = Service(bench.engine)
        await service.mount(bench.volume("db").id, "holder")
        mounts = bench.store.mounts(bench.volume("db").id)
        await service.runner.in_thread(bench.store.commit, lambda write: write.drop_mounts(mounts))
        await service.stop(within_s=1.0)

    bench.create("db")
    bench.store.watch(lambda _: causes.append(CAUSE.get()))
    asyncio.run(run())
    assert causes == ["mount", "upkeep"]
