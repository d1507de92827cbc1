"""docs/backups.md: its commands, run as they stand there, in their order."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import Page
from tests.running import CLIENT, Running, scratch_config
from tests.scratch import Scratch
from voldriverd import config, toml

pytestmark = pytest.mark.root

PAGE = Page("docs/backups.md")
TARGET = "/mnt/backups"


def test_the_commands_do_what_they_say(session_scratch: Scratch, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "voldriver"
    program.write_text(f"#!{sys.executable}\n{CLIENT}\n")
    program.chmod(0o755)
    script = "".join(block.text for block in PAGE.run("sh"))
    script = script.replace("voldriver target create found", "voldriver target rm disk\nvoldriver target create found")
    script = script.replace(TARGET, str(tmp_path / "backups")).replace("/tmp/today", f"{tmp_path}/today")
    with Running(tmp_path / "d", config=scratch_config(session_scratch)) as daemon:
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VOLDRIVER_SOCKET": str(daemon.api_socket)}
        done = subprocess.run(
            ["bash", "-ec", script], capture_output=True, text=True, check=False, env=environment, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "today-of-db").exists()
        names = {volume["name"] for volume in daemon.api("GET", "/v1/volumes").body["data"]}
        assert names == {"db", "db-copy", "db2", "db-of-the-lost-host"}


def test_the_configuration_is_read(tmp_path: Path) -> None:
    (block,) = PAGE.run("toml")
    file = tmp_path / "voldriver.toml"
    file.write_text(block.text)
    assert config.parse(toml.read(file)).default_target == "nightly"


def test_the_units_are_sound(tmp_path: Path) -> None:
    for kind, block in zip(("service", "timer"), PAGE.run("ini"), strict=True):
        (tmp_path / f"voldriver-backup.{kind}").write_text(block.text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.glob("voldriver-backup.*")))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
