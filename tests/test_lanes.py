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

def work():
    begun = time.monotonic()
    time.sleep(0.2)
    with Path({log!r}).open("a") as file:
        place = os.environ["PYTEST_XDIST_WORKER"], os.readlink("/proc/self/ns/mnt")
        print({name!r}, place[0], begun, time.monotonic(), place[1], file=file)

{tests}
"""


class Run:
    """What ran in which lane, and from when to when."""

    def __init__(self, directory: Path, *tests: str, number: int = 2) -> None:
        log = directory / "log"
        files = {name: [test for test in tests if test.startswith(f"{name}::")] for name in map(file_of, tests)}
        for name, own in files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            bodies = "\n".join(f"def {test.partition('::')[2]}(): work()" for test in own)
            file.write_text(PROBE.format(log=str(log), name=name, tests=bodies))
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
        assert len(self._lines) == len(tests)

    def lanes(self, prefix: str = "") -> set[str]:
        return {lane for name, lane, *_ in self._lines if name.startswith(prefix)}

    def namespaces(self) -> set[str]:
        return {namespace for *_, namespace in self._lines}

    def times(self, name: str) -> tuple[float, float]:
        found = [(float(begun), float(ended)) for each, _, begun, ended, _ in self._lines if each == name]
        return min(found)[0], max(found)[1]


def file_of(test: str) -> str:
    return test.partition("::")[0]


def test_what_measures_runs_alone_and_last_and_files_that_share_a_fixture_in_one_lane(tmp_path: Path) -> None:
    shared = [f"tests/docker/test_{number}.py::test_it" for number in range(3)]
    others = ["tests/test_1.py::test_it", *shared, "tests/test_2.py::test_it", "tests/test_2.py::test_more"]
    one, *_, two = lanes.ALONE
    run = Run(tmp_path, one, *others, two)
    assert len(run.lanes()) == 2
    assert len(run.lanes("tests/docker/")) == 1
    alone = [run.times(file_of(name)) for name in (one, two)]
    assert max(run.times(file_of(name))[1] for name in others) <= min(begun for begun, _ in alone)
    assert max(begun for begun, _ in alone) >= min(ended for _, ended in alone)


@pytest.mark.root
def test_each_lane_has_a_mount_namespace_of_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path, *(f"tests/test_{number}.py::test_it" for number in range(4)))
    assert len(run.lanes()) == len(run.namespaces()) == 2
    assert os.readlink("/proc/self/ns/mnt") not in run.namespaces()


def test_one_lane_runs_everything(tmp_path: Path) -> None:
    run = Run(tmp_path, next(iter(lanes.ALONE)), "tests/test_1.py::test_it", number=1)
    assert len(run.lanes()) == 1


@pytest.mark.parametrize("name", [*lanes.FIRST, *lanes.ALONE])
def test_what_has_a_place_of_its_own_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert (CHECKOUT / file).exists()
    assert not test or f"def {test}(" in (CHECKOUT / file).read_text()
