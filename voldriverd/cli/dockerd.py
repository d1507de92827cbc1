"""What dockerd tells of its own volumes, asked at its socket by who has the right to: never by our daemon."""

import http.client
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from voldriverd.cli.connection import unix
from voldriverd.errors import InUse, NotFound, Unsupported, Unusable

DEFAULT_SOCKET: Final = Path("/var/run/docker.sock")
TIMEOUT_S: Final = 60.0
LOCAL: Final = "local"
_USING: Final = frozenset({"running", "paused", "restarting", "removing"})
"""States of a container in which something may be written to its volumes."""


@dataclass(frozen=True, slots=True)
class Local:
    """A volume of Docker's driver `local` that is a directory of this host."""

    name: str
    path: str
    labels: dict[str, str]


class Dockerd:
    """One dockerd; a connection for each question."""

    def __init__(self, socket: Path) -> None:
        """Connect to nothing yet."""
        self._socket = socket

    def names(self) -> list[str]:
        """Return the names of all volumes of the driver `local`, sorted. Raises Unusable."""
        found = self._get("/volumes", filters=json.dumps({"driver": [LOCAL]}))
        return sorted(str(volume["Name"]) for volume in found["Volumes"] or () if volume["Driver"] == LOCAL)

    def volume(self, name: str) -> Local:
        """Return a volume.

        Raises NotFound, Unsupported (it is no directory of its own: another driver has it, or a mount), Unusable.
        """
        found = self._get(f"/volumes/{quote(name, safe='')}")
        what = f"cannot import Docker's volume {name}"
        if found["Driver"] != LOCAL:
            raise Unsupported(f"{what}: it is of the driver {found['Driver']}, and only {LOCAL} ones are directories")
        options = found.get("Options") or {}
        if options:
            shown = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
            raise Unsupported(
                f"{what}: it is no directory but what docker mounts for it ({shown}); mount that and import it with "
                "`voldriver import directory`"
            )
        return Local(name, str(found["Mountpoint"]), dict(found.get("Labels") or {}))

    def ensure_unused(self, name: str) -> None:
        """Refuse a volume that a container may be writing to. Raises InUse naming them."""
        containers = self._get("/containers/json", all="1", filters=json.dumps({"volume": [name]}))
        using = [
            f"{_shown(container)} ({container['State']})"
            for container in containers
            if container["State"] in _USING and any(mount.get("Name") == name for mount in container["Mounts"])
        ]
        if using:
            shown = ", ".join(sorted(using))
            raise InUse(f"cannot import Docker's volume {name}: it is used by container {shown}; stop it first")

    def _get(self, path: str, **query: str) -> Any:
        connection = unix(self._socket, TIMEOUT_S)
        try:
            connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
            response = connection.getresponse()
            content = response.read()
        except (http.client.HTTPException, OSError) as err:
            cause = getattr(err, "strerror", None) or err
            raise Unusable(f"cannot ask dockerd at {self._socket}: {cause}; --docker names its socket") from err
        finally:
            connection.close()
        try:
            found = json.loads(content)
        except ValueError as err:
            raise Unusable(f"cannot ask dockerd at {self._socket}: its answer is not JSON; is it dockerd?") from err
        if response.status == http.client.NOT_FOUND:
            raise NotFound(str(found.get("message") or f"docker has no {path}"))
        if response.status != http.client.OK:
            raise Unusable(f"cannot ask dockerd at {self._socket}: {found.get('message') or response.status}")
        return found


def _shown(container: dict[str, Any]) -> str:
    names = container["Names"] or [container["Id"][:12]]
    return str(names[0]).lstrip("/")


def usual_socket() -> Path:
    """Return where dockerd is: as DOCKER_HOST says if that is a socket, else the usual place."""
    scheme, _, path = os.environ.get("DOCKER_HOST", "").partition("://")
    return Path(path) if scheme == "unix" and path else DEFAULT_SOCKET
