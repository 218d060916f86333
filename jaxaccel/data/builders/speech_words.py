"""Four words of Speech Commands 0.02 (Warden 2018, arXiv:1804.03209)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import check, explain_errors
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile, locate
from jaxaccel.data.builders.sound_archives import decode_member, read_members, sound_features
from jaxaccel.errors import UserError, option

WORDS = ("yes", "no", "up", "down")
_LIST = re.compile(r"(\./)?splits\.csv")
_CLIPS = {word: re.compile(rf"(\./)?{word}/[0-9a-z_]+\.flac") for word in WORDS}


class _Row(NamedTuple):
    """A recording in the archive."""

    file: str
    word: str
    speaker: str
    split: str


class SpeechWords(OriginalBuilder, skip_registration=True):
    """Speech words: the words yes, no, up and down, one second at 16 kHz; 1,007 + 1,655 recordings.

    The test split has all official test recordings of the four words, by 226 speakers; ``train`` is all that 170 other
    speakers said of them.
    """

    name = "speech_words"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES = 2_662
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {
        "all": OriginalFile(
            "speech_commands_v0.02-yes_no_up_down.tar",
            "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            "eb5e32803df0675b1de5b81d2d928dc312e9fc0ff68fc7d5668dbd15791a85dc",
        )
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=sound_features(
                label=tfds.features.ClassLabel(names=list(WORDS)),
                speaker=tfds.features.Text(),
                filename=tfds.features.Text(),
            ),
            supervised_keys=("audio", "label"),
            homepage="https://arxiv.org/abs/1804.03209",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        path = self._find_archive()
        clips = {word: read_members(path, pattern) for word, pattern in _CLIPS.items()}
        rows = _read_rows(path)
        return {
            split: self._generate_examples(path, [row for row in rows if row.split == split], clips)
            for split in ("train", "test")
        }

    def _find_archive(self) -> Path:
        file = self.ORIGINALS["all"]
        if (path := locate(file, self.name, self.downloads)) is None:
            raise UserError(
                f"data set {self.name!r} is prepared of {file.filename}, a part of {file.url} that has no address "
                f"of its own: name its folder with {option('data.downloads', 'DIR')}, or take speech_commands"
            )
        return path

    def _generate_examples(
        self, path: Path, rows: list[_Row], clips: Mapping[str, Mapping[str, bytes]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            with explain_errors(path, "is another archive"):
                content = clips[row.word][PurePosixPath(row.file).name]
            sound = decode_member(content, path, row.file)
            yield row.file, {**sound, "label": row.word, "speaker": row.speaker, "filename": row.file}


def _read_rows(path: Path) -> list[_Row]:
    """The rows of ``splits.csv``, which names no columns."""
    with explain_errors(path, "is another archive"):
        text = read_members(path, _LIST)["splits.csv"].decode()
        fields = [line.split(",") for line in text.splitlines()]
        check(all(len(row) == 4 for row in fields), "no list of recordings")
        return [_Row(*row) for row in fields]
