"""The Audio feature of TFDS, without TensorFlow: how a prepared data set stores sounds."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.data.audio import MAX_VALUES, check_rate, decode_audio, to_int16
from jaxaccel.data.source import Example
from jaxaccel.errors import UserError

_AUDIO: Any = tfds.features.Audio
_NAME = f"{_AUDIO.__module__}.{_AUDIO.__name__}"
Decode = Callable[[Any], Example]
"""From the fields of a tf.train.Example to parts of an example."""


class StoredAudio(_AUDIO):
    """TFDS's Audio, which says what is stored and decodes nothing itself."""

    def __init__(
        self,
        *,
        file_format: str | None = None,
        shape: tuple[int | None, ...] = (None,),
        dtype: Any = np.int64,
        sample_rate: int | None = None,
        encoding: Any = "none",
        doc: Any = None,
        lazy_decode: bool = False,
    ) -> None:
        self._file_format = file_format
        self._sample_rate = sample_rate
        self._lazy_decode = lazy_decode
        whole_file: dict[str, Any] = {"serialized_dtype": np.object_, "serialized_shape": ()}
        # The constructor of Audio makes a decoder, and that imports TensorFlow.
        super(_AUDIO, self).__init__(
            shape=shape, dtype=dtype, encoding=encoding, doc=doc, **(whole_file if lazy_decode else {})
        )


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Makes TFDS read each Audio in a ``features.json`` as `StoredAudio`, as long as this is entered."""
    registered = tfds.features.FeatureConnector._registered_features
    own = registered[_NAME]
    registered[_NAME] = StoredAudio
    try:
        yield
    finally:
        registered[_NAME] = own


def as_stored(features: Mapping[str, Any]) -> Mapping[str, Any]:
    """The features of what is read: sounds are int16, and ``rate`` stands beside ``audio``.

    A data set with one Audio of another name (``speech``, ``voice``) has it as ``audio``.
    """
    renamed = _names(features)
    if not renamed:
        return features
    found = {
        renamed.get(key, key): tfds.features.Tensor(shape=(None,), dtype=np.int16)
        if key in renamed
        else feature
        for key, feature in features.items()
    }
    if "audio" in renamed.values():
        found["rate"] = tfds.features.Tensor(shape=(), dtype=np.int64)
    return found


def sound_decoders(features: Mapping[str, Any]) -> dict[str, Decode]:
    """{key of an Audio: what makes its parts of an example}.

    Raises:
      UserError: the features do not say the rate of a sound.
    """
    return {key: _decoder(key, features[key], name) for key, name in _names(features).items()}


def _names(features: Mapping[str, Any]) -> dict[str, str]:
    """{key of an Audio: what it is called in an example}."""
    keys = [key for key, feature in features.items() if isinstance(feature, _AUDIO)]
    return {keys[0]: "audio"} if len(keys) == 1 and "audio" not in features else {key: key for key in keys}


def _decoder(key: str, feature: Any, name: str) -> Decode:
    rate = int(feature.sample_rate or 0)
    if not feature._lazy_decode:
        if not rate:
            raise UserError(
                f"the sound {key!r} of the data set has no rate in its features: it cannot be read"
            )
        check_rate(rate, f"the sound {key!r} of the data set")

    def decode(fields: Any) -> Example:
        if feature._lazy_decode:
            audio, own = decode_audio(fields[key].bytes_list.value[0])
        else:
            audio, own = _mono(_stored_values(fields, key, feature)), rate
        return {name: audio} | ({"rate": np.array(own, np.int64)} if name == "audio" else {})

    return decode


def _stored_values(fields: Any, key: str, feature: Any) -> np.ndarray:
    """The samples of an Audio that TFDS decoded when it prepared the data set, (n,) or (n, channels)."""
    dtype, shape = np.dtype(feature.np_dtype), tuple(feature.shape)
    encoding = feature._encoding.value
    flexible = shape.count(None) > 1  # TFDS keeps the shape beside the values then
    field = fields[f"{key}/value" if flexible else key]
    if encoding != "none":
        content = field.bytes_list.value[0]
        values = np.frombuffer(_inflate(content) if encoding == "zlib" else content, dtype)
    else:
        stored = field.float_list if dtype.kind == "f" else field.int64_list
        values = np.array(stored.value, dtype)
    if flexible:
        return values.reshape(tuple(fields[f"{key}/shape"].int64_list.value))
    return values.reshape([-1 if size is None else size for size in shape])


def _inflate(content: bytes) -> bytes:
    most = 8 * MAX_VALUES
    found = zlib.decompressobj().decompress(content, most + 1)
    if len(found) > most:
        raise ValueError(f"a sound of more than {most:,} bytes")
    return found


def _mono(values: np.ndarray) -> np.ndarray:
    if values.ndim == 1:
        return to_int16(values)
    mean = values.mean(axis=1)
    return to_int16(mean if values.dtype.kind == "f" else np.rint(mean).astype(np.int64))
