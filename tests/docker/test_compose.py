"""Compose on our volumes (the cases A62 and A63)."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.world import Done

pytestmark = [pytest.mark.root, pytest.mark.docker]

SERVICE: Final = {
    "image": "bb",
    "command": ["sleep", "600"],
    "network_mode": "none",
    "stop_signal": "KILL",
    "volumes": ["data:/mnt"],
}


class Project:
    """One Compose project in a directory."""

    def __init__(self, dockerd: Dockerd, directory: Path, volume: dict[str, Any]) -> None:
        self._dockerd = dockerd
        self._file = directory / "compose.json"
        self.name = directory.name
        self.describe(volume)

    def describe(self, volume: dict[str, Any]) -> None:
        """Write what the volume shall be."""
        content = {"version": "2.4", "services": {"main": SERVICE}, "volumes": {"data": volume}}
        self._file.write_text(json.dumps(content))

    def call(self, *arguments: str) -> Done:
        """Run docker-compose to its end."""
        return self._dockerd.call("-p", "proj", "-f", str(self._file), *arguments, program="docker-compose")

    def __call__(self, *arguments: str) -> None:
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr


def test_a62_up_creates_once_refuses_another_option_and_down_removes(
    vd: Voldriverd, dockerd: Dockerd, tmp_path: Path
) -> None:
    volume = {"driver": NAME, "driver_opts": {"size": "1g"}}
    compose = Project(dockerd, tmp_path, volume)
    before = len(vd.calls())
    compose("up", "-d")
    compose("up", "-d")
    assert vd.calls()[before:].count("Create") == 1
    assert vd.status("proj_data")["sizeBytes"] == 1 << 30
    dockerd.docker("exec", "proj_main_1", "touch", "/mnt/file")
    compose.describe({"driver": NAME, "driver_opts": {"size": "2g"}})
    assert "size" in compose.call("up", "-d").stderr
    compose.describe(volume)
    compose("down", "-v")
    assert (dockerd.volumes(), vd.mounted()) == (set(), set())


def test_a_restored_volume_is_taken_if_docker_hears_its_options_before_it_looks(
    vd: Voldriverd, dockerd: Dockerd, tmp_path: Path
) -> None:
    compose = Project(dockerd, tmp_path, {"driver": NAME, "driver_opts": {"size": "1g"}})
    line = ("volume", "create", "-d", NAME, "-o", "size=1g", "proj_data")
    compose("up", "-d")
    compose("down", "-v")
    vd.cli("volume", "restore", "proj_data")
    assert '"size" driver_opt (None)' in compose.call("up", "-d").stderr
    dockerd.docker(*line)
    assert dockerd.inspect("proj_data")["Options"] is None
    dockerd.docker("volume", "rm", "proj_data")
    vd.cli("volume", "restore", "proj_data")
    dockerd.docker(*line)
    compose("up", "-d")
    compose("down", "-v")


def test_a63_an_external_volume_is_used_and_stays(vd: Voldriverd, dockerd: Dockerd, name: str, tmp_path: Path) -> None:
    compose = Project(dockerd, tmp_path, {"external": True, "name": name})
    assert name in compose.call("up", "-d").stderr
    dockerd.docker("volume", "create", "-d", NAME, name)
    compose("up", "-d")
    dockerd.docker("exec", "proj_main_1", "touch", "/mnt/file")
    compose("down", "-v")
    assert dockerd.volumes() == {name}
    assert vd.holders(name) == 0
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "ls", "/mnt") == "file"
