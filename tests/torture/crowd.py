"""Clients that ask one daemon for verbs on the same few volumes at once.

Each answer is a success or a refusal that says why; in the end all can be removed, and nothing is left of it.
"""

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from tests.running import Answer, Running
from tests.torture.bench import Places
from tests.world import LIMIT_S, until
from voldriverd.kernel import mount

NAME: Final = "crowd"
"""Of the daemon, for its pools."""
CLIENTS: Final = 8
DRIVERS: Final = ("btrfs", "loop", "directory")
VERBS: Final = (
    *("create", "clone", "remove", "restore", "purge", "mount", "unmount"),
    *("snapshot", "revert", "remove_snapshot", "resize", "get", "list"),
)
BACKUP_VERBS: Final = ("back_up", "bring_back", "create_from_backup", "remove_backup")
"""For a daemon with a target."""
REFUSALS: Final = ("cannot ", "no such volume: ", "there is no ", "no volume is named ")
_TRACEBACK_MAX: Final = 6_000
"""Characters."""


class Crowd:
    """The clients of one daemon and what they were told."""

    def __init__(
        self, daemon: Running, *, seed: int, name: str = NAME, clients: int = CLIENTS, verbs: tuple[str, ...] = VERBS
    ) -> None:
        self._daemon = daemon
        self._seed = seed
        self._name = name
        self._clients = clients
        self._verbs = verbs
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def run(self, places: Places, *, time_s: float) -> None:
        """Let all ask until the time is over, then take everything away."""
        end_s = time.monotonic() + time_s
        with ThreadPoolExecutor(self._clients) as threads:
            for client in [threads.submit(self._live, number, end_s) for number in range(self._clients)]:
                client.result()
        self._take_away()
        trees = [place / self._name / driver / "trees" for place in set(places.pools.values()) for driver in DRIVERS]
        assert any(path.exists() for path in trees)
        within_s = LIMIT_S + time_s / 2  # a volume that lived all the time has thousands of snapshots
        until(lambda: not any(os.listdir(path) for path in trees if path.exists()), "their end", within_s=within_s)
        assert not [entry for entry in mount.table() if entry.mount_point.startswith(f"{self._daemon.root}/mounts/")]
        assert "Traceback" not in self._daemon.log, _traceback(self._daemon.log)
        assert "internal error" not in self._daemon.log

    def _live(self, number: int, end_s: float) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while time.monotonic() < end_s:
            driver, verb = chance.choice(DRIVERS), chance.choice(self._verbs)
            name, other = (f"{driver}-{chance.randrange(3)}" for _ in range(2))
            try:
                answer = self._ask(chance, verb, name, other, f"client{number}")
            except TimeoutError as err:
                raise AssertionError(f"{verb} of {name} was not answered:\n{self._daemon.stacks()}") from err
            if answer is None:
                continue
            if answer.status < 300:
                self.done[verb] += 1
                continue
            text = answer.body.get("Err") or answer.body["message"]
            assert text.startswith(REFUSALS), (verb, answer.status, text, _traceback(self._daemon.log))
            self.refused[verb] += 1

    def _ask(self, chance: random.Random, verb: str, name: str, other: str, holder: str) -> Answer | None:
        """Ask for a verb; None if there is nothing that it could be asked for."""
        plugin = self._daemon.plugin
        answer: Answer | None
        match verb:
            case "create_from_backup" | "remove_backup":
                answer = self._act_on_backup(chance, verb, name)
            case "create":
                answer = plugin("VolumeDriver.Create", Name=name, Opts={"driver": name.partition("-")[0]})
            case "clone":
                answer = plugin("VolumeDriver.Create", Name=name, Opts={"from": other})
            case "mount" | "unmount":
                answer = plugin(f"VolumeDriver.{verb.capitalize()}", Name=name, ID=holder)
            case "remove" | "get":
                answer = plugin(f"VolumeDriver.{verb.capitalize()}", Name=name)
            case "list":
                answer = plugin("VolumeDriver.List")
            case _:
                answer = self._ask_api(chance, verb, name)
        return answer

    def _ask_api(self, chance: random.Random, verb: str, name: str) -> Answer | None:
        is_of_trash = verb in {"restore", "purge"}
        rows = [row for row in self._rows() if row["name"] == name and (row["state"] == "removed") == is_of_trash]
        return self._act(chance, verb, chance.choice(rows)["id"]) if rows else None

    def _act(self, chance: random.Random, verb: str, volume_id: str) -> Answer | None:
        fields = {"size": f"{chance.choice((40, 48, 64))}M"} if verb == "resize" else {}
        if verb in {"revert", "remove_snapshot"}:
            snapshots = self._daemon.api("GET", f"/v1/snapshots?volumeId={volume_id}").body["data"]
            if not snapshots:
                return None
            snapshot_id = chance.choice(snapshots)["id"]
            if verb == "remove_snapshot":
                return self._daemon.api("DELETE", f"/v1/snapshots/{snapshot_id}")
            verb, fields = "reverttosnapshot", {"snapshotId": snapshot_id}
        if verb == "bring_back":
            backups = self._backups()
            if not backups:
                return None
            verb, fields = "restorefrombackup", {"backupId": chance.choice(backups)["id"]}
        verb = {"back_up": "backup"}.get(verb, verb)
        return self._daemon.api("POST", f"/v1/volumes/{volume_id}/?action={verb}", fields)

    def _act_on_backup(self, chance: random.Random, verb: str, name: str) -> Answer | None:
        backups = self._backups()
        if not backups:
            return None
        backup_id = chance.choice(backups)["id"]
        if verb == "remove_backup":
            return self._daemon.api("DELETE", f"/v1/backups/{backup_id}")
        options = {"driver": name.partition("-")[0], "from": f"backup:{backup_id}"}
        return self._daemon.plugin("VolumeDriver.Create", Name=name, Opts=options)

    def _backups(self) -> list[Any]:
        return list(self._daemon.api("GET", "/v1/backups?state=created&limit=1000").body["data"])

    def _rows(self) -> list[Any]:
        removed = self._daemon.api("GET", "/v1/volumes?removed_notnull=1").body["data"]
        live = self._daemon.api("GET", "/v1/volumes").body["data"]
        return list({row["id"]: row for row in (*removed, *live)}.values())

    def _take_away(self) -> None:
        """Unmount as often as was mounted, remove and purge."""
        until(lambda: all(row["transitioning"] != "yes" for row in self._rows()), "every verb to end")
        until(lambda: not self._going_backups(), "every backup to end")
        for row in self._rows():
            if row["state"] in {"removed", "purged"}:
                continue
            for held in self._daemon.api("GET", f"/v1/mounts?volumeId={row['id']}").body["data"]:
                for _ in range(held["count"]):
                    self._daemon.plugin("VolumeDriver.Unmount", Name=row["name"], ID=held["holder"])
            assert self._daemon.plugin("VolumeDriver.Remove", Name=row["name"]).body == {"Err": ""}
        for row in self._rows():
            if row["state"] == "removed":
                answer = self._daemon.api("POST", f"/v1/volumes/{row['id']}/?action=purge", {})
                assert answer.status == 200, answer.body

        while rows := [row for row in self._all_backups() if row["state"] != "removing"]:
            for backup in rows:
                answer = self._daemon.api("DELETE", f"/v1/backups/{backup['id']}")
                assert answer.status == 200, answer.body
        until(lambda: not self._daemon.api("GET", "/v1/backups").body["data"], "the backups to go")

    def _going_backups(self) -> list[Any]:
        return [row for row in self._all_backups() if row["transitioning"] == "yes"]

    def _all_backups(self) -> Any:
        return self._daemon.api("GET", "/v1/backups?limit=3000").body["data"]


def _traceback(log: str) -> str:
    """Return the last one of a log; the log goes with the daemon."""
    return log[log.rfind("Traceback") :][:_TRACEBACK_MAX]
