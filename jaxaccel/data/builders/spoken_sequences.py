"""Sequences of spoken digits: recordings of the Free Spoken Digit Dataset, joined by silence and a little noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.data.builders.sound_archives import decode_member, sound_features
from jaxaccel.data.builders.spoken_digit import WORDS, DigitRecordings, parse_name

# All of these are part of what the data set is: another value is another data set, of another version.
SEED = 20_10
LENGTHS = (3, 7)
"""Fewest and most digits of a sequence."""
GAPS = (400, 3_200)
"""Shortest and longest silence before, between and behind digits, in samples: 0.05 to 0.4 s."""
NOISE = (4, 64)
"""Least and greatest amplitude of the noise of a sequence, in steps of 16 bits."""
HELD_OUT = "lucas"
COUNTS = {"train": 4_000, "test": 500, "heldout": 500}
RATE = 8_000  # Hz
_SPLIT_NUMBERS = {"train": 0, "test": 1, "heldout": 2}
Takes = Mapping[int, Sequence[np.ndarray]]
"""{digit: its recordings by one speaker}, int16 (n,)."""


class Joined(NamedTuple):
    """A sequence."""

    audio: np.ndarray
    """int16 (n,)."""
    digits: list[int]


def join_digits(takes: Takes, key: Sequence[int]) -> Joined:
    """Draws 3 to 7 digits and joins recordings of them; a pure function of its arguments on any machine.

    Args:
      takes: recordings to draw from.
      key: what the random numbers are keyed by: the seed, the split and the number of the sequence.
    """
    # Whole numbers of RandomState, whose stream NumPy never changes.
    random = np.random.RandomState(list(key))
    count = random.randint(LENGTHS[0], LENGTHS[1] + 1, dtype=np.int64)
    digits = random.randint(0, len(WORDS), count, dtype=np.int64).tolist()
    gaps = random.randint(GAPS[0], GAPS[1] + 1, count + 1, dtype=np.int64).tolist()
    amplitude = int(random.randint(NOISE[0], NOISE[1] + 1, dtype=np.int64))
    parts = [np.zeros(gaps[0], np.int16)]
    for digit, gap in zip(digits, gaps[1:], strict=True):
        take = int(random.randint(0, len(takes[digit]), dtype=np.int64))
        parts += [takes[digit][take], np.zeros(gap, np.int16)]
    joined = np.concatenate(parts).astype(np.int32)
    noise = random.randint(-amplitude, amplitude + 1, len(joined), dtype=np.int64)
    return Joined(np.clip(joined + noise, -32_768, 32_767).astype(np.int16), digits)


class SpokenSequences(DigitRecordings, skip_registration=True):
    """Spoken sequences: 4,000 + 500 + 500 sequences of 3 to 7 digits, each by one speaker, 8 kHz.

    They are joined from the recordings of `spoken_digit` by 0.05 to 0.4 s of silence, with a little noise over all.
    Those of ``train`` are from its training recordings, those of ``test`` from its test recordings, by the same five
    speakers. Those of ``heldout`` are from all recordings of the sixth speaker, lucas. The text is ``three one four``.
    """

    name = "spoken_sequences"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES: ClassVar[int] = sum(COUNTS.values())

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=sound_features(text=tfds.features.Text(), speaker=tfds.features.Text()),
            supervised_keys=("audio", "text"),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        speakers = self._read_speakers()
        return {split: self._generate_examples(split, speakers[split]) for split in COUNTS}

    def _generate_examples(
        self, split: str, speakers: Mapping[str, Takes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        names = sorted(speakers)
        for i in range(COUNTS[split]):
            speaker = names[i % len(names)]
            audio, digits = join_digits(speakers[speaker], (SEED, _SPLIT_NUMBERS[split], i))
            text = " ".join(WORDS[digit] for digit in digits)
            yield i, {"audio": audio, "rate": np.int64(RATE), "text": text, "speaker": speaker}

    def _read_speakers(self) -> dict[str, dict[str, dict[int, list[np.ndarray]]]]:
        """{split: {speaker: {digit: its recordings, in the order of their numbers}}}."""
        path = self.find_archive()
        files = self.read_recordings(path)
        found: dict[str, dict[str, dict[int, list[np.ndarray]]]] = {split: {} for split in COUNTS}
        for recording, name in sorted((parse_name(name), name) for name in files):
            split = "heldout" if recording.speaker == HELD_OUT else "test" if recording.is_test else "train"
            digits = found[split].setdefault(recording.speaker, {})
            digits.setdefault(recording.digit, []).append(decode_member(files[name], path, name)["audio"])
        return found
