"""Builders of TFDS data sets that prepare their ArrayRecord files without TensorFlow.

TFDS's own builders of the same names need TensorFlow to extract archives and to encode images; these yield
the same features, splits, record keys and versions from the same original files, so the prepared sets hold
the same examples in the same order and either reader accepts them. `digits`, `multi30k`, those of `pang_lee` and
those of sounds are ours alone; of `spoken_digit` and `yesno`, TFDS has other versions, which have one split.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxaccel.data.builders.original_files import OriginalBuilder

ERROR = "error: "
"""Begins the line by which the child process of `jaxaccel.data.prepare` says what went wrong."""

# Modules are imported on use only: each imports tensorflow_datasets, which takes most of a second.
BUILDERS: dict[str, str] = {
    "digits": "jaxaccel.data.builders.digits.digits_dataset_builder:Builder",
    "mnist": "jaxaccel.data.builders.idx:Mnist",
    "fashion_mnist": "jaxaccel.data.builders.idx:FashionMnist",
    "cifar10": "jaxaccel.data.builders.cifar10:Cifar10",
    "trec": "jaxaccel.data.builders.trec:Trec",
    "clinc_oos": "jaxaccel.data.builders.clinc_oos:ClincOos",
    "mr": "jaxaccel.data.builders.pang_lee:Mr",
    "subj": "jaxaccel.data.builders.pang_lee:Subj",
    "movie_reviews": "jaxaccel.data.builders.pang_lee:MovieReviews",
    "multi30k": "jaxaccel.data.builders.multi30k:Multi30k",
    "spoken_digit": "jaxaccel.data.builders.spoken_digit:SpokenDigit",
    "spoken_sequences": "jaxaccel.data.builders.spoken_sequences:SpokenSequences",
    "speech_words": "jaxaccel.data.builders.speech_words:SpeechWords",
    "yesno": "jaxaccel.data.builders.yesno:YesNo",
}

ALSO_OF_TFDS = frozenset({"spoken_digit", "yesno"})
"""Of these, other versions than ours are prepared by TFDS."""


def builder_class(name: str) -> type[OriginalBuilder]:
    """The builder class of the data set `name`, one of `BUILDERS`."""
    module, _, attribute = BUILDERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
