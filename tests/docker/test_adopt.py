"""`voldriver import docker`, as root on a host with a real dockerd: its local volumes become ours."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import content
from tests.contract.content import likeness
from tests.docker_host import NAME, Dockerd, Host, Voldriverd
from tests.docs import Page
from tests.running import CLIENT
from tests.world import Done, until

pytestmark = [pytest.mark.root, pytest.mark.docker]


@pytest.fixture(autouse=True)
def emptied(vd: Voldriverd) -> Iterator[None]:
    yield
    for name in vd.cli("volume", "ls", "-q").split():
        vd.cli("volume", "rm", "--purge", "--yes", name)


def importing(host: Host, *arguments: str) -> Done:
    """Run it where dockerd is."""
    argv = [sys.executable, "-c", CLIENT, "import", "docker", *arguments]
    return host.world.run(*argv, env={"VOLDRIVER_SOCKET": str(host.vd.api_socket)})


def refused(host: Host, *arguments: str) -> str:
    done = importing(host, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr.removeprefix("voldriver: ").rstrip("\n")


def place_of(host: Host, name: str) -> Path:
    mountpoint: str = host.dockerd.inspect(name)["Mountpoint"]
    return host.world.root / mountpoint[1:]


def test_a_local_volume_is_imported_while_its_container_is_stopped(
    host: Host, vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "--label", "tier=gold", "--label", "com.example.a/b=", name)
    dockerd.keep("db", "-v", f"{name}:/data")
    place = place_of(host, name)
    content.fill(place)
    before = likeness(place)
    assert refused(host, name) == (
        f"cannot import Docker's volume {name}: it is used by container db (running); stop it first"
    )
    assert vd.cli("volume", "ls", "-q") == ""
    dockerd.docker("stop", "db")
    done = importing(host, name, "-d", "loop", "--label", "from=docker")
    assert (done.returncode, done.stdout) == (0, f"{name}-imported\n"), done
    row = vd.row(f"{name}-imported")
    assert row["labels"] == {"tier": "gold", "com.example.a/b": "", "from": "docker"}
    assert (row["driver"], row["state"], row["transitioningMessage"]) == ("loop", "inactive", None)
    vd.cli("volume", "mount", f"{name}-imported")
    assert likeness(host.world.root / vd.cli("volume", "path", f"{name}-imported")[1:]) == before == likeness(place)
    vd.cli("volume", "unmount", f"{name}-imported")


def test_the_old_name_is_had_again_as_it_is_told(host: Host, vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.run("-v", f"{name}:/data", "bb", "sh", "-c", "echo hello > /data/greeting")
    done = importing(host, name, "--as", "new")
    told = f"docker volume rm {name} && docker volume create -d voldriver -o from=new {name}"
    assert (done.stdout, done.stderr) == ("new\n", f"to have it under the old name: {told}\n")
    dockerd.docker("volume", "rm", name)
    dockerd.docker("volume", "create", "-d", NAME, "-o", "from=new", name)
    assert dockerd.run("-v", f"{name}:/data", "bb", "cat", "/data/greeting") == "hello"
    assert vd.row(name)["driver"] == "btrfs"


@pytest.mark.parametrize("options", [["--as", "{name}"], ["--suffix", ""]])
def test_the_name_that_docker_has_is_refused(
    host: Host, vd: Voldriverd, dockerd: Dockerd, name: str, options: list[str]
) -> None:
    dockerd.docker("volume", "create", name)
    assert refused(host, name, *(option.format(name=name) for option in options)) == (
        f"cannot import Docker's volume {name} as {name}: docker has that name until it is removed; give another one"
    )
    assert vd.cli("volume", "ls", "-q") == ""


def test_of_all_what_is_no_directory_is_left_out_with_the_reason(
    host: Host, vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    for volume in (f"{name}-a", f"{name}-b"):
        dockerd.docker("volume", "create", volume)
    options = ["--opt", "type=nfs", "--opt", "o=addr=10.0.0.7,rw", "--opt", "device=:/share"]
    dockerd.docker("volume", "create", *options, f"{name}-nfs")
    dockerd.docker("volume", "create", "-d", NAME, f"{name}-ours")
    done = importing(host, "--all", "--suffix", ".old")
    assert done.returncode == 0, done
    assert done.stdout.split() == [f"{name}-a.old", f"{name}-b.old"]
    reason = "it is no directory but what docker mounts for it (device=:/share, o=addr=10.0.0.7,rw, type=nfs)"
    assert f"left out: cannot import Docker's volume {name}-nfs: {reason}" in done.stderr
    assert set(vd.cli("volume", "ls", "-q").split()) == {f"{name}-a.old", f"{name}-b.old", f"{name}-ours"}
    assert refused(host, f"{name}-nfs").startswith(f"cannot import Docker's volume {name}-nfs: {reason}")
    assert f"it is of the driver {NAME}" in refused(host, f"{name}-ours")
    assert "no such volume" in refused(host, "none")


def test_one_that_fails_does_not_keep_the_others(host: Host, dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", f"{name}-a")
    dockerd.keep("db", "-v", f"{name}-b:/data")
    done = importing(host, "--all")
    assert (done.returncode, done.stdout) == (1, f"{name}-a-imported\n")
    assert "it is used by container db (running)" in done.stderr


def test_a_dockerd_that_is_not_there_is_told(host: Host) -> None:
    said = refused(host, "db", "--docker", "/nowhere.sock")
    assert said == "cannot ask dockerd at /nowhere.sock: No such file or directory; --docker names its socket"


def test_docker_volumes_are_imported_as_the_page_says(host: Host, vd: Voldriverd, dockerd: Dockerd) -> None:
    dockerd.keep("db", "-v", "db-data:/data", command=("sh", "-c", "echo hello > /data/greeting; sleep 600"))
    until((place_of(host, "db-data") / "greeting").exists, "the container to write")
    (block,) = [each for each in Page("docs/adopt.md").blocks if "voldriver import docker" in each.text]
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(CLIENT)}"
    known = f'export DOCKER_HOST=unix:///run/docker.sock; voldriver() {{ {program} "$@"; }}\n'
    script = block.text.replace("-d voldriver", f"-d {NAME}").replace(" busybox", " --network=none bb")
    done = host.world.run("bash", "-ec", known + script, env={"VOLDRIVER_SOCKET": str(vd.api_socket)})
    assert done.returncode == 0, done
    assert dockerd.docker("exec", "db", "cat", "/data/greeting") == "hello"
    assert vd.row("db-data")["state"] == "active"
    dockerd.remove_containers()
