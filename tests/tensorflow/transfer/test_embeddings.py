"""Pretrained word vectors: every format gives the same rows, and missing words are told and filled."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

WORDS = ["the", "Paris", "of", "new york", "zürich", "cat"]
VECTORS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
VOCABULARY = ["cat", "unheard", "zürich", "paris", "the"]


def text(header: bool = False) -> bytes:
    rows = [f"{word} {' '.join(map(repr, map(float, vector)))}" for word, vector in zip(WORDS, VECTORS, strict=True)]
    return ("\n".join([*(["6 4"] if header else []), *rows]) + "\n").encode()


def binary(newlines: bool = True) -> bytes:
    end = b"\n" if newlines else b""
    names = [word.replace(" ", "_").encode() for word in WORDS]
    rows = [name + b" " + vector.tobytes() + end for name, vector in zip(names, VECTORS, strict=True)]
    return b"6 4\n" + b"".join(rows)


FILES = {
    "glove.txt": text(),
    "fasttext.vec": text(header=True),
    "glove.txt.gz": gzip.compress(text()),
    "word2vec.bin": binary(),
    "plain.bin": binary(newlines=False),
    "word2vec.bin.gz": gzip.compress(binary()),
}


@pytest.mark.parametrize("name", FILES)
def test_each_format_gives_the_vectors_of_the_vocabulary(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = mox.PretrainedEmbedding(tmp_path / name, VOCABULARY, missing="zeros", buckets=1)
    assert found.shape == [6, 4]
    expected = [VECTORS[5], np.zeros(4), VECTORS[4], np.zeros(4), VECTORS[0], np.zeros(4)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.missing == ("unheard", "paris")
    assert found.report == f"{tmp_path / name}: 3 of 5 words (60.0 %); missing: unheard, paris"


def test_arrays_with_words_of_their_own_or_of_the_vocabulary(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VECTORS.astype(np.float64))
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    found = mox.PretrainedEmbedding(tmp_path / "a.npy", VOCABULARY, words=str(tmp_path / "words.txt"), missing="mean")
    np.testing.assert_allclose(found.values[0], VECTORS[5])
    np.testing.assert_allclose(found.values[1], VECTORS[[5, 4, 0]].mean(0), rtol=1e-6)
    np.testing.assert_allclose(mox.PretrainedEmbedding(tmp_path / "a.npy", WORDS).values, VECTORS)
    with pytest.raises(DataError, match="has 6 rows, and there are 5 words"):
        _ = mox.PretrainedEmbedding(tmp_path / "a.npy", VOCABULARY).values


def test_lower_case_and_words_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text())
    found = mox.PretrainedEmbedding(path, ["THE", "Paris", "new york", "paris"], lowercase=True, missing="zeros")
    np.testing.assert_allclose(found.values, [VECTORS[0], VECTORS[1], VECTORS[3], np.zeros(4)], rtol=1e-6)


def test_missing_words_are_drawn_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text())
    found = mox.PretrainedEmbedding(path, [*WORDS, *map(str, range(4000))])
    drawn = found.values[6:]
    np.testing.assert_allclose(drawn.mean(0), VECTORS.mean(0), atol=0.1)
    np.testing.assert_allclose(drawn.std(0), VECTORS.std(0), rtol=0.1)
    again = mox.PretrainedEmbedding(path, [*WORDS, *map(str, range(4000))])
    np.testing.assert_array_equal(found.values, again.values)
    assert "missing: 0, 1, 2, 3, 4, 5, 6, 7 and 3,992 more" in found.report


@pytest.mark.parametrize("partitions", [0, 2])
def test_a_training_begins_with_them_and_keeps_its_graph_small(
    train: Any, variable: Any, tmp_path: Path, partitions: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text())
    graphs: list[int] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        found = mox.PretrainedEmbedding(path, VOCABULARY, missing="zeros")
        part = tf1.fixed_size_partitioner(partitions) if partitions else None
        table = tf1.get_variable("table", found.shape, initializer=found, trainable=False, partitioner=part)
        w = tf1.get_variable("w", [4])
        graphs.append(VECTORS.tobytes()[:64] in tf1.get_default_graph().as_graph_def().SerializeToString())
        return mox.ModelSpec(loss=tf.reduce_sum(tf1.nn.embedding_lookup(table, [0]) * w))

    result = train(model_fn=model_fn, log_dir=str(tmp_path / "run"), max_number_of_steps=2)
    expected = [VECTORS[5], np.zeros(4), VECTORS[4], np.zeros(4), VECTORS[0]]
    np.testing.assert_allclose(variable(result.checkpoint, "table"), expected, rtol=1e-6)
    assert not any(graphs)
    path.unlink()  # not needed where a checkpoint has the values
    path.write_text("cat 1 1 1 1\n")
    result = train(model_fn=model_fn, log_dir=str(tmp_path / "run"), max_number_of_steps=3)
    np.testing.assert_allclose(variable(result.checkpoint, "table"), expected, rtol=1e-6)


def test_outside_of_a_run_it_is_an_initializer_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text())
    with tf1.Graph().as_default(), tf1.Session() as session:
        found = mox.PretrainedEmbedding(path, WORDS)
        table = tf1.get_variable("table", found.shape, tf.float16, initializer=found)
        session.run(table.initializer)
        np.testing.assert_allclose(session.run(table), VECTORS, rtol=1e-3)
        with pytest.raises(UsageError, match=r"the variable has the shape \[5, 4\], .* gives \[6, 4\]"):
            tf1.get_variable("other", [5, 4], initializer=found)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"the 1 2\ncat 1 2 3\n", "a.txt:2: expected 2 numbers"),
        ("a.txt", b"the 1 2\ncat 1 x\n", "a.txt:2: expected 2 numbers"),
        ("a.txt", b"the 1 nan\ncat 1 nan\n", "the vector of 'the' has numbers that are not finite"),
        ("a.txt", b"dog 1 2\n", "has none of the 5 words"),
        ("a.txt", b"", "a.txt:1: expected a word"),
        ("a.bin", binary()[:-20], "ends in the middle"),
        ("a.bin", b"cat 1 2\n", "does not begin with a count"),
        ("a.npy", b"cat 1 2\n", "cannot be read as an array"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        _ = mox.PretrainedEmbedding(tmp_path / name, VOCABULARY).values


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    for options, told in (
        ({"missing": "ones"}, "missing='ones'"),
        ({"buckets": -1}, "buckets=-1"),
        ({"words": ["a"]}, "words is for .npy"),
    ):
        with pytest.raises(UsageError, match=told):
            mox.PretrainedEmbedding(tmp_path / "a.txt", VOCABULARY, **options)
