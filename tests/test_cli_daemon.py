"""`voldriverd` up to the point where it serves."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

import voldriverd
from voldriverd import config
from voldriverd.cli import daemon as cli
from voldriverd.config import Config
from voldriverd.errors import InUse
from voldriverd.kernel import run

LOOP_POOL = '[pools.images]\ndriver = "loop"\npath = "/srv/images"\n'


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Config]]:
    """Stand in for the server: what it was asked, on a host with every tool and without a default file."""
    asked: list[tuple[str, Config]] = []

    def release(loaded: Config) -> list[str]:
        asked.append(("release", loaded))
        return []

    server = SimpleNamespace(serve=lambda loaded: asked.append(("serve", loaded)), release=release)
    monkeypatch.setattr(voldriverd, "daemon", server, raising=False)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(run, "missing", lambda _: [])
    monkeypatch.setenv("PATH", os.environ["PATH"])
    return asked


def called(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="voldriverd")


@pytest.mark.usefixtures("calls")
def test_check_prints_the_configuration_with_every_default() -> None:
    result = called("--check")
    assert (result.exit_code, result.stdout) == (0, config.effective(Config()))


def test_check_serves_nothing_and_needs_no_root(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert called("--check").exit_code == 0
    assert calls == []


def test_without_a_subcommand_it_serves(calls: list[tuple[str, Config]]) -> None:
    assert called().exit_code == 0
    assert calls == [("serve", Config())]


def test_the_file_and_both_directories_reach_the_server(calls: list[tuple[str, Config]], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('reserve = "1%"')
    assert called("--config", f"{tmp_path}/c.toml", "--root", "/a", "--run-dir", "/b").exit_code == 0
    ((_, loaded),) = calls
    assert (loaded.reserve, loaded.root, loaded.run_dir) == (0.01, Path("/a"), Path("/b"))


def test_directories_may_be_relative_to_where_one_stands(
    calls: list[tuple[str, Config]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called("--root", "state", "--run-dir", "./run").exit_code == 0
    assert (calls[0][1].root, calls[0][1].run_dir) == (tmp_path / "state", tmp_path / "run")


@pytest.mark.parametrize("option", ["--config", "--root", "--run-dir"])
def test_an_empty_place_is_not_where_one_stands(calls: list[tuple[str, Config]], option: str) -> None:
    result = called(option, "")
    assert (result.exit_code, calls) == (2, [])
    assert f"Invalid value for '{option}': it is empty" in result.stderr


def test_release_of_everything_says_nothing(calls: list[tuple[str, Config]]) -> None:
    result = called("--release")
    assert (result.exit_code, result.output) == (0, "")
    assert calls == [("release", Config())]


@pytest.mark.usefixtures("calls")
def test_what_stays_mounted_is_named_and_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    stayed = ["volume web: it is in use", "volume db: it is in use"]
    monkeypatch.setattr(voldriverd, "daemon", SimpleNamespace(release=lambda _: stayed))
    result = called("--release")
    assert result.exit_code == 1
    assert result.stderr == "voldriverd: cannot release: volume web: it is in use; volume db: it is in use\n"


@pytest.mark.usefixtures("calls")
def test_a_refusal_is_one_line_on_standard_error_and_status_1(tmp_path: Path) -> None:
    result = called("--config", f"{tmp_path}/none.toml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"voldriverd: cannot load {tmp_path}/none.toml: No such file or directory\n"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("error", [InUse("cannot lock the root: process 7 has it"), OSError(28, "No space left")])
def test_what_the_server_refuses_is_one_line_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(_: Config) -> None:
        raise error

    monkeypatch.setattr(voldriverd, "daemon", SimpleNamespace(serve=serve))
    result = called()
    assert (result.exit_code, result.stderr) == (1, f"voldriverd: {error}\n")


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("arguments", [("--sise", "1"), ("serve",), ("--check", "--release"), ("--log-level", "loud")])
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert called(*arguments).exit_code == 2


def test_another_user_than_root_is_told_so(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = called()
    assert (result.exit_code, result.stderr) == (1, "voldriverd: cannot serve: mounting needs root\n")
    assert calls == []


def test_missing_tools_are_named_with_their_package(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "missing", lambda tools: [tool for tool in tools if "xfs" in tool])
    result = called()
    assert result.exit_code == 1
    assert result.stderr == (
        "voldriverd: cannot serve: not installed: mkfs.xfs, xfs_db, xfs_growfs, xfs_repair (Debian package xfsprogs)\n"
    )
    assert calls == []


@pytest.mark.parametrize(
    ("pools", "packages"),
    [
        ("", ["btrfs-progs", "e2fsprogs", "xfsprogs"]),
        (LOOP_POOL, ["e2fsprogs", "xfsprogs"]),
        ('[pools.fast]\ndriver = "btrfs"\npath = "/srv/fast"', []),
        ('[pools.plain]\ndriver = "directory"\npath = "/srv/plain"', []),
        (f'{LOOP_POOL}[pools.fast]\ndriver = "btrfs"\npath = "/srv/fast"', ["e2fsprogs", "xfsprogs"]),
    ],
)
@pytest.mark.usefixtures("calls")
def test_only_tools_that_the_pools_need_are_asked_for(
    pools: str, packages: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "missing", list)
    (tmp_path / "c.toml").write_text(pools)
    result = called("--config", f"{tmp_path}/c.toml")
    assert re.findall(r"Debian package ([a-z0-9-]+)", result.stderr) == packages
    assert result.exit_code == bool(packages)


@pytest.mark.usefixtures("calls")
def test_tools_are_found_where_su_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    called()
    assert "/usr/sbin" in os.environ["PATH"].split(":")


def test_the_version_is_that_of_the_package() -> None:
    assert called("--version").stdout == f"voldriverd {voldriverd.__version__}\n"
