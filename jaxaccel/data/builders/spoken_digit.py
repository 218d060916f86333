"""The Free Spoken Digit Dataset, version 1.0.10 (Z. Jackson and others)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from jaxaccel.data.builders.sound_archives import RecordingsBuilder, decode_member, sound_features

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_NUMBERS = range(5)
"""Recordings of each digit and speaker that are the official test split; the others, 5 to 49, are for training."""
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


class Recording(NamedTuple):
    """What the name of a file says."""

    digit: int
    speaker: str
    number: int

    @property
    def is_test(self) -> bool:
        """Whether it is of the official test split."""
        return self.number in TEST_NUMBERS


def parse_name(name: str) -> Recording:
    """What ``7_jackson_32.wav`` says."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no DIGIT_SPEAKER_NUMBER.wav")
    return Recording(int(found[1]), found[2], int(found[3]))


class DigitRecordings(RecordingsBuilder, skip_registration=True):
    """A builder of these recordings."""

    ARCHIVES: ClassVar[tuple[str, ...]] = (
        "free-spoken-digit-dataset-1.0.10.tar.gz",
        "free-spoken-digit-dataset-1.0.10-recordings.tar.gz",
        "v1.0.10.tar.gz",
    )
    URL: ClassVar[str] = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.tar.gz"
    MEMBERS: ClassVar[re.Pattern[str]] = re.compile(r"(.*/)?recordings/\d_[a-z]+_\d+\.wav")
    CONTENT: ClassVar[str] = "8fed8b0b058a7efa7544bbb3e8e98607ecdcbd47a2f0ea31139cab18a6b679c9"
    HOMEPAGE: ClassVar[str] = "https://github.com/Jakobovski/free-spoken-digit-dataset"
    LICENSE: ClassVar[str] = "CC BY-SA 4.0"


class SpokenDigit(DigitRecordings, skip_registration=True):
    """Spoken digits: 2,700 + 300 recordings of the ten digits by six speakers, 8 kHz.

    The split is the official one: recordings 0 to 4 of each digit and speaker are the test. Version 1.0.9, TFDS's,
    lacks the speaker lucas and has no test split.
    """

    name = "spoken_digit"
    VERSION = tfds.core.Version("1.0.10")
    EXAMPLES = 3_000

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=sound_features(
                label=tfds.features.ClassLabel(names=list(WORDS)),
                text=tfds.features.Text(),
                speaker=tfds.features.Text(),
                filename=tfds.features.Text(),
            ),
            supervised_keys=("audio", "label"),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        path = self.find_archive()
        files = self.read_recordings(path)
        return {
            split: self._generate_examples(path, files, is_test=split == "test")
            for split in ("train", "test")
        }

    def _generate_examples(
        self, path: Path, files: Mapping[str, bytes], *, is_test: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, content in files.items():
            recording = parse_name(name)
            if recording.is_test != is_test:
                continue
            yield (
                name,
                {
                    **decode_member(content, path, name),
                    "label": recording.digit,
                    "text": WORDS[recording.digit],
                    "speaker": recording.speaker,
                    "filename": name,
                },
            )
