"""What the units say, and that the daemon can live with it; a systemd that runs is in long.py."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.supervised import Supervised
from tests.systemd import life, units
from voldriverd import config, sockets

DOC: Final = units.CHECKOUT / "docs" / "systemd.md"
NAMESPACES: Final = {
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateIPC", "ProtectSystem", "ProtectHome", "ProtectProc"),
    *("ProcSubset", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups"),
    *("RootDirectory", "RootImage", "BindPaths", "BindReadOnlyPaths", "ReadOnlyPaths", "ReadWritePaths", "MountFlags"),
    *("InaccessiblePaths", "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "MountImages", "ExtensionImages"),
    *("ExtensionDirectories", "DynamicUser", "LogNamespace", "IPCNamespacePath", "MountAPIVFS"),
}
"""What makes a mount namespace (systemd 252: exec_needs_mount_namespace() of execute.c; tried with systemd-run)."""


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def sections(unit: Path) -> dict[str, str]:
    return dict(units.settings(unit))


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in (units.SERVICE, *units.SOCKETS):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/voldriverd", "/bin/true"))
    names = [tmp_path / unit.name for unit in (units.SERVICE, *units.SOCKETS)]
    assert run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names) == ""


def test_the_exposure_and_what_it_is_made_of_are_in_the_docs() -> None:
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    (figure,) = re.findall(r"exposure level for voldriverd.service: ([\d.]+)", run(*analyze, units.SERVICE))
    found: list[dict[str, Any]] = json.loads(run(*analyze, "--json=short", units.SERVICE))
    costs = {(each["name"], each["exposure"]) for each in found if each["exposure"]}
    rows = re.findall(r"^\| `(\S+=\S*)` \| ([\d.]+) \| \S", DOC.read_text(), re.MULTILINE)
    assert {(name.replace("\\|", "|"), cost) for name, cost in rows} == costs
    assert re.findall(r"says \*\*([\d.]+)\*\*", DOC.read_text()) == [figure]


def test_nothing_in_the_service_makes_a_mount_namespace() -> None:
    assert {name for name, _ in units.settings(units.SERVICE)} & NAMESPACES == set()


def test_docker_comes_after_us_and_is_needed_for_nothing() -> None:
    found = sections(units.SERVICE)
    assert "docker.service" in found["Before"].split()
    naming = {name for name, value in units.settings(units.SERVICE) if "docker" in value}
    assert naming == {"Before"}
    assert found["RequiresMountsFor"] == str(config.DEFAULT_ROOT)


@pytest.mark.parametrize(
    ("unit", "name", "place", "group"),
    [
        (units.SOCKETS[0], "plugin", config.PLUGIN_SOCKET, "docker"),
        (units.SOCKETS[1], "api", config.Config().api_socket, "voldriver"),
    ],
)
def test_a_socket_is_where_the_daemon_would_make_it_and_of_the_same_kind(
    unit: Path, name: str, place: Path, group: str
) -> None:
    found = sections(unit)
    assert (found["FileDescriptorName"], found["ListenStream"]) == (name, str(place))
    assert (found["SocketMode"], found["SocketUser"], found["SocketGroup"]) == ("0660", "root", group)
    assert (found["Backlog"], found["RemoveOnStop"]) == (str(sockets.BACKLOG), "yes")
    assert unit.name in sections(units.SERVICE)["Sockets"].split()


def test_a_daemon_that_cannot_start_is_tried_until_it_can() -> None:
    found = sections(units.SERVICE)
    assert (found["Restart"], found["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert "StartLimitBurst" not in found
    assert f"started again after {found['RestartSec']} s" in " ".join(DOC.read_text().split())


@pytest.mark.parametrize("unit", units.SOCKETS)
def test_who_waits_for_a_daemon_that_does_not_start_is_sent_away(unit: Path) -> None:
    assert sections(unit)["FlushPending"] == "yes"


def test_every_capability_has_its_reason_above_it() -> None:
    lines = units.SERVICE.read_text().splitlines()
    asked = [at for at, line in enumerate(lines) if line.startswith("CapabilityBoundingSet=")]
    assert asked
    assert [lines[at] for at in asked if not lines[at - 1].startswith("# ")] == []


@pytest.mark.root
def test_the_groups_and_the_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    making = ["systemd-sysusers", f"--root={tmp_path}", str(units.UNITS / "sysusers.d" / "voldriver.conf")]
    subprocess.run(making, check=True, capture_output=True)
    run("systemd-tmpfiles", "--create", f"--root={tmp_path}", units.UNITS / "tmpfiles.d" / "voldriver.conf")
    groups = {line.partition(":")[0] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    modes = {
        place: (tmp_path / place).stat().st_mode & 0o7777
        for place in ("run/voldriver", "run/docker/plugins", "var/lib/voldriver")
    }
    assert groups >= {"voldriver", "docker"}
    assert modes == {"run/voldriver": 0o755, "run/docker/plugins": 0o755, "var/lib/voldriver": 0o711}


@pytest.mark.root
@pytest.mark.parametrize("driver", life.DRIVERS)
def test_a_volume_lives_with_the_capabilities_of_the_unit(driver: str, tmp_path: Path) -> None:
    limited = units.limited_to(units.capabilities())
    with Supervised(tmp_path / "d", config=life.config(tmp_path / "targets"), prefix=limited) as daemon:
        life.live(daemon, driver)
        daemon.restart()
        assert "unavailable" not in daemon.log
        assert "Operation not permitted" not in daemon.log
