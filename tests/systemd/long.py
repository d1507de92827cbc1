"""A real systemd, booted: `pytest tests/systemd/long.py` (11 minutes, 2 of them for debootstrap).

dockerd runs inside. The capabilities are taken away one by one here too.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.supervised import Supervised
from tests.systemd import life, units
from tests.systemd.machine import Machine
from tests.world import until
from voldriverd import __version__

pytestmark = [pytest.mark.root, pytest.mark.docker]

SERVICE: Final = "voldriverd.service"
SOCKETS: Final = ("/run/docker/plugins/voldriver.sock", "/run/voldriver/api.sock")
WRITER: Final = (
    "touch /data/log; n=$(wc -l </data/log); "
    "while sleep 0.02; do n=$((n+1)); echo $n >>/data/log || echo $n >>/lost; done"
)
LATE_S: Final = 20
OFTEN: Final = 12
"""More starts than any limit of systemd's own."""
REFUSED_S: Final = 60
"""In which a docker command fails that asks a daemon which cannot start; it was seen to take 21 s."""
CONFIGURATION: Final = "/etc/voldriver/voldriver.toml"
OTHERWISE_SHOWN: Final = {"CAP_NET_BIND_SERVICE", "CAP_SYS_RESOURCE"}
"""A test of its own; and what many virtual machines have taken away."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("booted"))
    try:
        machine.run("docker", "import", "/srv/bb.tar", "bb")
        yield machine
    finally:
        machine.close()


@pytest.fixture(params=life.DRIVERS)
def writer(machine: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a container that counts into a volume."""
    name = f"writer-{request.param}"
    start_writer(machine, name, request.param)
    yield name
    machine.run("docker", "rm", "-f", name)
    machine.run("docker", "volume", "rm", name)


def start_writer(machine: Machine, name: str, driver: str) -> None:
    """Start a container that counts into a volume; both have the name."""
    machine.run("docker", "volume", "create", "-d", "voldriver", "-o", f"driver={driver}", name)
    machine.run(
        *("docker", "run", "-d", f"--name={name}", "--network=none", "--restart=always", "-v", f"{name}:/data"),
        *("bb", "sh", "-c", WRITER),
    )
    until(lambda: count(machine, name), "the writer to begin")


def count(machine: Machine, name: str) -> int:
    done = machine.call("docker", "exec", name, "wc", "-l", "/data/log")
    return int(done.stdout.split()[0]) if done.returncode == 0 else 0


def goes_on(machine: Machine, name: str) -> None:
    """See that a writer has written all that it counted, and goes on."""
    before = count(machine, name)
    until(lambda: count(machine, name) > before, "the writer to go on")
    written = machine.run("docker", "exec", name, "cat", "/data/log").split()
    assert written == [str(number + 1) for number in range(len(written))]
    machine.run("docker", "exec", name, "test", "!", "-e", "/lost")


@contextmanager
def made_slow(machine: Machine, step: str, *, seconds: int) -> Iterator[None]:
    """Have a step of each start or end of the daemon take so long."""
    late = "mkdir -p /run/systemd/system/voldriverd.service.d; cat >/run/systemd/system/voldriverd.service.d/late.conf"
    machine.run("sh", "-c", late, stdin=f"[Service]\n{step}=/bin/sleep {seconds}\n".encode())
    machine.run("systemctl", "daemon-reload")
    yield
    machine.run("rm", "-r", "/run/systemd/system/voldriverd.service.d")
    machine.run("systemctl", "daemon-reload")


def next_pid(machine: Machine, before: int) -> None:
    until(lambda: machine.pid() not in {0, before}, "another daemon", within_s=90, pause_s=0.2)
    machine.wait()


def test_it_is_there_before_docker_in_the_mounts_of_the_machine(machine: Machine) -> None:
    ready = int(machine.show(SERVICE, "ActiveEnterTimestampMonotonic"))
    assert ready < int(machine.show("docker.service", "ExecMainStartTimestampMonotonic"))
    assert machine.run("readlink", f"/proc/{machine.pid()}/ns/mnt") == machine.run("readlink", "/proc/1/ns/mnt")
    modes = machine.run("stat", "-c", "%a %U %G", *SOCKETS).splitlines()
    assert modes == ["660 root docker", "660 root voldriver"]
    assert machine.show(SERVICE, "StatusText") == f"Serving {SOCKETS[0]} and {SOCKETS[1]}"
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""


def test_the_journal_has_a_line_for_each_verb_with_its_fields(machine: Machine) -> None:
    for verb in ("create", "rm"):
        machine.run("docker", "volume", verb, *(("--driver=voldriver",) if verb == "create" else ()), "told")
    asked = ("journalctl", "--unit=voldriverd.service", "--output=json", "VOLDRIVER_VOLUME=told")
    until(lambda: machine.run(*asked).count("\n") == 1, "the journal to take both lines")
    told = [json.loads(line) for line in machine.run(*asked).splitlines()]
    assert [(each["VOLDRIVER_VERB"], each["VOLDRIVER_RESULT"], each["PRIORITY"]) for each in told] == [
        ("create", "ok", "6"),
        ("remove", "ok", "6"),
    ]
    assert [each["MESSAGE"] for each in told] == [
        line for line in machine.log().splitlines() if " volume=told " in line
    ]


@pytest.mark.parametrize("driver", life.DRIVERS)
def test_nothing_in_the_life_of_a_volume_is_forbidden(machine: Machine, driver: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attach = ["strace", "--follow-forks", "--quiet=all", f"--attach={machine.pid_outside()}", f"--output={trace}"]
    tracer = subprocess.Popen(attach)
    until(lambda: trace.exists() and trace.stat().st_size, "strace")
    program = f"cd {units.CHECKOUT} && {sys.executable} -m tests.systemd.life {driver}"
    machine.run("sh", "-c", program)
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    refused = [line for line in trace.read_text(errors="replace").splitlines() if " = -1 EPERM " in line]
    assert [line for line in refused if '"immutable"' not in line] == []


def test_a_restart_is_not_noticed(machine: Machine, writer: str) -> None:
    for _ in range(3):
        machine.run("systemctl", "restart", SERVICE)
        goes_on(machine, writer)
    assert machine.show(SERVICE, "NRestarts") == "0"


def test_a_daemon_that_is_killed_is_started_again(machine: Machine, writer: str) -> None:
    before = machine.pid()
    os.kill(machine.pid_outside(), signal.SIGKILL)
    assert machine.run("docker", "volume", "inspect", "--format={{.Driver}}", writer) == "voldriver"
    goes_on(machine, writer)
    next_pid(machine, before)
    goes_on(machine, writer)


def test_restarts_that_were_asked_for_do_not_keep_a_crash_from_being_mended(machine: Machine) -> None:
    for _ in range(OFTEN):
        machine.run("systemctl", "restart", SERVICE)
    before = machine.pid()
    os.kill(machine.pid_outside(), signal.SIGKILL)
    next_pid(machine, before)
    assert machine.run("ls", *SOCKETS).split() == list(SOCKETS)


def test_who_asks_during_a_restart_that_was_asked_for_waits_and_is_answered(machine: Machine) -> None:
    with made_slow(machine, "ExecStopPost", seconds=5):
        machine.run("systemctl", "restart", "--no-block", SERVICE)
        until(lambda: machine.show(SERVICE, "SubState") == "stop-post", "the end of the one before", pause_s=0.05)
        assert json.loads(machine.run("voldriver", "--json", "info"))["version"] == __version__


def test_a_daemon_that_stands_still_is_ended_and_started_again(machine: Machine, writer: str) -> None:
    before = machine.pid()
    os.kill(machine.pid_outside(), signal.SIGSTOP)
    goes_on(machine, writer)
    next_pid(machine, before)
    goes_on(machine, writer)
    assert "Fatal Python error: Aborted" in machine.log()
    assert "Failed with result 'watchdog'" in machine.log()


def test_a39_a_dockerd_that_starts_first_waits_for_the_daemon(machine: Machine, writer: str) -> None:
    machine.run("systemctl", "stop", "docker.socket", "docker.service", SERVICE)
    assert machine.pid() == 0
    with made_slow(machine, "ExecStartPre", seconds=LATE_S):
        machine.run("systemctl", "start", "docker.service")
    ready = int(machine.show(SERVICE, "ActiveEnterTimestampMonotonic"))
    started = int(machine.show("docker.service", "ExecMainStartTimestampMonotonic"))
    served = int(machine.show("docker.service", "ActiveEnterTimestampMonotonic"))
    assert started + (LATE_S - 5) * 1_000_000 < ready
    assert served < ready + 15_000_000, "15 s would be its wait for a plugin that is not there"
    before = count(machine, writer)
    until(lambda: count(machine, writer) > before, "the writer to be back")


def test_after_a_reboot_the_containers_are_back_with_their_data(machine: Machine, writer: str) -> None:
    before = count(machine, writer)
    machine.reboot()
    until(lambda: count(machine, writer) > before, "the writer to be back", within_s=60)
    written = machine.run("docker", "exec", writer, "cat", "/data/log").split()
    assert written[:before] == [str(number + 1) for number in range(before)]
    assert "unavailable" not in machine.log()


def test_one_that_cannot_start_is_tried_until_it_can_and_docker_does_not_hang(machine: Machine) -> None:
    machine.run("mv", CONFIGURATION, "/etc/voldriver/aside")
    machine.run("sh", "-c", f"echo nonsense >{CONFIGURATION}")
    machine.call("systemctl", "restart", SERVICE)
    began = time.monotonic()
    assert machine.call("docker", "volume", "inspect", "early").returncode != 0
    assert time.monotonic() - began < REFUSED_S
    until(lambda: int(machine.show(SERVICE, "NRestarts")) > OFTEN, "many tries", within_s=120, pause_s=0.5)
    assert machine.run("ls", *SOCKETS).split() == list(SOCKETS)
    machine.run("mv", "/etc/voldriver/aside", CONFIGURATION)
    machine.wait()
    machine.run("docker", "volume", "create", "--driver=voldriver", "late")
    machine.run("docker", "volume", "rm", "late")


def test_a_stop_of_all_leaves_no_socket_behind(machine: Machine) -> None:
    machine.run("systemctl", "stop", "voldriverd.socket", "voldriverd-api.socket", SERVICE)
    assert machine.call("ls", *SOCKETS).stdout == b""
    machine.run("systemctl", "start", SERVICE)
    assert machine.run("ls", *SOCKETS).split() == list(SOCKETS)


@pytest.mark.parametrize("missing", sorted(set(units.capabilities()) - OTHERWISE_SHOWN))
def test_without_one_of_the_capabilities_something_fails(missing: str, tmp_path: Path) -> None:
    limited = units.limited_to([each for each in units.capabilities() if each != missing])
    daemon = Supervised(tmp_path / "d", config=life.config(tmp_path / "targets"), prefix=limited)
    try:
        with pytest.raises(AssertionError):
            live_all(daemon)
    finally:
        daemon._process = daemon._process if daemon._process and daemon._process.poll() is None else None
        daemon.close()


@pytest.mark.parametrize("has_it", [True, False])
def test_a_low_port_takes_a_capability(has_it: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    kept = [each for each in units.capabilities() if has_it or each != "CAP_NET_BIND_SERVICE"]
    config = f'{life.config(tmp_path / "targets")}[api]\nlisten = "127.0.0.1:{low_port()}"\n'
    daemon = Supervised(tmp_path / "d", config=config, prefix=units.limited_to(kept))
    try:
        daemon.launch()
        assert ("READY=1" in daemon.heard_until("READY=1")) is has_it, daemon.log
    finally:
        if not has_it:
            assert daemon.ended() == 1
        daemon.close()


def live_all(daemon: Supervised) -> None:
    daemon.start()
    for driver in life.DRIVERS:
        life.live(daemon, driver)
    daemon.restart()
    assert "unavailable" not in daemon.log


def low_port() -> int:
    for port in random.sample(range(600, 1024), 20):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")
