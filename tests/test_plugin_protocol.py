"""The Docker volume plugin by raw HTTP: the nine calls, what arrives broken, and the rules R1 to R15.

The rules stand in the reference on the plugin protocol; each has at least one test named after it.
"""

import asyncio
import functools
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from tests.engines import bench_on
from tests.running import DAEMON, Answer, Running, UnixConnection, pools_config, request
from tests.scratch import Scratch
from tests.world import until
from voldriverd.api import docker
from voldriverd.kernel import mount
from voldriverd.service import Service

pytestmark = pytest.mark.root

DRIVERS: Final = ("btrfs", "loop", "directory")
ID: Final = "c0ffee" * 10 + "0123"
OTHER_ID: Final = "decade" * 10 + "4567"
STATUS_KEYS: Final = {
    *("driver", "pool", "state", "sizeBytes", "usedBytes"),
    *("snapshots", "snapshotNames", "holders", "options"),
}
LIFE: Final = ("Create", "Mount", "Unmount", "Remove")
BODILESS: Final = ("Plugin.Activate", "VolumeDriver.Capabilities", "VolumeDriver.List")
NEEDING: Final = ("Create", "Remove", "Mount", "Unmount", "Path")
NAMELESS: Final = (
    "",
    ".",
    "..",
    "../x",
    "/abs",
    "a/b",
    "sp ace",
    "new\nline",
    "ünï",
    "a%2fb",
    "v@s",
    "n" * 256,
    "-x",
    "\0",
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("plugin")) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Running]:
    """Give a daemon to be stopped and killed, on one pool of directories."""
    with Running(tmp_path, config=pools_config(plain=("directory", tmp_path / "pool"))) as running:
        yield running


@pytest.fixture
def name(daemon: Running, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a name to make a volume of; what holds it and what it holds are gone afterwards."""
    name = re.sub(r"\W+", "-", request.node.name)[:200]
    yield name
    for holder in (ID, OTHER_ID):
        while holder[:12] in str(status(daemon, name).get("holders")):
            daemon.plugin("VolumeDriver.Unmount", Name=name, ID=holder)
    assert_ok(daemon.plugin("VolumeDriver.Remove", Name=name))


def assert_ok(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert answer.body["Err"] == ""
    body: dict[str, Any] = answer.body
    return body


def error(answer: Answer, status: int = 500) -> str:
    assert answer.status == status, answer.body
    text: str = answer.body["Err"]
    assert text
    return text


def create(daemon: Running, name: str, **options: str) -> None:
    assert_ok(daemon.plugin("VolumeDriver.Create", Name=name, Opts=options or None))


def mounted(daemon: Running, name: str, holder: str = ID) -> Path:
    path: str = assert_ok(daemon.plugin("VolumeDriver.Mount", Name=name, ID=holder))["Mountpoint"]
    return Path(path)


def unmount(daemon: Running, name: str, holder: str = ID) -> None:
    assert_ok(daemon.plugin("VolumeDriver.Unmount", Name=name, ID=holder))


def status(daemon: Running, name: str) -> dict[str, Any]:
    answer = daemon.plugin("VolumeDriver.Get", Name=name)
    found: dict[str, Any] = answer.body["Volume"]["Status"] if answer.status == 200 else {}
    return found


def holders(daemon: Running, name: str) -> list[str]:
    found: list[str] = status(daemon, name)["holders"]
    return found


def listed(daemon: Running) -> dict[str, str]:
    return {each["Name"]: each["Mountpoint"] for each in assert_ok(daemon.plugin("VolumeDriver.List"))["Volumes"]}


def raw(daemon: Running, data: bytes, *, more: bytes = b"") -> bytes:
    """Send bytes and return all that comes until the daemon closes; `more` is sent after the first answer."""
    with connected(daemon) as peer:
        peer.sendall(data)
        found = b""
        if more:
            found = peer.recv(65_536)
            peer.sendall(more)
        while part := peer.recv(65_536):
            found += part
    return found


@contextmanager
def connected(daemon: Running) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(20)
        peer.connect(str(daemon.plugin_socket))
        yield peer


def post(method: str, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    host = () if any(header.startswith("Host:") for header in headers) else ("Host: plugin",)
    first = (f"POST /{method} HTTP/{version}", f"Content-Length: {len(body)}", "Connection: close")
    lines = (*first, *host, *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def parsed(reply: bytes) -> tuple[int, Any]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def is_mounted(path: Path) -> bool:
    return mount.at(path) is not None


@contextmanager
def killed_at(daemon: Running, call: str) -> Iterator[None]:
    """Have the daemon killed when one of its threads enters a system call."""
    inject = ["--trace", call, "--inject", f"{call}:signal=KILL"]
    argv = ["strace", "--follow-forks", "--attach", str(daemon.pid), *inject, "--output", "/dev/null"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        yield


@contextmanager
def foreign_mount(path: Path, at: Path) -> Iterator[int]:
    """Have a process that shows a directory at another place, in a mount namespace of its own; gives its pid."""
    at.mkdir()
    script = f"mount --bind {path} {at} && umount {path} && echo ready && exec sleep 60"
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.kill()


# The nine calls


def test_activate_says_what_the_plugin_is(daemon: Running) -> None:
    assert assert_ok(daemon.plugin("Plugin.Activate"))["Implements"] == ["VolumeDriver"]


def test_the_scope_is_local(daemon: Running) -> None:
    assert assert_ok(daemon.plugin("VolumeDriver.Capabilities"))["Capabilities"] == {"Scope": "local"}


def test_a_created_volume_is_listed_and_unmounted(daemon: Running, name: str) -> None:
    create(daemon, name)
    assert listed(daemon)[name] == ""


def test_get_tells_of_the_volume_under_its_own_name(daemon: Running, name: str) -> None:
    create(daemon, name)
    volume = assert_ok(daemon.plugin("VolumeDriver.Get", Name=name))["Volume"]
    assert set(volume) == {"Name", "Mountpoint", "CreatedAt", "Status"}
    assert (volume["Name"], volume["Mountpoint"]) == (name, "")


def test_mount_path_get_and_list_name_the_same_place(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    assert is_mounted(path)
    got = assert_ok(daemon.plugin("VolumeDriver.Get", Name=name))["Volume"]["Mountpoint"]
    told = assert_ok(daemon.plugin("VolumeDriver.Path", Name=name))["Mountpoint"]
    assert {str(path)} == {got, told, listed(daemon)[name]}


def test_path_of_an_unmounted_volume_is_empty(daemon: Running, name: str) -> None:
    create(daemon, name)
    assert assert_ok(daemon.plugin("VolumeDriver.Path", Name=name))["Mountpoint"] == ""


def test_unmount_unmounts(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    unmount(daemon, name)
    assert not is_mounted(path)


def test_a_removed_volume_is_not_found_any_more(daemon: Running, name: str) -> None:
    create(daemon, name)
    assert_ok(daemon.plugin("VolumeDriver.Remove", Name=name))
    assert name in error(daemon.plugin("VolumeDriver.Get", Name=name))
    assert name not in listed(daemon)


@pytest.mark.parametrize("options", [None, {}, ...])
def test_options_may_be_null_empty_or_missing(daemon: Running, name: str, options: object) -> None:
    given = {} if options is ... else {"Opts": options}
    assert_ok(daemon.plugin("VolumeDriver.Create", Name=name, **given))


@pytest.mark.parametrize("options", [[], "size=1g", 5, False, {"size": 5}, {"size": None}])
def test_options_that_are_no_map_of_texts_are_refused(daemon: Running, options: object) -> None:
    assert "Opts" in error(daemon.plugin("VolumeDriver.Create", Name="strange", Opts=options), 400)
    assert "strange" not in listed(daemon)


def test_create_again_with_options_that_agree_succeeds(daemon: Running, name: str) -> None:
    create(daemon, name, size="64m", driver="loop")
    create(daemon, name, size="65536k")
    create(daemon, name)


def test_create_again_with_an_option_that_differs_is_refused_naming_it(daemon: Running, name: str) -> None:
    create(daemon, name, size="64m", driver="loop")
    assert "size" in error(daemon.plugin("VolumeDriver.Create", Name=name, Opts={"size": "65m"}))
    assert status(daemon, name)["sizeBytes"] == 64 << 20


@pytest.mark.parametrize(
    ("key", "value"), [("nosuch", "1"), ("size", "banana"), ("driver", "zfs"), ("from", "missing")]
)
def test_a_bad_option_is_refused_naming_it_and_nothing_is_left(daemon: Running, key: str, value: str) -> None:
    text = error(daemon.plugin("VolumeDriver.Create", Name="refused", Opts={key: value}))
    assert value if key == "from" else key in text
    assert "\n" not in text
    assert "refused" not in listed(daemon)


def test_the_answer_comes_in_the_content_type_of_plugins(daemon: Running) -> None:
    answer = daemon.plugin("Plugin.Activate")
    assert answer.headers["Content-Type"] == "application/vnd.docker.plugins.v1.2+json"


# What arrives in other shapes


def test_get_without_a_body_is_hung_up_on(daemon: Running) -> None:
    assert raw(daemon, post("VolumeDriver.Get", b"")) == b""


@pytest.mark.parametrize("method", ["Create", "Mount", "Get"])
@pytest.mark.parametrize("body", [b"{", b"null", b"[]", b"\xff\xfe", b'"name"', b"[" * 100_000, b'{"Name": 7}', b"{}"])
def test_a_body_that_cannot_be_read_is_400(daemon: Running, method: str, body: bytes) -> None:
    code, answer = parsed(raw(daemon, post(f"VolumeDriver.{method}", body)))
    assert code == 400
    assert answer["Err"]


@pytest.mark.parametrize("holder", [None, 7, "", "with space", "x" * 256, "new\nline", "\ud800"])
def test_a_holder_that_cannot_be_one_is_400(daemon: Running, name: str, holder: object) -> None:
    create(daemon, name)
    assert "ID" in error(daemon.plugin("VolumeDriver.Mount", Name=name, ID=holder), 400)
    assert holders(daemon, name) == []


@pytest.mark.parametrize("method", ["VolumeDriver.Resize", "Plugin.Deactivate", "", "v1/volumes"])
def test_an_unknown_method_is_404(daemon: Running, method: str) -> None:
    code, answer = parsed(raw(daemon, post(method, b"{}")))
    assert code == 404
    assert answer["Err"]


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE"])
def test_what_is_not_posted_is_400(daemon: Running, verb: str) -> None:
    error(request(daemon.plugin_socket, verb, "/VolumeDriver.List"), 400)


@pytest.mark.parametrize("size_bytes", [2 << 20, 10 << 20])
def test_too_large_a_body_is_413(daemon: Running, size_bytes: int) -> None:
    body = b'{"Name": "' + b"x" * size_bytes + b'"}'
    error(request(daemon.plugin_socket, "POST", "/VolumeDriver.Create", body), 413)


def test_a_body_of_unknown_length_is_limited_too(daemon: Running) -> None:
    connection = UnixConnection(daemon.plugin_socket)
    with suppress(BrokenPipeError):
        connection.request("POST", "/VolumeDriver.Create", (b"x" * 65_536 for _ in range(40)), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_waits_to_continue_is_told_to(daemon: Running) -> None:
    whole = post("VolumeDriver.Capabilities", b"{}", "Expect: 100-continue")
    reply = raw(daemon, whole[:-2], more=b"{}")
    assert reply.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_http_1_0_is_served(daemon: Running) -> None:
    code, answer = parsed(raw(daemon, post("VolumeDriver.Capabilities", b"{}", version="1.0")))
    assert (code, answer["Err"]) == (200, "")


@pytest.mark.parametrize(
    "header",
    [
        "Host:",
        "Host: plugin.moby.localhost",
        "Accept: application/vnd.docker.plugins.v1.0+json",
        "Accept: text/html",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: application/json; charset=nonsense",
        "Content-Type: multipart/form-data",
    ],
)
def test_headers_are_not_looked_at(daemon: Running, header: str) -> None:
    code, answer = parsed(raw(daemon, post("VolumeDriver.Capabilities", b"{}", header)))
    assert (code, answer["Err"]) == (200, "")


def test_many_calls_go_over_one_connection(daemon: Running) -> None:
    connection = UnixConnection(daemon.plugin_socket)
    for _ in range(20):
        connection.request("POST", "/VolumeDriver.List", b"{}")
        assert connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("cut_at", [10, 60, -1])
def test_a_client_that_goes_in_the_middle_of_its_request_costs_nothing(daemon: Running, name: str, cut_at: int) -> None:
    body = json.dumps({"Name": name}).encode()
    with connected(daemon) as peer:
        peer.sendall(post("VolumeDriver.Create", body)[:cut_at])
    assert_ok(daemon.plugin("Plugin.Activate"))
    assert name not in listed(daemon)


def test_three_hundred_clients_at_once_wait_for_their_turn(daemon: Running, name: str) -> None:
    create(daemon, name)
    os.kill(daemon.pid, signal.SIGSTOP)
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(UnixConnection(daemon.plugin_socket))) for _ in range(300)]
        for connection in connections:
            connection.request("POST", "/VolumeDriver.Get", json.dumps({"Name": name}))
        os.kill(daemon.pid, signal.SIGCONT)
        assert {connection.getresponse().status for connection in connections} == {200}


# R1: errors are 500 with Err, success is 200 with an object


def test_r1_every_success_is_200_with_an_object_and_an_empty_err(daemon: Running, name: str) -> None:
    calls: list[tuple[str, dict[str, object]]] = [
        ("Plugin.Activate", {}),
        ("VolumeDriver.Capabilities", {}),
        ("VolumeDriver.Create", {"Name": name}),
        ("VolumeDriver.Mount", {"Name": name, "ID": ID}),
        ("VolumeDriver.Path", {"Name": name}),
        ("VolumeDriver.Get", {"Name": name}),
        ("VolumeDriver.List", {}),
        ("VolumeDriver.Unmount", {"Name": name, "ID": ID}),
        ("VolumeDriver.Remove", {"Name": name}),
    ]
    for method, body in calls:
        assert_ok(daemon.plugin(method, **body))


@pytest.mark.parametrize("method", ["Mount", "Path", "Get"])
def test_r1_an_unknown_volume_is_500_and_is_named(daemon: Running, method: str) -> None:
    assert "nowhere" in error(daemon.plugin(f"VolumeDriver.{method}", Name="nowhere", ID=ID))


# R2: Get never fails for a volume that exists


def test_r2_get_and_list_answer_while_the_pool_is_unavailable(scratch: Scratch, tmp_path: Path) -> None:
    place = scratch.make("ext4", size_bytes=64 << 20)
    config = pools_config(away=("directory", place / "pool"))
    with Running(tmp_path / "daemon", config=config) as daemon:
        create(daemon, "db")
        daemon.stop()
        mount.unmount(place)
        daemon.start()
        assert listed(daemon) == {"db": ""}
        assert status(daemon, "db")["state"] == "unavailable"
        assert "pool away is unavailable" in error(daemon.plugin("VolumeDriver.Mount", Name="db", ID=ID))
        assert list(place.iterdir()) == [], "nothing is written into the bare mount point"


def test_r2_get_answers_while_the_tree_is_missing(daemon: Running, name: str) -> None:
    create(daemon, name, driver="directory")
    trees = daemon.root / "embedded" / "directory" / "trees"
    tree = max(trees.glob("v*"), key=lambda path: path.stat().st_ctime_ns)
    tree.rename(daemon.root / "embedded" / "aside")
    assert status(daemon, name)["state"] == "inactive"
    assert "tree is missing" in error(daemon.plugin("VolumeDriver.Mount", Name=name, ID=ID))
    (daemon.root / "embedded" / "aside").rename(tree)


def test_r2_get_answers_while_the_database_cannot_be_read(plain: Running) -> None:
    create(plain, "db")
    (plain.root / "voldriver.db").write_bytes(b"")
    assert status(plain, "db")["state"] == "inactive"


def test_r2_a_bug_in_get_is_no_answer_rather_than_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(docker, "_status", fail)

    async def get(service: Service) -> None:
        runner = web.ServerRunner(web.Server(docker.Plugin(service).handle))
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        try:
            await asyncio.to_thread(request, tmp_path / "socket", "POST", "/VolumeDriver.Get", {"Name": "db"})
        finally:
            await runner.cleanup()
            await service.stop(within_s=5)

    with bench_on(tmp_path / "bench") as bench:
        bench.create("db")
        with pytest.raises(ConnectionError):
            asyncio.run(get(Service(bench.engine)))
    assert "internal error" in caplog.text


# R3: a request without a body


@pytest.mark.parametrize("method", BODILESS)
def test_r3_calls_without_arguments_need_no_body(daemon: Running, method: str) -> None:
    assert_ok(request(daemon.plugin_socket, "POST", f"/{method}"))


@pytest.mark.parametrize("method", NEEDING)
def test_r3_calls_with_arguments_need_one(daemon: Running, method: str) -> None:
    error(request(daemon.plugin_socket, "POST", f"/VolumeDriver.{method}"), 400)


# R4: names


@pytest.mark.parametrize("bad", NAMELESS, ids=repr)
def test_r4_a_bad_name_is_refused_and_nothing_is_made(daemon: Running, bad: str) -> None:
    before = sorted(daemon.base.rglob("*"))
    answer = daemon.plugin("VolumeDriver.Create", Name=bad)
    assert "name" in error(answer, 500 if bad else 400).lower()
    assert sorted(daemon.base.rglob("*")) == before


@pytest.mark.parametrize("bad", NAMELESS[1:], ids=repr)
def test_r4_a_bad_name_is_an_unknown_volume_elsewhere(daemon: Running, bad: str) -> None:
    error(daemon.plugin("VolumeDriver.Get", Name=bad))
    error(daemon.plugin("VolumeDriver.Mount", Name=bad, ID=ID))
    assert_ok(daemon.plugin("VolumeDriver.Unmount", Name=bad, ID=ID))
    assert_ok(daemon.plugin("VolumeDriver.Remove", Name=bad))


def test_r4_a_name_may_have_255_characters(daemon: Running) -> None:
    longest = "a" + "." * 253 + "z"
    create(daemon, longest)
    assert longest in listed(daemon)
    assert_ok(daemon.plugin("VolumeDriver.Remove", Name=longest))


# R5: Remove asks the kernel


@pytest.mark.parametrize("driver", DRIVERS)
def test_r5_removal_is_refused_while_the_kernel_shows_a_user_whatever_the_holders(
    daemon: Running, name: str, tmp_path: Path, driver: str
) -> None:
    create(daemon, name, driver=driver)
    path = mounted(daemon, name)
    (path / "file").write_text("kept")
    with foreign_mount(path, tmp_path / "elsewhere") as pid:
        unmount(daemon, name)
        text = error(daemon.plugin("VolumeDriver.Remove", Name=name))
        assert f"(pid {pid}) at {tmp_path}/elsewhere" in text
        assert (Path(f"/proc/{pid}/root") / f"{tmp_path}/elsewhere/file"[1:]).read_text() == "kept"
    assert name in listed(daemon)


def test_r5_removal_is_not_refused_because_of_a_holder_that_the_kernel_does_not_know(plain: Running) -> None:
    create(plain, "db")
    mounted(plain, "db")
    plain.kill()
    a_minute_ago = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    with sqlite3.connect(plain.root / "voldriver.db") as database:
        database.execute("UPDATE mounts SET created_at = ?", (a_minute_ago,))
    database.close()
    plain.start()
    assert len(holders(plain, "db")) == 1
    assert_ok(plain.plugin("VolumeDriver.Remove", Name="db"))


def test_r5_a_runtime_that_has_a_copy_of_all_mounts_for_a_moment_is_no_user(daemon: Running, name: str) -> None:
    create(daemon, name)
    mounted(daemon, name)
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; sleep 0.4"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as runtime:
        assert runtime.stdout is not None
        assert runtime.stdout.readline() == "ready\n"
        unmount(daemon, name)
        assert_ok(daemon.plugin("VolumeDriver.Remove", Name=name))


def test_r5_removal_is_refused_while_a_process_of_the_host_is_in_the_volume(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    with subprocess.Popen(["sleep", "60"], cwd=path) as process:
        unmount(daemon, name)
        assert f"sleep (pid {process.pid})" in error(daemon.plugin("VolumeDriver.Remove", Name=name))
        process.kill()


# R6: holders are counted


def test_r6_the_same_id_twice_must_let_go_twice(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    mounted(daemon, name)
    unmount(daemon, name)
    assert is_mounted(path)
    unmount(daemon, name)
    assert not is_mounted(path)


def test_r6_two_ids_are_two_holders(daemon: Running, name: str) -> None:
    create(daemon, name)
    assert mounted(daemon, name) == mounted(daemon, name, OTHER_ID)
    unmount(daemon, name)
    assert holders(daemon, name) == [f"container mount {OTHER_ID[:12]}"]


def test_r6_mounts_and_unmounts_at_once_are_all_counted(daemon: Running, name: str) -> None:
    create(daemon, name)

    def all_at_once(method: str) -> None:
        body = json.dumps({"Name": name, "ID": ID}).encode()
        connections = [UnixConnection(daemon.plugin_socket) for _ in range(16)]
        for connection in connections:
            connection.request("POST", f"/VolumeDriver.{method}", body)
        for connection in connections:
            assert connection.getresponse().status == 200
            connection.close()

    path = mounted(daemon, name)
    all_at_once("Mount")
    all_at_once("Unmount")
    assert is_mounted(path)
    unmount(daemon, name)
    assert not is_mounted(path)


# R7: Unmount always succeeds


def test_r7_unmount_of_an_unknown_id_has_no_effect(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    unmount(daemon, name, OTHER_ID)
    assert is_mounted(path)


def test_r7_unmount_of_an_unknown_volume_is_success(daemon: Running) -> None:
    unmount(daemon, "nowhere")


def test_r7_unmount_of_a_busy_mount_is_success_and_done_later(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    unmount(daemon, name)
    assert (holders(daemon, name), is_mounted(path)) == ([], True)
    os.close(fd)
    assert_ok(daemon.plugin("Plugin.Activate"))
    until(lambda: not is_mounted(path), "the mount to go")


# R8: Mount looks at the kernel's table


@pytest.mark.parametrize("driver", DRIVERS)
def test_r8_mount_mounts_again_what_somebody_unmounted(daemon: Running, name: str, driver: str) -> None:
    create(daemon, name, driver=driver)
    path = mounted(daemon, name)
    (path / "file").write_text("there")
    mount.unmount(path)
    assert (mounted(daemon, name, OTHER_ID) / "file").read_text() == "there"


@pytest.mark.parametrize("driver", DRIVERS)
def test_r8_mount_takes_off_what_somebody_mounted_over_it(daemon: Running, name: str, driver: str) -> None:
    create(daemon, name, driver=driver)
    path = mounted(daemon, name)
    (path / "file").write_text("there")
    mount.mount("tmpfs", path, fs_type="tmpfs")
    assert (mounted(daemon, name, OTHER_ID) / "file").read_text() == "there"


def test_r8_mount_answers_an_absolute_path_of_a_directory(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    assert path.is_absolute()
    assert path.is_dir()


# R9: Mount is taken back if its caller has gone


def mounted_under(directory: Path) -> list[str]:
    return [entry.mount_point for entry in mount.table() if Path(entry.mount_point).parent == directory]


def test_r9_a_mount_is_taken_back_when_its_caller_has_gone(daemon: Running, name: str) -> None:
    create(daemon, name)
    os.kill(daemon.pid, signal.SIGSTOP)
    with connected(daemon) as peer:
        peer.sendall(post("VolumeDriver.Mount", json.dumps({"Name": name, "ID": ID}).encode()))
    os.kill(daemon.pid, signal.SIGCONT)
    until(lambda: f"verb=unmount volume={name} " in daemon.log, "the mount to be taken back")
    assert f"verb=mount volume={name} " in daemon.log
    assert holders(daemon, name) == []
    assert mounted_under(daemon.root / "mounts") == []


def test_r9_one_mount_of_an_id_that_has_two_is_taken_back(daemon: Running, name: str) -> None:
    create(daemon, name)
    path = mounted(daemon, name)
    os.kill(daemon.pid, signal.SIGSTOP)
    with connected(daemon) as peer:
        peer.sendall(post("VolumeDriver.Mount", json.dumps({"Name": name, "ID": ID}).encode()))
    os.kill(daemon.pid, signal.SIGCONT)
    until(lambda: f"verb=unmount volume={name} " in daemon.log, "the mount to be taken back")
    assert is_mounted(path)
    unmount(daemon, name)
    assert not is_mounted(path)


# R10: quick


@pytest.mark.parametrize(
    "options",
    [
        {"driver": "btrfs"},
        {"driver": "directory"},
        {"driver": "loop", "size": "100g"},
        {"driver": "loop", "size": "100g", "fs": "xfs"},
    ],
    ids=str,
)
def test_r10_create_and_mount_end_within_five_seconds(daemon: Running, name: str, options: dict[str, str]) -> None:
    begun_s = time.monotonic()
    create(daemon, name, **options)
    mounted(daemon, name)
    assert time.monotonic() - begun_s < 5


# R11: no dead socket is left, and none keeps a start from succeeding


def test_r11_the_socket_goes_when_the_daemon_ends(plain: Running) -> None:
    plain.stop()
    assert not plain.plugin_socket.exists()


def test_r11_a_dead_socket_is_replaced_within_five_seconds(plain: Running) -> None:
    plain.kill()
    assert plain.plugin_socket.exists()
    begun_s = time.monotonic()
    plain.start()
    assert_ok(plain.plugin("Plugin.Activate"))
    assert time.monotonic() - begun_s < 5


def test_the_socket_is_for_root_and_a_group_only(daemon: Running) -> None:
    found = daemon.plugin_socket.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, 0)


@pytest.mark.parametrize("shared", ["root", "socket"])
def test_a_second_daemon_refuses_to_start_and_leaves_the_socket_to_the_first(
    daemon: Running, tmp_path: Path, shared: str
) -> None:
    second = tmp_path / "second"
    socket_path = second / "vd.sock" if shared == "root" else daemon.plugin_socket
    second.mkdir()
    (second / "toml").write_text(
        f'[docker]\nsocket = "{socket_path}"\n{pools_config(other=("directory", second / "pool"))}'
    )
    root = daemon.root if shared == "root" else second / "root"
    places = ["--config", f"{second}/toml", "--root", str(root), "--run-dir", f"{second}/run"]
    argv = [sys.executable, "-c", DAEMON, *places]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert str(root if shared == "root" else socket_path) in done.stderr
    assert_ok(daemon.plugin("Plugin.Activate"))


# R12: who asks must see the mount


def test_r12_mount_is_refused_to_who_cannot_see_it(daemon: Running, name: str) -> None:
    create(daemon, name)
    ask = (
        "from pathlib import Path; from tests.running import request; "
        f"print(request(Path('{daemon.plugin_socket}'), 'POST', '/VolumeDriver.Mount', "
        f"{{'Name': '{name}', 'ID': '{ID}'}}).body['Err'])"
    )
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", ask]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "mount namespace" in done.stdout
    assert (holders(daemon, name), listed(daemon)[name]) == ([], "")


# R13: a fresh volume looks empty


@pytest.mark.parametrize(
    "options",
    [{"driver": "btrfs"}, {"driver": "directory"}, {"driver": "loop"}, {"driver": "loop", "fs": "xfs", "size": "300m"}],
    ids=str,
)
def test_r13_a_fresh_volume_looks_empty(daemon: Running, name: str, options: dict[str, str]) -> None:
    create(daemon, name, **options)
    assert os.listdir(mounted(daemon, name)) == []


# R14: CreatedAt with a zone, Status an object


def test_r14_created_at_has_a_zone_and_is_now(daemon: Running, name: str) -> None:
    create(daemon, name)
    created_at = datetime.fromisoformat(assert_ok(daemon.plugin("VolumeDriver.Get", Name=name))["Volume"]["CreatedAt"])
    assert abs(datetime.now(UTC) - created_at) < timedelta(seconds=5)


@pytest.mark.parametrize("driver", DRIVERS)
def test_r14_status_is_an_object_of_known_keys(daemon: Running, name: str, driver: str) -> None:
    create(daemon, name, driver=driver)
    found = status(daemon, name)
    assert set(found) == STATUS_KEYS
    assert (found["driver"], found["pool"], found["options"]) == (driver, driver, {"driver": driver})


def test_status_names_snapshots_and_holders(daemon: Running, name: str) -> None:
    create(daemon, name)
    mounted(daemon, name)
    (volume,) = daemon.api("GET", f"/v1/volumes?name={name}").body["data"]
    assert daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=snapshot", {"name": "before"}).status == 200
    found = status(daemon, name)
    assert (found["snapshots"], found["snapshotNames"], found["state"]) == (1, ["before"], "active")
    assert found["holders"] == [f"container mount {ID[:12]}"]


# R15: everything is on disk


def test_r15_volumes_options_and_holders_are_there_after_a_kill(plain: Running) -> None:
    create(plain, "db", **{"label.tier": "gold"})
    path = mounted(plain, "db")
    before = plain.plugin("VolumeDriver.Get", Name="db").body
    plain.kill()
    plain.start()
    assert plain.plugin("VolumeDriver.Get", Name="db").body == before
    unmount(plain, "db")
    assert not is_mounted(path)


@pytest.mark.parametrize(
    ("method", "call"),
    [("Create", "mkdir"), ("Create", "fdatasync"), ("Mount", "mount"), ("Unmount", "umount2"), ("Remove", "fdatasync")],
)
def test_r15_what_is_killed_in_the_middle_can_be_asked_again(plain: Running, method: str, call: str) -> None:
    steps = {each: functools.partial(plain.plugin, f"VolumeDriver.{each}", Name="db", ID=ID) for each in LIFE}
    for each in LIFE[: LIFE.index(method)]:
        assert_ok(steps[each]())
    with killed_at(plain, call), pytest.raises((ConnectionError, http.client.BadStatusLine)):
        steps[method]()
    plain.restart()
    assert_ok(steps[method]())
    for each in LIFE[LIFE.index(method) + 1 :]:
        assert_ok(steps[each]())
    assert listed(plain) == {}
