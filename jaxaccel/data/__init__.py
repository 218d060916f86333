"""Data sets with random access, the order of their examples, and how examples are augmented.

Only what imports neither JAX nor TFDS until a data set is opened is re-exported, so that worker processes which
read examples stay light. `augment` is imported when it is first used.
"""

import lazy_loader

from jaxaccel.data.arrays import from_arrays
from jaxaccel.data.data_sets import open_source as open
from jaxaccel.data.source import Source
from jaxaccel.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

__all__ = ["Source", "Tokenizer", "from_arrays", "load_tokenizer", "open", "train_tokenizer"]

__getattr__, *_ = lazy_loader.attach(__name__, ["augment"])
