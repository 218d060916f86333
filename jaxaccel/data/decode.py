"""Examples from the bytes of prepared records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxaccel.data.images import decode_image
from jaxaccel.data.source import Example


def example_decoder(features: Any) -> Callable[[bytes], Example]:
    """A function from a serialized tf.train.Example to the example.

    8-bit images are decoded by Pillow here and not by TFDS: always by the same library, in the channels the
    feature announces (TFDS leaves a gray or CMYK JPEG of an RGB data set as it is). Sounds are decoded here, as TFDS
    needs TensorFlow for them. Data sets of nothing but images, sounds, labels, texts and single whole numbers
    are parsed here altogether, four times as fast as by TFDS; for others, TFDS deserializes the other features.

    Raises:
      UserError: there are sounds, and the features do not say their rate.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    from jaxaccel.data.stored_audio import as_stored, sound_decoders

    parse: Callable[[bytes], Any] = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    image: Any = tfds.features.Image
    channels: dict[str, int] = {
        key: feature.shape[-1]
        for key, feature in features.items()
        if type(feature) is image and feature.np_dtype == np.uint8 and len(feature.shape) == 3
    }
    labels = [k for k, f in features.items() if type(f) is tfds.features.ClassLabel]
    texts = [k for k, f in features.items() if type(f) is tfds.features.Text and f.shape == ()]
    numbers = {k: f.np_dtype for k, f in features.items() if _is_whole_number(f)}
    samples = [k for k, f in features.items() if _is_samples(f)]
    sounds = sound_decoders(features)

    def decode_here(record: bytes) -> Example:
        fields = parse(record).features.feature
        example = {}
        for key, count in channels.items():
            example[key] = decode_image(fields[key].bytes_list.value[0], count)
        for key in labels:
            example[key] = np.array(fields[key].int64_list.value[0], np.int64)
        for key in texts:
            example[key] = np.array(fields[key].bytes_list.value[0], object)
        for key, dtype in numbers.items():
            example[key] = np.array(fields[key].int64_list.value[0], dtype)
        for key in samples:
            example[key] = np.frombuffer(fields[key].bytes_list.value[0], np.int16)
        for decode_sound in sounds.values():
            example |= decode_sound(fields)
        return example

    skip = {key: tfds.decode.SkipDecoding() for key in channels}
    kept = as_stored(features)

    def decode_by_tfds(record: bytes) -> Example:
        example = features.deserialize_example_np(record, decoders=skip)
        for key, count in channels.items():
            example[key] = decode_image(example[key], count)
        if sounds:
            fields = parse(record).features.feature
            example = {key: value for key, value in example.items() if key not in sounds}
            for decode_sound in sounds.values():
                example |= decode_sound(fields)
        return {key: _as_array(value, kept[key]) for key, value in example.items()}

    here = [*channels, *labels, *texts, *numbers, *samples, *sounds]
    return decode_here if len(here) == len(features) else decode_by_tfds


def _is_whole_number(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Tensor, tfds.features.Scalar)
    return type(feature) in kinds and feature.shape == () and np.dtype(feature.np_dtype).kind == "i"


def _is_samples(feature: Any) -> bool:
    """Whether it is a sound as our builders store it: 16-bit samples as bytes."""
    import tensorflow_datasets as tfds

    plain = (
        type(feature) is tfds.features.Tensor and feature.shape == (None,) and feature.np_dtype == np.int16
    )
    return plain and feature._encoding.value == "bytes"


def _as_array(value: Any, feature: Any) -> Any:
    """Numbers and bytes as arrays of shape (); what has a structure stays as it is."""
    if isinstance(value, bytes):
        return np.array(value, object)
    return np.array(value, feature.np_dtype) if isinstance(value, bool | int | float) else value
