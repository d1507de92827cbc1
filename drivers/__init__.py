"""The drivers, under the names that users type. Each keeps the contract of voldriverd.driver."""

from collections.abc import Callable
from typing import Final

from drivers.btrfs import Btrfs
from drivers.directory import Directory
from drivers.loop import Loop
from voldriverd.driver import Driver

DRIVERS: Final[dict[str, Callable[..., Driver]]] = {"btrfs": Btrfs, "directory": Directory, "loop": Loop}
