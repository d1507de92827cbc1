"""The wheel: it holds all modules and both programs, and names every library that they import."""

import ast
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import pytest

import voldriverd
from tests import test_layers

CHECKOUT: Final = test_layers.CHECKOUT
PROJECT: Final = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PROGRAMS: Final = sorted(PROJECT["scripts"])
TIMEOUT_S: Final = 60


def run(*argv: str | Path, cwd: Path) -> str:
    """Run a program without the environment that finds this checkout."""
    done = subprocess.run(
        argv, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, timeout=TIMEOUT_S, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment with the wheel in it, and the libraries of ours beside it."""
    place = tmp_path_factory.mktemp("package")
    pip = (sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, CHECKOUT, cwd=place)
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", next(place.glob("*.whl")), cwd=place)
    (site,) = (place / "venv").glob("lib/python3*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "venv"


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_installed_program_says_what_it_is_for(environment: Path, program: str, tmp_path: Path) -> None:
    assert f"Usage: {program} " in run(environment / "bin" / program, "--help", cwd=tmp_path)


def test_the_wheel_holds_every_module(environment: Path) -> None:
    (site,) = environment.glob("lib/python3*/site-packages")
    assert [module for module in test_layers.MODULES if not (site / module).exists()] == []


def test_the_wheel_has_the_version_of_the_package(environment: Path, tmp_path: Path) -> None:
    assert run(environment / "bin" / "voldriverd", "--version", cwd=tmp_path).endswith(f" {voldriverd.__version__}\n")


def test_every_library_that_is_imported_is_a_dependency() -> None:
    names = {
        name.split(".")[0]
        for module in test_layers.MODULES
        for name in test_layers.imported(ast.parse((CHECKOUT / module).read_text()))
    }
    owners = packages_distributions()
    imported = {
        re.sub("[_.]", "-", owners[name][0].lower())
        for name in names - sys.stdlib_module_names - {"voldriverd", "drivers"}
    }
    dependencies = {re.split(r"[^a-z0-9-]", text.lower())[0] for text in PROJECT["dependencies"]}
    assert imported - dependencies == set()
