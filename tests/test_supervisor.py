"""What the daemon and its service manager say to each other; the manager is the test."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.running import Running, request
from tests.supervised import Supervised, listening
from voldriverd.errors import Unusable
from voldriverd.kernel import systemd
from voldriverd.supervisor import Supervisor

PID = str(os.getpid())


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        yield told


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Supervised]:
    daemon = Supervised(tmp_path / "d", watchdog_s=0.3)
    yield daemon
    daemon.close()


def test_without_a_manager_nothing_is_there_and_nobody_is_told() -> None:
    found = systemd.manager({})
    found.notify("READY=1")
    assert (found.watchdog_s, list(found.listeners())) == (None, [])


def test_what_concerns_us_is_taken_out_of_the_environment() -> None:
    environment = {"HOME": "/", "NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": PID}
    environment |= {"LISTEN_PID": PID, "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}
    assert systemd.manager(environment) == systemd.Manager("/n", 5.0, ())
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("pid", ["1", ""])
def test_sockets_for_another_process_are_not_ours(pid: str) -> None:
    assert systemd.manager({"LISTEN_PID": pid, "LISTEN_FDS": "2"}).descriptors == ()


def test_a_watchdog_for_another_process_is_not_ours() -> None:
    assert systemd.manager({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_a_watchdog_for_whoever_is_told_of_it_is_ours() -> None:
    assert systemd.manager({"WATCHDOG_USEC": "1500000"}).watchdog_s == 1.5


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"WATCHDOG_USEC": "soon"},
        {"LISTEN_PID": PID, "LISTEN_FDS": "two"},
    ],
)
def test_what_no_manager_says_is_refused_in_one_line(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unusable, match="cannot understand the service manager: "):
        Supervisor.found({})


def test_an_abstract_address_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"\0voldriver-test-{PID}")
        systemd.manager({"NOTIFY_SOCKET": f"@voldriver-test-{PID}"}).notify("READY=1", "STATUS=x")
        assert told.recv(100) == b"READY=1\nSTATUS=x"


def test_a_manager_that_is_not_there_is_a_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Supervisor(systemd.Manager(str(tmp_path / "none")), {}).tell("READY=1")
    assert "verb=notify told=READY=1 result=" in caplog.text


def test_a_manager_that_does_not_read_does_not_block_us(
    told: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(systemd.Manager(str(tmp_path / "notify")), {})
    while not caplog.text:
        supervisor.tell("WATCHDOG=1")
    assert told.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_hears_nothing_of_a_loop_that_is_blocked(told: socket.socket, tmp_path: Path) -> None:
    watchdog_s = 0.03
    blocked, go_on = threading.Event(), threading.Event()

    async def serve() -> bool:
        await asyncio.sleep(0)
        blocked.set()
        go_on.wait()  # what a loop must never do
        return True

    def beats() -> int:
        count = 0
        while True:
            try:
                told.recv(100)
            except BlockingIOError:
                return count
            count += 1

    supervisor = Supervisor(systemd.Manager(str(tmp_path / "notify"), watchdog_s), {})
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(lambda: asyncio.run(supervisor.run(serve())))
        blocked.wait()
        before = beats()
        go_on.wait(10 * watchdog_s)
        silent = beats()
        go_on.set()
        assert ended.result()
    assert (before, silent) == (1, 0)


def test_the_watchdog_is_fed_as_long_as_somebody_serves(told: socket.socket, tmp_path: Path) -> None:
    async def serve() -> bool:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            assert await loop.sock_recv(told, 100) == b"WATCHDOG=1"
        return True

    supervisor = Supervisor(systemd.Manager(str(tmp_path / "notify"), 0.03), {})
    assert asyncio.run(supervisor.run(serve()))


@pytest.mark.root
def test_ready_is_said_when_both_sockets_are_served_and_stopping_at_the_end(daemon: Supervised) -> None:
    daemon.launch()
    before = daemon.heard_until("READY=1")
    assert daemon.api("GET", "/v1").status == 200
    assert daemon.plugin("Plugin.Activate").status == 200
    beats = [daemon.heard() for _ in range(3)]
    daemon.stop()
    rest = [daemon.heard()]
    while rest[-1][0] != "STOPPING=1":
        rest.append(daemon.heard())
    assert [line for line in before if line != "WATCHDOG=1"] == [
        "STATUS=Opening the pools",
        "READY=1",
        f"STATUS=Serving {daemon.plugin_socket} and {daemon.api_socket}",
    ]
    assert beats == [["WATCHDOG=1"]] * 3
    assert rest[-1] == ["STOPPING=1", "STATUS=Ending the verbs that run"]


@pytest.mark.root
def test_an_abort_by_the_watchdog_shows_where_each_thread_stood(daemon: Supervised) -> None:
    daemon.start()
    os.kill(daemon.pid, 6)
    assert daemon.ended() in {-6, -11}  # while it writes, threads that go on may trip it (Python 3.11.2)
    assert "Fatal Python error: Aborted" in daemon.log
    assert "base_events.py" in daemon.log


@pytest.mark.root
def test_who_asks_before_the_daemon_is_there_is_answered_by_it_and_by_the_next_one(daemon: Supervised) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        daemon.held = {
            "api": stack.enter_context(listening(daemon.api_socket)),
            "plugin": stack.enter_context(listening(daemon.plugin_socket)),
        }
        for _ in range(2):
            asked = [
                threads.submit(daemon.api, "GET", "/v1"),
                threads.submit(daemon.plugin, "Plugin.Activate"),
            ]
            daemon.start()
            assert [each.result().status for each in asked] == [200, 200]
            daemon.stop()
            assert daemon.api_socket.is_socket()
            assert daemon.plugin_socket.is_socket()


@pytest.mark.root
def test_a_socket_that_is_not_held_is_made_and_removed_as_ever(daemon: Supervised) -> None:
    with listening(daemon.plugin_socket) as held:
        daemon.held = {"plugin": held}
        daemon.start()
        assert request(daemon.api_socket, "GET", "/v1").status == 200
        assert daemon.plugin("Plugin.Activate").status == 200
        daemon.stop()
        assert (daemon.plugin_socket.exists(), daemon.api_socket.exists()) == (True, False)


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "place", "cause"),
    [
        ("plugin", "elsewhere.sock", "it is {base}/elsewhere.sock, and {base}/run/voldriver.sock is configured"),
        ("other", "run/voldriver.sock", "nothing is served under that name"),
    ],
)
def test_a_socket_that_is_held_for_something_else_is_refused(
    daemon: Supervised, name: str, place: str, cause: str
) -> None:
    with listening(daemon.base / place) as held:
        daemon.held = {name: held}
        daemon.launch()
        assert daemon.ended() == 1
    text = f"voldriverd: cannot use socket {name} of the service manager: {cause.format(base=daemon.base)}\n"
    assert daemon.log == text


def test_a_descriptor_that_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        manager = systemd.Manager(descriptors=(("api", os.dup(deaf.fileno())),))
        with pytest.raises(Unusable, match="no stream socket that listens on a path"):
            Supervisor(manager, {"api": tmp_path / "api.sock"})


def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    file = (tmp_path / "file").open("w")
    with file, pytest.raises(Unusable, match="cannot use the sockets of the service manager: "):
        Supervisor(systemd.Manager(descriptors=(("api", file.fileno()),)), {"api": tmp_path / "api.sock"})


@pytest.mark.root
def test_a_daemon_without_a_manager_serves_as_ever(tmp_path: Path) -> None:
    with Running(tmp_path / "d") as daemon:
        assert daemon.api("GET", "/v1").status == 200
        daemon.stop()
        assert not daemon.api_socket.exists()
