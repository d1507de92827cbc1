"""Two lanes: files that share a fixture stay together, and what measures runs when nothing else does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import lanes

CHECKOUT: Final = Path(__file__).parent.parent
PROBE: Final = """
import os, time
from pathlib import Path

def test_one():
    begun = time.monotonic()
    time.sleep({length_s})
    with Path({log!r}).open("a") as file:
        print({name!r}, os.environ["PYTEST_XDIST_WORKER"], begun, time.monotonic(), file=file)

test_two = test_one
"""


class Run:
    """What ran in which lane, and from when to when."""

    def __init__(self, directory: Path, *files: str, number: int = 2) -> None:
        log = directory / "log"
        for name in files:
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(PROBE.format(length_s=0.2, log=str(log), name=name))
        plugins = ("-p", "xdist", "-p", "tests.lanes", "-p", "no:cacheprovider", "--import-mode=importlib")
        places = ("-n", str(number), f"--rootdir={directory}", f"--basetemp={directory}/tmp", *files)
        self.done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, *places],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert self.done.returncode == 0, self.done.stdout
        self._lines = [line.split() for line in log.read_text().splitlines()]
        assert len(self._lines) == 2 * len(files)

    def lanes(self, prefix: str = "") -> set[str]:
        return {lane for name, lane, _, _ in self._lines if name.startswith(prefix)}

    def times(self, name: str) -> tuple[float, float]:
        found = [(float(begun), float(ended)) for each, _, begun, ended in self._lines if each == name]
        return min(found)[0], max(found)[1]


def test_what_measures_runs_alone_and_last_and_files_that_share_a_fixture_in_one_lane(tmp_path: Path) -> None:
    others = ["tests/test_1.py", *(f"tests/docker/test_{number}.py" for number in range(3)), "tests/test_2.py"]
    one, two = list(lanes.ALONE)[:2]
    run = Run(tmp_path, one, *others, two)
    assert len(run.lanes()) == 2
    assert len(run.lanes("tests/docker/")) == 1
    assert max(run.times(name)[1] for name in others) <= min(run.times(one)[0], run.times(two)[0])
    assert run.times(one)[1] <= run.times(two)[0] or run.times(two)[1] <= run.times(one)[0]


def test_one_lane_runs_everything(tmp_path: Path) -> None:
    run = Run(tmp_path, next(iter(lanes.ALONE)), "tests/test_1.py", number=1)
    assert len(run.lanes()) == 1


@pytest.mark.parametrize("name", [*lanes.FIRST, *lanes.ALONE])
def test_what_has_a_place_of_its_own_is_there(name: str) -> None:
    assert (CHECKOUT / name).exists()
