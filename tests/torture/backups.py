"""Backups and restores that meet a killed daemon, a cut network or a full target at a random instant.

Afterwards every backup that is listed as made restores to exactly what the volume had when it was begun, and every
volume has what it had or what was restored, nothing between.
"""

import hashlib
import http.client
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests import s3
from tests.network import Network
from tests.running import Answer, Running
from tests.torture.bench import Places, daemon_config
from voldriverd.kernel import mount

NAME: Final = "backups"
DRIVERS: Final = ("btrfs", "loop", "directory")
FAULTS: Final = ("kill", "network", "full")
LIFE_S: Final = 0.2
"""How long a backup or restore goes on at most before something happens to it; undisturbed they take 25 to 300 ms."""
CUT_S: Final = 1.0
"""How long the network is away, or the target full at most."""
BASE_BYTES: Final = 6 << 20
CHANGE_BYTES: Final = 2 << 20
FULL_BYTES: Final = 1 << 30
"""The size of the file system of the target that gets full; the filler takes what is left."""
_SETTLE_S: Final = 300.0
_PAUSE_S: Final = 0.02


def targets_config(directory: Path, endpoint: str, access_key: Path, secret_key: Path, url: str) -> str:
    """Return the configuration of the target in a bucket, `net`, and of that in a directory, `full`."""
    keys = f'access_key_file = "{access_key}"\nsecret_key_file = "{secret_key}"\n'
    bucket = f'[targets.net]\nurl = "{url}"\nendpoint = "{endpoint}"\nregion = "us-east-1"\n{keys}'
    return f'{bucket}[targets.full]\nurl = "file://{directory}"\n'


class Disturbing:
    """One daemon, a volume of each driver, and what is known of them and of every backup."""

    def __init__(self, daemon: Running, network: Network, full: Path, *, seed: int) -> None:
        self._daemon = daemon
        self._network = network
        self._full = full
        self._random = random.Random(seed)
        self._known: dict[str, str] = {}
        """The digest of what each backup must hold, by its name."""
        self._now: dict[str, str] = {}
        """The digest of each volume."""
        self._number = 0
        self.rounds: Counter[str] = Counter()
        """How often each fault came."""
        self.met: Counter[str] = Counter()
        """And how often it met what had not ended before."""
        self.checked = 0
        for driver in DRIVERS:
            self._created(driver, driver=driver)
            self._write(driver, "base", os.urandom(BASE_BYTES))

    def run(self, rounds: int, *, until_s: float | None = None) -> None:
        """Disturb so many backups or restores, or until a time of the monotonic clock."""
        for _ in range(rounds):
            if until_s is not None and time.monotonic() > until_s:
                break
            self._round()
        for backup in self._made():
            self._check_backup(backup)

    def _round(self) -> None:
        name = self._random.choice(DRIVERS)
        is_restore = bool(self._made()) and self._random.random() < 1 / 3
        fault = self._random.choice(FAULTS)
        if is_restore:
            backup = self._chosen(fault)
            allowed = {self._now[name], self._known[backup["name"]]}
            with self._restoring(name, backup) as going:
                is_met = self._disturb(going, fault)
        elif fault == "full":
            with self._filled(left_bytes=self._random.randrange(CHANGE_BYTES)):
                going, allowed = self._begin_backup(name, fault)
                end_s = time.monotonic() + CUT_S
                while self._is_going(going) and time.monotonic() < end_s:
                    time.sleep(_PAUSE_S)
                is_met = self._ask("GET", going).body["state"] != "created"
        else:
            going, allowed = self._begin_backup(name, fault)
            is_met = self._disturb(going, fault)
        self._settle()
        what = f"{fault} in a {'restore' if is_restore else 'backup'}"
        self.rounds[what] += 1
        self.met[what] += is_met
        found = self._digest(name)
        assert found in allowed, f"volume {name} has what it never had, after {fault}"
        self._now[name] = found
        if made := self._made():
            self._check_backup(self._random.choice(made))

    def _chosen(self, fault: str) -> dict[str, Any]:
        """Choose what is restored; to restore what lies beside us needs no network."""
        net = self._target("net")
        made = self._made()
        far = [backup for backup in made if backup["backupTargetId"] == net]
        return self._random.choice(far if far and fault == "network" else made)

    @contextmanager
    def _restoring(self, name: str, backup: dict[str, Any]) -> Iterator[str]:
        """Restore a backup beside the block, which gets what tells how far it is: the answer comes at the end."""
        going = f"/v1/volumes/{self._id(name)}"

        def restore() -> None:
            with suppress(OSError, http.client.HTTPException):  # the daemon was killed
                self._daemon.api("POST", f"{going}/?action=restorefrombackup", {"backupId": backup["id"]})

        thread = threading.Thread(target=restore)
        thread.start()
        yield going
        thread.join()

    def _begin_backup(self, name: str, fault: str) -> tuple[str, set[str]]:
        """Change a volume and begin a backup; return what tells how far it is, and what the volume has."""
        self._write(name, "change", os.urandom(self._random.randrange(CHANGE_BYTES)))
        self._number += 1
        title = f"round-{self._number}"
        self._known[title] = self._now[name]
        target = {"kill": self._random.choice(("net", "full")), "network": "net", "full": "full"}[fault]
        path = f"/v1/volumes/{self._id(name)}/?action=backup"
        begun = self._begin(path, backupTargetId=self._target(target), name=title)
        return f"/v1/backups/{begun['id']}", {self._now[name]}

    def _disturb(self, going: str, fault: str) -> bool:
        """Let it go on for a while, then do something to it; tells whether it had not ended before."""
        time.sleep(self._random.random() * LIFE_S)
        is_going = self._is_going(going)
        if fault == "kill":
            self._daemon.kill()
            self._daemon.start()
        elif fault == "network":
            self._network.cut()
            time.sleep(CUT_S)
            self._network.mend()
        else:
            with self._filled(left_bytes=0):
                time.sleep(CUT_S)
        return is_going

    def _is_going(self, what: str) -> bool:
        return bool(self._ask("GET", what).body["transitioning"] == "yes")

    @contextmanager
    def _filled(self, *, left_bytes: int) -> Iterator[None]:
        """Fill the target in a directory for the block, but for so many bytes."""
        filler = self._full / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        os.truncate(filler, max(0, filler.stat().st_size - left_bytes))
        yield
        filler.unlink()

    def _begin(self, path: str, **fields: str) -> dict[str, Any]:
        answer = self._ask("POST", path, fields)
        assert answer.status < 300, answer.body
        return dict(answer.body)

    def _settle(self) -> None:
        """Wait until nothing is on its way, and see that nothing hangs between."""
        end_s = time.monotonic() + _SETTLE_S
        while True:
            going = [
                row for kind in ("volumes", "backups") for row in self._list(kind) if row["transitioning"] == "yes"
            ]
            if not going:
                break
            assert time.monotonic() < end_s, going
            time.sleep(_PAUSE_S)
        for backup in self._list("backups"):
            assert backup["state"] in {"created", "error"}, backup
            if backup["state"] == "error":
                assert backup["transitioningMessage"], backup
                self._ask("DELETE", f"/v1/backups/{backup['id']}")

    def _check_backup(self, backup: dict[str, Any]) -> None:
        self._created("probe", driverOpts={"from": f"backup:{backup['id']}"})
        found = self._digest("probe")
        assert found == self._known[backup["name"]], f"backup {backup['id']} restores to something else"
        volume_id = self._id("probe")
        self._ask("DELETE", f"/v1/volumes/{volume_id}")
        self._ask("POST", f"/v1/volumes/{volume_id}?action=purge")
        self.checked += 1

    def _made(self) -> list[dict[str, Any]]:
        return [backup for backup in self._list("backups") if backup["state"] == "created"]

    def _created(self, name: str, **fields: object) -> None:
        answer = self._ask("POST", "/v1/volumes", {"name": name, **fields})
        assert answer.status == 201, answer.body
        self._settle()

    def _write(self, name: str, file: str, content: bytes) -> None:
        place = self._mounted(name)
        (place / file).write_bytes(content)
        fd = os.open(place / file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self._unmounted(name)
        self._now[name] = self._digest(name)

    def _digest(self, name: str) -> str:
        """Return the digest of all files of a volume."""
        place = self._mounted(name)
        found = hashlib.sha256()
        for path in sorted(place.rglob("*")):
            found.update(path.name.encode() + path.read_bytes())
        self._unmounted(name)
        return found.hexdigest()

    def _mounted(self, name: str) -> Path:
        answer = self._daemon.plugin("VolumeDriver.Mount", Name=name, ID="torture")
        assert answer.status == 200, answer.body
        return Path(answer.body["Mountpoint"])

    def _unmounted(self, name: str) -> None:
        answer = self._daemon.plugin("VolumeDriver.Unmount", Name=name, ID="torture")
        assert answer.status == 200, answer.body

    def _id(self, name: str) -> str:
        (row,) = self._ask("GET", f"/v1/volumes?name={name}").body["data"]
        return str(row["id"])

    def _target(self, name: str) -> str:
        (row,) = self._ask("GET", f"/v1/backuptargets?name={name}").body["data"]
        return str(row["id"])

    def _list(self, kind: str) -> list[dict[str, Any]]:
        return list(self._ask("GET", f"/v1/{kind}?limit=1000").body["data"])

    def _ask(self, method: str, path: str, body: object = None) -> Answer:
        try:
            return self._daemon.api(method, path, body)
        except (OSError, http.client.HTTPException) as err:
            raise AssertionError(f"the daemon does not answer: {self._daemon.log[-2000:]}") from err


class _Inside(s3.Server):
    """A server in the namespace behind a network."""

    def __init__(self, directory: Path, network: Network) -> None:
        super().__init__(directory, host=network.there)
        self._network = network
        self._ports = {name: 18_000 + number for number, name in enumerate(s3.SERVICES)}

    def _command(self) -> list[str]:
        return self._network.inside(super()._command())


@contextmanager
def disturbed(places: Places, *, seed: int) -> Iterator[Disturbing]:
    """Set everything up: the network, the server behind it, a small file system, and the daemon."""
    base = places.base / NAME
    base.mkdir()
    full = base / "full"
    full.mkdir()
    keys = base / "access", base / "secret"
    for path, text in zip(keys, (s3.ACCESS_KEY, s3.SECRET_KEY), strict=True):
        path.write_text(text)
    mount.mount("tmpfs", full, fs_type="tmpfs", data=f"size={FULL_BYTES}")
    try:
        (full / "repository").mkdir()
        with Network() as network, _Inside(base / "s3", network) as server:
            targets = targets_config(full / "repository", server.endpoint, *keys, server.url(NAME))
            with Running(base / "daemon", config=daemon_config(places, NAME) + targets) as daemon:
                yield Disturbing(daemon, network, full, seed=seed)
    finally:
        mount.unmount(full)
