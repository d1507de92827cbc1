"""Finds the key of a public value and a secret, at the price of two HMACs once its secret was proven."""

import asyncio
import hmac
import secrets
from typing import Final

from voldriverd.engine import apikeys
from voldriverd.model import ApiKey, Secret
from voldriverd.service import Service

CHECKS_MAX: Final = 2
"""How many slow hashes are computed at once: 16 MiB and a core each."""
_MEMORY_KEY_BYTES: Final = 32


class Keyring:
    """Remembers of each live key a keyed digest of its proven secret, under a key that dies with the process."""

    def __init__(self, service: Service) -> None:
        """Look keys up in the store of a service."""
        self._service = service
        self._store = service.store
        self._memory_key = secrets.token_bytes(_MEMORY_KEY_BYTES)
        self._proven: dict[str, bytes] = {}
        self._checks = asyncio.Semaphore(CHECKS_MAX)

    async def find(self, public: str, secret: Secret) -> ApiKey | None:
        """Return the live key that this is the secret of; None if there is no such key or its secret is another."""
        if not apikeys.is_sealed(self._store.seal, public, secret):
            return None
        if self._is_proven(public, secret):
            return self._store.api_key_of(public)
        async with self._checks:
            if not self._is_proven(public, secret):  # by another request, while this one waited
                await self._prove(public, secret)
        return self._store.api_key_of(public) if self._is_proven(public, secret) else None

    def _is_proven(self, public: str, secret: Secret) -> bool:
        if self._store.api_key_of(public) is None:
            self._proven.pop(public, None)
        return hmac.compare_digest(self._proven.get(public, b""), self._digest(public, secret))

    async def _prove(self, public: str, secret: Secret) -> None:
        key = self._store.api_key_of(public)
        if key is not None and await self._service.runner.in_thread(apikeys.is_secret, key, secret):
            live = {each.public for each in self._store.api_keys()}
            self._proven = {each: digest for each, digest in self._proven.items() if each in live}
            self._proven[public] = self._digest(public, secret)

    def _digest(self, public: str, secret: Secret) -> bytes:
        return hmac.digest(self._memory_key, f"{public}:{secret.text}".encode(), "sha256")
