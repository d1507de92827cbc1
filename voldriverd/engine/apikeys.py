"""API keys: who may use the API over TCP.

A key is a public value and a secret. The secret is 40 random letters and digits (238 bits) and, behind them, a seal of
6: what HMAC makes of them and the public value under a key of this database alone. Who does not know that key hits a
right seal once in 57,000,000,000 guesses, so a guess is told from a secret at the price of one HMAC, whether the key
exists or not, and nobody can make the daemon compute slow hashes. The seal is no secret's proof: that is the hash.

Of a secret only a slow salted hash is kept, `scrypt$N$r$p$salt$hash` (RFC 7914). N = 16,384, r = 8, p = 1 is what its
paper gives for logins: 16 MiB and some 50 ms a try. A stolen database is of no use at any price, for nobody tries 238
bits; more would only make the first request after a start slower.
"""

import hashlib
import hmac
import secrets
import string
import uuid
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from voldriverd import model
from voldriverd.engine.context import Engine
from voldriverd.errors import Exists, InUse, NotFound
from voldriverd.model import ApiKey, Role, Secret
from voldriverd.store.write import Write

KEYS_MAX: Final = 1_000
"""All are in memory and listed at once; more people or machines than that share no host."""
PUBLIC_LENGTH: Final = 20
RANDOM_LENGTH: Final = 40
SEAL_LENGTH: Final = 6

_PUBLIC_LETTERS: Final = string.ascii_uppercase + string.digits
_LETTERS: Final = string.ascii_letters + string.digits
_N: Final = 16_384
_R: Final = 8
_P: Final = 1
_MEMORY_MAX_BYTES: Final = 64 << 20
"""OpenSSL refuses to take more; N and r need 16 MiB."""
_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32


def create(engine: Engine, *, name: str | None, description: str | None, role: Role) -> tuple[ApiKey, Secret]:
    """Make a key; its secret is returned this once. Raises Exists (the name is taken) and InUse (too many keys)."""
    what = f"cannot create API key{'' if name is None else f' {name}'}"
    keys = engine.store.api_keys()
    if len(keys) >= KEYS_MAX:
        raise InUse(f"{what}: there are {len(keys)} already; remove some")
    _ensure_free(keys, name, what)
    public = "".join(secrets.choice(_PUBLIC_LETTERS) for _ in range(PUBLIC_LENGTH))
    random = "".join(secrets.choice(_LETTERS) for _ in range(RANDOM_LENGTH))
    secret = Secret(random + _seal(engine.store.seal, public, random))
    key = ApiKey(
        id=model.ApiKeyId(engine.store.reserve_id("apikeys")),
        uuid=str(uuid.uuid4()),
        name=name,
        description=description,
        public=public,
        secret_hash=_hash(secret),
        role=role,
        created_at=engine.now(),
    )
    _put(engine, key)
    return key, secret


def set_properties(engine: Engine, key_id: model.ApiKeyId, changes: Mapping[str, str | None]) -> ApiKey:
    """Change the name or the description of a key, or both. Raises NotFound (it is revoked) and Exists."""
    key = _live(engine, key_id, "change")
    others = [each for each in engine.store.api_keys() if each.id != key_id]
    _ensure_free(others, changes.get("name"), f"cannot change API key {key.shown_name}")
    name, description = changes.get("name", key.name), changes.get("description", key.description)
    changed = replace(key, name=name, description=description)
    _put(engine, changed)
    return changed


def revoke(engine: Engine, key_id: model.ApiKeyId) -> ApiKey:
    """End a key: when this returns it opens nothing any more, and never will. Raises NotFound (it is revoked)."""
    ended = replace(_live(engine, key_id, "remove"), secret_hash=None, removed_at=engine.now())
    _put(engine, ended, is_vital=True)
    return ended


def is_sealed(seal: bytes, public: str, secret: Secret) -> bool:
    """Tell a secret that was once made here for this public value from a guess; quick."""
    random, given = secret.text[:RANDOM_LENGTH], secret.text[RANDOM_LENGTH:]
    return hmac.compare_digest(_seal(seal, public, random).encode(), given.encode())


def is_secret(key: ApiKey, secret: Secret) -> bool:
    """Tell whether this is the secret of a key; takes 50 ms and 16 MiB on purpose."""
    if key.secret_hash is None:
        return False
    _, n, r, p, salt, expected = key.secret_hash.split("$")
    found = _scrypt(secret, b64decode(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(found, b64decode(expected))


def _live(engine: Engine, key_id: model.ApiKeyId, verb: str) -> ApiKey:
    for key in engine.store.api_keys():
        if key.id == key_id:
            return key
    raise NotFound(f"cannot {verb} API key 1c{key_id}: there is no such key, or it is revoked")


def _ensure_free(keys: list[ApiKey], name: str | None, what: str) -> None:
    for key in keys:
        if name is not None and key.name == name:
            raise Exists(f"{what}: API key 1c{key.id} has that name")


def _put(engine: Engine, key: ApiKey, *, is_vital: bool = False) -> None:
    def change(write: Write) -> None:
        write.put_api_key(key)

    engine.store.commit(change, is_vital=is_vital)


def _seal(seal: bytes, public: str, random: str) -> str:
    digest = hmac.digest(seal, f"{public}:{random}".encode(), "sha256")
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(SEAL_LENGTH):
        number, place = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[place])
    return "".join(letters)


def _hash(secret: Secret) -> str:
    salt = secrets.token_bytes(_SALT_BYTES)
    found = _scrypt(secret, salt, n=_N, r=_R, p=_P)
    return f"scrypt${_N}${_R}${_P}${b64encode(salt).decode()}${b64encode(found).decode()}"


def _scrypt(secret: Secret, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(secret.text.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MEMORY_MAX_BYTES, dklen=_HASH_BYTES)
