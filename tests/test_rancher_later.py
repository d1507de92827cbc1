"""Verbs that go on after the answer, that fail then, that meet others; and what a daemon says that is not well."""

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from drivers.directory import Directory
from tests.engines import Bench, bench_on
from voldriverd import model, names, runner, service, store, usages
from voldriverd.api import middleware, rancher
from voldriverd.api.rancher import creations, resources, snapshots, streams, volumes
from voldriverd.driver import Capability, Change, ChangeKind, Key, Usage
from voldriverd.engine import inspection, pools, upkeep
from voldriverd.engine.context import Limits
from voldriverd.errors import Invalid, Unusable
from voldriverd.kernel import fs
from voldriverd.service import Service

pytestmark = pytest.mark.root

ANSWER_S = 0.02
PATIENCE_S = 20.0
GIB = 1 << 30


@pytest.fixture
def bench(memory_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for module in (creations, volumes, snapshots):
        monkeypatch.setattr(module, "API_ANSWER_S", ANSWER_S)
    with bench_on(memory_root) as bench:
        yield bench


@dataclass
class Client:
    """Speaks to an API in this process."""

    service: Service
    session: aiohttp.ClientSession

    async def ask(self, method: str, path: str, fields: object = None) -> tuple[int, dict[str, Any]]:
        async with self.session.request(method, f"http://h{path}", json=fields) as response:
            assert response.headers["X-API-Schemas"] == "http://h/v1/schemas"
            return response.status, await response.json()

    async def make(self, name: str) -> None:
        status, made = await self.ask("POST", "/v1/volumes", {"name": name, "driver": "memory"})
        assert status == 201, made
        await self.until(f"/v1/volumes/{made['id']}", transitioning="no")

    async def until(self, path: str, *, transitioning: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                _, shown = await self.ask("GET", path)
                if shown.get("transitioning", transitioning) == transitioning:
                    return shown


def served(bench: Bench, scenario: Callable[[Client], Awaitable[None]]) -> None:
    """Serve the bench's engine on a socket for as long as a scenario takes."""

    async def run() -> None:
        path = str(bench.root / "api.sock")
        verbs = Service(bench.engine)
        runner = web.ServerRunner(middleware.Server(rancher.Api(verbs), access_log=None), shutdown_timeout=5.0)
        await runner.setup()
        await web.UnixSite(runner, path).start()
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
                await scenario(Client(verbs, session))
        finally:
            await runner.cleanup()
            assert await verbs.stop(within_s=PATIENCE_S)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def knows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let users ask for the in-memory driver by its name."""
    monkeypatch.setattr(names.parse_options, "__kwdefaults__", {"drivers": ("memory",)})


class Gate:
    """A driver's clone that waits until it is let through, and may fail then."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.reached: set[Key] = set()
        self._inner = bench.driver.clone
        self._fails = fails
        self._opened = threading.Event()
        monkeypatch.setattr(bench.driver, "clone", self._clone)

    def open(self) -> None:
        self._opened.set()

    def _clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        self.reached.add(target)
        assert self._opened.wait(PATIENCE_S)
        if self._fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._inner(source, target, read_only=read_only)


def test_a_snapshot_that_takes_long_is_answered_while_it_is_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        gate = Gate(bench, monkeypatch)
        status, made = await client.ask("POST", "/v1/volumes/1v1?action=snapshot", {"name": "s"})
        assert (status, made["state"], made["transitioning"]) == (200, "creating", "yes")
        assert made["transitioningMessage"] == "In Progress"
        assert made["actions"] == {}
        gate.open()
        assert (await client.until("/v1/snapshots/1s1", transitioning="no"))["state"] == "created"

    served(bench, scenario)


def test_a_revert_that_takes_long_says_at_once_what_will_undo_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot", {"name": "s"})
        await client.until("/v1/snapshots/1s1", transitioning="no")
        gate = Gate(bench, monkeypatch)
        status, reverting = await client.ask("POST", "/v1/volumes/1v1?action=reverttosnapshot", {"snapshotId": "1s1"})
        assert (status, reverting["state"], reverting["transitioning"]) == (202, "reverting-inactive", "yes")
        assert reverting["displacedSnapshotId"] == "1s2"
        assert reverting["actions"] == {}
        refused = await client.ask("POST", "/v1/volumes/1v1?action=activate")
        assert (refused[0], refused[1]["code"]) == (422, "ActionNotAvailable")
        assert "it is reverting" in refused[1]["message"]
        gate.open()
        assert (await client.until("/v1/volumes/1v1", transitioning="no"))["state"] == "inactive"
        assert (await client.ask("GET", "/v1/snapshots/1s2"))[1]["automatic"] is True

    served(bench, scenario)


def test_what_would_be_a_plain_copy_begins_and_is_answered_although_others_have_their_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "COPIES_AT_ONCE", 1)
    monkeypatch.setattr(runner, "LONG_THREADS", 1)
    monkeypatch.setattr(bench.driver, "capabilities", Capability.NONE)

    async def scenario(client: Client) -> None:
        for name in ("first", "db", "gone"):
            await client.make(name)
        await client.ask("POST", "/v1/volumes/1v2?action=snapshot", {"name": "one"})
        await client.until("/v1/snapshots/1s1", transitioning="no")
        gate = Gate(bench, monkeypatch)
        async with asyncio.timeout(PATIENCE_S):
            await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
            while not gate.reached:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.005)
            assert (await client.ask("POST", "/v1/volumes/1v1?action=snapshot"))[0] == 409
            _, reverting = await client.ask("POST", "/v1/volumes/1v2?action=reverttosnapshot", {"snapshotId": "1s1"})
            assert reverting["state"] == "reverting-inactive"
            _, made = await client.ask("POST", "/v1/volumes/1v3?action=snapshot", {"name": "two"})
            assert made["state"] == "creating"
            assert gate.reached == {"s2"}, "one copies, the others wait"
            await client.service.runner.in_thread(upkeep.collect, bench.engine, is_long=True)  # removals wait for none
        gate.open()
        assert (await client.until("/v1/volumes/1v2", transitioning="no"))["state"] == "inactive"
        assert (await client.until(f"/v1/snapshots/{made['id']}", transitioning="no"))["state"] == "created"

    monkeypatch.setattr(service, "API_WAIT_S", 0.05)
    served(bench, scenario)


@pytest.mark.parametrize(
    ("room", "sizes"), [(3, [2, 1, 0]), (2, [2, None, 0]), (1, [None, 1, 0]), (0, [None, None, 0])]
)
def test_what_is_included_is_bounded_and_where_it_does_not_fit_the_link_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, room: int, sizes: list[int | None]
) -> None:
    monkeypatch.setattr(resources, "INCLUDED_MAX", room)

    async def scenario(client: Client) -> None:
        for name in ("a", "b", "c"):
            await client.make(name)
        for volume_id in ("1v1", "1v1", "1v2"):
            _, made = await client.ask("POST", f"/v1/volumes/{volume_id}?action=snapshot")
            await client.until(f"/v1/snapshots/{made['id']}", transitioning="no")
        _, listed = await client.ask("GET", "/v1/volumes?limit=9&include=snapshots")
        shown = [len(each["snapshots"]) if "snapshots" in each else None for each in listed["data"]]
        assert shown == sizes
        assert all(("snapshots" in each) != ("snapshots" in each["links"]) for each in listed["data"])

    served(bench, scenario)


def test_a_clone_that_takes_long_exists_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        gate = Gate(bench, monkeypatch)
        status, made = await client.ask("POST", "/v1/volumes/1v1?action=clone", {"name": "copy"})
        assert (status, made["state"], made["transitioning"]) == (201, "registering", "yes")
        assert (await client.ask("GET", "/v1/volumes?name=copy"))[1]["data"][0]["id"] == made["id"]
        gate.open()
        assert (await client.until("/v1/volumes/1v2", transitioning="no"))["state"] == "inactive"

    served(bench, scenario)


def test_a_purge_is_answered_although_its_trees_are_still_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PURGE_ANSWER_S", ANSWER_S)
    opened, remove = threading.Event(), bench.driver.remove

    def remove_late(key: Key) -> None:
        assert opened.wait(PATIENCE_S)
        remove(key)

    monkeypatch.setattr(bench.driver, "remove", remove_late)

    async def scenario(client: Client) -> None:
        for name in ("db", "web"):
            await client.make(name)
            await client.ask("POST", f"/v1/volumes/{'1v1' if name == 'db' else '1v2'}?action=remove")
        async with asyncio.timeout(PATIENCE_S):
            for volume_id in ("1v1", "1v2"):  # the second finds that another thread removes trees
                status, purged = await client.ask("POST", f"/v1/volumes/{volume_id}?action=purge")
                assert (status, purged["state"]) == (200, "purged")
            assert len(bench.driver.trees()) == 2
            opened.set()
            await client.service.runner.in_thread(upkeep.collect, bench.engine)
        assert bench.driver.trees() == bench.tree_rows() == set()

    served(bench, scenario)


def test_an_answer_does_not_wait_for_trash_that_takes_long_to_remove(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is too full a removal of millions of files frees the space that a volume waits for."""
    monkeypatch.setattr(creations, "API_WAIT_S", ANSWER_S)
    monkeypatch.setattr(service, "API_WAIT_S", ANSWER_S)
    opened, remove = threading.Event(), bench.driver.remove

    def remove_late(key: Key) -> None:
        assert opened.wait(PATIENCE_S)
        remove(key)

    async def scenario(client: Client) -> None:
        for name in ("db", "old"):
            await client.make(name)
        await client.ask("POST", "/v1/volumes/1v2?action=remove")
        monkeypatch.setattr(bench.driver, "remove", remove_late)
        monkeypatch.setattr(fs, "capacity", lambda _: (100, 99 if opened.is_set() else 0))
        object.__setattr__(bench.engine, "limits", Limits(reserve=0.05))
        async with asyncio.timeout(PATIENCE_S):
            for path, fields in (
                ("/v1/volumes", {"name": "new", "driver": "memory"}),
                ("/v1/volumes/1v1?action=snapshot", {}),
            ):
                status, refused = await client.ask("POST", path, fields)
                assert (status, refused["code"]) == (503, "ServiceUnavailable"), refused
                assert "the space of removed volumes is still being given back; try again" in refused["message"]
            opened.set()
            while (await client.ask("POST", "/v1/volumes", {"name": "new", "driver": "memory"}))[0] != 201:  # noqa: ASYNC110 - ours alone
                await asyncio.sleep(ANSWER_S)

    served(bench, scenario)


def test_what_takes_long_to_read_keeps_nothing_from_being_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup of an image is unpacked aside before its first file can be sent."""
    monkeypatch.setattr(runner, "LONG_THREADS", 1)
    reached, opened = threading.Event(), threading.Event()

    def unpacked(*_: object) -> Iterator[bytes]:
        reached.set()
        assert opened.wait(PATIENCE_S)
        yield b"a file"

    monkeypatch.setattr(inspection, "archive", unpacked)

    async def scenario(client: Client) -> None:
        await client.make("db")
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
        await client.until("/v1/snapshots/1s1", transitioning="no")
        reading = asyncio.create_task(client.session.get("http://h/v1/snapshots/1s1/archive"))
        await client.service.runner.in_thread(reached.wait, PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S / 4):
            await client.service.runner.in_thread(upkeep.collect, bench.engine, is_long=True)
        opened.set()
        assert await (await reading).read() == b"a file"

    served(bench, scenario)


def test_a_mount_is_refused_in_time_while_another_verb_works_on_the_volume(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "API_WAIT_S", ANSWER_S)

    async def scenario(client: Client) -> None:
        await client.make("db")
        async with client.service._locks.hold(1, "snapshot", what="", wait_s=1), asyncio.timeout(PATIENCE_S):
            status, refused = await client.ask("POST", "/v1/volumes/1v1?action=activate")
        assert (status, refused["message"].partition(":")[0]) == (409, "cannot mount volume db")

    served(bench, scenario)


def test_an_unmount_that_flushes_long_is_answered_in_time_and_keeps_nobody_from_reading(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "API_WAIT_S", ANSWER_S)
    monkeypatch.setattr(runner, "QUICK_THREADS", 1)
    opened, detach = threading.Event(), bench.driver.detach

    def detach_late(key: Key) -> None:
        assert opened.wait(PATIENCE_S)
        detach(key)

    async def scenario(client: Client) -> None:
        for name, volume_id in (("db", "1v1"), ("web", "1v2"), ("app", "1v3")):
            await client.make(name)
            await client.ask("POST", f"/v1/volumes/{volume_id}?action=activate")
        monkeypatch.setattr(bench.driver, "detach", detach_late)
        async with asyncio.timeout(PATIENCE_S / 2):
            for volume_id in ("1v1", "1v2"):
                status, let_go = await client.ask("POST", f"/v1/volumes/{volume_id}?action=deactivate")
                assert (status, let_go["state"]) == (200, "inactive")
            assert (await client.ask("GET", "/v1/snapshots"))[0] == 200
            status, made = await client.ask("POST", "/v1/volumes/1v3?action=snapshot")
            assert (status, made["state"]) == (200, "created")
        opened.set()

    served(bench, scenario)


def test_a_revert_that_fails_after_the_answer_is_an_error_until_the_next_verb(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot", {"name": "s"})
        await client.until("/v1/snapshots/1s1", transitioning="no")
        with monkeypatch.context() as patch:
            gate = Gate(bench, patch, fails=True)
            await client.ask("POST", "/v1/volumes/1v1?action=reverttosnapshot", {"snapshotId": "1s1"})
            gate.open()
            shown = await client.until("/v1/volumes/1v1", transitioning="error")
        assert shown["state"] == "inactive"
        assert shown["transitioningMessage"] == "cannot revert volume db: no space is left in the pool"
        await client.ask("POST", "/v1/volumes/1v1?action=reverttosnapshot", {"snapshotId": "1s1"})
        assert (await client.until("/v1/volumes/1v1", transitioning="no"))["state"] == "inactive"

    served(bench, scenario)


@pytest.mark.parametrize(
    ("action", "path", "text"),
    [
        ("clone", "/v1/volumes/1v2", "there is no volume 1v2: cannot create volume s: no space is left in the pool"),
        ("snapshot", "/v1/snapshots/1s1", "there is no snapshot 1s1: cannot snapshot volume db: no space is left"),
    ],
)
def test_what_comes_to_nothing_after_the_answer_is_gone_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, action: str, path: str, text: str
) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        gate = Gate(bench, monkeypatch, fails=True)
        status, made = await client.ask("POST", f"/v1/volumes/1v1?action={action}", {"name": "s"})
        assert (status, made["transitioning"]) == (201 if action == "clone" else 200, "yes")
        gate.open()
        async with asyncio.timeout(PATIENCE_S):  # the row goes in a thread, and a moment later the reason is known
            while not ((answer := await client.ask("GET", path))[1].get("message") or "").startswith(text):
                assert answer[0] in {200, 404}
        assert (answer[0], answer[1]["code"]) == (404, "NotFound")

    served(bench, scenario)


def test_what_fails_before_the_answer_is_the_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        Gate(bench, monkeypatch, fails=True).open()
        status, error = await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
        assert (status, error["code"]) == (503, "ServiceUnavailable")
        assert error["message"] == "cannot snapshot volume db: no space is left in the pool"
        assert (await client.ask("GET", "/v1/volumes/1v1"))[1]["transitioning"] == "no"

    served(bench, scenario)


def test_only_so_many_failures_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FAULTS_MAX", 1)

    async def scenario(client: Client) -> None:
        await client.make("db")
        gate = Gate(bench, monkeypatch, fails=True)
        for name in ("a", "b"):
            await client.ask("POST", "/v1/volumes/1v1?action=snapshot", {"name": name})
            gate.open()
            async with asyncio.timeout(PATIENCE_S):
                while (await client.ask("GET", "/v1/snapshots"))[1]["data"]:
                    pass
        assert len(client.service.runner._faults) <= 1

    served(bench, scenario)


def test_a_busy_volume_is_409_and_names_the_verb(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "API_WAIT_S", 0.05)

    async def scenario(client: Client) -> None:
        await client.make("db")
        gate = Gate(bench, monkeypatch)
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
        status, error = await client.ask("PUT", "/v1/volumes/1v1", {"description": "new"})
        assert (status, error["code"]) == (409, "Conflict")
        assert "snapshot has been running on it" in error["message"]
        status, error = await client.ask("GET", "/v1/snapshots/1s1/difference")
        assert status == 409
        gate.open()

    served(bench, scenario)


def test_a_verb_survives_the_client_that_asked_for_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        for module in (creations, volumes, snapshots):
            monkeypatch.setattr(module, "API_ANSWER_S", PATIENCE_S)
        gate = Gate(bench, monkeypatch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.ask("POST", "/v1/volumes/1v1?action=snapshot", {"name": "s"})
        gate.open()
        shown = await client.until("/v1/snapshots/1s1", transitioning="no")
        assert (shown["name"], shown["state"]) == ("s", "created")

    served(bench, scenario)


def test_our_own_fault_is_500_with_the_traceback_in_the_log_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: Client) -> None:
        monkeypatch.setattr(client.service, "create", lambda *_, **__: 1 / 0)
        status, error = await client.ask("POST", "/v1/volumes", {"name": "db", "driver": "memory"})
        assert (status, error["code"], error["status"]) == (500, "InternalServerError", 500)
        assert "division" not in str(error)
        assert "its log has the details" in error["message"]

    with caplog.at_level(logging.ERROR):
        served(bench, scenario)
    assert "ZeroDivisionError" in caplog.text


def test_volumes_of_an_unavailable_pool_are_listed_and_say_why_they_cannot_be_used(bench: Bench) -> None:
    async def scenario(client: Client) -> None:
        await client.make("db")
        pool = next(iter(bench.engine.pools))
        pool.driver, pool.reason = None, "its disk is gone"
        shown = (await client.ask("GET", "/v1/volumes"))[1]["data"][0]
        assert (shown["name"], shown["health"], shown["usedBytes"]) == ("db", "unavailable", None)
        for action in ("snapshot", "activate"):
            status, error = await client.ask("POST", f"/v1/volumes/1v1?action={action}")
            assert (status, error["code"]) == (503, "ServiceUnavailable")
            assert "its disk is gone" in error["message"]
        shown = (await client.ask("GET", "/v1/storagepools/1sp1"))[1]
        assert (shown["state"], shown["health"], shown["transitioning"]) == ("inactive", "unavailable", "error")
        assert (shown["transitioningMessage"], shown["capacityBytes"]) == ("its disk is gone", None)

    served(bench, scenario)


def test_too_little_space_is_503_with_the_figures(bench: Bench) -> None:
    bench.limits = Limits(reserve=1.1)
    bench.restart()

    async def scenario(client: Client) -> None:
        status, error = await client.ask("POST", "/v1/volumes", {"name": "db", "driver": "memory"})
        assert (status, error["code"]) == (503, "ServiceUnavailable")
        assert "below the reserve of 110%" in error["message"]

    served(bench, scenario)


def test_a_volume_that_needs_an_operator_says_so(bench: Bench) -> None:
    volume = bench.create("db")
    bench.store.commit(lambda write: write.put_volume(replace(volume, message="its tree is missing")))

    async def scenario(client: Client) -> None:
        shown = (await client.ask("GET", "/v1/volumes/1v1"))[1]
        assert (shown["transitioning"], shown["transitioningMessage"]) == ("error", "its tree is missing")

    served(bench, scenario)


def test_a_pool_that_does_not_tell_its_usage_delays_no_answer_for_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usages, "SPACE_TIMEOUT_S", 0.05)
    told = threading.Event()

    def usage(_: Key) -> Usage:
        assert told.wait(PATIENCE_S)
        return Usage(7, None, None)

    async def scenario(client: Client) -> None:
        await client.make("db")
        client.service.usages._known.clear()
        monkeypatch.setattr(bench.driver, "usage", usage)
        assert (await client.ask("GET", "/v1/volumes/1v1"))[1]["usedBytes"] is None
        told.set()
        async with asyncio.timeout(PATIENCE_S):
            while (await client.ask("GET", "/v1/volumes/1v1"))[1]["usedBytes"] != 7:
                pass

    served(bench, scenario)


def test_a_stream_that_fails_in_the_middle_is_cut_and_not_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def archive(*_: object) -> Iterator[bytes]:
        yield b"x" * (2 * streams.BATCH_BYTES)
        raise Unusable("cannot read snapshot s: its disk is gone")

    async def scenario(client: Client) -> None:
        await client.make("db")
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
        await client.until("/v1/snapshots/1s1", transitioning="no")
        monkeypatch.setattr(inspection, "archive", archive)
        async with client.session.get("http://h/v1/snapshots/1s1/archive") as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    with caplog.at_level(logging.WARNING):
        served(bench, scenario)
    assert "its disk is gone" in caplog.text


def test_a_stream_that_fails_at_once_is_an_error_resource(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["cannot compare snapshot s: its disk is gone"]

    def difference(*_: object) -> Iterator[Change]:
        while reasons:
            raise Unusable(reasons.pop())
        yield Change("never", ChangeKind.ADDED)

    async def scenario(client: Client) -> None:
        await client.make("db")
        await client.ask("POST", "/v1/volumes/1v1?action=snapshot")
        await client.until("/v1/snapshots/1s1", transitioning="no")
        monkeypatch.setattr(inspection, "difference", difference)
        status, error = await client.ask("GET", "/v1/snapshots/1s1/difference")
        assert (status, error["code"]) == (503, "ServiceUnavailable")

    served(bench, scenario)


def growing(bench: Bench, grow: Callable[[int], None]) -> None:
    pool = next(iter(bench.engine.pools))
    assert pool.spec is not None
    pool.spec = replace(pool.spec, grow=grow)


def test_a_pool_of_ours_is_grown(bench: Bench) -> None:
    asked: list[int] = []
    growing(bench, asked.append)

    async def scenario(client: Client) -> None:
        assert "grow" in (await client.ask("GET", "/v1/storagepools/1sp1"))[1]["actions"]
        status, shown = await client.ask("POST", "/v1/storagepools/1sp1?action=grow", {"size": "2G"})
        assert (status, shown["id"], asked) == (200, "1sp1", [2 * GIB])

    served(bench, scenario)


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (Invalid("cannot grow image: it can only grow", field="size"), 422, "size"),
        (Unusable("cannot grow image: it is not mounted"), 503, None),
        (OSError(errno.ENOSPC, "No space left on device"), 503, None),
    ],
)
def test_a_pool_that_cannot_grow_says_why(bench: Bench, error: Exception, status: int, field: str | None) -> None:
    def grow(_: int) -> None:
        raise error

    growing(bench, grow)

    async def scenario(client: Client) -> None:
        answer = await client.ask("POST", "/v1/storagepools/1sp1?action=grow", {"size": "2G"})
        assert (answer[0], answer[1].get("fieldName")) == (status, field)
        assert "cannot grow" in answer[1]["message"]

    served(bench, scenario)


def test_a_pool_that_opens_at_the_second_try_only_is_one_pool_with_an_id_of_its_own(tmp_path: Path) -> None:
    reasons = ["its disk is not there yet"]

    def prepare() -> None:
        if reasons:
            raise Unusable(reasons.pop())

    def make(root: Path) -> Directory:
        return Directory(root, tmp_path / "mounts")

    database = store.Store(tmp_path)
    try:
        (tmp_path / "mounts").mkdir()
        spec = pools.Spec("late", "directory", tmp_path / "late", make, prepare=prepare)
        opened = pools.Pools(database, [spec], default_driver="directory")
        opened.open_all(lambda *_: None)
        assert [(pool.health, pool.row.id < 0) for pool in opened] == [(model.Health.UNAVAILABLE, True)]
        opened.open_all(lambda *_: None)
        assert [(pool.health, pool.row.id) for pool in opened] == [(model.Health.AVAILABLE, 1)]
    finally:
        database.close()


def test_an_unopened_pool_is_found_by_the_id_that_it_has_in_the_list(bench: Bench) -> None:
    pool = next(iter(bench.engine.pools))
    late = pools.Pool(replace(pool.row, id=model.PoolId(-2), uuid="", name="late"), None, reason="not yet")
    bench.engine.pools._pools[late.row.id] = late

    async def scenario(client: Client) -> None:
        listed = (await client.ask("GET", "/v1/storagepools"))[1]["data"]
        assert {each["name"]: each["health"] for each in listed} == {"memory": "available", "late": "unavailable"}
        for each in listed:
            assert (await client.ask("GET", f"/v1/storagepools/{each['id']}"))[1] == each

    served(bench, scenario)
