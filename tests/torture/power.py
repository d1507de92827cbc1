"""Power loss of the whole host: a daemon, its root, its pools and its target on one disk, and what clients were told.

Clients and writers note on the disk itself, beyond its file system, how many verbs they have begun and ended and how
many lines they have made durable: whatever copy of the disk is looked at later says what was promised at its instant.
After a cut the disk is mounted elsewhere, under another boot id, and a daemon is started on it. What was acknowledged
must be there, what was not must be whole or absent, and the trees on the disk those that the database points to.
"""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.recorded import BLOCK_BYTES, Marks, marked
from tests.running import Running
from tests.scratch import unmount_under
from tests.torture import daemons, savers
from tests.torture.kills import Verb
from voldriverd import config as configuration
from voldriverd import daemon as daemon_parts
from voldriverd.engine import mounts, recovery, upkeep
from voldriverd.kernel import run
from voldriverd.model import VolumeState

DISK_BYTES: Final = 2 << 30
"""Of the file system; the marks stand behind it."""
MARKS_BYTES: Final = 64 * BLOCK_BYTES
_PAUSE_S: Final = 0.01
_LOG_SHOWN: Final = 4_000
_BOOTED: Final = "import pathlib; from voldriverd import daemon; daemon.BOOT_ID = pathlib.Path({!r}); "
_ROOM: Final = '[embedded]\nsize = "1G"\n'
_SIZES: Final = {"btrfs": {"size": "32M"}, "loop": {"size": "32M"}, "directory": {}}
_XFS: Final = {"fs": "xfs", "size": "300M"}

_WRITER: Final = """
import os, sys
place, disk, at, parent = sys.argv[1:]
marks = os.open(disk, os.O_WRONLY)
log = os.open(place + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while os.getppid() == int(parent):
    number += 1
    os.write(log, b"%09d\\n" % number)
    os.fsync(log)
    os.pwrite(marks, (b"%d\\n" % number).ljust(4096, b"\\0"), int(at))
    if number == 1:
        print("ready", flush=True)
        assert sys.stdin.readline() == "go\\n"
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the disk is, and where on it the pools lie."""

    fs_type: str
    drivers: tuple[str, ...]
    mkfs: tuple[str, ...]
    is_embedded: bool = False

    def config(self, place: Path) -> str:
        """Return the configuration for a disk that is mounted at a place."""
        extra = {"btrfs": 'quota = "simple"\n', "loop": 'default_size = "32M"\n', "directory": ""}
        sections = [
            f'[pools.{driver}]\ndriver = "{driver}"\npath = "{place}/pools/{driver}"\n{extra[driver]}'
            for driver in self.drivers
        ]
        pools = _ROOM if self.is_embedded else "".join(sections)
        return f'reserve = "0%"\n{pools}[targets.{savers.TARGET}]\nurl = "file://{place}/target"\n'

    def format(self, image: Path) -> None:
        """Make the disk: an image with a file system, and room for the marks behind it."""
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run.run([*self.mkfs, str(image)])
        os.truncate(image, DISK_BYTES + MARKS_BYTES)


_ALL: Final = ("btrfs", "loop", "directory")
LAYOUTS: Final = {
    "ext4": Layout("ext4", _ALL, ("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1"), is_embedded=True),
    "btrfs": Layout("btrfs", _ALL, ("mkfs.btrfs", "-q", "-K")),
    "xfs": Layout("xfs", ("loop", "directory"), ("mkfs.xfs", "-q", "-K")),
}
"""A host where nothing is configured, and two with pools of their own, where loop images share blocks."""


@dataclass
class Teller:
    """A client, and what it knew after each of its verbs."""

    make: Callable[[Running], daemons.Client | savers.Saver]
    states: list[Any] = field(default_factory=list)
    verbs: list[Verb] = field(default_factory=list)

    def live(self, daemon: Running, put: Callable[[int, int], None], is_over: threading.Event) -> None:
        """Run verbs, and note before and after each how many were begun and ended."""
        client = self.make(daemon)
        if isinstance(client, savers.Saver):
            client.prepare()
        put(0, 0)
        self.states.append(client.state)
        while not is_over.is_set():
            verb = client.choose()
            self.verbs.append(verb)
            put(len(self.verbs), len(self.states) - 1)
            client.perform(verb)
            self.states.append(client.state)
            put(len(self.verbs), len(self.states) - 1)

    def check(self, daemon: Running, begun: int, ended: int) -> list[str]:
        """See that a daemon shows what was known when so many verbs had been begun and ended; return what was removed.

        These are the names of the volumes that must be in the trash.
        """
        client = self.make(daemon)
        client.state = self.states[ended]
        client.cut = self.verbs[ended] if begun > ended else None
        client.check()
        if isinstance(client, savers.Saver):
            return []
        client.check_snapshots()
        return [name for name, _ in client.state.trash]


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that appends numbered lines to a log in a volume, each durable before it is noted."""

    name: str
    options: Mapping[str, str]

    def start(self, daemon: Running, disk: Path, at: int) -> subprocess.Popen[str]:
        """Make the volume, and a process that awaits a word to go on."""
        daemon.plugin("VolumeDriver.Create", Name=self.name, Opts=dict(self.options))
        place = daemon.plugin("VolumeDriver.Mount", Name=self.name, ID=self.name).body["Mountpoint"]
        argv = [sys.executable, "-c", _WRITER, place, str(disk), str(at), str(os.getpid())]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def check(self, daemon: Running, count: int) -> list[str]:
        """See that so many lines are there, and at most one more; return that nothing was removed."""
        answer = daemon.plugin("VolumeDriver.Mount", Name=self.name, ID="reader")
        assert answer.status == 200, answer.body
        log = (Path(answer.body["Mountpoint"]) / "log").read_bytes()
        lines = log.split(b"\n")
        assert len(lines) > count, f"{self.name}: of {count} lines {len(lines) - 1} are there"
        assert [int(line) for line in lines[:count]] == list(range(1, count + 1)), self.name
        assert len(lines) <= count + 2, f"{self.name}: {len(lines)} lines, {count} of them durable"
        shown = daemon.plugin("VolumeDriver.Get", Name=self.name).body["Volume"]["Status"]["holders"]
        assert len(shown) == 1, f"the holders of before are forgotten: {shown}"
        assert daemon.plugin("VolumeDriver.Unmount", Name=self.name, ID="reader").status == 200
        return []


class Host:
    """A daemon on a disk, its clients and its writers, until the power is cut."""

    def __init__(self, base: Path, layout: Layout, *, seed: int) -> None:
        """Take a directory for everything but the disk; nothing happens yet."""
        self._base = base
        self._layout = layout
        self._tellers = [
            Teller(make)
            for driver in layout.drivers
            for make in (
                partial(daemons.Client, driver=driver, seed=seed),
                partial(savers.Saver, driver=driver, options=_SIZES[driver], seed=seed),
            )
        ]
        self._writers = [Writer(f"writer-{driver}", {"driver": driver, **_SIZES[driver]}) for driver in layout.drivers]
        self._writers.append(Writer("writer-xfs", {"driver": "loop", **_XFS}))

    @property
    def slots(self) -> int:
        """How many parties leave marks."""
        return len(self._parties)

    @property
    def _parties(self) -> list[Teller | Writer]:
        return [*self._tellers, *self._writers]

    @property
    def acknowledged(self) -> int:
        """How many verbs were acknowledged."""
        return sum(len(teller.states) - 1 for teller in self._tellers)

    @contextmanager
    def working(self, disk: Path) -> Iterator[None]:
        """Let everybody work on the disk for the block; afterwards nothing runs and nothing is mounted."""
        with ExitStack() as stack:
            daemon = self._mounted(stack, "before", disk)
            for name in ("root", "target"):
                (daemon.root.parent / name).mkdir()
            stack.enter_context(_serving(daemon))
            marks = stack.enter_context(Marks(disk, DISK_BYTES))
            processes = []
            for slot, writer in enumerate(self._writers, len(self._tellers)):
                processes.append(writer.start(daemon, disk, marks.at(slot)))
                stack.callback(_end, processes[-1])
            is_over = threading.Event()
            with ThreadPoolExecutor(len(self._tellers)) as threads:
                running = [
                    threads.submit(teller.live, daemon, partial(marks.put, slot), is_over)
                    for slot, teller in enumerate(self._tellers)
                ]
                try:
                    self._wait_until_all_work(running)
                    for process in processes:
                        assert process.stdin is not None
                        print("go", file=process.stdin, flush=True)
                    yield
                finally:
                    is_over.set()
            for future in running:
                future.result()
            for process in processes:
                assert process.poll() is None, "a writer has ended"

    def check(self, disk: Path) -> None:
        """See that all promises are kept on a disk as it was at some instant."""
        with ExitStack() as stack:
            told = [marked(disk, DISK_BYTES + slot * BLOCK_BYTES) for slot in range(self.slots)]
            daemon = self._mounted(stack, "after", disk)
            removed: list[str] = []
            with _serving(daemon):
                for party, numbers in zip(self._parties, told, strict=True):
                    removed += party.check(daemon, *numbers)
            _check_rest(daemon, removed)

    def _mounted(self, stack: ExitStack, name: str, disk: Path) -> Running:
        """Mount the disk, and return a daemon that has everything on it and does not run yet."""
        base = self._base / name
        place = base / "disk"
        daemon = Running(base, config=self._layout.config(place))
        daemon.root = place / "root"
        (base / "boot_id").write_text(f"{uuid.uuid4()}\n")
        daemon.preamble = _BOOTED.format(str(base / "boot_id"))
        place.mkdir(exist_ok=True)
        daemon.log_file.unlink(missing_ok=True)
        stack.callback(_lose, daemon)
        run.run(["mount", "-t", self._layout.fs_type, "-o", "loop", str(disk), str(place)])
        return daemon

    def _wait_until_all_work(self, running: list[Future[None]]) -> None:
        while not all(teller.states for teller in self._tellers):
            for future in running:
                if future.done():
                    future.result()
            time.sleep(_PAUSE_S)


@contextmanager
def _serving(daemon: Running) -> Iterator[None]:
    try:
        daemon.start()
        yield
    except BaseException:
        sys.stderr.write(daemon.log[-_LOG_SHOWN:])
        raise
    finally:
        daemon.kill()


def _lose(daemon: Running) -> None:
    """End what is mounted without a word to anybody."""
    unmount_under(daemon.base)
    daemon.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _check_rest(daemon: Running, removed: list[str]) -> None:
    """See that the trash has what was removed, that each tree has its row and its owner, and each row its tree.

    For the trees what waits to be removed is removed first.
    """
    engine = daemon_parts.build(configuration.load(daemon.config_file, root=daemon.root, run_dir=daemon.run_dir))
    try:
        recovery.recover(engine)
        upkeep.tidy(engine)
        rows = engine.store.volumes()
        assert {row.state for row in rows} <= {VolumeState.INACTIVE, VolumeState.REMOVED}
        assert mounts.MISSING not in {row.message for row in rows}
        probes = {"probe", "restored"}
        trash = sorted(row.name for row in rows if row.state is VolumeState.REMOVED and row.name not in probes)
        assert trash == sorted(removed)
        for pool in engine.pools:
            assert pool.driver is not None, pool.reason
            assert pool.orphans == frozenset(), pool.row.name
            on_disk = pool.driver.trees()
            assert on_disk == engine.store.pointed_keys(pool.row.id), pool.row.name
            assert on_disk == engine.store.tree_keys(pool.row.id), pool.row.name
            assert [name for name in os.listdir(Path(pool.row.path) / "trees") if name.startswith(".")] == []
    finally:
        engine.store.close()
