"""Data sets that TFDS prepared with its Audio feature, read without TensorFlow."""

import gzip
import io
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import soundfile as sf
import tensorflow_datasets as tfds
from conftest import FIXTURES
from tensorflow_datasets.core.proto import feature_pb2

from jaxaccel.data.data_sets import open_source
from jaxaccel.data.stored_audio import StoredAudio, without_tensorflow
from jaxaccel.errors import UserError

PREPARED = FIXTURES / "prepared" / "spoken_digit" / "1.0.9"
SAMPLES = [np.arange(-3, 4), np.array([32767, -32768, 0])]


class Written(StoredAudio):
    """Can be written, too, without TensorFlow."""

    def encode_example(self, example_data):
        return tfds.features.Tensor.encode_example(self, example_data)

    def to_json_content(self):
        return feature_pb2.AudioFeature(
            shape=feature_pb2.Shape(dimensions=[-1 if n is None else n for n in self.shape]),
            dtype=np.dtype(self.np_dtype).name,
            file_format=self._file_format,
            sample_rate=self._sample_rate,
            encoding=self._encoding.name,
            lazy_decode=self._lazy_decode,
        )


class Recorded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Some examples; written as TFDS writes them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, columns, examples, **arguments):
        self.columns, self.examples = columns, examples
        super().__init__(**arguments)

    def _info(self):
        features = tfds.features.FeaturesDict(self.columns)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples)


def prepare(folder, columns, examples):
    """The folder of a prepared data set whose features.json names TFDS's own Audio."""
    builder = Recorded(columns=columns, examples=examples, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    (file,) = folder.rglob("features.json")
    own = f"{Written.__module__}.{Written.__name__}"
    text = file.read_text()
    assert text.count(own) >= 1
    file.write_text(text.replace(own, "tensorflow_datasets.core.features.audio_feature.Audio"))
    return file.parent


def read(path):
    source = open_source(str(path), "train")
    return source, source.__getitems__(range(len(source)))


@pytest.fixture
def prepared_by_tfds(tmp_path):
    folder = shutil.copytree(PREPARED, tmp_path / "spoken_digit" / "1.0.9")
    (packed,) = folder.glob("*.gz")
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def test_what_tfds_itself_has_prepared(prepared_by_tfds):
    source, examples = read(prepared_by_tfds)
    by_name = {example["audio/filename"].item().decode(): example for example in examples}
    assert by_name.keys() == {"0_theo_5.wav", "4_theo_5.wav", "7_theo_5.wav"}
    for name, example in by_name.items():
        expected, rate = sf.read(FIXTURES / "spoken_digits" / name, dtype="int16")
        np.testing.assert_array_equal(example["audio"], expected)
        assert (example["audio"].dtype, int(example["rate"]), int(example["label"])) == (
            np.int16,
            rate,
            int(name[0]),
        )
    assert source.features["audio"].np_dtype == np.int16


def test_tensorflow_is_not_imported(prepared_by_tfds):
    code = (
        "import sys; from jaxaccel.data.data_sets import open_source\n"
        f"print(len(open_source({str(prepared_by_tfds)!r}, 'train')[0]['audio']), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    length, imported = done.stdout.split()
    assert int(length) > 1000 and imported == "False"


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
@pytest.mark.parametrize("dtype", [np.int64, np.int16])
def test_decoded_sounds(encoding, dtype, tmp_path):
    audio = Written(file_format="wav", sample_rate=8000, dtype=dtype, encoding=encoding)
    columns = {
        "audio": audio,
        "audio/filename": tfds.features.Text(),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    examples = [
        {"audio": x.astype(dtype), "audio/filename": f"{i}.wav", "label": i} for i, x in enumerate(SAMPLES)
    ]
    source, found = read(prepare(tmp_path, columns, examples))
    for i, example in enumerate(found):
        assert example["audio"].tolist() == SAMPLES[i].tolist()
        assert (example["audio"].dtype, int(example["rate"]), int(example["label"])) == (np.int16, 8000, i)
        assert example["audio/filename"].item() == f"{i}.wav".encode()
    features = dict(source.features.items())
    assert set(features) == set(found[0]) == {"audio", "rate", "audio/filename", "label"}
    assert (features["audio"].shape, features["audio"].np_dtype) == ((None,), np.int16)


def test_whole_files_and_other_names_as_in_librispeech(tmp_path):
    def flac(samples):
        buffer = io.BytesIO()
        sf.write(buffer, samples.astype(np.int16), 22_050, format="FLAC")
        buffer.seek(0)
        return buffer

    audio = Written(file_format="flac", sample_rate=16_000, dtype=np.int16, lazy_decode=True)
    columns = {"speech": audio, "text": tfds.features.Text(), "speaker_id": np.int64, "id": np.str_}
    examples = [
        {"speech": np.array(flac(x).read(), object), "text": "HELLO", "speaker_id": 7, "id": "7-1"}
        for x in SAMPLES
    ]
    source, found = read(prepare(tmp_path, columns, examples))
    assert set(source.features) == set(found[0]) == {"audio", "rate", "text", "speaker_id", "id"}
    for example, samples in zip(found, SAMPLES, strict=True):
        assert example["audio"].tolist() == samples.tolist()
        assert (int(example["rate"]), int(example["speaker_id"])) == (22_050, 7)  # the rate is the file's


def test_channels_floats_and_what_only_tfds_reads(tmp_path):
    audio = Written(sample_rate=44_100, shape=(None, 2), dtype=np.float32)
    columns = {"audio": audio, "box": tfds.features.Tensor(shape=(2, 2), dtype=np.float32)}
    stereo = np.array([[0.5, 0.25], [-1, -1]], np.float32)
    flexible = {
        **columns,
        "audio": Written(sample_rate=44_100, shape=(None, None), dtype=np.float32, encoding="zlib"),
    }
    for name, given in (("two", columns), ("any", flexible)):
        _, (example,) = read(
            prepare(tmp_path / name, given, [{"audio": stereo, "box": np.eye(2, dtype=np.float32)}])
        )
        assert example["audio"].tolist() == [12_288, -32_768]
        assert (example["box"].tolist(), int(example["rate"])) == ([[1, 0], [0, 1]], 44_100)


def test_a_set_without_a_rate_is_refused(tmp_path):
    path = prepare(tmp_path, {"voice": Written()}, [{"voice": SAMPLES[0]}])
    with pytest.raises(UserError, match=r"the sound 'voice' of the data set has no rate in its features"):
        open_source(str(path), "train")


def test_a_bad_sound_is_named(tmp_path):
    columns = {"audio": Written(sample_rate=8000)}
    path = prepare(tmp_path, columns, [{"audio": SAMPLES[0]}, {"audio": np.array([0, 70_000])}])
    with pytest.raises(
        UserError, match=r"example 1 of 'train' of .*: the sound holds whole numbers from 0 to 70000"
    ):
        read(path)


def test_a_sound_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxaccel.data.stored_audio.MAX_VALUES", 1000)
    columns = {"audio": Written(sample_rate=8000, encoding="zlib")}
    path = prepare(tmp_path, columns, [{"audio": np.zeros(1001, np.int64)}])
    with pytest.raises(UserError, match=r"damaged \(a sound of more than 8,000 bytes\)"):
        read(path)
    assert len(zlib.compress(bytes(8008))) < 50


def test_tfds_has_its_own_class_again():
    name = "tensorflow_datasets.core.features.audio_feature.Audio"
    registered = tfds.features.FeatureConnector._registered_features
    with without_tensorflow():
        assert registered[name] is StoredAudio
    assert registered[name] is tfds.features.Audio
