"""Which output is compared with the labels, and when none is."""

from __future__ import annotations

import numpy as np
import pytest

from moxserve.predict import Accuracy
from moxserve.predict.readers import Label


def strings(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    ("outputs", "label", "right", "how"),
    [
        ({"classes": np.array(2), "logits": np.ones(3)}, Label("c", 2), 1, "output 'classes'"),
        ({"classes": np.array(1)}, Label("c", 2), 0, "output 'classes'"),
        ({"classes": strings(b"c")[0:1]}, Label("c", 2), 1, "output 'classes'"),
        ({"classes": strings(b"7")}, Label(index=7), 1, "output 'classes'"),
        ({"classes": strings(b"a", b"b", b"c"), "scores": np.array([0.1, 0.7, 0.2])}, Label("b", 1), 1, "best-scored"),
        ({"probabilities": np.array([0.1, 0.7, 0.2]), "other": np.ones(2)}, Label("b", 1), 1, "'probabilities'"),
        ({"logits": np.array([0.1, 0.7, 0.2])}, Label("2"), 0, "'logits'"),
        ({"dense_1": np.array([0.1, 0.7, 0.2], np.float32)}, Label("b", 1), 1, "'dense_1'"),
        ({"class_id": np.array(4)}, Label(index=4), 1, "'class_id'"),
    ],
)
def test_choice(outputs, label, right, how) -> None:
    accuracy = Accuracy()
    accuracy.add(outputs, label)
    assert (accuracy.right, accuracy.total) == (right, 1)
    assert how in accuracy.how


@pytest.mark.parametrize(
    ("outputs", "how"),
    [
        ({"a": np.ones(3), "b": np.ones(3)}, "no output tells the class; there are a, b"),
        ({"embedding": np.ones((3, 4))}, "no output tells the class"),
        ({"classes": np.ones((3, 4))}, r"output 'classes' has shape [3, 4] a row"),
    ],
)
def test_no_choice(outputs, how) -> None:
    accuracy = Accuracy()
    accuracy.add(outputs, Label("a", 0))
    assert accuracy.value is None
    assert how in accuracy.how


def test_sorted_folders_say_nothing_about_a_model_with_more_classes() -> None:
    accuracy = Accuracy(classes=["3", "7"])
    accuracy.add({"classes": np.array(7), "logits": np.ones(10)}, Label("7", 1))
    assert accuracy.value is None
    assert accuracy.how == "2 class folders for a model with 10 classes: a labels.txt must tell their numbers"
    listed = Accuracy(classes=["3", "7"], classes_listed=True)
    listed.add({"classes": np.array(1), "logits": np.ones(10)}, Label("7", 1))
    assert listed.value == 1.0


def test_rows_without_label_are_left_out() -> None:
    accuracy = Accuracy()
    accuracy.add({"classes": np.array(1)}, None)
    assert (accuracy.value, accuracy.how) == (None, "no labels")


def test_names_against_numbers_are_told() -> None:
    accuracy = Accuracy()
    accuracy.add({"classes": np.array(1)}, Label("no"))
    assert accuracy.value is None
    assert accuracy.how == "labels are names, such as 'no', and the model answers with numbers of classes"
