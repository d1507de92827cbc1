"""Master keys that were unwrapped a little while ago, in memory only, and their passphrases not at all.

To stretch a passphrase took 110 of the 160 ms of computing of an increment (50 files out of 20,000, btrfs).
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from voldriverd.model import Secret

if TYPE_CHECKING:
    from voldriverd.backup import sealing

KEEP_S: Final = 600.0
"""How long a key is kept from when it was unwrapped on, however often it is wanted meanwhile."""
KEYS_MAX: Final = 64
"""More than anybody has targets."""


class Keys:
    """Unwraps master keys, and knows each for a while (until the next use after that); safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know none yet."""
        self._clock = clock
        self._lock = threading.Lock()
        self._salt = os.urandom(32)
        self._known: dict[bytes, tuple[float, bytes]] = {}
        """When it was unwrapped and the key, the oldest first."""

    def unwrap(self, header: "sealing.Header", passphrase: Secret) -> bytes:
        """Return what `sealing.unwrap` returns for exactly these two. Raises WrongPassphrase."""
        from voldriverd.backup import sealing  # noqa: PLC0415 - what it needs would delay every start

        name = self._name(header, passphrase)
        with self._lock:
            self._forget()
            if name in self._known:
                return self._known[name][1]
        master = sealing.unwrap(header, passphrase)
        with self._lock:
            self._known.pop(name, None)
            self._known[name] = self._clock(), master
            self._forget()
        return master

    def _name(self, header: "sealing.Header", passphrase: Secret) -> bytes:
        """Return a hash of all that the key comes of."""
        text = repr((header, passphrase.text)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=32, key=self._salt).digest()

    def _forget(self) -> None:
        """Let go of what is too old, and of the oldest of too many."""
        now_s = self._clock()
        for name, (unwrapped_s, _) in list(self._known.items()):
            if now_s - unwrapped_s < KEEP_S and len(self._known) <= KEYS_MAX:
                return
            del self._known[name]
