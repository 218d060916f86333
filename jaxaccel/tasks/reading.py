"""What a person has in files, on standard input or in words, as inputs of a task that are predicted one by one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxaccel.data.class_folders import Kind, list_below
from jaxaccel.errors import UserError, option


class Input(NamedTuple):
    """One example to be predicted."""

    name: str
    """What results call it: ``photos/cat.png``, ``questions.txt:3``."""
    given: Any = None
    """The example; the task's `bring` takes a list of them."""
    error: str = ""
    """Why it cannot be read, in a line, where it cannot."""


class Reading:
    """How a task reads inputs; it says here what it reads."""

    kind: ClassVar[Kind | None] = None
    """The files of a folder that are inputs; None where files are named one by one."""

    @property
    def reads_files(self) -> bool:
        """Whether `read` is defined."""
        return type(self).read is not Reading.read

    @property
    def reads_paths(self) -> bool:
        """Whether a line of a stream is the path of a file."""
        return type(self).read_line is Reading.read_line

    def find_files(self, folder: Path) -> list[Path]:
        """The files in a folder and below it that `read` reads, sorted.

        Raises:
          UserError: there are none, or the task reads no folders.
        """
        if self.kind is None:
            raise UserError(f"{folder} is a folder: name the files, {type(self).__name__} reads no folders")
        return list_below(folder, self.kind)

    def read(self, path: Path) -> Iterator[Input]:
        """The inputs in a file, in order; by default a task reads no files.

        Raises:
          UserError: the file as a whole cannot be read. What was yielded before counts.
        """
        raise UserError(
            f"{type(self).__name__} reads no files: give arrays to ja.load(run).predict, or define its method read"
        )

    def read_line(self, line: bytes, name: str) -> Iterator[Input]:
        """The inputs of one line of a stream that `name` names; by default the line is the path of a file.

        Raises:
          UserError: there are none.
        """
        if b"\0" in line:
            raise UserError(f"{name} is no path of a file")
        yield from self.read(Path(os.fsdecode(line)))

    def fill_of(self, given: Any) -> float:
        """The share of a batch that an input fills alone, where a number of inputs says too little; by default 0."""
        return 0.0

    def read_text(self, text: str, name: str) -> Input:
        """A text that was given in words; by default a task reads none.

        Raises:
          UserError: the task reads no texts.
        """
        raise UserError(f"{option('text')} is for tasks that read texts, and {type(self).__name__} does not")
