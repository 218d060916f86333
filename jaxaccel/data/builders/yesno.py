"""The yes-no recordings of OpenSLR: connected speech of two words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxaccel.data.builders.sound_archives import RecordingsBuilder, decode_member, sound_features

WORDS = {"0": "no", "1": "yes"}
"""{digit of a file's name: what is said}; it is said in Hebrew."""
TEST_EVERY = 4


class YesNo(RecordingsBuilder, skip_registration=True):
    """Yes and no: 45 + 15 recordings of eight words each by one speaker, 8 kHz.

    There is no official split. Here every fourth recording, by the order of names, is the test: the fourth, the eighth
    and so on. Version 1.0.0, TFDS's, has no test split.
    """

    name = "yesno"
    VERSION = tfds.core.Version("1.1.0")
    EXAMPLES = 60
    ARCHIVES: ClassVar[tuple[str, ...]] = ("waves_yesno.tar.gz", "waves_yesno.tar.xz")
    URL: ClassVar[str] = "https://www.openslr.org/resources/1/waves_yesno.tar.gz"
    MEMBERS: ClassVar[re.Pattern[str]] = re.compile(r"(\./)?waves_yesno/[01](_[01]){7}\.wav")
    CONTENT: ClassVar[str] = "80ec8e691b156c8873c916045b55ceef0c20f9573fff95f610dbfcc97ce50748"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=sound_features(text=tfds.features.Text(), filename=tfds.features.Text()),
            supervised_keys=("audio", "text"),
            homepage="https://www.openslr.org/1/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        path = self.find_archive()
        files = list(self.read_recordings(path).items())
        test = dict(files[TEST_EVERY - 1 :: TEST_EVERY])
        train = {name: content for name, content in files if name not in test}
        return {"train": self._generate_examples(path, train), "test": self._generate_examples(path, test)}

    def _generate_examples(
        self, path: Path, files: Mapping[str, bytes]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, content in files.items():
            text = " ".join(WORDS[digit] for digit in name.removesuffix(".wav").split("_"))
            yield name, {**decode_member(content, path, name), "text": text, "filename": name}
