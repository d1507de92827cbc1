"""The examples of docs/api.md, run as they stand there."""

import re
import subprocess
from pathlib import Path
from typing import Any

import cattle
import pytest

from tests.docs import Page
from tests.doors import free_port, listening, make_key
from tests.running import SMALL, Running

pytestmark = pytest.mark.root

PAGE = Page("docs/api.md")
SOCKET = "/run/voldriver/api.sock"
TARGET = "/mnt/backups"


def test_the_examples_of_the_api_answer_as_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with Running(tmp_path / "d", config=SMALL + listening(port)) as daemon:
        (tmp_path / "backups").mkdir()
        text = "".join(block.text for block in PAGE.run("sh"))
        text = text.replace(SOCKET, str(daemon.api_socket)).replace(TARGET, str(tmp_path / "backups"))
        define, *examples = text.splitlines()
        said = [{int(each) for each in re.findall(r"\d{3}", line.rpartition("# ")[2])} for line in examples]
        done = subprocess.run(
            ["bash", "-c", "\n".join([define, *examples])], capture_output=True, check=True, cwd=tmp_path
        )
        answered = [int(line.rpartition(b" ")[2]) for line in done.stdout.splitlines()]
        assert [each for each in zip(examples, answered, said, strict=True) if each[1] not in each[2]] == []

        access, secret = make_key(daemon)
        for name, value in (("URL", f"http://127.0.0.1:{port}"), ("ACCESS_KEY", access), ("SECRET_KEY", secret)):
            monkeypatch.setenv(f"CATTLE_{name}", value)
        (program,) = PAGE.run("python")
        printed: list[Any] = []
        found: dict[str, Any] = {"print": printed.append}
        exec(program.text, found)  # noqa: S102 - ours
        found["client"]._session.close()
        assert isinstance(found["client"], cattle.Client)
        assert printed[0][0] == "before"
