"""How dockerd finds us: a socket, a socket in a folder, an address in a file (the case A71)."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker_host import NAME, PLUGINS, Host

pytestmark = [pytest.mark.root, pytest.mark.docker]

OURS = f"unix://{PLUGINS}/{NAME}.sock"
SPECS = "/etc/docker/plugins"


@pytest.fixture
def files(host: Host) -> Iterator[dict[str, Path]]:
    """Make every file that dockerd may find us by; dockerd has forgotten all of them afterwards."""
    root = host.world.root
    found = {name: root / path[1:] for name, path in PATHS.items()}
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    found["folder"].symlink_to(f"{PLUGINS}/{NAME}.sock")
    found["linked"].symlink_to(f"{NAME}.sock")
    for each in ("spec", "inside"):
        found[each].write_text(f" {OURS}\n")
    found["json"].write_text(json.dumps({"Name": "ignored", "Addr": OURS}))
    yield found
    host.dockerd.clean()
    for path in found.values():
        path.unlink()
    host.dockerd.stop()
    host.dockerd.start()


PATHS = {
    "folder": f"{PLUGINS}/folder/folder.sock",
    "linked": f"{PLUGINS}/linked.sock",
    "spec": f"{SPECS}/spec.spec",
    "inside": f"{SPECS}/inside/inside.spec",
    "json": f"{SPECS}/json.json",
}


@pytest.mark.usefixtures("files")
def test_a71_each_file_makes_a_driver_of_its_name(host: Host, name: str) -> None:
    for driver in PATHS:
        volume = f"{name}-{driver}"
        host.dockerd.docker("volume", "create", "-d", driver, volume)
        host.dockerd.run("-v", f"{volume}:/mnt", "bb", "touch", "/mnt/file")
        assert host.dockerd.inspect(volume)["Driver"] == driver
    assert len(host.vd.api("GET", "/v1/volumes").body["data"]) == len(PATHS)
