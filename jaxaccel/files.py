"""Writing a file whole or not at all."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` by way of a draft beside it: a killed process leaves the old file or the new one."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` likewise."""
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(content)
    draft.replace(path)
