"""Our daemon and the bare handler as processes of their own, on temporary directories."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.client import Client

READY_S = 30.0
VOLDRIVERD = (sys.executable, "-c", "from voldriverd.cli.daemon import main; main()")


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon."""

    root: Path
    plugin: Path
    api: Path
    pid: int
    start_s: float

    @property
    def pool(self) -> Path:
        """The btrfs pool of the embedded image."""
        return self.root / "embedded" / "btrfs"

    def memory_mib(self) -> float:
        """Return the resident memory of the daemon."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def running(base: Path, *, size: str = "4G") -> Iterator[Daemon]:
    """Start the daemon on a root (made if missing), and end it; what it has mounted stays for the next one."""
    argv = [*VOLDRIVERD, "--root", str(base / "root"), "--run-dir", str(base / "run")]
    config = base / "voldriver.toml"
    config.write_text(f'reserve = "0%"\n[embedded]\nsize = "{size}"\n')
    begun = time.monotonic()
    with (base / "log").open("ab") as log:
        process = subprocess.Popen([*argv, "--config", str(config), "--log-level", "warning"], stderr=log)
        plugin = base / "run" / "voldriver.sock"
        try:
            wait_for(plugin)
            yield Daemon(base / "root", plugin, base / "run" / "api.sock", process.pid, time.monotonic() - begun)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory for one daemon and remove all of it.

    On ext4 its directories lie in block groups of their own (chattr(1), T): where many files went in the last minutes,
    as those of the run before, each new one takes 0.1 to 0.7 ms (fs/ext4/ialloc.c, recently_deleted; 6.18).
    """
    base = Path(tempfile.mkdtemp(prefix="voldriver-bench-"))
    subprocess.run(["chattr", "+T", base], check=False, stderr=subprocess.DEVNULL)
    try:
        yield base
    finally:
        argv = [*VOLDRIVERD, "--release"]
        subprocess.run([*argv, "--root", base / "root", "--run-dir", base / "run"], check=True)
        embedded = base / "root" / "embedded"
        subprocess.run(["chattr", "-i", embedded], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(base)


@contextmanager
def bare(base: Path, answer: bytes | None = None) -> Iterator[Path]:
    """Run the bare handler and give its socket."""
    path, file = base / "bare.sock", base / "bare.answer"
    argv = [sys.executable, "-m", "bench.bare", str(path)]
    if answer is not None:
        file.write_bytes(answer)
        argv.append(str(file))
    process = subprocess.Popen(argv)
    try:
        wait_for(path)
        yield path
    finally:
        process.terminate()
        process.wait()


def wait_for(path: Path) -> None:
    """Return when somebody answers at a socket."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            Client(path).__exit__()
        except OSError:
            time.sleep(0.005)
        else:
            return
    raise TimeoutError(path)
