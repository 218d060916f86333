"""Which examples a run trains on, chooses its checkpoint by, and is tested on."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import numpy as np
import pytest

from jaxaccel.data import from_arrays
from jaxaccel.data.data_sets import open_splits
from jaxaccel.data.examples import read_elements
from jaxaccel.data.order import Sequential
from jaxaccel.errors import UserError
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.resident import load
from jaxaccel.training.stream import Batches


def numbers(source):
    """The examples of a split, told apart by their first pixels."""
    return [e["image"].ravel()[:64].tobytes() for e in source.__getitems__(range(len(source)))]


def arrays(count=100, first=0):
    """Pictures that hold their own number."""
    image = np.zeros((count, 4, 4), np.uint8)
    image[:, 0, 0] = np.arange(first, first + count)
    return {"image": image, "label": np.arange(count) % 5}


def test_a_share_of_the_training_split_is_set_aside():
    whole, split = open_splits("digits"), open_splits("digits", validation=0.1)
    assert (len(whole.train), len(whole.evaluation), whole.test) == (1347, 450, None)
    assert (len(split.train), len(split.evaluation), len(split.test)) == (1212, 135, 450)
    train, evaluation = split.train.positions, split.evaluation.positions
    assert sorted([*train, *evaluation]) == list(range(1347)) and (np.diff(train) > 0).all()
    assert numbers(split.train)[7] == numbers(whole.train)[train[7]]
    assert numbers(split.test) == numbers(whole.evaluation)
    assert split.train.features["label"].num_classes == 10
    # Part of what a run means: never to change.
    assert evaluation[:8].tolist() == [4, 93, 94, 96, 97, 98, 114, 122]


def test_the_choice_depends_on_the_number_of_examples_alone():
    one, other = (open_splits(from_arrays(arrays(100, first)), validation=0.25) for first in (0, 100))
    np.testing.assert_array_equal(one.evaluation.positions, other.evaluation.positions)
    assert len(one.evaluation) == 20 and len(one.test) == 20


def test_a_split_called_validation_is_one():
    name = from_arrays(arrays(50), validation=arrays(20, 50), test=arrays(30, 70))
    splits = open_splits(name)
    assert [source.split for source in (splits.train, *splits.held_out)] == ["train", "validation", "test"]
    share = open_splits(name, validation=0.2)
    assert (len(share.train), len(share.evaluation), len(share.test)) == (40, 10, 30)
    both = open_splits(name, train="train+validation")
    assert (len(both.train), both.evaluation.split, both.test) == (70, "test", None)
    chosen = open_splits(name, evaluation="validation")
    assert (chosen.evaluation.split, chosen.test) == ("validation", None)


def test_without_a_test_split():
    splits = open_splits(from_arrays(arrays(50), validation=arrays(20)))
    assert (splits.evaluation.split, splits.test) == ("validation", None)


@pytest.mark.parametrize("share", [1.0, 0.9999, 1e-6, -0.5, 2.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(UserError, match=r"data.validation must leave examples on both sides") as error:
        open_splits("digits", validation=share)
    assert "--data.validation" in error.value.as_flags()


class Wrong:
    """A split whose sixth label is none of its ten classes."""

    name, split = "mine", "train"

    def __init__(self, label):
        import tensorflow_datasets as tfds

        self.label = label
        labels = tfds.features.ClassLabel(num_classes=10)
        self.features = {
            "image": tfds.features.Image(shape=(2, 2, 1)),
            "label": labels,
        }

    def __len__(self):
        return 8

    def __getitem__(self, i):
        label = np.array(self.label if i == 5 else 3, np.int64)
        return {
            "image": np.zeros((2, 2, 1), np.uint8),
            "label": label,
            "id": np.array(f"{i}.png".encode(), object),
        }

    def __getitems__(self, indices):
        return [self[i] for i in indices]


@pytest.mark.parametrize("label", [-1, 10, 99, 2**32 + 1])
def test_labels_out_of_range_are_refused_with_their_example(label):
    source, element = Wrong(label), ImageClassification().element
    says = rf"example 5 \(5.png\) of 'train' of data set 'mine' has label {label}, and there are 10 classes, 0 to 9"
    with pytest.raises(UserError, match=says):
        load(source, element)
    batches = Batches(source, element, Sequential(8, 4), range(2))
    batches[0]
    with pytest.raises(UserError, match=says):
        batches[1]


def test_labels_that_nobody_asks_for_may_be_missing():
    read_elements(Wrong(-1), lambda example: {"image": example["image"]}, range(8))


def test_right_labels_pass():
    assert load(Wrong(9), ImageClassification().element)["label"].tolist() == [3, 3, 3, 3, 3, 9, 3, 3]
