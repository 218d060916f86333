"""The files in a zip archive, read into memory: nothing is extracted to disk."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from jaxaccel.core.formats.bounds import Budget, check, explain_errors, open_file, read_member, zip_members

MAX_BYTES = 1 << 28
"""Of all that an archive holds; the largest that is read here has 8 million."""


def read_texts(path: Path, prefixes: Sequence[str]) -> dict[str, str]:
    """{member: its text, in UTF-8} of those that begin with each of `prefixes`, sorted.

    Raises:
      UserError: the archive is damaged, larger than it should be, or lacks a member that begins so.
    """
    with (
        explain_errors(path, "is another archive"),
        open_file(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        budget = Budget(MAX_BYTES, f"holds more than {MAX_BYTES:,} bytes, which no such archive does")
        members = zip_members(archive, budget)
        for prefix in prefixes:
            check(any(name.startswith(prefix) for name in members), f"no member {prefix}")
        chosen = [name for name in sorted(members) if name.startswith(tuple(prefixes)) and name[-1] != "/"]
        return {name: read_member(archive, members[name]).decode() for name in chosen}
