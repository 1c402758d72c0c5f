"""Variables: listed, read and summed up, from wherever they lie."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moxserve.errors import CheckpointError, DataError, UsageError
from moxserve.inspect.detect import detect
from moxserve.inspect.stores import CheckpointStore, checkpoint_prefix, open_store, picked, statistics


def test_a_checkpoint_is_listed_as_tensorflow_lists_it(trained) -> None:
    import tensorflow as tf

    store = CheckpointStore(trained.prefix)
    assert [(e.name, list(e.shape)) for e in store.entries] == sorted(tf.train.list_variables(trained.prefix))
    dtypes = {entry.name: entry.dtype for entry in store.entries}
    assert (dtypes["global_step"], dtypes["words"], dtypes["net/dense"]) == ("int64", "string", "float32")
    assert store.problems() == []


def test_a_partitioned_variable_is_one(trained) -> None:
    store = CheckpointStore(trained.prefix)
    (entry,) = picked(store.entries, ["net/wide"])
    assert (entry.shape, entry.parameters, entry.size_bytes) == ((6, 4), 24, 96)
    assert np.array_equal(store.read(entry), trained.values["net/wide"])


def test_values_are_those_of_the_training(trained) -> None:
    store = CheckpointStore(trained.prefix)
    for entry in store.entries:
        if "part_" not in entry.name and entry.name in trained.values:
            assert np.array_equal(store.read(entry), trained.values[entry.name]), entry.name


def test_a_checkpoint_of_tensorflow_2_tells_names(saved_v2: Path) -> None:
    store = open_store(detect(saved_v2))
    found = {entry.name: entry.key for entry in store.entries}
    assert found["factor"] == "factor/.ATTRIBUTES/VARIABLE_VALUE"
    (entry,) = picked(store.entries, ["shift"])
    assert store.read(entry) == 1.5
    assert not any("OBJECT_GRAPH" in name for name in found)


def test_names_are_picked_by_pattern(trained) -> None:
    entries = CheckpointStore(trained.prefix).entries
    assert [e.name for e in picked(entries, ["net/*/Momentum", "global_*"])] == [
        "global_step", "net/bias/Momentum", "net/dense/Momentum", "net/wide/Momentum",
    ]  # fmt: skip
    assert picked(entries, ["nothing*"]) == []
    with pytest.raises(UsageError, match="no variable is called 'net/dens'; did you mean 'net/dense'"):
        picked(entries, ["net/dens"])


def test_constants_of_a_frozen_graph(frozen: Path) -> None:
    store = open_store(detect(frozen))
    assert [(e.name, e.shape) for e in store.entries] == [("weights", (40, 40))]
    assert np.array_equal(store.read(store.entries[0]), np.arange(1600, dtype=np.float32).reshape(40, 40))


def test_an_npz_file(tmp_path: Path) -> None:
    values = {"net/w:0": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.array([b"x", b"yy"])}
    np.savez_compressed(tmp_path / "w.npz", **values, half=np.ones(2, ml_dtypes.bfloat16))
    store = open_store(detect(tmp_path / "w.npz"))
    listed = [(e.name, e.dtype, e.shape) for e in store.entries]
    assert listed == [("b", "string", (2,)), ("half", "bfloat16", (2,)), ("net/w", "int16", (2, 3))]
    assert np.array_equal(store.read(store.entries[2]), values["net/w:0"])
    assert store.read(store.entries[1]).astype(np.float32).tolist() == [1, 1]


def test_python_objects_in_an_npz_file_are_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "w.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="holds Python objects"):
        open_store(detect(tmp_path / "w.npz"))
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="no npz file, or damaged"):
        open_store(detect(tmp_path / "p.npz"))
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.arange(1000))
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[:1500])
    with pytest.raises(DataError, match=r"w\.npz is no npz file, or damaged"):
        open_store(detect(tmp_path / "w.npz"))
    (tmp_path / "w.npz").write_bytes(whole.replace(b"\x05\0\0\0\0\0\0\0\x06", b"\xff\0\0\0\0\0\0\0\x06"))
    store = open_store(detect(tmp_path / "w.npz"))
    with pytest.raises(DataError, match="'a' cannot be read"):
        store.read(store.entries[0])


def copied(trained, folder: Path) -> str:
    for path in Path(trained.prefix).parent.iterdir():
        shutil.copy(path, folder)
    return str(folder / Path(trained.prefix).name)


def test_a_truncated_checkpoint_is_told_before_any_value_is_read(trained, tmp_path: Path) -> None:
    prefix = copied(trained, tmp_path)
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:100])
    store = CheckpointStore(prefix)
    (problem,) = store.problems()
    assert "the data files hold 100 bytes" in problem
    (entry,) = picked(store.entries, ["words"])
    with pytest.raises(CheckpointError, match="the value of 'words' cannot be read"):
        store.read(entry)
    data.unlink()
    assert "the values are missing" in CheckpointStore(prefix).problems()[0]


def test_a_damaged_index(trained, tmp_path: Path) -> None:
    prefix = copied(trained, tmp_path)
    Path(f"{prefix}.index").write_bytes(b"x" * 200)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        CheckpointStore(prefix)
    assert "model.ckpt-1.data-00000-of-00001" in (caught.value.hint or "")


def test_a_folder_gives_its_newest_checkpoint(trained) -> None:
    subject = detect(Path(trained.prefix).parent)
    assert checkpoint_prefix(subject) == trained.prefix
    assert "the newest checkpoint there" in subject.notes[0]


def test_what_has_no_variables(tfserving: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this SavedModel has no variables"):
        checkpoint_prefix(detect(tfserving / "matrix_half_plus_two" / "1"))
    with pytest.raises(UsageError, match="holds no SavedModel"):
        checkpoint_prefix(detect(tfserving / "saved_model_half_plus_two_tflite"))


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays(np.float32, st.integers(1, 40), elements=floats))
def test_statistics_are_numpys(value: np.ndarray) -> None:
    found = statistics(value)
    finite = value[np.isfinite(value)].astype(np.float64)
    assert found.not_finite == value.size - finite.size
    assert found.zeros == np.mean(value == 0)
    if finite.size:
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())
        assert found.mean == pytest.approx(finite.mean())
        assert found.std == pytest.approx(finite.std())
    else:
        assert found.minimum is None


def test_statistics_of_other_kinds() -> None:
    assert statistics(np.array([True, False, False])).zeros == pytest.approx(2 / 3)
    assert statistics(np.array([3 + 4j])).maximum == 5
    assert statistics(np.array([1, 2], ml_dtypes.bfloat16)).mean == 1.5
    assert statistics(np.array([b"a"], dtype=object)).mean is None
    assert statistics(np.zeros((0, 3), np.float32)).mean is None
