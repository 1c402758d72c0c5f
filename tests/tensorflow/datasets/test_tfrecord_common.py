"""TFRecord data sets: files, counts, orders, shards, resuming, caches, damage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import DataError, UsageError
from moxserve.file import MoxFileNotExistsException
from moxserve.protocol.examples import make_example
from moxserve.protocol.tfrecord import write_records
from moxserve.protocol.tfrecord_index import SIDECAR
from moxserve.tensorflow.datasets import tfrecord_common
from moxserve.tensorflow.datasets.base import INPUT_POSITIONS
from moxserve.tensorflow.datasets.tfrecord_common import (
    BaseTFRecordDataset,
    BaseTFRecordMetadata,
    ImageClassificationTFRecordMetadata,
)
from moxserve.tensorflow.executor.env import tf, tf1

FILES, RECORDS = 4, 25
SPEC = (["x"], [tf.io.FixedLenFeature([], tf.int64)])


def numbers(first: int, count: int) -> list[bytes]:
    return [make_example({"x": [first + i]}).SerializeToString() for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files with the numbers 0 to 99."""
    out = tmp_path / "data"
    out.mkdir()
    for part in range(FILES):
        write_records(out / f"train-{part}.tfrecord", numbers(part * RECORDS, RECORDS))
    write_records(out / "eval-0.tfrecord", numbers(1000, 3))
    return out


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """The same, compressed with gzip and zlib in turn."""
    out = tmp_path / "compressed"
    out.mkdir()
    for part in range(FILES):
        options = tf.io.TFRecordOptions(compression_type="ZLIB" if part % 2 else "GZIP")
        with tf.io.TFRecordWriter(str(out / f"train-{part}.tfrecord"), options) as writer:
            for record in numbers(part * RECORDS, RECORDS):
                writer.write(record)
    return out


def values(dataset: Any, count: int | None = None, item: str = "x", position: int | None = None) -> list[Any]:
    """Read a data set's item in the current graph, to its end or `count` times."""
    iterator = tf1.data.make_initializable_iterator(dataset.to_tf_data([item]))
    (following,) = iterator.get_next()
    fed = tf1.get_collection(INPUT_POSITIONS)
    found: list[Any] = []
    with tf1.Session() as session:
        session.run(iterator.initializer, {} if position is None else {fed[-1]: position})
        try:
            while count is None or len(found) < count:
                found.append(session.run(following).tolist())
        except tf.errors.OutOfRangeError:
            pass
    return found


def read(where: Path, count: int | None = None, **options: Any) -> list[Any]:
    with tf1.Graph().as_default():
        metadata = BaseTFRecordMetadata(where, "train-*")
        dataset = BaseTFRecordDataset(metadata, *SPEC, **{"seed": 1, "num_epochs": 1, **options})
        return values(dataset, count)


# -- metadata


def test_files_and_number_of_records(folder: Path, console: Any) -> None:
    metadata = BaseTFRecordMetadata(str(folder), "train-*.tfrecord")
    assert metadata.file_list == [str(folder / f"train-{part}.tfrecord") for part in range(FILES)]
    assert "INFO:tensorflow:Find tfrecord files. Using tfrecord files in this job." in console.lines
    assert "Automatically" not in console.text
    assert metadata.num_samples == metadata.total_num_samples == 100
    assert (
        "INFO:tensorflow:Automatically extracting num_samples from tfrecord. If the dataset is large, it may take some "
        "time. You can also manually specify the num_samples to Dataset to save time."
    ) in console.lines
    console.lines.clear()
    assert BaseTFRecordMetadata(str(folder), "train-*").num_samples == 100
    assert "Automatically" not in console.text, "what was counted is known the next time"


def test_patterns(folder: Path) -> None:
    names = lambda *a, **k: [os.path.basename(p) for p in BaseTFRecordMetadata(folder, *a, **k).file_list]  # noqa: E731
    assert names(["eval-*", "train-[01].*", "eval-0.tfrecord"]) == [
        "eval-0.tfrecord",
        "train-0.tfrecord",
        "train-1.tfrecord",
    ]
    assert names(file_patterns="*eval*.tfrecord") == ["eval-0.tfrecord"]
    assert names(str(folder / "train-2*")) == ["train-2.tfrecord"]
    BaseTFRecordMetadata(folder, "*").num_samples  # noqa: B018 - leaves the sidecar, which is no record file
    assert (folder / SIDECAR).exists()
    assert len(names("*")) == FILES + 1


def test_what_cannot_be_found_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"matches 'trian-\*'; known: eval-0.tfrecord, train-0"):
        BaseTFRecordMetadata(folder, "trian-*")
    with pytest.raises(DataError, match="there is no folder"):
        BaseTFRecordMetadata(tmp_path / "absent", "*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it has no files"):
        BaseTFRecordMetadata(tmp_path / "empty", "*")
    with pytest.raises(UsageError, match="one of file_pattern and file_patterns"):
        BaseTFRecordMetadata(folder)
    with pytest.raises(UsageError, match="one of file_pattern and file_patterns"):
        BaseTFRecordMetadata(folder, "*", file_patterns="*")
    with pytest.raises(UsageError, match="num_samples=-1"):
        BaseTFRecordMetadata(folder, "*", num_samples=-1)


def test_a_number_that_is_given_is_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord_common, "scan_files", None)
    assert BaseTFRecordMetadata(folder, "train-*", num_samples=7).num_samples == 7


def test_compressed_files_are_counted(compressed: Path) -> None:
    assert BaseTFRecordMetadata(compressed, "*").num_samples == 100


def test_files_are_read_from_copies_of_the_same_size(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "copies"
    other.mkdir()
    write_records(other / "train-0.tfrecord", numbers(500, RECORDS)[: RECORDS - 1])  # of another size
    size = (folder / "train-1.tfrecord").stat().st_size
    (other / "train-1.tfrecord").write_bytes((folder / "train-2.tfrecord").read_bytes()[:size])
    metadata = BaseTFRecordMetadata(folder, "train-*", redirect_dir=str(other))
    assert [Path(path).parent.name for path in metadata.file_list] == ["data", "copies", "data", "data"]
    with pytest.raises(DataError, match="redirect_dir: no such folder"):
        BaseTFRecordMetadata(folder, "train-*", redirect_dir=str(tmp_path / "absent"))


def test_a_damaged_file_is_told_when_it_is_counted(folder: Path) -> None:
    (folder / "train-3.tfrecord").write_bytes(b"no record at all, but long enough")
    with pytest.raises(DataError, match=r"train-3\.tfrecord: record 0 at byte 0 has a damaged header"):
        BaseTFRecordMetadata(folder, "train-*").num_samples  # noqa: B018


def test_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("0: cat\n1: dog\n")
    metadata = ImageClassificationTFRecordMetadata(base_dir=folder, file_patterns="*train*.tfrecord")
    assert metadata.labels_to_names == {0: "cat", 1: "dog"}
    assert (metadata.names_to_labels, metadata.labels_list, metadata.num_classes) == (
        {"cat": 0, "dog": 1},
        ["cat", "dog"],
        2,
    )
    assert ImageClassificationTFRecordMetadata(folder, "*", num_classes=5).num_classes == 5
    with pytest.raises(UsageError, match="num_classes=1"):
        ImageClassificationTFRecordMetadata(folder, "*", num_classes=1)
    other = ImageClassificationTFRecordMetadata(folder, "*", label_map_file="other.txt")
    assert (other.labels_to_names, other.num_classes) == ({}, 0)
    (folder / "labels.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"labels.txt:1"):
        ImageClassificationTFRecordMetadata(folder, "*")


# -- order


@pytest.mark.slow
def test_an_epoch_is_a_permutation_and_the_next_another(folder: Path) -> None:
    found = read(folder, num_epochs=3)
    epochs = [found[start : start + 100] for start in (0, 100, 200)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    # Not the order of the files seen through a window: the first ten come from all over.
    assert len({number // RECORDS for number in epochs[0][:10]}) > 2
    assert read(folder, seed=2) != epochs[0]


@pytest.mark.slow
@pytest.mark.parametrize("num_parallel", [1, 3, 16])
def test_the_order_does_not_depend_on_the_readers(folder: Path, compressed: Path, num_parallel: int) -> None:
    for where in (folder, compressed):
        assert read(where, num_parallel=num_parallel, num_epochs=2) == read(where, num_epochs=2)


@pytest.mark.slow
def test_private_threads_and_the_buffer_change_no_exact_order(folder: Path) -> None:
    assert read(folder, private_num_threads=2, shuffle_buffer_size=1) == read(folder)


@pytest.mark.slow
def test_without_shuffle_the_order_is_that_of_the_files(folder: Path, compressed: Path) -> None:
    for where in (folder, compressed):
        assert read(where, shuffle=False) == list(range(100))


def test_without_an_end(folder: Path) -> None:
    found = read(folder, 250, num_epochs=None)
    assert sorted(found[100:200]) == list(range(100))
    assert found[:100] == read(folder)


@pytest.mark.slow
def test_compressed_files_are_shuffled_through_the_buffer(compressed: Path) -> None:
    epochs = read(compressed, num_epochs=2)
    assert sorted(epochs[:100]) == sorted(epochs[100:]) == list(range(100))
    assert epochs[:100] != epochs[100:]
    assert epochs[:100] == read(compressed)
    near = read(compressed, shuffle_buffer_size=1)
    assert near != epochs[:100]
    assert sorted(near) == list(range(100))


def test_exact_shuffle_may_be_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord_common, "scan_files", None)
    assert sorted(read(folder, exact_shuffle=False)) == list(range(100))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "compressed"])
def test_shards_are_disjoint_and_leave_nothing_out(source: str, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue(source)
    parts = [read(where, shard=(worker, 3), num_epochs=2) for worker in range(3)]
    halves = [part[: len(part) // 2] for part in parts]
    assert sorted(number for half in halves for number in half) == list(range(100))
    assert sorted(number for part in parts for number in part) == sorted([*range(100), *range(100)])
    with pytest.raises(DataError, match="same seed"):
        read(where, shard=(0, 2), seed=None)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "compressed"])
@pytest.mark.parametrize("given", [0, 1, 60, 100, 130, 200])
def test_reading_goes_on_where_it_was(source: str, given: int, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue(source)
    whole = read(where, num_epochs=2)
    assert read(where, num_epochs=2, position=given) == whole[given:]
    with tf1.Graph().as_default():
        dataset = BaseTFRecordDataset(BaseTFRecordMetadata(where, "train-*"), *SPEC, num_epochs=2, seed=1)
        assert values(dataset, position=given) == whole[given:], "a run feeds the position"


@pytest.mark.slow
def test_batches(folder: Path) -> None:
    batches = read(folder, batch_size=30)
    assert [len(batch) for batch in batches] == [30, 30, 30, 10]
    assert [number for batch in batches for number in batch] == read(folder)
    assert [len(batch) for batch in read(folder, batch_size=30, drop_remainder=True)] == [30, 30, 30]
    with tf1.Graph().as_default():
        drop = tf.constant(True)
        dataset = BaseTFRecordDataset(
            BaseTFRecordMetadata(folder, "train-*"), *SPEC, batch_size=30, num_epochs=1, drop_remainder=drop
        )
        assert len(values(dataset)) == 3, "a tensor, as the document has it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parallel": 0}, "num_parallel=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"shuffle_buffer_size": 0}, "shuffle_buffer_size=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"private_num_threads": -1}, "private_num_threads=-1"),
        ({"position": -1}, "position=-1"),
        ({"on_bad_record": "ignore"}, "on_bad_record='ignore'"),
        ({"shard": (2, 2)}, "shard 2 of 2"),
    ],
)
def test_arguments_out_of_range(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message.replace("(", r"\(")):
        read(folder, **options)


def test_more_workers_than_records(folder: Path) -> None:
    with tf1.Graph().as_default(), pytest.raises(DataError, match="worker 3 of 4 has no record: there are 3 in all"):
        BaseTFRecordDataset(BaseTFRecordMetadata(folder, "eval-*"), *SPEC, seed=1, shard=(3, 4))


def test_files_without_records(tmp_path: Path) -> None:
    (tmp_path / "train-0").write_bytes(b"")
    with pytest.raises(DataError, match="no record"):
        read(tmp_path, num_epochs=None)
    with pytest.raises(tf.errors.OpError, match="no record can be read"):
        read(tmp_path, num_epochs=None, exact_shuffle=False)


# -- items


def test_features_that_a_subclass_builds(folder: Path) -> None:
    write_records(
        folder / "pairs.tfrecord", [make_example({"a": [0.5] * 4, "b": [i]}).SerializeToString() for i in range(3)]
    )

    class Pairs(BaseTFRecordDataset):
        def _build_features(self, a: Any, b: Any) -> None:
            self._add_feature("square", tf.reshape(a, [2, 2]))
            self._add_feature("double", b * 2)

    features = [tf1.FixedLenFeature((4,), tf.float32), tf1.FixedLenFeature([], tf.int64)]
    with tf1.Graph().as_default():
        metadata = ImageClassificationTFRecordMetadata(str(folder), "pairs*", num_samples=3, redirect_dir=None)
        dataset = Pairs(metadata, feature_keys=["a", "b"], feature_values=features, shuffle=False, num_epochs=1)
        assert (dataset.items, dataset.num_samples) == (("square", "double"), 3)
        square, double = dataset.get(["square", "double"])
        assert square.shape.as_list() == [2, 2]
        with tf1.Session() as session:
            assert [session.run([double, square])[0] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(UsageError, match="2 feature keys and 1 feature values"), tf1.Graph().as_default():
        BaseTFRecordDataset(metadata, ["a", "b"], features[:1])
    with pytest.raises(UsageError, match="twice"), tf1.Graph().as_default():
        BaseTFRecordDataset(metadata, ["a", "a"], features)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ("a", [tf.io.FixedLenFeature([], tf.int64)], "expected a list of each"),
        (["a", "b", "c"], tf.io.FixedLenFeature([], tf.int64), "expected a list of each"),
        (["a"], [tf.int64], "feature 'a' is tf.int64: expected a tf.io.FixedLenFeature, "),
    ],
)
def test_what_is_no_feature(folder: Path, keys: Any, values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), tf1.Graph().as_default():
        BaseTFRecordDataset(BaseTFRecordMetadata(folder, "train-*"), keys, values)


def test_everyone_else_gets_a_tf_data_dataset(folder: Path, eager: None) -> None:
    dataset = BaseTFRecordDataset(BaseTFRecordMetadata(folder, "train-*"), *SPEC, num_epochs=1, batch_size=50, seed=1)
    first, second = [batch["x"].numpy().tolist() for batch in dataset.to_tf_data()]
    assert sorted(first + second) == list(range(100))
    assert int(tf.data.experimental.cardinality(dataset.to_tf_data())) == 2


def test_a_record_that_lacks_a_feature_is_an_error(folder: Path) -> None:
    with tf1.Graph().as_default():
        dataset = BaseTFRecordDataset(BaseTFRecordMetadata(folder, "train-*"), ["y"], SPEC[1])
        with pytest.raises(tf.errors.InvalidArgumentError, match="y"):
            values(dataset, 1, "y")


# -- damage


def damage(path: Path, record: int) -> None:
    """Change a byte of a record's payload."""
    data = bytearray(path.read_bytes())
    size = len(data) // RECORDS
    data[record * size + 12 + 2] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_record_is_an_error_that_names_it(folder: Path) -> None:
    write_records(folder / "train-1.tfrecord", numbers(30, RECORDS))  # of one length each
    damage(folder / "train-1.tfrecord", 7)
    with pytest.raises(tf.errors.OpError, match=r"train-1\.tfrecord: record 7 at byte \d+ is damaged"):
        read(folder)


@pytest.mark.parametrize("exact", [True, False])
def test_or_is_skipped_with_a_warning(folder: Path, exact: bool, caplog: pytest.LogCaptureFixture) -> None:
    write_records(folder / "train-1.tfrecord", numbers(30, RECORDS))
    damage(folder / "train-1.tfrecord", 7)
    found = read(folder, on_bad_record="skip", exact_shuffle=exact, num_epochs=2)
    expected = [*range(25), *range(30, 55), *range(50, 100)]
    expected.remove(37)
    assert sorted(found) == sorted(expected * 2)
    assert [r.message for r in caplog.records if "train-1.tfrecord: record 7" in r.message and "skipped" in r.message][
        1:
    ]


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = (folder / "train-3.tfrecord").read_bytes()
    (folder / "train-3.tfrecord").write_bytes(data[:-3])
    with pytest.raises(DataError, match=r"record 24 at byte \d+ is cut off"):
        read(folder)
    assert sorted(read(folder, on_bad_record="skip")) == list(range(99))
    assert "record 24" in caplog.text


def test_nobody_waits_for_a_record_that_never_comes(tmp_path: Path) -> None:
    write_records(tmp_path / "train-0", numbers(0, RECORDS))
    for record in range(RECORDS):
        damage(tmp_path / "train-0", record)
    with pytest.raises(tf.errors.OpError, match="every record of an epoch is damaged"):
        read(tmp_path, num_epochs=None, on_bad_record="skip")


# -- cache


@pytest.mark.slow
def test_compressed_files_in_the_cache_are_shuffled_exactly(folder: Path, compressed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert read(compressed, cache_dir=str(cache)) == read(folder)
    copies = sorted(os.listdir(cache / "tfrecords"))
    assert len([name for name in copies if name.endswith(".tfrecord")]) == FILES
    stamps = [os.stat(cache / "tfrecords" / name).st_mtime_ns for name in copies if name.endswith(".tfrecord")]
    assert read(compressed, cache_dir=str(cache)) == read(folder)
    assert [os.stat(cache / "tfrecords" / n).st_mtime_ns for n in copies if n.endswith(".tfrecord")] == stamps
    # A source that has changed is copied anew.
    write_records(compressed / "train-0.tfrecord", numbers(200, 1))
    assert sorted(read(compressed, cache_dir=str(cache))) == [*range(25, 100), 200]


def test_the_cache_of_the_environment(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLS_LOCAL_CACHE_PATH", raising=False)
    with pytest.raises(UsageError, match="DLS_LOCAL_CACHE_PATH is not set"):
        read(folder, cache_dir="ENV")
    monkeypatch.setenv("DLS_LOCAL_CACHE_PATH", str(tmp_path / "env"))
    assert sorted(read(folder, cache_dir="ENV")) == list(range(100))
    assert (tmp_path / "env" / "tfrecords").is_dir()
    with pytest.raises(UsageError, match="expected a local folder"):
        read(folder, cache_dir="s3://bucket/cache")


_CHILD = """
import sys
from moxserve.tensorflow.datasets.tfrecord_files import RecordSource, cached_copies
import os
path, cache, remove, wait = sys.argv[1], sys.argv[2], sys.argv[3] == "True", len(sys.argv) > 4
cached_copies([RecordSource(path, os.path.getsize(path))], cache, remove, 2)
sys.stdout.write("ready\\n"); sys.stdout.flush()
if wait: sys.stdin.readline()
"""


@pytest.fixture
def child() -> Callable[..., subprocess.Popen[str]]:
    def start(*args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _CHILD, *map(str, args)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_copies_go_with_the_last_process_that_uses_them(folder: Path, tmp_path: Path, child: Any) -> None:
    path, cache = folder / "train-0.tfrecord", tmp_path / "cache"
    copies = lambda: [n for n in os.listdir(cache / "tfrecords") if n.endswith(".tfrecord")]  # noqa: E731
    first, second = child(path, cache, True, "wait"), child(path, cache, True, "wait")
    assert first.stdout.readline() == second.stdout.readline() == "ready\n"
    first.communicate("\n", timeout=240)
    assert len(copies()) == 1, "the other one still reads"
    second.communicate("\n", timeout=240)
    assert not (cache / "tfrecords").exists()
    child(path, cache, False).communicate(timeout=240)
    assert len(copies()) == 1
    killed = child(path, cache, True, "wait")
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    assert len(copies()) == 1, "nobody can tidy up after kill -9; the next run uses the copies, and then does"
    (cache / "tfrecords" / "mine.txt").write_text("not ours")
    child(path, cache, True).communicate(timeout=240)
    assert os.listdir(cache / "tfrecords") == ["mine.txt"]


def test_a_half_written_copy_is_never_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moxserve.tensorflow.datasets import tfrecord_files

    def torn(source: Any, out: Any, size: int) -> None:
        out.write(source.read(40))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord_files.shutil, "copyfileobj", torn)
        with pytest.raises(DataError, match="No space left"):
            read(folder, cache_dir=str(tmp_path / "cache"))
    assert not [n for n in os.listdir(tmp_path / "cache" / "tfrecords") if n.endswith(".tfrecord")]
    assert sorted(read(folder, cache_dir=str(tmp_path / "cache"))) == list(range(100))


# -- in a run


def run_seen(folder: Path, steps: int, log_dir: Path | None, **options: Any) -> list[int]:
    """Train some steps on the numbers; tell which were seen."""
    seen: list[int] = []

    class Watch(tf1.train.SessionRunHook):
        def before_run(self, context: Any) -> Any:
            return tf1.train.SessionRunArgs(tf1.get_default_graph().get_tensor_by_name("seen:0"))

        def after_run(self, context: Any, values: Any) -> None:
            seen.extend(values.results.tolist())

    def input_fn(mode: str, **kwargs: Any) -> Any:
        return BaseTFRecordDataset(BaseTFRecordMetadata(folder, "train-*"), *SPEC, seed=5, **options).get(["x"])

    def model_fn(inputs: list[Any], mode: str, **kwargs: Any) -> mox.ModelSpec:
        x = tf.identity(inputs[0], "seen") if not tf1.get_default_graph().get_name_scope() else inputs[0]
        w = tf1.get_variable("w", [], initializer=tf1.zeros_initializer())
        return mox.ModelSpec(loss=w * tf.reduce_mean(tf.cast(x, tf.float32)), hooks=[Watch()])

    mox.run(
        input_fn=input_fn,
        model_fn=model_fn,
        optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=0.0),
        run_mode=mox.ModeKeys.TRAIN,
        batch_size=10,
        max_number_of_steps=steps,
        log_dir=None if log_dir is None else str(log_dir),
    )
    return seen


@pytest.mark.slow
def test_a_run_goes_on_with_the_records_that_it_has_not_seen(folder: Path, tmp_path: Path) -> None:
    whole = run_seen(folder, 25, None)
    assert sorted(whole[:100]) == list(range(100))
    first = run_seen(folder, 12, tmp_path / "log")
    second = run_seen(folder, 25, tmp_path / "log")
    assert first + second == whole


def test_a_run_ends_with_the_error_itself(folder: Path) -> None:
    write_records(folder / "train-1.tfrecord", numbers(30, RECORDS))
    damage(folder / "train-1.tfrecord", 7)
    with pytest.raises(DataError, match=r"train-1\.tfrecord: record 7 at byte \d+ is damaged"):
        run_seen(folder, 25, None)


def asked_bytes() -> int:
    """How many bytes this process has read so far, wherever they were."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


def test_scanning_reads_no_payload(tmp_path: Path) -> None:
    """A file with holes in place of payloads: only a scan by length fields can be quick, and right."""
    import struct

    from moxserve.protocol.tfrecord import masked_crc

    length = struct.pack("<Q", 1 << 30)
    with open(tmp_path / "train-0", "wb") as out:
        for _ in range(20):
            out.write(length + struct.pack("<I", masked_crc(length)))
            out.seek((1 << 30) + 4, os.SEEK_CUR)
        out.truncate()
    before = asked_bytes()
    assert BaseTFRecordMetadata(tmp_path, "*").num_samples == 20
    assert asked_bytes() - before < 1 << 30, "20 GB are not read"


def test_missing_file_after_listing(folder: Path) -> None:
    metadata = BaseTFRecordMetadata(folder, "train-*")
    os.remove(folder / "train-1.tfrecord")
    with pytest.raises(MoxFileNotExistsException, match=r"train-1"):
        metadata.num_samples  # noqa: B018


def test_numpy_integers_are_integers(folder: Path) -> None:
    assert len(read(folder, batch_size=np.int64(50))) == 2


# -- in a bucket


@pytest.fixture
def bucket(store: Any, folder: Path) -> str:
    """The files in a bucket, which is read as `s3://` and `obs://`."""
    for path in sorted(folder.glob("*.tfrecord")):
        store.client.upload_file(str(path), store.bucket, f"records/{path.name}")
    return f"{store.bucket}/records"


@pytest.mark.slow
def test_files_in_a_bucket(bucket: str, folder: Path, tmp_path: Path) -> None:
    for scheme in ("s3", "obs"):
        with tf1.Graph().as_default():
            metadata = BaseTFRecordMetadata(f"{scheme}://{bucket}", "train-*")
            assert [path.rpartition("/")[2] for path in metadata.file_list] == [
                f"train-{n}.tfrecord" for n in range(FILES)
            ]
            assert metadata.num_samples == 100
            found = values(BaseTFRecordDataset(metadata, *SPEC, seed=1, num_epochs=1))
            assert sorted(found) == list(range(100))
            cached = BaseTFRecordDataset(metadata, *SPEC, seed=1, num_epochs=1, cache_dir=str(tmp_path / "cache"))
            assert values(cached) == read(folder), "exactly shuffled once they are here"
    with pytest.raises(DataError, match="matches 'absent-"):
        BaseTFRecordMetadata(f"s3://{bucket}", "absent-*")


@pytest.mark.slow
def test_named_data_sets_and_labels_in_a_bucket(store: Any, bucket: str, digits_dir: Path) -> None:
    assert ImageClassificationTFRecordMetadata(f"s3://{bucket}", "eval-*").labels_list == []
    store.write("records/labels.txt", b"0: cat\n1: dog\n")
    assert ImageClassificationTFRecordMetadata(f"s3://{bucket}", "eval-*").labels_list == ["cat", "dog"]
    path = digits_dir / "tfrecord" / "eval-00000-of-00001.tfrecord"
    store.client.upload_file(str(path), store.bucket, "mnist/mnist_test.tfrecord")
    with tf1.Graph().as_default():
        dataset = mox.get_dataset("mnist", "test", f"s3://{store.bucket}/mnist/", num_epochs=1)
        assert (dataset.num_samples, len(values(dataset, item="label"))) == (360, 360)
    store.write("own/train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match="local folders only"):
        mox.get_dataset("mnist", "train", f"s3://{store.bucket}/own")
