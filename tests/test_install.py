"""What is installed, by the script and by the package: programs, units, pages, completion; upgrades and removals.

On a copy of this host without systemd; under a booted one it is in tests/systemd/installed.py.
"""

import gzip
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from tests import installing
from tests.installing import CHECKOUT, Copy, script
from tests.world import until
from voldriverd import __version__, config
from voldriverd.kernel import image

pytestmark = pytest.mark.root

EXAMPLE: Final = CHECKOUT / "packaging" / "voldriver.toml"
PROGRAMS: Final = ("voldriver", "voldriverd")
BASE: Final = "/usr/local/lib/voldriverd"
RULES: Final = CHECKOUT / "prometheus" / "voldriverd.rules.yml"
DIRECTORY_POOL: Final = '[pools.plain]\ndriver = "directory"\npath = "/srv/plain"\n'


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return installing.wheels(tmp_path_factory.mktemp("supplies"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, supplies: dict[str, str]) -> Iterator[Copy]:
    """A copy of this host where the script has installed it twice."""
    with Copy(tmp_path_factory.mktemp("host")) as copy:
        for _ in range(2):
            copy.run(installing.INSTALL, "--root", "/", **supplies)
        yield copy


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, supplies: dict[str, str]) -> Path:
    place = tmp_path_factory.mktemp("package")
    built = script(installing.PACKAGE, "--output", place, "--compression", "none", **supplies)
    assert built.returncode == 0, built.stderr
    assert list(place.iterdir()) == [Path(built.stdout.strip())]
    return Path(built.stdout.strip())


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Copy]:
    """A copy of this host to install packages in."""
    (tmp_path / "debian").mkdir()
    with Copy(tmp_path / "debian") as copy:
        yield copy


def dpkg(copy: Copy, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return copy.call("dpkg", "--no-triggers", "--force-unsafe-io", *arguments)


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def older(package: Path, place: Path) -> Path:
    """Make the package of the release before out of this one."""
    tree, version = place / "tree", __version__
    run("dpkg-deb", "--raw-extract", package, tree)
    (module,) = tree.glob("usr/lib/voldriverd/package/lib/*/site-packages/voldriverd/__init__.py")
    programs = [tree / "usr/lib/voldriverd/package/bin" / program for program in PROGRAMS]
    for path in (module, *programs, tree / "DEBIAN/control", tree / "DEBIAN/postinst"):
        path.write_text(path.read_text().replace(version, installing.BEFORE))
    run("dpkg-deb", "-Znone", "--build", tree, place / "older.deb")
    return place / "older.deb"


def the_script() -> ModuleType:
    """Return scripts/install as a module."""
    loader = SourceFileLoader("install", str(installing.INSTALL))
    spec = importlib.util.spec_from_loader("install", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# The example configuration


def test_the_example_changes_nothing() -> None:
    assert tomllib.loads(EXAMPLE.read_text()) == {}


def test_the_example_shows_the_default_of_each_key_that_has_one() -> None:
    document = shown()
    examples = {"default_target", "embedded", "api", "pools", "targets"}
    given = {key: value for key, value in document.items() if key not in examples}
    api = {key: document["api"][key] for key in ("socket", "plain_http")}
    assert config.parse({**given, "api": api}) == config.Config()
    assert document["embedded"] == {"size": "20G"}


def test_the_example_has_every_key() -> None:
    document = shown()
    embedded = document.pop("embedded")
    everything = config.effective(config.parse(document)) + config.effective(config.Config(embedded_size_bytes=1 << 30))
    known = set(re.findall(r"^(?:# )?(\w+) =", everything, re.MULTILINE))
    written = {key for _, key in keys(document)} | set(embedded)
    assert written == known


def shown() -> dict[str, Any]:
    """Return the example with nothing commented out."""
    return tomllib.loads(re.sub(r"^#(?=[\w\[])", "", EXAMPLE.read_text(), flags=re.MULTILINE))


def keys(document: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from keys(value, f"{path}{key}.")
        else:
            yield path, key


# By the script


def test_what_is_installed_says_its_version_from_anywhere(host: Copy) -> None:
    for program in PROGRAMS:
        assert host.run(program, "--version") == f"{program} {__version__}"
    found = host.run("readlink", "--canonicalize", f"/usr/local/bin/{PROGRAMS[0]}")
    assert found.startswith(f"{BASE}/2")


def test_nothing_of_where_one_stands_has_a_say_in_what_root_runs(host: Copy) -> None:
    host.run(
        "sh", "-c", "mkdir -p /srv/evil/voldriverd && echo 'raise SystemExit(9)' >/srv/evil/voldriverd/__init__.py"
    )
    done = host.call("sh", "-c", "cd /srv/evil && voldriverd --version", PYTHONPATH="/srv/evil")
    assert done.stdout == f"voldriverd {__version__}\n"


def test_an_environment_holds_nothing_to_change_it_with(host: Copy) -> None:
    env = host.path(host.run("readlink", "--canonicalize", f"{BASE}/current"))
    assert sorted(path.name for path in (env / "bin").iterdir()) == ["python3", *PROGRAMS]
    assert [path.name for path in env.glob("lib/*/site-packages/pip*")] == []
    named = subprocess.run(["grep", "-rlaF", str(CHECKOUT), env], capture_output=True, text=True, check=False)
    assert named.stdout == "", "it names where it was made"


def test_the_one_before_stays_for_who_is_still_at_work_and_no_older_one(host: Copy) -> None:
    names = host.run("ls", BASE).split()
    assert len(names) == 4
    assert {"current", "previous"} < set(names)
    assert host.run("readlink", f"{BASE}/previous") < host.run("readlink", f"{BASE}/current")


def test_the_configuration_is_there_and_is_left_alone_by_an_upgrade(host: Copy) -> None:
    assert host.path("/etc/voldriver/voldriver.toml").read_text() == EXAMPLE.read_text()


def test_systemd_finds_nothing_wrong_with_what_is_installed_and_starts_it_at_boot(host: Copy) -> None:
    units = [f"/usr/local/lib/systemd/system/voldriverd{suffix}" for suffix in (".service", ".socket", "-api.socket")]
    done = host.call("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    service = host.path(units[0]).read_text()
    assert "ExecStart=/usr/local/bin/voldriverd\n" in service
    wanted = {path.name for path in host.path("/etc/systemd/system").glob("*.wants/voldriver*")}
    assert wanted == {unit.rpartition("/")[2] for unit in units}


def test_systemd_reads_the_groups_and_directories_from_where_they_are(host: Copy) -> None:
    for kind, tool in (("sysusers.d", "systemd-sysusers"), ("tmpfiles.d", "systemd-tmpfiles")):
        assert f"# /usr/local/lib/{kind}/voldriver.conf" in host.run(tool, "--cat-config")


def test_every_page_is_there_and_well_formed(host: Copy, tmp_path: Path) -> None:
    pages = sorted(host.path("/usr/local/share/man").rglob("voldriver*.gz"))
    for page in pages:
        plain = tmp_path / page.stem
        plain.write_bytes(gzip.decompress(page.read_bytes()))
        assert run("mandoc", "-Tlint", "-Wwarning", plain) == ""
    groups = re.findall(r"^  (\w+) ", host.run("voldriver", "--help").partition("Commands:")[2], re.MULTILINE)
    wanted = {"voldriver.1", "voldriver.toml.5", "voldriverd.8", *(f"voldriver-{group}.1" for group in groups)}
    assert {page.stem for page in pages} == wanted


def test_pages_name_every_command_option_and_key(host: Copy) -> None:
    man = ("mandoc", "-Tutf8", "-O", "width=200")
    volume = plain(run(*man, host.path("/usr/local/share/man/man1/voldriver-volume.1.gz")))
    helped = host.run("voldriver", "volume", "resize", "--help")
    assert "voldriver volume resize [OPTIONS] NAME SIZE" in volume
    assert all(option in volume for option in set(re.findall(r"(--[\w-]+)", helped)) - {"--help"})
    settings = plain(run(*man, host.path("/usr/local/share/man/man5/voldriver.toml.5.gz")))
    for line in re.findall(r"^#(\w+ = .+|\[[\w.]+\])$", EXAMPLE.read_text(), re.MULTILINE):
        assert line in settings


def plain(page: str) -> str:
    """Return a page without the bold and underlined of terminals."""
    return re.sub(r".\x08", "", page)


def test_units_name_pages_that_are_there(host: Copy) -> None:
    named = {
        page
        for unit in (CHECKOUT / "systemd").glob("voldriver*")
        for page in re.findall(r"man:([\w.]+)\((\d)\)", unit.read_text())
    }
    assert named
    for name, section in named:
        assert host.path(f"/usr/local/share/man/man{section}/{name}.{section}.gz").exists()


def test_the_alert_rules_are_where_the_docs_have_them(host: Copy) -> None:
    assert host.path("/usr/local/share/voldriverd/prometheus/voldriverd.rules.yml").read_text() == RULES.read_text()
    page = " ".join((CHECKOUT / "docs/metrics.md").read_text().split())
    assert "`/usr/share/voldriverd/prometheus/voldriverd.rules.yml`" in page
    assert "`/usr/local/share/voldriverd/prometheus/voldriverd.rules.yml`" in page


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        (("bash", "-n"), "bash-completion/completions/{}"),
        (("zsh", "-n"), "zsh/site-functions/_{}"),
        (("fish", "--no-execute"), "fish/vendor_completions.d/{}.fish"),
    ],
)
def test_every_shell_can_read_its_completion(host: Copy, shell: tuple[str, str], place: str) -> None:
    for program in PROGRAMS:
        assert host.run(*shell, f"/usr/local/share/{place.format(program)}") == ""


def test_a_shell_completes_commands(host: Copy) -> None:
    place = "/usr/local/share/bash-completion/completions"
    asked = f"source {place}/voldriver; COMP_LINE='voldriver volume resi'; COMP_POINT=21; {COMPLETE}"
    assert host.run("bash", "-c", asked) == "resize"


COMPLETE: Final = "$(complete -p voldriver | sed 's/.*-F //; s/ .*//') voldriver resi volume; echo ${COMPREPLY[@]}"


def test_a_configuration_that_the_new_version_refuses_stops_the_upgrade(host: Copy, tmp_path: Path) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    env = host.path(host.run("readlink", "--canonicalize", f"{BASE}/current"))
    (tmp_path / "etc/voldriver").mkdir(parents=True)
    (tmp_path / "etc/voldriver/voldriver.toml").write_text("reserv = 1\n")
    with pytest.raises(install.Failed, match="key 'reserv': there is none of that name; did you mean reserve"):
        install.check(place, env, None)


def test_what_is_not_ours_is_not_overwritten(host: Copy, tmp_path: Path) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    env = host.path(host.run("readlink", "--canonicalize", f"{BASE}/current"))
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/voldriver").write_text("mine")
    with pytest.raises(install.Failed, match=f"not ours, and in the way: {tmp_path}/usr/local/bin/voldriver$"):
        install.check(place, env, None)
    install.check(place, env, env)


def test_a_try_that_fails_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    env = place.at(place.base) / "1"
    (env / "files").mkdir(parents=True)
    place.link("current", env)

    def make_half(env: Path) -> None:
        (env / "bin").mkdir(parents=True)
        raise install.Failed("no space left")

    monkeypatch.setattr(install.staging, "make_environment", make_half)
    with pytest.raises(install.Failed, match="no space left"):
        install.install(place)
    assert sorted(path.name for path in env.parent.iterdir()) == ["1", "current"]
    assert place.linked("current") == env


def test_what_a_killed_run_has_left_is_swept(tmp_path: Path) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    base = place.at(place.base)
    for name in ("1", "2", "3", "4"):
        (base / name / "files").mkdir(parents=True)
    (base / "current.new").symlink_to("4")
    place.link("previous", base / "2")
    place.link("current", base / "3")
    place.sweep()
    assert sorted(path.name for path in base.iterdir() if path.name != "current.new") == [
        "2",
        "3",
        "current",
        "previous",
    ]


def test_what_a_version_no_longer_has_is_taken_away(tmp_path: Path) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    old, new = place.at(place.base) / "1", place.at(place.base) / "2"
    for env, names in ((old, ("a", "b")), (new, ("b", "c"))):
        for name in names:
            path = env / "files/usr/local/share" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(env.name)
    install.switch(place, old, None)
    install.switch(place, new, old)
    assert {path.name: path.read_text() for path in (tmp_path / "usr/local/share").iterdir()} == {"b": "2", "c": "2"}
    assert place.linked("current") == new
    install.switch(place, old, new)
    assert {path.name: path.read_text() for path in (tmp_path / "usr/local/share").iterdir()} == {"a": "1", "b": "1"}


def test_what_pip_says_is_told(tmp_path: Path) -> None:
    staging = the_script().staging
    with pytest.raises(
        staging.Failed, match=r"pip install nothing .* ended with status 1: (.|\n)*No matching distribution"
    ):
        staging.call(sys.executable, "-m", "pip", "install", "nothing", "--no-index", "--find-links", tmp_path)


def test_a_second_run_at_the_same_time_is_refused(host: Copy) -> None:
    tried = f"flock --exclusive {BASE} {installing.INSTALL} --root /"
    failed = host.call("sh", "-c", tried)
    assert (failed.returncode, failed.stderr) == (1, f"cannot install: another run of this script works in {BASE}\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "cannot install: systemd does not run here; --root DIR makes the files alone\n"),
        (("--uninstall",), "cannot uninstall: systemd does not run here; --root DIR makes the files alone\n"),
        (("--prefix", "local"), "cannot install: --prefix is an absolute path, and local is none\n"),
        (
            ("--root", "/", "--prefix", "/opt/v", "--uninstall"),
            "cannot uninstall: voldriverd is not installed in /opt/v\n",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(host: Copy, arguments: tuple[str, ...], error: str) -> None:
    failed = host.call(installing.INSTALL, *arguments)
    assert (failed.returncode, failed.stderr) == (1, error)


def test_force_without_uninstall_is_a_usage_error(host: Copy) -> None:
    failed = host.call(installing.INSTALL, "--force")
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (2, "install: error: --force goes with --uninstall")


def test_one_who_is_not_root_is_told_so(host: Copy) -> None:
    failed = host.call("setpriv", "--reuid=65534", "/usr/bin/python3", installing.INSTALL)
    assert (failed.returncode, failed.stderr) == (
        1,
        "cannot install: it takes root; --root DIR makes the files alone\n",
    )


def test_a_python_without_venv_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    staging = the_script().staging
    monkeypatch.setattr(staging.os, "__file__", str(tmp_path / "os.py"))
    with pytest.raises(staging.Failed, match=r"apt-get install python3-venv$"):
        staging.make_environment(tmp_path / "env")


def test_tools_that_are_missing_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    place.is_staged = False
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.Failed, match=r"apt-get install btrfs-progs e2fsprogs xfsprogs mount$"):
        install.check_tools(place)


def test_what_is_taken_away_leaves_the_configuration_alone(tmp_path: Path, host: Copy) -> None:
    install = the_script()
    place = install.Place(tmp_path, Path("/usr/local"))
    env = host.path(host.run("readlink", "--canonicalize", f"{BASE}/current"))
    own = place.at(place.base) / "1"
    shutil.copytree(env, own, symlinks=True, ignore=shutil.ignore_patterns("site-packages"))
    install.switch(place, own, None)
    install.enable(place)
    kept = place.at("etc/voldriver/voldriver.toml")
    kept.parent.mkdir()
    kept.write_text("")
    assert (tmp_path / "usr/local/bin/voldriver").is_symlink()
    assert (tmp_path / "usr/local/share/voldriverd/prometheus/voldriverd.rules.yml").exists()
    with place.locked():
        install.uninstall(place, is_forced=False)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [kept]
    assert [path for path in tmp_path.rglob("*voldriver*") if path.is_dir()] == [kept.parent]


@pytest.mark.parametrize("was_up", [True, False])
def test_volumes_in_use_are_named_and_the_daemon_goes_on(
    was_up: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install = the_script()
    (tmp_path / "voldriver.db").touch()
    checked = f"""*--check) echo 'root = "{tmp_path}"';;"""
    refused = "*--release) echo 'voldriverd: cannot release: volume db: it is in use' >&2; exit 1;;"
    program(tmp_path / "bin/voldriverd", f'case "$*" in {checked} {refused} esac')
    program(
        tmp_path / "systemctl", f'echo "$@" >>{tmp_path}/asked; case "$*" in *is-active*) exit {int(not was_up)};; esac'
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    error = "^volume db: it is in use; stop the containers, or leave what they have mounted with --force$"
    with pytest.raises(install.Failed, match=error):
        install.end(tmp_path, is_forced=False)
    stopped, started = (f"{verb} {' '.join(install.SOCKETS)} {install.SERVICE}" for verb in ("stop", "start"))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1:] == ([stopped, started] if was_up else [stopped])
    assert install.end(tmp_path, is_forced=True) == "volume db: it is in use"


def program(path: Path, text: str) -> None:
    """Write a program of the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# By the package


def test_a_package_says_what_it_is_and_what_it_needs(package: Path) -> None:
    fields = {name: run("dpkg-deb", "--field", package, name).strip() for name in ("Package", "Version", "Depends")}
    assert (fields["Package"], fields["Version"]) == ("voldriverd", __version__)
    assert package.name == f"voldriverd_{__version__}_{run('dpkg', '--print-architecture').strip()}.deb"
    depends = set(re.split(r"[ ,|]+", fields["Depends"]))
    assert {kind.package for kind in image.FORMATS.values()} | {"btrfs-progs", "mount", "python3.11"} <= depends
    assert run("dpkg-deb", "--info", package, "conffiles") == "/etc/voldriver/voldriver.toml\n"


def test_a_package_belongs_to_root_and_brings_no_bytecode(package: Path) -> None:
    lines = run("dpkg-deb", "--contents", package).splitlines()
    assert {line.split()[1] for line in lines} == {"root/root"}
    assert [line for line in lines if "__pycache__" in line or "/pip/" in line] == []
    written_by_others = [line for line in lines if not line.startswith("l") and (line[5] == "w" or line[8] == "w")]
    assert written_by_others == []
    for place in (
        "./usr/bin/voldriverd ->",
        "./usr/share/voldriverd/prometheus/voldriverd.rules.yml",
        "./usr/share/man/man8/voldriverd.8.gz",
        "./usr/share/zsh/vendor-completions/_v",
    ):
        assert any(place in line for line in lines)


def test_maintainer_scripts_are_shell(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "--control", package, tmp_path / "control")
    for name in ("preinst", "postinst", "prerm", "postrm"):
        run("dash", "-n", tmp_path / "control" / name)
        assert not re.search(r"@[A-Z]+@", (tmp_path / "control" / name).read_text())


def test_it_is_installed_upgraded_and_removed_with_its_volumes_left(
    package: Path, debian: Copy, tmp_path: Path
) -> None:
    done = dpkg(debian, "--install", older(package, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert debian.run("voldriverd", "--version") == f"voldriverd {installing.BEFORE}"
    debian.path("/etc/voldriver/voldriver.toml").write_text(DIRECTORY_POOL)
    debian.path("/srv/plain").mkdir()
    use(debian)
    client = debian.run("readlink", "--canonicalize", "/usr/bin/voldriver")

    debian.path("/etc/voldriver/voldriver.toml").write_text("reserv = 1\n")
    done = dpkg(debian, "--force-confold", "--install", package)
    assert done.returncode == 1
    assert "'reserv': there is none of that name" in done.stderr
    assert "when it is mended: dpkg --configure voldriverd\n" in done.stderr
    assert debian.run("voldriverd", "--version") == f"voldriverd {installing.BEFORE}"

    debian.path("/etc/voldriver/voldriver.toml").write_text(DIRECTORY_POOL)
    done = dpkg(debian, "--force-confold", "--configure", "voldriverd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert debian.run("voldriverd", "--version") == f"voldriverd {__version__}"
    assert debian.run(client, "--version") == f"voldriver {installing.BEFORE}", "it may be at work still"
    assert debian.path("/etc/voldriver/voldriver.toml").read_text() == DIRECTORY_POOL

    done = dpkg(debian, "--remove", "voldriverd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "volumes, snapshots and the trash stay in: /var/lib/voldriver /srv/plain\n" in done.stderr.replace('"', "")
    assert "not empty" not in done.stdout + done.stderr
    assert not debian.path("/usr/lib/voldriverd").exists()
    assert not debian.path("/usr/share/voldriverd").exists()
    done = dpkg(debian, "--purge", "voldriverd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not debian.path("/etc/voldriver").exists()
    assert debian.path("/var/lib/voldriver/voldriver.db").exists()
    assert len(list(debian.path("/srv/plain/trees").iterdir())) == 1


def use(copy: Copy) -> None:
    """Serve for a moment, and leave a volume that is mounted."""
    start = "voldriverd >/tmp/daemon.log 2>&1 & echo $! >/tmp/daemon.pid"
    copy.run("sh", "-c", start)
    until(lambda: copy.path("/run/docker/plugins/voldriver.sock").exists(), "the daemon")
    copy.run("voldriver", "volume", "create", "kept")
    place = copy.run("voldriver", "volume", "mount", "kept").split()[0]
    copy.run("sh", "-c", f"mountpoint {place} && echo content >{place}/file")
    copy.run(
        "sh", "-c", "kill $(cat /tmp/daemon.pid); while kill -0 $(cat /tmp/daemon.pid) 2>/dev/null; do sleep 0.05; done"
    )


def test_the_package_and_the_script_refuse_each_other(package: Path, debian: Copy) -> None:
    debian.path(BASE).mkdir(parents=True)
    debian.path(f"{BASE}/current").symlink_to("1")
    done = dpkg(debian, "--install", package)
    assert (done.returncode, "first scripts/install --uninstall, volumes stay" in done.stderr) == (1, True)
    debian.path("/run/systemd/system").mkdir(parents=True)
    debian.path("/usr/lib/voldriverd/package").mkdir(parents=True, exist_ok=True)
    refused = debian.call(installing.INSTALL)
    error = "cannot install: the Debian package voldriverd is installed: apt-get remove voldriverd; volumes stay\n"
    assert (refused.returncode, refused.stderr) == (1, error)


def test_versions_before_a_release_are_older_than_it() -> None:
    loader = SourceFileLoader("package", str(installing.PACKAGE))
    spec = importlib.util.spec_from_loader("package", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    found = [module.debian_version(version) for version in ("1.0.dev1", "1.0a2", "1.0b1", "1.0rc1", "1.0")]
    assert found == ["1.0~dev1", "1.0~a2", "1.0~b1", "1.0~rc1", "1.0"]
    for earlier in ("1.0~rc1", "1.0~dev1"):
        run("dpkg", "--compare-versions", earlier, "lt", "1.0")
