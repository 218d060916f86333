"""What a model says of one file or text that somebody hands over."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import jaxaccel as ja
from jaxaccel.deployment.describe import Describer
from jaxaccel.errors import UserError


@pytest.fixture(scope="module")
def describer(digits_run):
    return Describer(ja.load(digits_run.directory), top=2)


def picture(form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("name", ["four.png", "", "four", "../../etc/passwd.png", "a" * 500 + ".png"])
def test_a_picture_is_described_as_predict_writes_it(describer, digits_run, tmp_path, name):
    (tmp_path / "four.png").write_bytes(picture())
    (expected,) = ja.predict(digits_run.directory, tmp_path / "four.png", top=2)
    found = describer.describe(picture(), name)
    assert found == {key: value for key, value in expected.items() if key != "input"}
    assert len(found["scores"]) == 2 and json.dumps(found)


@pytest.mark.parametrize("content", [b"", b"no picture", picture()[:50]])
def test_what_is_no_picture_is_one_line_with_its_own_name(describer, content):
    with pytest.raises(UserError) as raised:
        describer.describe(content, "four.png")
    assert "four.png" in str(raised.value) and "/tmp" not in str(raised.value)


def test_a_text_for_a_model_of_pictures_is_refused(describer):
    with pytest.raises(UserError, match="is for tasks that read texts"):
        describer.describe("four")
