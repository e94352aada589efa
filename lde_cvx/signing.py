"""Detached Ed25519 signatures (RFC 8032) of certificates and manifests, by the package `cryptography`, which is an extra: pip install "lde-cvx[sign]".

`FILE.sig` beside a file holds the 64 bytes of the signature of the file's bytes, so other tools can check it as well:

    openssl pkeyutl -verify -pubin -inkey PUB.pem -rawin -in manifest.json -sigfile manifest.json.sig

A signature says who vouches for the bytes; whether a certificate holds is the checker's business.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from formulations.errors import DependencyError, InputError
from formulations.whole_file import whole_file

__all__ = ["is_signed_by", "new_key", "sign", "signature_path"]

MAX_KEY = 1 << 16


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def new_key(private: str | Path) -> Path:
    """Writes a fresh private key (PEM, PKCS 8, not encrypted, readable by its owner alone) and `<private>.pub`, the public one, whose path is returned.

    Raises InputError when either file exists: a key is never overwritten.
    """
    _, ed25519, serialization = _library()
    secret, public = Path(private), Path(f"{private}.pub")
    for path in (secret, public):
        if path.exists():
            raise InputError(f"{path}: exists already; name another file, keys are not overwritten.")
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(pem)
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(path: str | Path, private: str | Path) -> Path:
    """Writes the signature of a file beside it, whole or not at all. Raises InputError on a file or key that cannot be read."""
    _, ed25519, serialization = _library()
    try:
        key = serialization.load_pem_private_key(_read(private, "private key"), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{private}: is no Ed25519 private key in PEM without a password; `lde sign --new-key FILE` makes one.")
    target = signature_path(Path(path))
    signature = key.sign(_read(path, "file", None))
    with whole_file(target) as draft:
        draft.write_bytes(signature)
    return target


def is_signed_by(path: str | Path, public: str | Path) -> bool:
    """Does `<path>.sig` hold the signature of the file's bytes by this key? Raises InputError on a missing signature and on a key that is none."""
    exceptions, ed25519, serialization = _library()
    try:
        key = serialization.load_pem_public_key(_read(public, "public key"))
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{public}: is no Ed25519 public key in PEM.")
    try:
        key.verify(_read(signature_path(Path(path)), "signature"), _read(path, "file", None))
    except exceptions.InvalidSignature:
        return False
    return True


def _read(path: str | Path, what: str, most: int | None = MAX_KEY) -> bytes:
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such {what}.")
    with open(path, "rb") as stream:
        return stream.read() if most is None else stream.read(most)


def _library() -> tuple[Any, Any, Any]:
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise DependencyError('signatures need the package cryptography: pip install "lde-cvx[sign]".') from None
    return exceptions, ed25519, serialization
