"""The certificate of the TCP listener, checked at start so that an operator sees what is wrong with it."""

import ssl
from pathlib import Path
from typing import Final

from voldriverd.errors import Invalid

_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----"
_KEY: Final = "PRIVATE KEY-----"
_MISMATCH: Final = "KEY_VALUES_MISMATCH"
"""OpenSSL's reason (x509err.h)."""


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what serves HTTPS with TLS 1.2 or later; a chain follows the certificate in its file. Raises Invalid.

    Both are read now and never again: a new certificate needs a restart, which no container notices.
    """
    if _CERTIFICATE not in _read(certificate, "api.tls_cert"):
        _refuse("api.tls_cert", certificate, "it holds no certificate in PEM form")
    secret = _read(key, "api.tls_key")
    if _KEY not in secret:
        _refuse("api.tls_key", key, "it holds no private key in PEM form")
    if "ENCRYPTED" in secret:
        _refuse("api.tls_key", key, "it is encrypted, and nobody is there to be asked for its passphrase")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(certificate, key)
    except ssl.SSLError as err:
        if err.reason == _MISMATCH:
            _refuse("api.tls_key", key, f"it is not the key of {certificate}")
        reason = (err.reason or "it cannot be read").lower().replace("_", " ")
        _refuse("api.tls_cert", certificate, f"OpenSSL says of it or of its key: {reason}")
    return made


def _read(path: Path, field: str) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as err:
        raise Invalid(f"cannot use {field} {str(path)!r}: {err.strerror}", field=field) from err


def _refuse(field: str, path: Path, cause: str) -> None:
    raise Invalid(f"cannot use {field} {str(path)!r}: {cause}", field=field)
