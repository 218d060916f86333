import numpy as np
import pytest

from jaxaccel.deployment.signature import Signature, TensorSpec
from jaxaccel.errors import UserError

IMAGES = TensorSpec("image", "uint8", (None, 8, 8, 1))
LENGTHS = TensorSpec("length", "int32", (None,))
SIGNATURE = Signature((IMAGES, LENGTHS), (TensorSpec("logits", "float32", (None, 10)),))


def arrays(count=3, **changed):
    return {"image": np.zeros((count, 8, 8, 1), np.uint8), "length": np.zeros(count, np.int32)} | changed


def test_a_signature_survives_json():
    assert Signature.from_json(SIGNATURE.as_json()) == SIGNATURE


def test_examples_are_counted():
    assert SIGNATURE.check_inputs(arrays(3)) == 3


@pytest.mark.parametrize(
    "wrong, says",
    [
        (arrays(image=np.zeros((3, 8, 8, 1))), "image must be uint8 (?, 8, 8, 1), not float64 (3, 8, 8, 1)"),
        (arrays(image=np.zeros((3, 9, 8, 1), np.uint8)), "not uint8 (3, 9, 8, 1)"),
        (arrays(length=np.zeros((), np.int32)), "length must be int32 (?,), not int32 ()"),
        (arrays(length=np.zeros(2, np.int32)), "differ in their numbers of examples: [2, 3]"),
        (arrays(more=np.zeros(3)), "the model takes image, length, and got image, length, more"),
        ({"image": np.zeros((3, 8, 8, 1), np.uint8)}, "the model takes image, length, and got image"),
        ({}, "and got nothing"),
    ],
)
def test_what_is_no_input_is_refused(wrong, says):
    with pytest.raises(UserError) as raised:
        SIGNATURE.check_inputs(wrong)
    assert says in str(raised.value)
