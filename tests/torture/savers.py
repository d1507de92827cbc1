"""A client that backs up volumes of one driver, restores them and forgets backups, and knows what it was told."""

import copy
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.running import Running
from tests.torture.kills import Verb
from voldriverd.kernel import fs

TARGET: Final = "place"
BACKUPS_MAX: Final = 4
CONTENT_BYTES: Final = 64 << 10
_SETTLE_S: Final = 60.0
_PAUSE_S: Final = 0.005


@dataclass
class State:
    """The content of the volume, and of each backup by its name."""

    content: str = ""
    backups: dict[str, str] = field(default_factory=dict)

    def after(self, verb: Verb) -> "State":
        """Return what is known once a verb has ended."""
        state = copy.deepcopy(self)
        what, argument = verb
        if what == "write":
            state.content = argument
        elif what == "save":
            state.backups[argument] = state.content
        elif what == "restore":
            state.content = state.backups[argument]
        else:
            del state.backups[argument]
        return state


class Saver:
    """One volume and its backups; what is said is durable."""

    def __init__(self, daemon: Running, driver: str, options: Mapping[str, str], *, seed: int) -> None:
        self._daemon = daemon
        self._options = {"driver": driver, **options}
        self._random = random.Random(f"{seed} saver {driver}")
        self._name = f"saved-{driver}"
        self._count = 0
        self.state = State()
        self.cut: Verb | None = None

    def prepare(self) -> None:
        """Make the volume."""
        self._plugin("Create", Name=self._name, Opts=self._options)
        self.perform(("write", "first;"))

    def choose(self) -> Verb:
        """Return a verb that can be run next."""
        backups = sorted(self.state.backups)
        if len(backups) >= BACKUPS_MAX:
            return "forget", self._random.choice(backups)
        self._count += 1
        proposals: list[Verb] = [("write", f"content {self._count};"), *[("save", f"backup-{self._count}")] * 3]
        if backups:
            proposals += [("restore", self._random.choice(backups)), ("forget", self._random.choice(backups))]
        return self._random.choice(proposals)

    def perform(self, verb: Verb) -> None:
        """Run a verb to its end, and know from then on what it has changed."""
        getattr(self, f"_{verb[0]}")(verb[1])
        self.state = self.state.after(verb)

    def check(self) -> None:
        """See that all that was acknowledged is there, and that the verb that was cut has happened or has not."""
        self._settle()
        allowed = [self.state] if self.cut is None else [self.state, self.state.after(self.cut)]
        listed = {row["name"]: row for row in self._rows("backups") if row["volumeName"] == self._name}
        failed = {name for name, row in listed.items() if row["state"] == "error"}
        made = listed.keys() - failed
        assert failed <= ({self.cut[1]} if self.cut is not None else set()), (self.cut, listed)
        assert {listed[name]["state"] for name in made} <= {"created"}, listed
        found = self._read(self._name)
        fitting = [state for state in allowed if state.backups.keys() == made and state.content == found]
        assert fitting, f"after {self.cut}: {found} and backups {sorted(made)}, allowed is one of {allowed}"
        self.state = fitting[0]
        if made:
            name = self._random.choice(sorted(made))
            self._plugin("Create", Name="restored", Opts={"from": f"backup:{listed[name]['id']}"})
            self._settle()
            assert self._read("restored") == self.state.backups[name], f"backup {name} restores to something else"
            self._plugin("Remove", Name="restored")

    def _write(self, content: str) -> None:
        place = Path(self._plugin("Mount", Name=self._name, ID="saver")["Mountpoint"])
        filler = content.encode() * (CONTENT_BYTES // len(content))
        fs.write_durably(place / "filler", filler)
        fs.write_durably(place / "file", content.encode())
        self._plugin("Unmount", Name=self._name, ID="saver")

    def _save(self, name: str) -> None:
        (target,) = self._rows(f"backuptargets?name={TARGET}")
        self._act("backup", backupTargetId=target["id"], name=name)
        self._settle()
        assert self._backup(name)["state"] == "created", self._backup(name)

    def _restore(self, name: str) -> None:
        self._act("restorefrombackup", backupId=self._backup(name)["id"])
        self._settle()

    def _forget(self, name: str) -> None:
        answer = self._daemon.api("DELETE", f"/v1/backups/{self._backup(name)['id']}")
        assert answer.status < 300, answer.body
        self._settle()

    def _read(self, name: str) -> str:
        place = Path(self._plugin("Mount", Name=name, ID="reader")["Mountpoint"])
        content = (place / "file").read_text()
        filler = (place / "filler").read_bytes().decode()
        self._plugin("Unmount", Name=name, ID="reader")
        assert content in self._after_write(filler, content), f"{name} holds parts of two writes"
        return content

    def _after_write(self, filler: str, content: str) -> set[str]:
        """Return the contents that go with a filler: its own, and the one before if the second file was not written."""
        is_cut_here = self.cut is not None and self.cut[0] == "write" and filler.startswith(self.cut[1])
        return {content} if is_cut_here or filler.startswith(content) else set()

    def _backup(self, name: str) -> Any:
        (row,) = (row for row in self._rows("backups") if row["name"] == name and row["volumeName"] == self._name)
        return row

    def _act(self, action: str, /, **fields: str) -> None:
        (volume,) = self._rows(f"volumes?name={self._name}")
        answer = self._daemon.api("POST", f"/v1/volumes/{volume['id']}/?action={action}", fields)
        assert answer.status < 300, answer.body

    def _settle(self) -> None:
        """Wait until nothing of ours is on its way."""
        end_s = time.monotonic() + _SETTLE_S
        while going := [*self._going("volumes", "name"), *self._going("backups", "volumeName")]:
            assert time.monotonic() < end_s, going
            time.sleep(_PAUSE_S)

    def _going(self, kind: str, field_name: str) -> list[Any]:
        ours = {self._name, "restored"}
        return [row for row in self._rows(kind) if row["transitioning"] == "yes" and row[field_name] in ours]

    def _rows(self, path: str) -> list[Any]:
        answer = self._daemon.api("GET", f"/v1/{path}{'&' if '?' in path else '?'}limit=1000")
        assert answer.status == 200, answer.body
        return list(answer.body["data"])

    def _plugin(self, method: str, **fields: object) -> Any:
        answer = self._daemon.plugin(f"VolumeDriver.{method}", **fields)
        assert answer.status == 200, (method, fields, answer.body)
        return answer.body
