"""Chunks and manifests as objects: named, compressed, sealed; and the file that says how.

blake2b, zstandard and AES-GCM all let go of the GIL on buffers of this size (4 MiB: 7, 11 and 0.5 ms a call, while
another thread was never kept from running for longer than the switch interval of 5 ms).
"""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from typing import Any, Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from voldriverd.driver import PART_MAX
from voldriverd.model import Secret

FORMAT: Final = 1
LEVEL: Final = 1
"""Of zstandard: 390 to 410 MB/s a core where 3 has 200 to 250, for objects that are a tenth larger (sources 25 % of
their size instead of 23 %, programs 44 % instead of 39 %)."""
AT_ONCE: Final = 2
"""How many threads compute at once for one volume; see `transfer.NICE`."""
OBJECT_MAX: Final = PART_MAX + (64 << 10)
"""What a chunk of incompressible data may grow to."""
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_SALT_BYTES: Final = 32
_KDF: Final = {"n": 1 << 15, "r": 8, "p": 1}
"""32 MiB and 90 ms for each try at the passphrase; more would show in every backup that takes 0.1 s."""
_KDF_MAX: Final = {"n": 1 << 18, "r": 16, "p": 16}
"""What a foreign file may make us spend: 512 MiB."""


class Broken(Exception):
    """An object that is not what was written; says in which way."""


class WrongPassphrase(Exception):
    """The passphrase does not open the master key."""


@dataclass(frozen=True, slots=True)
class Header:
    """What `voldriver.json` says."""

    uuid: str
    encryption: "Encryption | None"


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the master key is wrapped."""

    salt: bytes
    n: int
    r: int
    p: int
    key: bytes
    """Nonce, sealed master key, tag."""


class Volume:
    """Names, seals and opens the objects of one volume; without keys it only names and compresses."""

    def __init__(self, master: bytes | None, volume_uuid: str) -> None:
        """Derive the volume's keys."""
        self._hash_key = _derive(master, f"hash {volume_uuid}") if master else b""
        self._cipher = AESGCM(_derive(master, f"seal {volume_uuid}")) if master else None
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def name(self, content: bytes) -> str:
        """Return the name of a chunk."""
        with self._turns:
            return self._name(content)

    def pack_chunk(self, name: str, content: bytes) -> bytes:
        """Return the object of a chunk."""
        with self._turns:
            return self._seal(_compress(content, has_checksum=False), name)

    def open_chunk(self, name: str, length: int, sealed: bytes) -> bytes:
        """Return the content of a chunk. Raises Broken."""
        with self._turns:
            content = _decompress(self._unseal(sealed, name), PART_MAX)
            is_right = self._name(content) == name
        if not is_right:
            raise Broken("its content is not what its name says")
        if len(content) != length:
            raise Broken(f"it has {len(content)} bytes, not {length}")
        return content

    def pack_manifest(self, backup_uuid: str, content: bytes) -> bytes:
        """Return the object of a manifest."""
        return self._seal(_compress(content, has_checksum=True), f"manifest {backup_uuid}")

    def open_manifest(self, backup_uuid: str, sealed: bytes, most: int) -> bytes:
        """Return the JSON of a manifest. Raises Broken."""
        return _decompress(self._unseal(sealed, f"manifest {backup_uuid}"), most)

    def _name(self, content: bytes) -> str:
        return hashlib.blake2b(content, digest_size=32, key=self._hash_key).hexdigest()

    def _seal(self, frame: bytes, about: str) -> bytes:
        if self._cipher is None:
            return frame
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, frame, about.encode())

    def _unseal(self, sealed: bytes, about: str) -> bytes:
        if self._cipher is None:
            return sealed
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            raise Broken("it is too short")
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
        except InvalidTag:
            raise Broken("it is not what was sealed for this place") from None


def new(uuid: str, passphrase: Secret | None) -> bytes:
    """Return a new `voldriver.json`."""
    found = {"format": FORMAT, "uuid": uuid, "encryption": None if passphrase is None else _wrap(uuid, passphrase)}
    return json.dumps(found | {"check": _check(found)}, indent=2).encode() + b"\n"


def parse(content: bytes) -> Header:
    """Read a `voldriver.json`. Raises Broken."""
    try:
        found = json.loads(content)
        version, uuid, encryption = found["format"], found["uuid"], found["encryption"]
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise Broken("it is not what voldriver writes there") from err
    if version != FORMAT:
        raise Broken(f"it has format {json.dumps(version)[:20]}, and this version knows {FORMAT}")
    if found.pop("check", None) != _check(found) or not isinstance(uuid, str):
        raise Broken("it is damaged")
    return Header(uuid, None if encryption is None else _encryption(encryption))


def unwrap(header: Header, passphrase: Secret) -> bytes:
    """Return the master key. Raises WrongPassphrase."""
    wrapped = header.encryption
    assert wrapped is not None, "the repository is not encrypted"
    cipher = AESGCM(_stretch(passphrase, wrapped.salt, n=wrapped.n, r=wrapped.r, p=wrapped.p))
    try:
        return cipher.decrypt(wrapped.key[:_NONCE_BYTES], wrapped.key[_NONCE_BYTES:], _about_master(header.uuid))
    except InvalidTag:
        raise WrongPassphrase from None


def _wrap(uuid: str, passphrase: Secret) -> dict[str, object]:
    salt, nonce, master = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES), os.urandom(_KEY_BYTES)
    key = nonce + AESGCM(_stretch(passphrase, salt, **_KDF)).encrypt(nonce, master, _about_master(uuid))
    return {"cipher": "AES-256-GCM", "kdf": "scrypt", "salt": salt.hex(), **_KDF, "key": key.hex()}


def _encryption(found: Any) -> Encryption:
    try:
        words = (found["cipher"], found["kdf"])
        made = Encryption(bytes.fromhex(found["salt"]), found["n"], found["r"], found["p"], bytes.fromhex(found["key"]))
        is_right = (
            words == ("AES-256-GCM", "scrypt")
            and all(type(found[name]) is int and 1 <= found[name] <= most for name, most in _KDF_MAX.items())
            and made.n > 1
            and made.n.bit_count() == 1
            and len(made.key) == _NONCE_BYTES + _KEY_BYTES + _TAG_BYTES
        )
    except (TypeError, KeyError, ValueError) as err:
        raise Broken("its encryption is not what voldriver writes there") from err
    if not is_right:
        raise Broken("its encryption is none that this version knows")
    return made


def _about_master(uuid: str) -> bytes:
    return f"voldriver master key {uuid}".encode()


def _stretch(passphrase: Secret, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=n, r=r, p=p).derive(
        passphrase.text.encode("utf-8", "surrogateescape")
    )


def _derive(master: bytes, info: str) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=info.encode()).derive(master)


def _check(found: dict[str, Any]) -> str:
    """Return the BLAKE2b hash of the other fields, sorted and without spaces."""
    text = json.dumps(found, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).hexdigest()


def _compress(content: bytes, *, has_checksum: bool) -> bytes:
    """Make one zstd frame; a chunk needs no checksum, its name is one."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=has_checksum).compress(content)


def _decompress(frame: bytes, most: int) -> bytes:
    """Return what is in a zstd frame that says how much that is. Raises Broken; it never takes more than `most`."""
    try:
        length = zstandard.frame_content_size(frame)
        if not 0 <= length <= most:
            raise Broken(f"it would have {length} bytes, and at most {most} may be there")
        content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Broken("it cannot be decompressed") from err
    if len(content) != length:
        raise Broken(f"it has {len(content)} bytes, not {length}")
    return content
