"""The files below a folder that has one subfolder a class, each counted once."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxaccel.data.splits import NAMES
from jaxaccel.errors import UserError

log = logging.getLogger(__name__)

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Kind(NamedTuple):
    """What files are looked for."""

    plural: str
    """What they are called where there are none."""
    singular: str
    suffixes: frozenset[str]
    """How their names end, in lower case."""


class ClassFile(NamedTuple):
    """A file below a folder: its relative path and the name of its class."""

    path: str
    class_name: str


class Listing(NamedTuple):
    """What a folder of classes holds."""

    splits: dict[str, list[ClassFile]]
    """{split: its files, sorted by path}; a single one named "" where the folder has no folders of splits."""
    classes: list[str]
    """Names of the folders of classes, sorted; also of those without a file."""


def list_files(root: Path, kind: Kind) -> Listing:
    """Finds the files of each split and class of a folder.

    Symbolic links are followed, and no folder is counted twice: it belongs where it really lies, else to the first
    link to it. Names that begin with ``.`` or ``__`` are left out.

    Raises:
      UserError: there is no such folder, a split holds no files of that kind, or what is named like one is no file.
    """
    if not root.is_dir():
        raise UserError(
            f"there is no folder {root}; a data set may be NAME, a folder of images, sounds or texts, or a file .npz, "
            ".csv, .tsv or .jsonl"
        )
    bases = _split_folders(root)
    class_folders = {split: _visible_folders(base) for split, base in bases.items()}
    walk = _Walk(kind, [root, *root.absolute().parents, *bases.values()])
    splits: dict[str, list[ClassFile]] = {split: [] for split in bases}
    pairs = [(split, folder) for split, folders in class_folders.items() for folder in folders]
    # What lies in a class goes before what is linked to from one.
    for split, folder in sorted(pairs, key=lambda pair: pair[1].is_symlink()):
        found = walk.files_of(folder)
        splits[split] += [ClassFile(path.relative_to(root).as_posix(), folder.name) for path in found]
    for split, folder in pairs:
        found = walk.files_behind_links(folder)
        splits[split] += [ClassFile(path.relative_to(root).as_posix(), folder.name) for path in found]
    for split, base in bases.items():
        if not splits[split]:
            raise UserError(
                f"no {kind.plural} found in {base}: it must hold one subfolder a class with "
                f"{', '.join(sorted(kind.suffixes))} files"
            )
        splits[split].sort()
        if loose := sum(1 for _ in _files(base, kind)):
            log.info(
                "%s holds %d %ss outside the folders of classes: they are left out",
                base,
                loose,
                kind.singular,
            )
    classes = sorted({folder.name for folders in class_folders.values() for folder in folders})
    seen = {file.class_name for files in splits.values() for file in files}
    if empty := [name for name in classes if name not in seen]:
        log.info("%s: no %ss of %s, which stays a class", root, kind.singular, ", ".join(empty))
    return Listing(splits, classes)


def holds_any(root: Path, kind: Kind) -> bool:
    """Whether there is a file of that kind in a folder below `root`."""
    if not root.is_dir():
        return False
    walk = _Walk(kind, [root, *root.absolute().parents])
    folders = _visible_folders(root)
    inside = (True for folder in folders for _ in walk.files_of(folder))
    linked = (True for folder in folders for _ in walk.files_behind_links(folder))
    return next(inside, False) or next(linked, False)


def list_below(root: Path, kind: Kind) -> list[Path]:
    """The files of that kind in a folder and in those below it, sorted, whatever class or split they are of.

    Links are followed, and names left out, as `list_files` does.

    Raises:
      UserError: there is no such file, or what is named like one is none.
    """
    walk = _Walk(kind, list(root.absolute().parents))
    found = sorted([*walk.files_of(root), *walk.files_behind_links(root)])
    if not found:
        raise UserError(
            f"no {kind.plural} found in {root}: it holds no {', '.join(sorted(kind.suffixes))} files"
        )
    return found


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits, where there is one for training; else the folder itself, as the split ""."""
    found: dict[str, Path] = {}
    for folder in _visible_folders(root):
        split = NAMES.get(folder.name)
        if split is None:
            continue
        if split in found:
            raise UserError(f"{found[split]} and {folder} are both the split {split}: rename one")
        found[split] = folder
    train = found.get("train")
    if train is None or not _visible_folders(train):  # a class may be called train, too
        return {"": root}
    return {"": train} if len(found) == 1 else {name: found[name] for name in sorted(found)}


def _visible_folders(path: Path) -> list[Path]:
    return sorted(Path(entry) for entry in _entries(path) if entry.is_dir())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith((".", "__"))), key=lambda e: e.name)
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder} ({error.strerror}): make it readable, or remove it"
        ) from error


def _files(folder: Path, kind: Kind) -> Iterator[Path]:
    for entry in _entries(folder):
        if Path(entry.name).suffix.lower() not in kind.suffixes or entry.is_dir():
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            raise UserError(f"{entry.path} is a link that leads nowhere: remove it") from error
        if not stat.S_ISREG(mode):
            raise UserError(
                f"{entry.path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a {kind.singular}: remove it"
            )
        yield Path(entry)


class _Walk:
    """Goes through folders, and into none a second time."""

    def __init__(self, kind: Kind, closed: list[Path]) -> None:
        self._kind = kind
        self._seen = {_identity(folder) for folder in closed}
        self._links: dict[Path, list[Path]] = {}

    def files_of(self, folder: Path) -> Iterator[Path]:
        """The files that lie below `folder`."""
        yield from self._walk(folder, self._links.setdefault(folder, []))

    def files_behind_links(self, folder: Path) -> Iterator[Path]:
        """The files behind the links that were met below `folder`, and behind those met there."""
        links = self._links[folder]
        while links:
            yield from self._walk(links.pop(0), links)

    def _walk(self, folder: Path, links: list[Path]) -> Iterator[Path]:
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            identity = _identity(folder)
            if identity in self._seen:
                continue
            self._seen.add(identity)
            yield from _files(folder, self._kind)
            for inner in _visible_folders(folder):
                (links if inner.is_symlink() else waiting).append(inner)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
