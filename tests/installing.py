"""A copy of this host that is thrown away: what is installed in it, is installed nowhere.

Its files are those of the host, through overlayfs(5), with what the copy changes on a tmpfs, in a mount namespace that
ends with it. No systemd runs in it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

from voldriverd import __version__

CHECKOUT: Final = Path(__file__).parent.parent
INSTALL: Final = CHECKOUT / "scripts" / "install"
PACKAGE: Final = CHECKOUT / "scripts" / "package"
BEFORE: Final = "0.0.9"
"""The version of the release before, in tests of upgrades."""
_LIMIT_S: Final = 600
"""On a machine that other tests load."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAKE: Final = """
set -e
base=$1
mount -t tmpfs -o size=1500m copy "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" copy "$base/root"
mount --rbind /dev "$base/root/dev"
mount -t proc proc "$base/root/proc"
mount --rbind /sys "$base/root/sys"
mount -t tmpfs run "$base/root/run"
echo made
exec cat
"""


class Copy:
    """One that is there from `__enter__` to `__exit__`."""

    def __init__(self, base: Path) -> None:
        """Take a directory for what changes."""
        self._base = base
        self.root = base / "root"

    def __enter__(self) -> Self:
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MAKE, "sh", str(self._base)]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"made\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(_LIMIT_S)
        self._holder.stdout.close()

    def call(self, *argv: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in it."""
        return subprocess.run(
            ["nsenter", f"--target={self._holder.pid}", "--mount", "chroot", self.root, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT_S,
            env={"PATH": _PATH, "HOME": "/root", **environment},
        )

    def run(self, *argv: str | Path, **environment: str) -> str:
        """Run a command in it that succeeds, and return what it prints."""
        done = self.call(*argv, **environment)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def path(self, path: str) -> Path:
        """Return where a file of it can be seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{self.root}{path}")


def wheels(place: Path) -> dict[str, str]:
    """Gather all that an installation takes from a registry, and return the environment that takes it from there."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", "wheel")
    gathered = place / "wheels"
    subprocess.run([*pip, f"--wheel-dir={gathered}", CHECKOUT, "hatchling"], check=True, capture_output=True)
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(gathered)}


def checkout(place: Path, version: str) -> Path:
    """Copy what an installation is made from, as if it were of another version."""
    parts = ("voldriverd", "drivers", "packaging", "scripts", "systemd", "docs", "prometheus")
    for part in parts:
        shutil.copytree(CHECKOUT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, place)
    package = place / "voldriverd" / "__init__.py"
    text = package.read_text()
    assert text.count(f'"{__version__}"') == 1
    package.write_text(text.replace(f'"{__version__}"', f'"{version}"'))
    return place


def script(path: Path, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run one of the scripts with Debian's Python."""
    return subprocess.run(
        ["/usr/bin/python3", path, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **environment},
    )
