"""A network of our own: a namespace behind a pair of veth devices, which can be cut."""

import os
import subprocess
from typing import Final, Self

from pyroute2 import IPRoute, NetNS

_NAME_BYTES: Final = 4


class Network:
    """A namespace that is reached at `there`, for as long as the link is up. Needs root."""

    def __init__(self) -> None:
        """Make nothing yet."""
        mark = os.urandom(_NAME_BYTES).hex()
        self._name = f"vd{mark}"
        number = int(mark, 16) % 250 + 1
        self._here = f"10.213.{number}.1"
        self.there = f"10.213.{number}.2"

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        path = f"/proc/{self._holder.pid}/ns/net"
        while os.stat(path).st_ino == os.stat("/proc/self/ns/net").st_ino:
            pass
        self._route = IPRoute()
        self._route.link(
            "add",
            ifname=self._name,
            kind="veth",
            peer={"ifname": "there", "net_ns_pid": self._holder.pid},
        )
        (self._index,) = self._route.link_lookup(ifname=self._name)
        self._route.addr("add", index=self._index, address=self._here, prefixlen=24)
        with NetNS(path) as inside:
            for name in ("lo", "there"):
                (index,) = inside.link_lookup(ifname=name)
                if name == "there":
                    inside.addr("add", index=index, address=self.there, prefixlen=24)
                inside.link("set", index=index, state="up")
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self._route.link("del", index=self._index)
        self._route.close()
        self._holder.kill()
        self._holder.wait()

    def inside(self, argv: list[str]) -> list[str]:
        """Return a command that runs in the namespace."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *argv]

    def cut(self) -> None:
        """Take the link down: nothing arrives any more, and nobody is told."""
        self._route.link("set", index=self._index, state="down")

    def mend(self) -> None:
        """Take it up again."""
        self._route.link("set", index=self._index, state="up")
