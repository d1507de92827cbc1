"""What one version consists of, made aside: an environment of Python, and the files that lie elsewhere.

An environment is a virtual environment under a name of its own. It is whole before anything points to it, and nothing
in it changes afterwards:

    bin/python3                    Debian's interpreter
    bin/voldriverd, bin/voldriver  name that interpreter by its whole path, so that a daemon which runs loads what it
                                   still needs from its own version, whatever has been installed meanwhile
    lib/python3.X/site-packages    voldriverd and its libraries; no pip, nothing of where it was made

`current` beside the environments is a link to one of them, and `bin/voldriver` of the prefix leads through it.
"""

import gzip
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
PROJECT: Final = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
PROGRAMS: Final[Mapping[str, str]] = PROJECT["scripts"]
EXAMPLE: Final = CHECKOUT / "packaging" / "voldriver.toml"
RULES: Final = CHECKOUT / "prometheus" / "voldriverd.rules.yml"
CONFIGURATION: Final = "etc/voldriver/voldriver.toml"
PYTHON: Final = Path(os.path.realpath(sys.executable))
"""/usr/bin/python3.11, and not python3, which is another one after the next release of Debian."""
SHELLS: Final = {
    "bash": "share/bash-completion/completions/{program}",
    "zsh": "share/zsh/{functions}/_{program}",
    "fish": "share/fish/vendor_completions.d/{program}.fish",
}
_QUIET: Final = ("--quiet", "--quiet", "--no-input", "--disable-pip-version-check", "--no-compile")
_LINES_MAX: Final = 20
"""Of what a program said that failed; pip says much."""
_OF_PIP: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""Where a library came from, and what would be needed to remove it alone."""


class Failed(Exception):
    """A step that was not done."""

    def __init__(self, text: str, *, said: str = "") -> None:
        """Take the whole error, and what the program said of it if it was one."""
        super().__init__(text)
        self.said = said


def make_environment(env: Path) -> None:
    """Make an environment at a place that does not exist, from this checkout; its programs are still missing.

    Libraries come from where pip is set up to find them (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CONSTRAINT …). Raises
    Failed.
    """
    if not (Path(os.path.dirname(os.__file__)) / "ensurepip").exists():
        raise Failed("Python cannot make environments: apt-get install python3-venv")
    call(PYTHON, "-m", "venv", "--symlinks", env)
    python = env / "bin" / "python3"
    call(python, "-m", "pip", "install", *_QUIET, "--root-user-action=ignore", CHECKOUT)
    call(python, "-m", "pip", "uninstall", *_QUIET[:-1], "--root-user-action=ignore", "--yes", "pip", "setuptools")
    for path in (env / "bin").iterdir():
        path.unlink()
    (env / "bin" / "python3").symlink_to(PYTHON)
    for needless in ("include", "lib64", "share"):
        path = env / needless
        shutil.rmtree(path, ignore_errors=True) if not path.is_symlink() else path.unlink()
    version = ".".join(map(str, sys.version_info[:3]))
    settings = f"home = {PYTHON.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    (env / "pyvenv.cfg").write_text(settings)
    for cache in list(env.rglob("__pycache__")):
        shutil.rmtree(cache)
    for facts in env.glob("lib/python3*/site-packages/*.dist-info"):
        for name in _OF_PIP:
            (facts / name).unlink(missing_ok=True)


def write_programs(env: Path, *, final: Path) -> None:
    """Write the programs of an environment that will lie at `final` when they are started."""
    for program, entry in PROGRAMS.items():
        module, function = entry.split(":")
        path = env / "bin" / program
        # -I: neither the directory where one stands nor PYTHONPATH has a say in what root runs.
        path.write_text(f"#!{final}/bin/python3 -I\nfrom {module} import {function}\n\n{function}()\n")
        path.chmod(0o755)


def write_files(env: Path, tree: Path, *, prefix: Path, functions: str) -> None:
    """Write what belongs elsewhere, each under its path from /: units, completion, man pages, the example, alert rules.

    `functions` is the directory below share/zsh. Raises Failed.
    """
    base = tree / str(prefix).lstrip("/")
    for unit in sorted((CHECKOUT / "systemd").glob("voldriver*")):
        text = unit.read_text().replace("=/usr/bin/", f"={prefix}/bin/")
        _write(base / "lib/systemd/system" / unit.name, text.encode())
    for kind in ("sysusers.d", "tmpfiles.d"):
        for path in sorted((CHECKOUT / "systemd" / kind).iterdir()):
            _write(base / "lib" / kind / path.name, path.read_bytes())
    for program in PROGRAMS:
        for shell, place in SHELLS.items():
            path = base / place.format(program=program, functions=functions)
            _write(path, _completion(env, program, shell))
        link = base / "bin" / program
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../lib/voldriverd/current/bin/{program}")
    _write_pages(env, base / "share" / "man")
    _write(base / "share/doc/voldriverd/examples/voldriver.toml", EXAMPLE.read_bytes())
    # Not among the documents: a Prometheus on this host may read it there, and nothing that is read may lie among them
    # (Debian Policy 12.3, 12.6).
    _write(base / "share/voldriverd/prometheus" / RULES.name, RULES.read_bytes())
    _write(base / "share/doc/voldriverd/bundled.txt", libraries(env).encode())


def libraries(env: Path) -> str:
    """Return each library of an environment with its version, as pip takes them for constraints."""
    (site,) = env.glob("lib/python3*/site-packages")
    found = {f"{each.name}=={each.version}" for each in importlib.metadata.distributions(path=[str(site)])}
    ours = f"{PROJECT['name']}=="
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower) if not line.startswith(ours))


def version_of(env: Path) -> str:
    """Return the version of voldriverd in an environment. Raises Failed."""
    return call(env / "bin" / "python3", "-I", "-c", "import voldriverd; print(voldriverd.__version__)").strip()


def compile_all(env: Path) -> None:
    """Write the bytecode of an environment. Raises Failed."""
    call(env / "bin" / "python3", "-I", "-m", "compileall", "-q", env / "lib")


def built_at() -> int:
    """Return the seconds that files are dated with: SOURCE_DATE_EPOCH, else the last commit, else now."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        return int(given)
    asked = ["git", "-C", str(CHECKOUT), "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return int(done.stdout) if done and done.returncode == 0 and done.stdout.strip() else int(time.time())


def call(*argv: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it prints. Raises Failed with the last it said."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, **(env or {})},
        )
    except OSError as err:
        raise Failed(f"{argv[0]}: {err.strerror}") from err
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LINES_MAX:])
        raise Failed(f"{' '.join(map(str, argv))} ended with status {done.returncode}: {said}", said=said)
    return done.stdout


def _completion(env: Path, program: str, shell: str) -> bytes:
    """Return what click writes for a shell."""
    module, function = PROGRAMS[program].split(":")
    source = f"from {module} import {function}; {function}(prog_name={program!r})"
    variable = f"_{program.upper()}_COMPLETE"
    return call(env / "bin" / "python3", "-I", "-c", source, env={variable: f"{shell}_source"}).encode()


def _write_pages(env: Path, base: Path) -> None:
    made = base.with_name("pages")
    made.mkdir(parents=True)
    date = time.strftime("%Y-%m-%d", time.gmtime(built_at()))
    call(env / "bin" / "python3", "-I", CHECKOUT / "packaging" / "manual.py", made, EXAMPLE, date)
    for page in sorted(made.iterdir()):
        _write(base / f"man{page.suffix[1:]}" / f"{page.name}.gz", gzip.compress(page.read_bytes(), mtime=0))
    shutil.rmtree(made)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)
