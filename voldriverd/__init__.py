"""Copy-on-write volumes for containers: the daemon, its client and what both share."""

from typing import Final

__version__: Final = "0.1.0"
