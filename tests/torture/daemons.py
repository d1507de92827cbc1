"""kill -9 of the daemon while clients ask it for verbs and other processes write through its mounts.

Each client has volumes of its own and knows what was acknowledged. After the next start: the list is complete, what was
acknowledged is there with its files, the one verb that was cut off has happened or has not, every mount is the one from
before, and no line of the writers is lost.
"""

import http.client
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.running import Answer, Running
from tests.scratch import loops_under
from tests.torture.kills import State, Verb
from voldriverd.kernel import fs, mount

DRIVERS: Final = ("btrfs", "loop", "directory")
SIZES: Final = {"btrfs": "32", "loop": "32", "directory": ""}
START_S: Final = 5.0
"""How long a start takes, at the median, for one may meet whatever else the machine does."""
LIFE_S: Final = 0.4
"""How long a daemon lives at most once it serves."""
_SETTLE_S: Final = 20.0

_WRITER: Final = """
import os, sys, time
place, acknowledged, parent = sys.argv[1:]
done = os.open(acknowledged, os.O_WRONLY | os.O_CREAT, 0o600)
log = os.open(place + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while os.getppid() == int(parent):
    number += 1
    os.write(log, b"%09d\\n" % number)
    os.fsync(log)
    os.pwrite(done, b"%09d\\n" % number, 0)
    if number == 1:
        print("ready", flush=True)
    if number % 10 == 0:
        os.close(log)
        log = os.open(place + "/log", os.O_WRONLY | os.O_APPEND)
    time.sleep(0.001)
"""


class Client:
    """Asks for verbs on volumes of one driver, one after the other, until the daemon dies."""

    def __init__(self, daemon: Running, driver: str, *, seed: int) -> None:
        self._daemon = daemon
        self._driver = driver
        self._random = random.Random(f"{seed} {driver}")
        self._names = tuple(f"{driver}-{number}" for number in range(3))
        self.state = State()
        self.cut: Verb | None = None
        self.ended = 0

    def live(self, is_over: threading.Event) -> None:
        """Run verbs until the daemon does not answer any more."""
        self.cut = None
        while not is_over.is_set():
            verb = self.choose()
            self.cut = verb
            try:
                self.perform(verb)
            except (OSError, http.client.HTTPException):
                return
            self.cut = None
            self.ended += 1

    def perform(self, verb: Verb) -> None:
        """Run a verb, and know from then on what it has changed."""
        getattr(self, f"_{verb[0]}")(*verb[1:])
        self.state = self.state.after(verb)

    def check(self) -> None:
        """See that the daemon shows what this client knows; learn whether the verb that was cut off has happened."""
        if self.cut is not None and self.cut[0] == "write":
            self._plugin("Unmount", Name=self.cut[1], ID="client")
        found = self._observe()
        allowed = [self.state] if self.cut is None else [self.state, self.state.after(self.cut)]
        fitting = [state for state in allowed if _visible(state) == found]
        assert fitting, f"after {self.cut}: {found}, and allowed is one of {[_visible(state) for state in allowed]}"
        self.state = fitting[0]

    def check_snapshots(self) -> None:
        """Clone every snapshot, and what reverts have displaced, and compare what is in it."""
        for name, shelf in self.state.live.items():
            for snapshot, (content, _) in shelf.snapshots.items():
                assert self._content_of(f"{name}@{snapshot}") == content
            rows = self._ask("GET", f"/v1/snapshots?volumeId={self._row(name)['id']}").body["data"]
            displaced = [self._content_of(f"{name}@{row['name']}") for row in rows if row["automatic"]]
            assert sorted(displaced) == shelf.displaced

    def _content_of(self, source: str) -> str:
        self._plugin("Create", Name="probe", Opts={"from": source})
        content = self._read("probe")
        self._plugin("Remove", Name="probe")
        return content

    def choose(self) -> Verb:
        """Return a verb that can be run next."""
        name, snapshot = self._random.choice(self._names), self._random.choice(("one", "two"))
        shelf = self.state.live.get(name)
        if shelf is None:
            if self.state.live and self._random.random() < 1 / 2:
                return "clone", name, self._random.choice(sorted(self.state.live)), "", ""
            return "create", name, SIZES[self._driver]
        proposals: list[Verb] = [("write", name, str(self._random.getrandbits(64))), ("remove", name)]
        if snapshot in shelf.snapshots:
            proposals += [("revert", name, snapshot), ("revert", name, snapshot), ("remove_snapshot", name, snapshot)]
        else:
            proposals += [("snapshot", name, snapshot)] * 3
        if shelf.size_mib is not None and shelf.size_mib < 64:
            proposals.append(("resize", name, str(shelf.size_mib + 8)))
        return self._random.choice(proposals)

    def _create(self, name: str, size: str) -> None:
        options = {"driver": self._driver} | ({"size": f"{size}M"} if size else {})
        self._plugin("Create", Name=name, Opts=options)

    def _clone(self, name: str, source: str, *_: str) -> None:
        self._plugin("Create", Name=name, Opts={"from": source})

    def _write(self, name: str, content: str) -> None:
        place = Path(self._plugin("Mount", Name=name, ID="client")["Mountpoint"])
        fs.write_durably(place / "file", content.encode())
        self._plugin("Unmount", Name=name, ID="client")

    def _snapshot(self, name: str, snapshot: str) -> None:
        self._act(name, "snapshot", name=snapshot)

    def _remove_snapshot(self, name: str, snapshot: str) -> None:
        self._ask("DELETE", f"/v1/snapshots/{self._snapshot_id(name, snapshot)}")

    def _revert(self, name: str, snapshot: str) -> None:
        self._act(name, "reverttosnapshot", snapshotId=self._snapshot_id(name, snapshot))

    def _resize(self, name: str, size: str) -> None:
        self._act(name, "resize", size=f"{size}M")

    def _remove(self, name: str) -> None:
        self._plugin("Remove", Name=name)

    def _observe(self) -> Mapping[str, Any]:
        listed = {each["Name"] for each in self._plugin("List")["Volumes"]}
        found = {}
        for name in sorted(listed.intersection(self._names)):
            row = self._row(name)
            assert row["state"] == "inactive", row
            snapshots = self._ask("GET", f"/v1/snapshots?volumeId={row['id']}").body["data"]
            assert {each["state"] for each in snapshots} <= {"created"}
            named = sorted(each["name"] for each in snapshots if not each["automatic"])
            size_bytes = row["sizeBytes"]
            found[name] = (
                self._read(name),
                None if size_bytes is None else size_bytes >> 20,
                named,
                len(snapshots) - len(named),
            )
        return found

    def _read(self, name: str) -> str:
        place = Path(self._plugin("Mount", Name=name, ID="reader")["Mountpoint"])
        file = place / "file"
        content = file.read_text() if file.exists() else ""
        self._plugin("Unmount", Name=name, ID="reader")
        return content

    def _row(self, name: str) -> Any:
        (row,) = self._ask("GET", f"/v1/volumes?name={name}").body["data"]
        return row

    def _snapshot_id(self, name: str, snapshot: str) -> str:
        found = self._ask("GET", f"/v1/snapshots?volumeId={self._row(name)['id']}").body["data"]
        return str(next(each["id"] for each in found if each["name"] == snapshot))

    def _act(self, name: str, action: str, /, **fields: str) -> None:
        volume_id = self._row(name)["id"]
        self._ask("POST", f"/v1/volumes/{volume_id}/?action={action}", fields)
        end_s = time.monotonic() + _SETTLE_S
        while self._is_going(volume_id):  # answered before its end, for the machine is busy
            assert time.monotonic() < end_s
            time.sleep(0.01)

    def _is_going(self, volume_id: str) -> bool:
        rows = [self._ask("GET", f"/v1/volumes/{volume_id}").body]
        rows += self._ask("GET", f"/v1/snapshots?volumeId={volume_id}").body["data"]
        return any(row["transitioning"] == "yes" for row in rows)

    def _plugin(self, method: str, **fields: object) -> Any:
        answer = self._daemon.plugin(f"VolumeDriver.{method}", **fields)
        assert answer.status == 200, (method, fields, answer.body)
        return answer.body

    def _ask(self, method: str, path: str, body: object = None) -> Answer:
        answer = self._daemon.api(method, path, body)
        assert answer.status < 300, (method, path, body, answer.body)
        return answer


class Writer:
    """A process that appends numbered lines through a mount, each durable before it is said."""

    def __init__(self, daemon: Running, driver: str, base: Path) -> None:
        self.name = f"writer-{driver}"
        self._daemon = daemon
        self._acknowledged = base / f"{self.name}.acknowledged"
        daemon.plugin("VolumeDriver.Create", Name=self.name, Opts={"driver": driver})
        answer = daemon.plugin("VolumeDriver.Mount", Name=self.name, ID=self.name)
        self.place = Path(answer.body["Mountpoint"])
        self._entry = mount.at(self.place)
        argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", _WRITER]  # as a container
        argv += [str(self.place), str(self._acknowledged), str(os.getpid())]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    @property
    def count(self) -> int:
        """How many lines are durable."""
        return int(self._acknowledged.read_text())

    def check(self) -> None:
        """See that it still writes, through the same mount, and that the daemon knows of both."""
        before = self.count
        end_s = time.monotonic() + _SETTLE_S
        while self.count <= before:
            assert self._process.poll() is None, "the writer has ended"
            assert time.monotonic() < end_s, "the writer hangs"
            time.sleep(0.001)
        assert mount.at(self.place) == self._entry
        shown = self._daemon.plugin("VolumeDriver.Get", Name=self.name).body["Volume"]
        assert shown["Mountpoint"] == str(self.place)
        assert len(shown["Status"]["holders"]) == 1

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def check_end(self) -> None:
        """See that no line is lost, then unmount."""
        lines = (self.place / "log").read_text().splitlines()
        assert [int(line) for line in lines] == list(range(1, len(lines) + 1))
        assert self.count <= len(lines) <= self.count + 1
        answer = self._daemon.plugin("VolumeDriver.Unmount", Name=self.name, ID=self.name)
        assert answer.status == 200, answer.body
        assert mount.at(self.place) is None


class Killing:
    """A daemon that is killed while three clients and three writers are at it."""

    def __init__(self, daemon: Running, *, seed: int) -> None:
        self._daemon = daemon
        self._random = random.Random(seed)
        self._clients = [Client(daemon, driver, seed=seed) for driver in DRIVERS]
        self.starts_s: list[float] = []
        self.written = 0

    @property
    def ended(self) -> int:
        """How many verbs were acknowledged."""
        return sum(client.ended for client in self._clients)

    def run(self, rounds: int, *, until_s: float | None = None) -> None:
        """Kill so often, or until that time; then see that nothing is left that should not be."""
        with self._writers() as writers:
            for _ in range(rounds):
                if until_s is not None and time.monotonic() > until_s:
                    break
                self._round()
                for writer in writers:
                    writer.check()
        for writer in writers:
            writer.check_end()
            self.written += writer.count
        for client in self._clients:
            client.check_snapshots()
        assert statistics.median(self.starts_s) < START_S
        self._daemon.stop()
        root = str(self._daemon.root)
        assert [entry.mount_point for entry in mount.table() if entry.mount_point.startswith(f"{root}/mounts")] == []
        assert loops_under(self._daemon.base) == {}

    def _round(self) -> None:
        is_over = threading.Event()
        with ThreadPoolExecutor(len(self._clients)) as threads:
            running = [threads.submit(client.live, is_over) for client in self._clients]
            time.sleep(self._random.uniform(0.0, LIFE_S))
            self._daemon.kill()
            is_over.set()
        for future in running:
            future.result()
        begun_s = time.monotonic()
        self._daemon.start()
        self.starts_s.append(time.monotonic() - begun_s)
        for client in self._clients:
            client.check()

    @contextmanager
    def _writers(self) -> Iterator[list[Writer]]:
        writers: list[Writer] = []
        try:
            writers.extend(Writer(self._daemon, driver, self._daemon.base) for driver in DRIVERS)
            yield writers
        finally:
            for writer in writers:
                writer.stop()


def _visible(state: State) -> Mapping[str, Any]:
    return {
        name: (shelf.content, shelf.size_mib, sorted(shelf.snapshots), len(shelf.displaced))
        for name, shelf in state.live.items()
    }
