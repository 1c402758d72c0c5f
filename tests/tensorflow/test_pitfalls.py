"""The numbered pitfalls of the MoXing manual, a test each: what fell into them works, or is told its cause and cure."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import CheckpointError, DataError, ExportError, ModelSpecError, UsageError, WorkersLostError
from moxserve.ports import free_port
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices
from moxserve.tensorflow.executor.env import check_version, tf, tf1
from moxserve.tensorflow.executor.workers import Workers

Train = Callable[..., mox.RunResult]
SERVING = mox.ExportKeys.TF_SERVING


def test_2_1_1_another_tensorflow_than_the_one_that_is_needed_is_named() -> None:
    with pytest.warns(RuntimeWarning, match=r"made for TensorFlow 2\.21, and 1\.4\.0 is installed: .*pip install"):
        check_version("1.4.0")
    check_version(tf.__version__)


def test_2_1_2_flags_may_be_lists() -> None:
    flags = tf1.flags
    values = flags.FLAGS.__class__()
    flags.DEFINE_list("int_list", "0,1,2", "", flag_values=values)
    values(["script.py", "--int_list=3,4"])
    assert [int(item) for item in values.int_list] == [3, 4]


def test_2_2_1_flags_need_not_pass_through_a_strict_parser(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float)
    monkeypatch.setattr("sys.argv", ["script.py", "--rate=0.5", "--max_number_of_steps=3"])
    assert parser.parse_known_args()[0].rate == 0.5  # the manual's cure
    assert train(max_number_of_steps=0).local_steps == 3
    monkeypatch.setattr("sys.argv", ["script.py", "--rate=0.5"])
    monkeypatch.setenv("MOXSERVE_FLAGS", "--max_number_of_steps=2")
    assert parser.parse_args().rate == 0.5  # ours: the script stays as it is
    assert train(max_number_of_steps=0).local_steps == 2


def test_2_3_1_a_process_that_is_waited_for_is_named(train: Train, console: Any) -> None:
    from moxserve.tensorflow.executor.workers.peers import Peer, wait_for

    # The manual's example: task 1 is started on the machine of task 0.
    mox.set_flag("job_name", "worker")
    mox.set_flag("worker_hosts", "127.0.0.1:2223,192.0.2.1:2223")
    mox.set_flag("ps_hosts", "127.0.0.1:2222")
    mox.set_flag("task_index", 1)
    with pytest.raises(UsageError, match=r"--task_index=1: entry 1 of --worker_hosts is 192\.0\.2\.1:2223"):
        train()
    mox.set_flag("task_index", 2)
    with pytest.raises(UsageError, match=r"--task_index=2: --worker_hosts names 2 process\(es\), counted from 0"):
        train()
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(WorkersLostError, match=rf"no answer within 0\.1 s .* from .*{address}"):
        wait_for([Peer("ps", 0, address)], 0.1)


def test_2_4_1_files_in_a_store_are_opened_or_their_keys_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "OBS_", "ACCESS_KEY"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"no such file or directory: '/dls-test/a\.txt'"):
        mox.file.read("/dls-test/a.txt")
    mox.file.shift("os", "mox")  # Python's own functions take URLs
    try:
        with pytest.raises((UsageError, DataError), match=r"s3://dls-test/a\.txt: .*credentials") as caught:
            open("s3://dls-test/a.txt").close()
        assert "mox.file.set_auth" in str(caught.value.hint)
    finally:
        mox.file.shift("mox", "os")
    with pytest.raises(FileNotFoundError):
        open("s3://dls-test/a.txt").close()


def test_2_4_2_what_lies_beside_a_file_is_found(tmp_path: Path) -> None:
    from moxserve.registry import load_target

    module = tmp_path / "module_dir_of_2_4_2"  # without an __init__.py
    module.mkdir()
    (module / "module_file.py").write_text("ANSWER = 42\n")
    (tmp_path / "main.py").write_text("from module_dir_of_2_4_2 import module_file\nANSWER = module_file.ANSWER\n")
    assert load_target(f"{tmp_path / 'main.py'}:ANSWER") == 42


def test_2_4_3_a_flag_without_a_value_is_told_where_data_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", "--num_gpus=", "--log_dir="])
    assert mox.get_flag("num_gpus") == 1  # of ours it means that it was left out
    for call in (
        lambda: mox.ImageClassificationRawMetadata(base_dir=""),
        lambda: mox.ImageClassificationTFRecordMetadata("", "*.tfrecord"),
        lambda: mox.get_dataset("mnist", "train", dataset_dir=""),
    ):
        with pytest.raises(UsageError, match="='': expected the folder of the data") as caught:
            call()
        assert "its default counts only where it is left out" in str(caught.value.hint)


def _image_folders(base: Path, *labels: str) -> str:
    for number, label in enumerate(labels):
        (base / label).mkdir(parents=True)
        pixels = np.full((4, 4, 3), 40 * number, np.uint8)
        with tf1.Graph().as_default(), tf1.Session() as session:
            (base / label / "0.png").write_bytes(session.run(tf.io.encode_png(pixels)))
    return str(base)


def test_3_1_1_the_order_of_classes_is_told(tmp_path: Path, console: Any) -> None:
    base = _image_folders(tmp_path / "images", "label_2", "label_10", "label_1")
    assert mox.ImageClassificationRawMetadata(base).labels_list == ["label_1", "label_10", "label_2"]
    assert "has no labels.txt: the 3 class folders are numbered in the order of their names as text" in console.text
    (tmp_path / "images" / "labels.txt").write_text("0: label_1\n1: label_2\n2: label_10\n")
    assert mox.ImageClassificationRawMetadata(base).labels_list == ["label_1", "label_2", "label_10"]


def test_3_4_1_counting_records_is_announced_and_can_be_left_out(tmp_path: Path, console: Any) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    with tf1.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        for _ in range(3):
            writer.write(b"record")
    assert mox.BaseTFRecordMetadata(str(folder), "*.tfrecord", num_samples=7).num_samples == 7
    assert "num_samples" not in console.text
    assert mox.BaseTFRecordMetadata(str(folder), "*.tfrecord").num_samples == 3
    assert "manually specify the num_samples" in console.text
    console.lines.clear()
    mox.set_flag("samples_per_epoch", 5)
    assert mox.BaseTFRecordMetadata(str(folder), "*.tfrecord").num_samples == 5
    assert "num_samples" not in console.text


@pytest.mark.slow
def test_3_4_2_resized_images_are_not_damaged(tmp_path: Path) -> None:
    base = _image_folders(tmp_path, "black", "grey")
    dataset = mox.ImageClassificationRawDataset(
        mox.ImageClassificationRawMetadata(base), batch_size=2, image_size=8, num_epochs=1, shuffle=False
    )
    images, labels = dataset.get(["image", "label"])
    augmented = mox.get_data_augmentation_fn("resnet_v1_50", mox.ModeKeys.EVAL, output_height=6, output_width=6)(
        images[1]
    )
    with tf1.Session() as session:
        session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
        pixels, numbers, grey = session.run([images, labels, augmented])
    assert pixels.dtype == np.uint8  # as image viewers and plots expect whole numbers
    assert {int(number): set(map(int, image.ravel())) for number, image in zip(numbers, pixels, strict=True)} == {
        0: {0},
        1: {40},
    }
    assert grey.dtype == np.float32
    assert grey.shape == (6, 6, 3)


def test_4_0_1_a_single_input_is_a_list_too(train: Train, linear: Any) -> None:
    def model_fn(inputs: Any, mode: str) -> mox.ModelSpec:
        return mox.ModelSpec(loss=tf.reduce_mean(tf1.layers.dense(inputs, 1)))

    for single in (model_fn, lambda inputs, mode: mox.ModelSpec(loss=tf.reduce_mean(tf.nn.relu(inputs)))):
        with pytest.raises(ValueError, match=r"inputs is a list of 1 tensor\(s\).*images = inputs\[0\]"):
            train(input_fn=lambda mode: linear.input_fn(mode)[0], model_fn=single)


def test_4_1_1_an_export_asks_for_the_size_of_images() -> None:
    with pytest.raises(ValueError, match=r"`image_height` and `image_width` should be given to `mox\.get_model_fn`"):
        mox.get_model_fn("resnet_v1_50", run_mode=mox.ModeKeys.EXPORT, num_classes=10)(tf1.placeholder(tf.float32))


@pytest.mark.slow
def test_4_1_2_collections_of_one_device_are_its_own(linear: Any, train: Train) -> None:
    seen: list[tuple[int, int]] = []

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        regularizer = tf.keras.regularizers.l2(0.1)
        y = tf1.layers.dense(inputs[0], 1, kernel_regularizer=regularizer, name="d")
        penalties = mox.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)
        seen.append((len(penalties), len(mox.get_collection(tf1.GraphKeys.GLOBAL_VARIABLES))))
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square(y[:, 0] - inputs[1])) + tf.add_n(penalties))

    for update in ("parameter_server", "replicated"):
        mox.set_flag("num_gpus", 2)
        mox.set_flag("variable_update", update)
        train(model_fn=model_fn, max_number_of_steps=1, batch_size=4)
    assert seen == [(1, 2)] * 4


@pytest.mark.slow
def test_4_4_1_a_server_that_is_pointed_at_a_version_says_so(train: Train, tmp_path: Path) -> None:
    from moxserve.serving.model_config import ModelConfig
    from moxserve.serving.source import find_versions
    from moxserve.serving.tracking import _nothing_found

    train(log_dir=str(tmp_path), max_number_of_steps=1, export_model=SERVING)
    assert {"1"} <= {path.name for path in tmp_path.iterdir()}
    for name in ("saved_model.pb", "variables/variables.index"):
        assert (tmp_path / "1" / name).is_file()
    assert list(find_versions(str(tmp_path)).versions) == [1]
    wrong = str(tmp_path / "1")
    told = _nothing_found(ModelConfig("resnet", wrong), find_versions(wrong))
    assert f"This is a version itself: give the folder above it, {tmp_path}." in told
    # What is exported next is 2, as the version is -1; a higher one that is there counts.
    (tmp_path / "99").mkdir()
    again = train(log_dir=str(tmp_path), max_number_of_steps=2, export_model=SERVING)
    assert Path(again.export.path).name == "100"


@pytest.mark.slow
def test_4_4_2_channels_first_runs_on_a_cpu(train: Train, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        logits, _ = mox.get_model_fn(
            "lenet", run_mode=mode, num_classes=2, data_format="NCHW", image_height=28, image_width=28
        )(inputs[0])
        return mox.ModelSpec(
            loss=tf.reduce_mean(logits), export_spec=mox.ExportSpec({"images": inputs[0]}, {"logits": logits})
        )

    result = train(
        input_fn=lambda mode: tf.zeros([2, 28, 28, 3]),
        model_fn=model_fn,
        auto_batch=False,
        batch_size=2,
        max_number_of_steps=1,
        log_dir=str(tmp_path),
        export_model=SERVING,
    )
    with tf1.Graph().as_default(), tf1.Session() as session:
        tf1.saved_model.load(session, ["serve"], result.export.path)
        pools = [op for op in session.graph.get_operations() if op.type == "MaxPool"]
        assert {op.get_attr("data_format") for op in pools} == {b"NHWC"}
        assert {op.device for op in session.graph.get_operations()} == {""}


@pytest.mark.slow
def test_4_4_3_a_version_that_is_there_already_is_named(train: Train, linear: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        tensors = spec.export_spec
        spec.export_spec = mox.ExportSpec(tensors.inputs_dict, tensors.outputs_dict, version=version)
        return spec

    for version in (1, "model"):
        options: dict[str, Any] = {"model_fn": model_fn, "log_dir": str(tmp_path), "export_model": SERVING}
        first = train(**options)
        assert first.export.path == str(tmp_path / str(version))
        with pytest.raises(ExportError, match=r"Export directory already exists\. Please specify a diff") as caught:
            train(**options)
        assert str(tmp_path / str(version)) in str(caught.value)
        shutil.rmtree(tmp_path / str(version))


def test_4_4_4_variables_of_tf_variable_are_trained(train: Train, variable: Any, linear: Any, tmp_path: Path) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        w = tf.Variable(np.zeros(3, "f"), name="w")
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square(tf.linalg.matvec(inputs[0], w) - inputs[1])))

    result = train(model_fn=model_fn, max_number_of_steps=1, log_dir=str(tmp_path))
    assert variable(result.checkpoint, "w") == pytest.approx(-0.1 * linear.gradient(np.zeros(3), 0, 10), rel=1e-5)


def test_5_1_1_an_optimizer_in_the_place_of_a_function_is_told(train: Train) -> None:
    with pytest.raises(ModelSpecError, match=r"optimizer_fn is an optimizer \(MomentumOptimizer\)") as caught:
        train(optimizer_fn=tf1.train.MomentumOptimizer(learning_rate=0.01, momentum=0.9))
    assert "put a lambda before it" in str(caught.value.hint)


def test_5_2_1_wrappers_that_spare_messages_warn_where_workers_wait_for_each_other(console: Any) -> None:
    sgd = tf1.train.GradientDescentOptimizer(0.1)
    for synchronous in (False, True):
        topology = Topology(job="worker", workers=("a:1", "b:1"), ps=("c:1",), synchronous=synchronous)
        with tf1.Graph().as_default(), Workers(topology, Devices(topology)).placing():
            mox.get_optimizer_wrapper_fn("batch_gradients", sgd, num_batches=8, sync_on_apply=True)()
        expected = "WARNING:tensorflow:Using OptimizerWrapper when sync_replicas is True may cause performance loss."
        assert console.lines == [expected] * synchronous


def test_6_0_1_a_training_that_has_nothing_to_do_says_so(train: Train, tmp_path: Path, console: Any) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=2)
    console.lines.clear()
    assert train(log_dir=str(tmp_path), max_number_of_steps=2).stop_reason == "already_trained"
    [line] = [line for line in console.lines if "Nothing to train" in line]
    assert line.startswith("WARNING:")
    assert re.search(r"is at step 2, and max_number_of_steps is 2; raise .* or give another log_dir", line)


@pytest.mark.slow
def test_6_0_2_evaluations_repeat_and_cover_all_devices(train: Train, linear: Any, tmp_path: Path) -> None:
    train(log_dir=str(tmp_path), max_number_of_steps=5)
    w = tf1.train.load_variable(str(tmp_path), "w")
    expected = float(np.mean((linear.x @ w - linear.y) ** 2))

    def shuffled(mode: str) -> Any:
        dataset = tf1.data.Dataset.from_tensor_slices((linear.x, linear.y)).shuffle(50)
        return dataset.make_one_shot_iterator().get_next()

    def evaluate(**kwargs: Any) -> float:
        result = train(
            run_mode=mox.ModeKeys.EVAL, log_dir=str(tmp_path), max_number_of_steps=0, input_fn=shuffled, **kwargs
        )
        return result.metrics["loss"]

    assert [evaluate(batch_size=1), evaluate(batch_size=7)] == pytest.approx([expected] * 2, rel=1e-5)
    mox.set_flag("num_gpus", 2)  # with log_first_clone as it is
    assert evaluate(batch_size=7) == pytest.approx(expected, rel=1e-5)


def test_6_0_2_an_evaluation_without_a_checkpoint_is_an_error(train: Train, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="EVAL needs a checkpoint; found none"):
        train(run_mode=mox.ModeKeys.EVAL, log_dir=str(tmp_path))
