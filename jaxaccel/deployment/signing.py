"""Bundles signed and verified, offline, in the format of OpenSSF model signing (https://github.com/ossf/model-signing-spec).

A signature lists the SHA-256 of every file. It lies in the directory, as ``model.sig``, or beside the zip.
"""

import contextlib
import importlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxaccel.deployment.bundle_files import open_files
from jaxaccel.deployment.manifest import MANIFEST, read_manifest
from jaxaccel.errors import UserError, option

SIGNATURE = "model.sig"
PASSWORD = "JAXACCEL_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""


def find_signature(place: Path) -> Path:
    """Where the signature of a bundle lies: in its directory, or beside its zip."""
    return place / SIGNATURE if place.is_dir() else place.with_name(f"{place.name}.sig")


def sign_bundle(
    place: Path | str,
    key: Path | str,
    *,
    certificate: Path | str | None = None,
    chain: Sequence[Path | str] = (),
) -> Path:
    """Signs a bundle; returns where the signature is.

    Args:
      place: its directory or zip.
      key: private key in PEM, of the elliptic curves P-256, P-384 or P-521. The environment variable
        ``JAXACCEL_KEY_PASSWORD`` has its password, where it is encrypted.
      certificate: of that key, in PEM; the signature then carries it.
      chain: certificates, in PEM, that lead from it to a root.

    Raises:
      UserError: the bundle, the key or a certificate cannot be read, or they do not fit.
    """
    signing, place = _import_library("signing"), Path(place).resolve()
    open_files(place)
    config = signing.Config()
    with _explain(f"{place} cannot be signed with {key}"):
        _check_curve(Path(key), private=True)
        if certificate is not None:
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=list(chain)
            )
        else:
            # The library hands a password on as it is, and OpenSSL takes bytes.
            config.use_elliptic_key_signer(private_key=key, password=_read_password())
        config.set_hashing_config(_choose_hashing(place))
        config.sign(place, find_signature(place))
    return find_signature(place)


def verify_bundle(
    place: Path | str, key: Path | str | None = None, *, chain: Sequence[Path | str] = ()
) -> None:
    """Checks that a bundle is as it was signed, before anything else of it is read.

    Args:
      place: its directory or zip.
      key: public key in PEM, of whoever signed it.
      chain: certificates of roots that are trusted, in PEM, where it was signed with a certificate; instead of `key`.

    Raises:
      UserError: there is no signature, somebody else signed it, or a file was changed, removed or added; it names the
        file.
    """
    if key is None and not chain:
        raise UserError(
            f"name the key of whoever signed it: {option('key', 'FILE')}, or {option('chain', 'FILE')}"
        )
    if key is not None and chain:
        raise UserError(f"{option('key')} and {option('chain')} exclude each other")
    verifying, place = _import_library("verifying"), Path(place).resolve()
    files, signature = open_files(place), find_signature(place)
    if not signature.is_file():
        raise UserError(
            f"{place} is not signed: there is no {signature}; python -m jaxaccel.export signs with --sign KEY"
        )
    config = verifying.Config()
    with _explain(f"{place} is not what was signed, or somebody else signed it"):
        if key is not None:
            _check_curve(Path(key), private=False)
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=list(chain))
        config.set_hashing_config(_choose_hashing(place))
        config.verify(place, signature)
    if place.is_dir():
        listed = read_manifest(files.read(MANIFEST), f"{place}/{MANIFEST}").files.keys() | {
            MANIFEST,
            SIGNATURE,
        }
        if more := sorted({*files.list_names()} - listed):
            raise UserError(f"{place} is not what was signed: {more[0]} was added")


def _check_curve(key: Path, *, private: bool) -> None:
    """Checks that a file holds a key of an elliptic curve, which is what signatures are made with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = key.read_bytes()
    kind = "private" if private else "public"
    try:
        if private:
            found: Any = serialization.load_pem_private_key(content, _read_password())
        else:
            found = serialization.load_pem_public_key(content)
    except TypeError as error:  # a password is missing, or too many
        raise UserError(f"{key} is encrypted, or not encrypted: set or unset {PASSWORD}") from error
    except ValueError as error:
        hint = f", or {PASSWORD} is not its password" if private else ""
        raise UserError(f"{key} is no {kind} key in PEM{hint}") from error
    if not isinstance(found, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        raise UserError(
            f"{key} is no key of an elliptic curve: make one with openssl ecparam -name prime256v1 -genkey -noout"
        )


def _read_password() -> bytes | None:
    password = os.environ.get(PASSWORD)
    return password.encode() if password else None


def _choose_hashing(place: Path) -> Any:
    """How files are hashed: all but the signature, and no links. What a signature says of that is not asked."""
    config = _import_library("hashing").Config()
    config.use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    ignored = [find_signature(place)] if place.is_dir() else []
    return config.set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _import_library(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UserError("signatures need the package model-signing: pip install 'jaxaccel[sign]'") from error


@contextlib.contextmanager
def _explain(what: str) -> Iterator[None]:
    """Turns what the library and OpenSSL raise into one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or what}: {error.strerror or error}") from error
    except (
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        json.JSONDecodeError,
        UnicodeDecodeError,
    ) as error:
        raise UserError(f"{what}: the signature is damaged, or is made in another way") from error
    except Exception as error:
        text = " ".join(str(error).split())
        found = (pattern.search(text) for pattern in _DIFFERENCES)
        named = [f"{match[1]} was {verb}" for match, verb in zip(found, _VERBS, strict=True) if match]
        named = ["the file was changed" if words == ". was changed" else words for words in named]  # a zip
        raise UserError(f"{what}: {'; '.join(named) or text or type(error).__name__}") from error


_DIFFERENCES = (
    re.compile(r"Extra files found in model '[^']*': ([^\"]*)\""),
    re.compile(r"Missing files in model '[^']*': ([^\"]*)\""),
    re.compile(r"Hash mismatch for \\?'([^'\\]*)"),
)
"""What the library says of files, in the order of `_VERBS`."""
_VERBS = ("added", "removed", "changed")
