"""The first process of the managed plugin: arranges the directories, then becomes the daemon. The argument is the root.

dockerd has made a mount at ROOT/mounts, of which it sees a copy, and bound the host's root directory to /host. The
daemon finds both in ROOT: all that it keeps is the host's, and what it mounts in ROOT/mounts, dockerd sees.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/voldriver")

from voldriverd.cli import daemon
from voldriverd.kernel import mount

MS_MOVE, MS_REC, MS_PRIVATE = 8192, 16384, 1 << 18  # linux/mount.h
root, aside = Path(sys.argv[1]), Path("/aside")
points = root / "mounts"
mount.mount("none", Path("/"), flags=MS_PRIVATE)  # nothing can be moved that lies on a shared mount
mount.mount(str(points), aside, flags=MS_MOVE)
mount.mount("/host", root, flags=mount.MS_BIND | MS_REC)
points.mkdir(mode=0o700, exist_ok=True)
mount.mount(str(aside), points, flags=MS_MOVE)
(root / "run").mkdir(mode=0o755, exist_ok=True)  # of the host, where it is seen; /run there is empty after a boot
mount.bind(root / "run", Path("/run/voldriver"), read_only=False)
level = os.environ.get("LOG_LEVEL", "info")
sys.argv[1:] = ["--root", str(root), "--log-level", level]
daemon.main(prog_name="voldriverd")
