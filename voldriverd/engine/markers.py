"""The file in a pool's root that tells what pool it is: uuid, driver, version and root.

`root` is that of the daemon which had the pool last. As long as that one runs no other takes the pool: each would sweep
what the other is making, and make trees of its own under the same keys. A lock that is held in the pool itself would
keep its file system from being unmounted.
"""

import json
import logging
from pathlib import Path
from typing import Final

from voldriverd.errors import Unusable
from voldriverd.kernel import fs

_log = logging.getLogger(__name__)

MARKER: Final = ".voldriver-pool"
LOCK: Final = "lock"
"""What a daemon holds in its root as long as it runs (`fs.locked`)."""


def read(pool: Path) -> dict[str, str] | None:
    """Return what the marker of a pool says, None if there is none. Raises Unusable (it is damaged) and OSError."""
    try:
        text = (pool / MARKER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
        told = {name: str(found[name]) for name in ("uuid", "driver", "version")}
        return told | ({"root": str(found["root"])} if "root" in found else {})
    except (ValueError, KeyError, TypeError) as err:
        raise Unusable(f"{pool / MARKER} is damaged: it is not the marker of a pool") from err


def write(pool: Path, found: dict[str, str]) -> None:
    """Write the marker; when this returns it survives power loss. Raises OSError."""
    fs.write_durably(pool / MARKER, json.dumps(found).encode())


def ensure_left(pool: Path, found: dict[str, str], root: Path) -> None:
    """Refuse a pool that the daemon of another root has. Raises Unusable and OSError."""
    other = found.get("root")
    if other is not None and other != str(root) and fs.is_locked(Path(other) / LOCK):
        raise Unusable(f"{pool} is used by the voldriverd that runs on root {other}")


def sign(pool: Path, root: Path) -> None:
    """Have the marker name a root; where it cannot be written its volumes are served all the same. Raises Unusable."""
    found = read(pool)
    if found is None or found.get("root") == str(root):
        return
    try:
        write(pool, found | {"root": str(root)})
    except OSError as err:  # full or read-only
        _log.warning("verb=open pool=%s result=its marker does not name our root: %s", pool, err)
