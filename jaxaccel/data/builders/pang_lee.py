"""Sentences and reviews of films (Pang & Lee 2004, 2005), from the archives of NLTK's data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile
from jaxaccel.data.builders.zip_files import read_texts

FOLDS = 10
TEST_FOLD = 9
_URL = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/"
_REVIEW = re.compile(r".*/cv(\d)\d\d_[^/]*\.txt")
Labeled = tuple[int, int, str, str]
"""Fold, position in its class, name of the class, and text."""


def _original(filename: str, sha256: str) -> dict[str, OriginalFile]:
    return {"all": OriginalFile(filename, _URL + filename, sha256)}


class Mr(OriginalBuilder, skip_registration=True):
    """MR: 10,662 sentences of film reviews, half of them favorable (Pang & Lee 2005, sentence polarity 1.0).

    There is no official split, and ten-fold cross-validation is customary. Here fold k of ten holds lines k, k + 10,
    ... of each class, counted from 0. The split ``test`` is fold 9 (1,066 sentences), ``train`` the others in their
    order: fold 0 is ``train[:1068]``, fold 1 ``train[1068:2134]``, and so on by 1,066 sentences.
    """

    name = "mr"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES = 10_662
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = _original(
        "sentence_polarity.zip", "6e1ed4405b65c7eabf1d199a7f7c437091ac21da0ea7467b410a74062574566b"
    )
    MEMBERS: ClassVar[Mapping[str, str]] = {
        "negative": "sentence_polarity/rt-polarity.neg",
        "positive": "sentence_polarity/rt-polarity.pos",
    }
    """{class: how its members of the archive begin}."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {"label": tfds.features.ClassLabel(names=list(self.MEMBERS)), "text": tfds.features.Text()}
            ),
            supervised_keys=("text", "label"),
            disable_shuffling=True,  # so that a slice is a fold
            homepage="https://www.cs.cornell.edu/people/pabo/movie-review-data/",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        examples = sorted(self._read(self.originals(self.ORIGINALS)["all"]))
        return {
            split: self._generate_examples([x for x in examples if (x[0] == TEST_FOLD) == (split == "test")])
            for split in ("train", "test")
        }

    def _generate_examples(self, examples: list[Labeled]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (_, _, class_name, text) in enumerate(examples):
            yield key, {"label": class_name, "text": text}

    def _read(self, path: Path) -> Iterator[Labeled]:
        texts = read_texts(path, list(self.MEMBERS.values()))
        for class_name, member in self.MEMBERS.items():
            for position, line in enumerate(texts[member].removesuffix("\n").split("\n")):
                yield position % FOLDS, position, class_name, line.strip()


class Subj(Mr, skip_registration=True):
    """SUBJ: 5,000 objective sentences, of plots of films, and 5,000 subjective ones, of reviews (Pang & Lee 2004).

    There is no official split, and ten-fold cross-validation is customary. Here fold k of ten holds lines k, k + 10,
    ... of each class, counted from 0. The split ``test`` is fold 9 (1,000 sentences), ``train`` the others in their
    order: fold 0 is ``train[:1000]``, fold 1 ``train[1000:2000]``, and so on.
    """

    name = "subj"
    EXAMPLES = 10_000
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = _original(
        "subjectivity.zip", "741f3371e1a4375051b874fd82fd55857b90975473c91c19a3101cbe17fc4d8c"
    )
    MEMBERS: ClassVar[Mapping[str, str]] = {
        "objective": "subjectivity/plot.tok.gt9.5000",
        "subjective": "subjectivity/quote.tok.gt9.5000",
    }


class MovieReviews(Mr, skip_registration=True):
    """Movie reviews: 2,000 whole reviews, half of them favorable (Pang & Lee 2004, polarity 2.0).

    There is no official split. Its authors' ten folds go by the names of files: fold k holds cvk00 to cvk99 of each
    class. The split ``test`` is fold 9 (200 reviews), ``train`` the others in their order: fold 0 is ``train[:200]``,
    fold 1 ``train[200:400]``, and so on.
    """

    name = "movie_reviews"
    EXAMPLES = 2_000
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = _original(
        "movie_reviews.zip", "a41211ae685019137410268134db6a1a14428c89b671eb83056151a878539008"
    )
    MEMBERS: ClassVar[Mapping[str, str]] = {
        "negative": "movie_reviews/neg/cv",
        "positive": "movie_reviews/pos/cv",
    }

    def _read(self, path: Path) -> Iterator[Labeled]:
        texts = read_texts(path, list(self.MEMBERS.values()))
        for class_name, prefix in self.MEMBERS.items():
            names = [name for name in texts if name.startswith(prefix)]
            for position, name in enumerate(names):
                if found := _REVIEW.fullmatch(name):
                    yield int(found[1]), position, class_name, texts[name].strip()
