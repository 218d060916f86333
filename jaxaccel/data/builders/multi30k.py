"""Multi30k: captions of pictures in English with their German translations, from the original files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import check, explain_errors
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile
from jaxaccel.data.table_files import read_text

LANGUAGES = ("en", "de")
_MAX_BYTES = 1 << 24  # the largest file has 2.2 million
_URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
_FILES = {
    "train": (
        "train",
        "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
        "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    ),
    "validation": (
        "val",
        "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
        "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    ),
    "test": (
        "test_2016_flickr",
        "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
        "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    ),
    "test_2017_flickr": (
        "test_2017_flickr",
        "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074",
        "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee",
    ),
    "test_2017_mscoco": (
        "test_2017_mscoco",
        "aab300bfb4427697987e02cd0aacd44bfe8aa50456231b6474c08038bbed2b58",
        "799e4854c25d601cb6cb6be29eabe5667734c61ace2f495e03e429031a0bc338",
    ),
    "test_2018_flickr": (
        "test_2018_flickr",
        "ef4f4844037d4c5dea75c9a8ed5fd78905967a26f67c255e230cc9780032654d",
        "ddd0130c7d97482dc5197a02141dae8dd79f20f03586c480d675c09a32daf608",
    ),
}
"""{split: the name of its files, and the sha256 of the English and of the German one}."""


def read_pairs(english: Path, german: Path) -> Iterator[tuple[str, str]]:
    """The lines of two files, in pairs.

    Raises:
      UserError: a file cannot be read, or they differ in length.
    """
    lines = [read_text(path, _MAX_BYTES).removesuffix("\n").split("\n") for path in (english, german)]
    with explain_errors(german, "does not belong to the English file"):
        check(len(lines[0]) == len(lines[1]), f"{len(lines[1])} lines for {len(lines[0])}")
    return zip(*lines, strict=True)


class Multi30k(OriginalBuilder, skip_registration=True):
    """Multi30k, task 1 (Elliott et al. 2016, arXiv:1605.00459): 29,000 + 1,014 pairs, and four test sets.

    ``test`` is that of 2016. The authors state no license for the texts and ask for non-commercial research and
    educational use, as the pictures of Flickr30k do.
    """

    name = "multi30k"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES = 33_546
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {
        f"{split}.{language}": OriginalFile(f"{stem}.{language}.gz", f"{_URL}{stem}.{language}.gz", digest)
        for split, (stem, *digests) in _FILES.items()
        for language, digest in zip(LANGUAGES, digests, strict=True)
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.Translation(languages=LANGUAGES),
            homepage="https://github.com/multi30k/dataset",
            disable_shuffling=True,  # line n of a translation is line n of the file
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it reads files with TensorFlow
        paths = self.originals(self.ORIGINALS)
        splits = dict.fromkeys(key.partition(".")[0] for key in self.ORIGINALS)
        return {
            split: self._generate_examples(*(paths[f"{split}.{language}"] for language in LANGUAGES))
            for split in splits
        }

    def _generate_examples(self, english: Path, german: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, texts in enumerate(read_pairs(english, german)):
            yield key, dict(zip(LANGUAGES, texts, strict=True))
