"""Checks that a bundle is as it was signed: no file was changed, removed or added, and the key is that of the signer.

BUNDLE is a directory or a zip that jaxaccel.export wrote with --sign. Nothing of it is read before. For instance:

  openssl ecparam -name prime256v1 -genkey -noout -out private.pem
  openssl ec -in private.pem -pubout -out public.pem
  python -m jaxaccel.export runs/digits --sign private.pem
  python -m jaxaccel.verify bundles/digits --key public.pem
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxaccel import cli
from jaxaccel.core.options import Options
from jaxaccel.deployment.signing import verify_bundle
from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class VerifyOptions(Options):
    """By what a bundle is verified."""

    key: Path | None = None
    """Trust this public key, in PEM."""
    chain: tuple[Path, ...] = ()
    """Trust these certificates, in PEM, where a certificate signed it; instead of --key."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
      UserError: the bundle is not what was signed, or something is wrong with the words.
    """
    words = list(argv)
    bundle = words.pop(0) if words and not words[0].startswith("-") else None
    asked = {"-h", "--help"} & set(words)
    if bundle is None and not asked:
        raise UserError(
            "name a bundle: python -m jaxaccel.verify bundles/digits --key public.pem (--help shows all)"
        )
    options = cli.parse_options("python -m jaxaccel.verify BUNDLE", __doc__ or "", VerifyOptions(), words)
    assert bundle is not None
    verify_bundle(bundle, options.key, chain=options.chain)
    print(f"{bundle} is as it was signed")
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
