"""The questions of TREC with their kinds (Li & Roth 2002), from the original files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import check, explain_errors, read_bytes
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile

COARSE = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")
FINE = (
    "manner", "cremat", "animal", "exp", "ind", "gr", "title", "def", "date", "reason", "event", "state",
    "desc", "count", "other", "letter", "religion", "food", "country", "color", "termeq", "city", "body",
    "dismed", "mount", "money", "product", "period", "substance", "sport", "plant", "techmeth", "volsize",
    "instru", "abb", "speed", "word", "lang", "perc", "code", "dist", "temp", "symbol", "ord", "veh",
    "weight", "currency",
)  # fmt: skip
_MAX_BYTES = 1 << 24  # the larger file has 335,858
_URL = "http://cogcomp.org/Data/QA/QC/"


def read_questions(path: Path) -> Iterator[tuple[str, str, str]]:
    """(coarse label, fine label, question) of each line, ``DESC:manner How did ...``.

    Raises:
      UserError: the file cannot be read, or has other lines.
    """
    with explain_errors(path, "holds no questions of TREC"):
        for line in read_bytes(path, _MAX_BYTES).removesuffix(b"\n").split(b"\n"):
            # The one byte beyond ASCII stands between two words; TFDS makes it a space, too.
            labels, _, text = line.replace(b"\xf0", b" ").strip().decode().partition(" ")
            coarse, _, fine = labels.partition(":")
            check(coarse in COARSE and fine in FINE, f"the label {labels[:40]!r}")
            yield coarse, fine, text


class Trec(OriginalBuilder, skip_registration=True):
    """TREC: 5,452 + 500 questions, of 6 coarse and 47 fine kinds; examples and their order are those of TFDS."""

    name = "trec"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES = 5_952
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {
        "train": OriginalFile(
            "train_5500.label",
            _URL + "train_5500.label",
            "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
        ),
        "test": OriginalFile(
            "TREC_10.label",
            _URL + "TREC_10.label",
            "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
        ),
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "label-coarse": tfds.features.ClassLabel(names=COARSE),
                    "label-fine": tfds.features.ClassLabel(names=FINE),
                    "text": tfds.features.Text(),
                }
            ),
            homepage="https://cogcomp.seas.upenn.edu/Data/QA/QC/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it reads files with TensorFlow
        return {
            split: self._generate_examples(path) for split, path in self.originals(self.ORIGINALS).items()
        }

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        # The number of the line is the key, as in TFDS: keys decide the order on disk.
        for key, (coarse, fine, text) in enumerate(read_questions(path)):
            yield key, {"label-coarse": coarse, "label-fine": fine, "text": text}
