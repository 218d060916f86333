"""CLINC150: queries of 150 intents, and queries out of their scope (Larson et al. 2019, arXiv:1909.02027)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import explain_errors
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile
from jaxaccel.data.builders.zip_files import read_texts

FILES = {
    "train": "train.csv",
    "test": "test.csv",
    "validation": "val.csv",
    "train_oos": "train_ood.csv",
    "test_oos": "test_ood.csv",
    "validation_oos": "val_ood.csv",
}
"""{split: its file in the archive}."""


class ClincOos(OriginalBuilder, skip_registration=True):
    """CLINC150: 15,000 + 3,000 + 4,500 queries of 150 intents, and 100 + 100 + 1,000 that are out of scope.

    The latter are splits of their own: ``train_oos``, ``validation_oos``, ``test_oos``. Examples and
    their order are those of TFDS. What is out of scope has the intent 150.
    """

    name = "clinc_oos"
    VERSION = tfds.core.Version("0.1.0")
    EXAMPLES = 23_700
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {
        "all": OriginalFile(
            "clinc_oos.zip",
            "https://github.com/jereliu/datasets/raw/master/clinc_oos.zip",
            "e4e11b767b435a840ee9216eacec93cb69f2d6707252b416ebd0d4843cd3d9ee",
        )
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "intent": np.int32,
                    "domain": np.int32,
                    "intent_name": tfds.features.Text(),
                    "domain_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("text", "intent"),
            homepage="https://github.com/clinc/oos-eval/",
            license="CC BY 3.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        path = self.originals(self.ORIGINALS)["all"]
        texts = read_texts(path, list(FILES.values()))
        return {split: self._generate_examples(path, texts[file]) for split, file in FILES.items()}

    def _generate_examples(self, path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with explain_errors(path, "is another archive"):
            # The number of the row is the key, as in TFDS: keys decide the order on disk.
            for key, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True)):
                numbers = {name: np.int32(row[name]) for name in ("intent", "domain")}
                yield key, {name: row[name] for name in ("text", "intent_name", "domain_name")} | numbers
