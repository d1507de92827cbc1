"""A booted systemd where it is installed, upgraded and taken away: `pytest tests/systemd/installed.py`.

By scripts/install and as a Debian package, with dockerd inside and containers that write all the time. The release
before is this checkout under a lower version. 13 minutes where others work too, 2 of them for debootstrap.
"""

import faulthandler
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests import installing
from tests.docs import Page
from tests.scratch import loops_under
from tests.systemd import life, units
from tests.systemd.long import SERVICE, SOCKETS, WRITER, count, goes_on, start_writer
from tests.systemd.machine import Machine
from tests.world import until
from voldriverd import __version__

pytestmark = [pytest.mark.root, pytest.mark.docker]

Done = subprocess.CompletedProcess[bytes]

BROKEN: Final = "9.9.9"
"""A version that does not start."""
UNITS: Final = (SERVICE, *(unit.name for unit in units.SOCKETS))
DATABASE: Final = "/var/lib/voldriver/voldriver.db"
CONFIGURATION: Final = "/etc/voldriver/voldriver.toml"


@dataclass(frozen=True, slots=True)
class Supplies:
    """What is installed."""

    place: Path
    environment: dict[str, str]
    """For pip, and for the dates of files."""

    def checkout(self, version: str) -> Path:
        """Return a checkout of a version."""
        return self.place / version

    def package(self, version: str) -> str:
        """Make the Debian package of a version."""
        script = self.checkout(version) / "scripts/package"
        made = installing.script(script, "--output", self.place, "--compression=gzip", **self.environment)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def _takes_long() -> None:
    """Lift the limit of a test's time while the machine is made."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _takes_long_too() -> None:
    """Lift it for one test; what each of its steps may take is limited."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Supplies:
    place = tmp_path_factory.mktemp("supplies")
    for version in (installing.BEFORE, __version__, BROKEN):
        installing.checkout(place / version, version)
    with (place / BROKEN / "voldriverd/daemon.py").open("a") as module:
        module.write('\n\ndef serve(config):\n    raise Unusable("cannot serve: it is broken")\n')
    return Supplies(place, {**installing.wheels(place), "SOURCE_DATE_EPOCH": "1700000000"})


def test_the_same_checkout_gives_the_same_package(supplies: Supplies) -> None:
    package = Path(supplies.package(installing.BEFORE))
    first = package.read_bytes()
    assert Path(supplies.package(installing.BEFORE)).read_bytes() == first


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, supplies: Supplies) -> Iterator[Machine]:
    """A machine without the daemon; each test begins with none and ends with none."""
    machine = Machine(tmp_path_factory.mktemp("installed"), is_bare=True, bound=(supplies.place,))
    try:
        machine.run("docker", "import", "/srv/bb.tar", "bb")
        yield machine
    finally:
        machine.close()


def test_by_the_script(machine: Machine, supplies: Supplies) -> None:
    assert said(install(machine, supplies, installing.BEFORE), 0).endswith(f"man voldriver, {CONFIGURATION}\n")
    is_up(machine, installing.BEFORE)
    writers = start_writers(machine, "script")

    before = machine.pid()
    assert f"voldriverd {__version__} is installed" in said(install(machine, supplies, __version__), 0)
    assert machine.pid() != before
    is_up(machine, __version__, *writers)

    failed = said(install(machine, supplies, BROKEN), 1)
    assert failed.splitlines()[-1].startswith(f"cannot install: {BROKEN} does not start")
    assert failed.endswith(f"; {__version__} is back\n")
    is_up(machine, __version__, *writers)

    reboot(machine, writers)
    is_up(machine, __version__)

    refused = said(install(machine, supplies, __version__, "--uninstall"), 1)
    assert "volume script-loop: it is in use" in refused
    assert refused.endswith("; stop the containers, or leave what they have mounted with --force\n")
    is_up(machine, __version__, *writers)

    written = count(machine, "script-loop")
    machine.run("docker", "rm", "-f", *writers)
    gone = said(install(machine, supplies, __version__, "--uninstall"), 0)
    assert "    /var/lib/voldriver (the database and embedded.img with all volumes)\n" in gone
    is_gone(machine)
    assert machine.call("ls", CONFIGURATION, DATABASE).returncode == 0
    can_be_read_by_hand(machine)

    said(install(machine, supplies, __version__), 0)
    start_writer_again(machine, "script-loop", written)
    gone = said(install(machine, supplies, __version__, "--uninstall", "--force"), 0)
    assert "still mounted until the next boot: volume script-loop: it is in use\n" in gone
    goes_on(machine, "script-loop")
    machine.run("docker", "rm", "-f", "script-loop")
    machine.services.remove(SERVICE)
    machine.reboot()
    is_gone(machine)


def test_as_a_package(machine: Machine, supplies: Supplies) -> None:
    said(dpkg(machine, "--install", supplies.package(installing.BEFORE)), 0)
    is_up(machine, installing.BEFORE)
    writers = start_writers(machine, "package")

    before = machine.pid()
    package = supplies.package(__version__)
    said(dpkg(machine, "--install", package), 0)
    assert machine.pid() != before
    is_up(machine, __version__, *writers)

    said(dpkg(machine, "--install", package), 0)  # the same again
    is_up(machine, __version__, *writers)

    reboot(machine, writers)
    is_up(machine, __version__)

    removed = said(dpkg(machine, "--remove", "voldriverd"), 0)
    assert "volume package-loop: it is in use" in removed
    assert "what is in use stays mounted until the next boot" in removed
    assert "volumes, snapshots and the trash stay in:" in removed
    for writer in writers:
        goes_on(machine, writer)
    assert machine.call("ls", *SOCKETS).stdout == b"", "each docker command would wait for 15 s"
    assert machine.call("ls", "/usr/lib/voldriverd", "/usr/bin/voldriverd").stdout == b""

    said(dpkg(machine, "--install", package), 0)
    is_up(machine, __version__, *writers)
    written = count(machine, "package-loop")
    machine.run("docker", "rm", "-f", *writers)
    start_writer_again(machine, "package-loop", written)
    machine.run("docker", "rm", "-f", "package-loop")

    said(dpkg(machine, "--purge", "voldriverd"), 0)
    is_gone(machine)
    assert machine.call("ls", CONFIGURATION).returncode != 0
    assert machine.call("ls", DATABASE).returncode == 0
    assert (
        machine.run("find", "/etc/systemd/system", "/var/lib/systemd/deb-systemd-helper-enabled", "-name", "vold*")
        == ""
    )
    machine.services.remove(SERVICE)


def install(machine: Machine, supplies: Supplies, version: str, *arguments: str) -> Done:
    settings = [f"{name}={value}" for name, value in supplies.environment.items()]
    return machine.call("env", *settings, str(supplies.checkout(version) / "scripts/install"), *arguments)


def dpkg(machine: Machine, *arguments: str) -> Done:
    return machine.call("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--force-confold", *arguments)


def said(done: Done, status: int) -> str:
    """Check the status of a command, and return what it said on standard error."""
    text = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == status, text
    return done.stderr.decode()


def is_up(machine: Machine, version: str, *writers: str) -> None:
    """See that a version serves and is started at boot, and that writers have missed nothing."""
    if SERVICE not in machine.services:
        machine.services.append(SERVICE)
    machine.wait()
    assert machine.run("systemctl", "is-active", *UNITS).split() == ["active"] * 3
    assert machine.run("systemctl", "is-enabled", *UNITS).split() == ["enabled"] * 3
    assert machine.run("voldriverd", "--version") == f"voldriverd {version}"
    assert json.loads(machine.run("voldriver", "--json", "info"))["version"] == version
    assert machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend") == ""
    modes = machine.run("stat", "-c", "%a %U %G", *SOCKETS).splitlines()
    assert modes == ["660 root docker", "660 root voldriver"]
    for writer in writers:
        goes_on(machine, writer)


def is_gone(machine: Machine) -> None:
    """See that nothing runs, is mounted or lies about, but for volumes and the configuration."""
    assert machine.call("systemctl", "cat", *UNITS).stdout == b""
    assert machine.call("sh", "-c", "command -v voldriverd voldriver").stdout == b""
    assert (
        machine.call("findmnt", "--list", "--noheadings", "--output=TARGET", "--task=1").stdout.count(b"voldriver") == 0
    )
    assert loops_under(machine.root) == {}
    assert machine.call("ls", *SOCKETS).stdout == b""
    found = machine.run("find", "/usr", "/etc/systemd", "/run", "-xdev", "-name", "*voldriver*").split()
    assert [path for path in found if path != "/run/voldriver"] == []


def can_be_read_by_hand(machine: Machine) -> None:
    """Read a volume as the page says. systemd-nspawn has no device files for loops, so it is done from outside."""
    blocks = Page("docs/install.md").blocks
    (typed,) = [block.text for block in blocks if block.run_by == "test_by_the_script"]
    inside = f'mount --rbind /dev {machine.root}/dev && exec chroot {machine.root} sh -ec "$1"'
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, "sh", typed]
    done = subprocess.run(private, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(" log")]


def start_writers(machine: Machine, name: str) -> list[str]:
    writers = [f"{name}-{driver}" for driver in life.DRIVERS]
    for writer, driver in zip(writers, life.DRIVERS, strict=True):
        start_writer(machine, writer, driver)
    return writers


def start_writer_again(machine: Machine, name: str, written: int) -> None:
    """See that a volume has what was written to it, and write on."""
    mounted = ("--network=none", "-v", f"{name}:/data")
    machine.run("docker", "run", "-d", f"--name={name}", *mounted, "bb", "sh", "-c", WRITER)
    until(lambda: count(machine, name) > written, "the writer to go on")
    goes_on(machine, name)


def reboot(machine: Machine, writers: list[str]) -> None:
    """Boot again with volumes mounted, and see the containers come back with what they had."""
    written = {writer: count(machine, writer) for writer in writers}
    machine.reboot()
    for writer, lines in written.items():
        is_back(machine, writer, lines)


def is_back(machine: Machine, writer: str, lines: int) -> None:
    until(lambda: count(machine, writer) > lines, "the writer to be back", within_s=60)
    log = machine.run("docker", "exec", writer, "cat", "/data/log").split()
    assert log[:lines] == [str(number + 1) for number in range(lines)]
