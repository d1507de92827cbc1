"""What every command is given: the connection, how results are printed, and names turned into resources."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import click

from voldriverd.cli import show
from voldriverd.cli.connection import Connection, Resource, resource_path
from voldriverd.errors import Error, InUse, NotFound, Unusable

_POLL_MIN_S: Final = 0.05
_POLL_MAX_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the program."""

    connection: Connection
    is_json: bool = False

    def each(self, texts: Iterable[str], work: Callable[[str], Resource], tell: Callable[[Resource], None]) -> None:
        """Do the same for several names; what fails is said, the others are done, and the exit status is 1.

        With --json one name gives its resource, several give a list.
        """
        given, done, has_failed = list(texts), [], False
        for text in given:
            try:
                done.append(work(text))
            except Error as err:
                show.note(f"voldriver: {err}")
                has_failed = True
                continue
            if not self.is_json:
                tell(done[-1])
        if self.is_json and (done or len(given) > 1):
            show.as_json(done if len(given) > 1 else done[0])
        if has_failed:
            raise click.exceptions.Exit(1)

    def one(self, resource: Resource, tell: Callable[[Resource], None]) -> None:
        """Print one resource."""
        if self.is_json:
            show.as_json(resource)
        else:
            tell(resource)

    def finish(
        self, resource: Resource, *, no_wait: bool, follow: Callable[[Resource], None] | None = None
    ) -> Resource:
        """Wait until the work on a resource is final. Raises Unusable if it came to nothing.

        Fields that only the first answer has are kept. `follow` is called with each look at it.
        """
        pause_s = _POLL_MIN_S
        first = resource
        while resource["transitioning"] == "yes" and not no_wait:
            if follow is not None:
                follow(resource)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_MAX_S)
            resource = self.connection.get(resource_path(f"{resource['type']}s", resource["id"]))
        if resource["transitioning"] == "error":  # it may have failed before the first answer was written
            raise Unusable(resource["transitioningMessage"] or f"{resource['type']} {resource['id']} has failed")
        kept = {name: value for name, value in first.items() if value is not None and resource.get(name) is None}
        return Resource(resource | {name: kept[name] for name in kept.keys() & {"displacedSnapshotId"}})

    def act(self, resource: Resource, action: str, **fields: object) -> Resource:
        """Run an action of a resource."""
        path = resource_path(f"{resource['type']}s", resource["id"])
        return self.connection.post(f"{path}/?action={action}", fields)

    def volume(self, text: str) -> Resource:
        """Return the live volume of a name or id; names win. Raises NotFound."""
        found = self.connection.list("volumes", name=text) if text else []
        if found:
            return found[0]
        by_id = self._by_id("volumes", "1v", text)
        if by_id is None:
            is_trashed = bool(text and self.connection.list("volumes", name=text, removed_notnull="1"))
            hint = f"; one is in the trash: voldriver volume restore {text}" if is_trashed else ""
            raise NotFound(f"there is no volume {text!r}{hint}")
        return by_id

    def trashed(self, text: str, *, is_newest: bool) -> Resource:
        """Return the volume in the trash of a name or id; of several of a name the newest, if that will do.

        Raises NotFound, and InUse (several) naming their ids.
        """
        found = self.connection.list("volumes", name=text, removed_notnull="1", sort="removed", order="desc")
        if len(found) > 1 and not is_newest:
            ids = ", ".join(f"{each['id']} (removed {show.time(each['removed'])})" for each in found)
            raise InUse(f"there are {len(found)} volumes named {text} in the trash; give one of the ids {ids}")
        by_id = found[0] if found else self._by_id("volumes", "1v", text)
        if by_id is None or by_id["state"] != "removed":
            raise NotFound(f"there is no volume {text!r} in the trash")
        return by_id

    def snapshot(self, volume: Resource, text: str) -> Resource:
        """Return the snapshot of a volume by its name or id; names win. Raises NotFound."""
        found = self.connection.list("snapshots", volumeId=volume["id"], name=text) if text else []
        if found:
            return found[0]
        by_id = self._by_id("snapshots", "1s", text)
        if by_id is None or by_id["volumeId"] != volume["id"] or by_id["state"] == "removed":
            raise NotFound(f"volume {volume['name']} has no snapshot {text!r}")
        return by_id

    def pool(self, text: str) -> Resource:
        """Return the pool of a name or id; names win. Raises NotFound."""
        pools = self.connection.list("storagepools")
        for field in ("name", "id"):
            for pool in pools:
                if pool[field] == text:
                    return pool
        raise NotFound(f"there is no pool {text!r}; there is {', '.join(pool['name'] for pool in pools) or 'none'}")

    def backup(self, text: str) -> Resource:
        """Return the backup of an id. Raises NotFound."""
        found = self._by_id("backups", "1b", text)
        if found is None:
            raise NotFound(f"there is no backup {text!r}; voldriver backup ls shows the ids")
        return found

    def target(self, text: str | None) -> Resource:
        """Return the target of a name or id (names win), or the default one. Raises NotFound."""
        targets = self.connection.list("backuptargets")
        known = ", ".join(target["name"] for target in targets) or "none"
        if text is None:
            default = next((target for target in targets if target["isDefault"]), None)
            if default is None:
                raise NotFound(f"no target is the default one; give one of those that there are: {known}")
            return default
        for field in ("name", "id"):
            for target in targets:
                if target[field] == text:
                    return target
        raise NotFound(f"there is no target {text!r}; there is {known}")

    def _by_id(self, collection: str, prefix: str, text: str) -> Resource | None:
        if not (text.startswith(prefix) and text[len(prefix) :].isdecimal()):
            return None
        try:
            return self.connection.get(resource_path(collection, text))
        except NotFound:
            return None


def is_backup_id(text: str) -> bool:
    """Tell whether a text is written as the id of a backup."""
    return text.startswith("1b") and text[2:].isdecimal()


def snapshot_name(snapshot: Resource) -> str:
    """Return what a snapshot is addressed by: its name, or its id."""
    return str(snapshot["name"] or snapshot["id"])
