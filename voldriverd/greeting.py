"""What to type next, for who has started the daemon at a terminal."""

import os
import shutil
import sys
from pathlib import Path

from voldriverd import config as configuration


def show(config: configuration.Config) -> None:
    """Write it to standard error, unless that is a service manager's log (systemd.exec(5))."""
    if "INVOCATION_ID" not in os.environ:
        sys.stderr.write(_hints(config))


def _hints(config: configuration.Config) -> str:
    """Return what to type next, so that it works from where the daemon was started."""
    client = "voldriver" if shutil.which("voldriver") else str(Path(sys.argv[0]).with_name("voldriver"))
    if config.api_socket != configuration.Config().api_socket:
        client += f" --socket {config.api_socket}"
    lines = [f"{client} volume create first", f"{client} snapshot create first before", f"{client} volume ls"]
    if config.docker_socket.parent == configuration.PLUGIN_SOCKET.parent:
        driver = config.docker_socket.stem
        lines[0] = f"docker volume create -d {driver} first"
        lines.insert(1, "docker run --rm -v first:/data busybox touch /data/hello")
    typed = "".join(f"    {line}\n" for line in lines)
    head, foot = "voldriverd is serving. In another shell:", "Ctrl-C ends it; volumes, and what is mounted, stay."
    return f"\n{head}\n\n{typed}\n{foot}\n\n"
