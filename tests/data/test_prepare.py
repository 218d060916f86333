"""Preparing with TFDS's own builders in a child process; here without TensorFlow."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from jaxaccel.data import prepare
from jaxaccel.data.builders import run_tfds
from jaxaccel.data.data_sets import open_source
from jaxaccel.data.tfds_names import parse_name
from jaxaccel.errors import UserError


def test_without_tensorflow_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"'kmnist' needs TensorFlow, once: pip install 'jaxaccel\[tfds-prepare\]'"
    ):
        open_source("kmnist", "train", directory=tmp_path)


def fake_child(monkeypatch, code):
    """Runs `code` instead of the child, as if TensorFlow were there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    run = prepare._run
    commands = []

    def run_fake(command, environment, output):
        commands.append(command)
        return run([sys.executable, "-c", code], environment, output)

    monkeypatch.setattr(prepare, "_run", run_fake)
    return commands


def test_failure_of_the_child_is_one_line(tmp_path, monkeypatch):
    code = (
        "import sys; print('Traceback'); print('error: it rains', file=sys.stderr); print('bye'); sys.exit(2)"
    )
    commands = fake_child(monkeypatch, code)
    with pytest.raises(UserError, match=r"^it rains \(log: .*downloads/kmnist/prepare.log\)$"):
        open_source("kmnist:3.0.1", "train", directory=tmp_path, downloads=tmp_path)
    assert commands[0][1:4] == ["-m", "jaxaccel.data.builders.run_tfds", "kmnist:3.0.1"]
    assert "Traceback" in (tmp_path / "downloads" / "kmnist" / "prepare.log").read_text()


def test_child_that_dies_without_a_word(tmp_path, monkeypatch):
    fake_child(monkeypatch, "import os; os._exit(9)")
    with pytest.raises(UserError, match="exit code 9"):
        open_source("kmnist", "train", directory=tmp_path)


def test_child_is_kept_off_the_accelerator(tmp_path, monkeypatch):
    code = "import os; print('error:', os.environ['CUDA_VISIBLE_DEVICES'], flush=True); os._exit(1)"
    fake_child(monkeypatch, code)
    with pytest.raises(UserError, match=r"^-1 "):
        prepare.prepare(parse_name("kmnist"), tmp_path)


def test_downloads_are_placed_under_the_names_of_tfds(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums, resource

    def info(path):
        return checksums.compute_url_info(path)

    downloads = tmp_path / "downloads"
    (downloads / "some_set" / "deep").mkdir(parents=True)
    (downloads / "a.zip").write_bytes(b"first")
    (downloads / "some_set" / "deep" / "b.zip").write_bytes(b"second")
    (downloads / "c.zip").write_bytes(b"third, damaged")
    urls = {
        "http://x.org/a.zip": info(downloads / "a.zip"),
        "http://x.org/b.zip": info(downloads / "some_set" / "deep" / "b.zip"),
        "http://x.org/c.zip": checksums.UrlInfo(
            size=tfds.core.utils.Size(5), checksum="0" * 64, filename=None
        ),
        "http://x.org/d.zip": checksums.UrlInfo(
            size=tfds.core.utils.Size(5), checksum="1" * 64, filename="d.zip"
        ),
    }
    builder = types.SimpleNamespace(name="some_set", url_infos=urls)
    wrong = run_tfds.place_downloads(builder, tmp_path / "private", downloads)
    for url, content in (("http://x.org/a.zip", b"first"), ("http://x.org/b.zip", b"second")):
        target = tmp_path / "private" / resource.get_dl_fname(url, urls[url].checksum)
        assert target.read_bytes() == content
        assert json.loads(Path(f"{target}.INFO").read_text())["original_fname"] == url[-5:]
    assert list(wrong) == ["http://x.org/c.zip"]
    assert "c.zip is another file (sha256 expected 0000" in wrong["http://x.org/c.zip"]
    assert len(list((tmp_path / "private").iterdir())) == 4


def test_child_without_downloads_for_a_set_downloaded_by_hand(tmp_path, monkeypatch, capfd):
    import tensorflow_datasets as tfds

    builder = types.SimpleNamespace(
        name="by_hand", url_infos=None, MANUAL_DOWNLOAD_INSTRUCTIONS="Get it\n  from X."
    )
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    assert run_tfds.main(["by_hand", "--directory", str(tmp_path)]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert (
        last.startswith("error: data set 'by_hand' must be downloaded by hand") and "Get it from X." in last
    )
    # The parent makes an error of it again, whose options are flags or keywords as the parent's caller wants.
    assert UserError(last).options == ("data.downloads",)
