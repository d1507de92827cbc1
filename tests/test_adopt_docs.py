"""docs/adopt.md: its commands, run as they stand there, in their order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import Page
from tests.running import CLIENT, Running, scratch_config
from tests.scratch import Scratch
from voldriverd import config, toml
from voldriverd.kernel import btrfs, tree

pytestmark = pytest.mark.root

PAGE = Page("docs/adopt.md")


def scripts(test: str) -> str:
    found = [block.text for block in PAGE.blocks if block.run_by == test]
    assert found
    return "".join(found)


def test_the_page_does_what_it_says(session_scratch: Scratch, tmp_path: Path) -> None:
    place = session_scratch.shared("daemons", "btrfs") / f"page-{os.getpid()}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index").write_text("hello")
    program = tmp_path / "bin" / "voldriver"
    program.write_text(f"#!{sys.executable}\n{CLIENT}\n")
    program.chmod(0o755)
    script = scripts("test_the_page_does_what_it_says").replace("/var/lib/buttervolume", str(place))
    for path, own in (("/srv/web", "web"), ("/tmp/web", "web"), ("/tmp/monday", "monday"), ("/tmp/out", "out")):
        script = script.replace(path, f"{tmp_path}/{own}")
    (text,) = [block.text for block in PAGE.blocks if block.language == "toml"]
    given = text.replace("/var/lib/buttervolume", str(place))
    (place / "voldriver").mkdir(parents=True)
    (place / "snapshots").mkdir()
    (place / "volumes").mkdir()
    for directory, name in (("volumes", "www"), ("snapshots", "www@2026-08-26T10:00:00.000000")):
        with btrfs.opened(place / directory) as fd:
            btrfs.create(fd, name)
    try:
        with Running(tmp_path / "d", config=scratch_config(session_scratch) + given) as daemon:
            environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VOLDRIVER_SOCKET": str(daemon.api_socket)}
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script.replace("/run/voldriver/api.sock", str(daemon.api_socket))],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert "2026-08-26T10.00.00.000000" in done.stdout
            assert (tmp_path / "out" / "index").read_text() == "hello"
            names = {volume["name"] for volume in daemon.api("GET", "/v1/volumes").body["data"]}
            assert names == {"web", "web2", "web3", "web4", "web5", "web6", "www-imported"}
    finally:
        tree.vanish(place)


def test_the_configuration_is_read(tmp_path: Path) -> None:
    (text,) = [block.text for block in PAGE.blocks if block.language == "toml"]
    file = tmp_path / "voldriver.toml"
    file.write_text(text)
    assert [pool.name for pool in config.parse(toml.read(file)).pools] == ["adopted"]
