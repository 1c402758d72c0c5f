"""The documents' scripts, changed only in their imports, paths and sizes, run as users run them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

LINE = re.compile(r"INFO:tensorflow:step: (\d+)\(global step: (\d+)\)\tsample/sec: ([\d.]+)\t(\w+): ([\d.]+)")


def losses(printed: str) -> dict[int, float]:
    """Step: the first value of each console line."""
    return {int(m.group(1)): float(m.group(5)) for m in LINE.finditer(printed)}


@pytest.fixture
def photographs(flowers: Path, tmp_path: Path) -> Path:
    """An empty folder with `flowers/` in it."""
    (tmp_path / "flowers").symlink_to(flowers / "flowers")
    return tmp_path


@pytest.fixture(scope="module")
def trained(start_script: Callable[..., tuple[int, str]], flowers: Path) -> Path:
    """The folder of the manual's first script after its run: `log` has a checkpoint."""
    status, output = start_script("resnet_train.py", flowers)
    assert status == 0, output[-3000:]
    return flowers


@pytest.mark.slow
def test_mnist_softmax_of_section_1_1_1(run_script: Callable[..., str], idx_digits: Path, tmp_path: Path) -> None:
    seen = losses(run_script("mnist_softmax.py", f"--data_url={idx_digits}", f"--train_url={tmp_path}"))
    assert list(seen) == list(range(0, 1000, 10))
    assert seen[0] == pytest.approx(2.303, abs=1e-3)  # ten classes, zero weights
    assert seen[990] < 0.2
    assert (tmp_path / "model.ckpt-1000.index").exists()


@pytest.mark.slow
def test_mnist_export_of_section_1_2_1(run_script: Callable[..., str], idx_digits: Path, tmp_path: Path) -> None:
    log_dir = tmp_path / "log"
    output = run_script("mnist_export.py", "--data_url", str(idx_digits), "--train_url", str(log_dir), "--num_gpus=1")
    seen = losses(output)
    assert list(seen) == list(range(0, 1000, 10))
    assert seen[990] < seen[0] / 2
    assert "accuracy:" in output
    assert (log_dir / "1" / "saved_model.pb").is_file()
    assert (log_dir / "1" / "variables" / "variables.index").is_file()


@pytest.mark.slow
def test_feed_hook_of_section_4_5_1(run_script: Callable[..., str]) -> None:
    seen = losses(run_script("feed_hook.py"))
    assert list(seen) == list(range(0, 100, 10))
    assert seen[90] < seen[0]  # the same values are fed at every step


@pytest.mark.slow
def test_lenet_by_name_of_section_4(run_script: Callable[..., str], idx_digits: Path) -> None:
    seen = losses(run_script("lenet.py", f"--data_url={idx_digits}"))
    assert list(seen) == list(range(0, 100, 10))
    assert seen[90] < seen[0] / 2


@pytest.mark.slow
def test_the_gan_of_section_4_2(run_script: Callable[..., str], idx_digits: Path, tmp_path: Path) -> None:
    output = run_script("dcgan.py", f"--data_url={idx_digits}")
    assert re.findall(r"step: (\d+)\(.*\tD_loss: [\d.]+\tG_loss: [\d.]+", output) == ["0", "9", "18"]
    assert (tmp_path / "dcgan_mnist" / "model.ckpt-20.index").exists()
    assert any((tmp_path / "dcgan_mnist").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_predictions_of_section_4_3_as_a_table(run_script: Callable[..., str], trained: Path) -> None:
    pytest.importorskip("pandas")
    run_script("predict.py", folder=trained)
    head, *rows = (trained / "outputs.txt").read_text().splitlines()
    assert head == ",0"
    assert len(rows) == 10  # of 4 predictions each
    assert set(re.findall(r"\b[01]\b", rows[3].partition("array")[2])) <= {"0", "1"}


@pytest.mark.slow
def test_the_export_of_section_4_4(run_script: Callable[..., str], photographs: Path) -> None:
    run_script("export_resnet.py")
    folder = photographs / "log_0409" / "1"
    # NCHW, which nothing on a CPU need know, has become NHWC (pitfall 4-4-2).
    assert _layouts(folder / "saved_model.pb") == {b"NHWC"}
    assert (folder / "variables" / "variables.index").is_file()


@pytest.mark.slow
def test_optimizers_of_section_5_and_flags_of_section_2(run_script: Callable[..., str]) -> None:
    output = run_script("optimizers.py", "--data_url=data", "--int_list=3,4", "--optimizer=adam")
    assert output.startswith("data\n[3, 4]\n") or "\ndata\n[3, 4]\n" in output
    for name in ("builtin", "tensorflow", "own", "batch_gradients", "lars", "schedule"):
        assert f"\n{name} 25\n" in output


@pytest.mark.slow
def test_validation_metrics_of_section_4_5_2(run_script: Callable[..., str], photographs: Path) -> None:
    output = run_script("log_evaluation.py")
    found = re.findall(r"\[VALIDATION METRICS\] step: (\d+) loss: ([\d.]+) accuracy: ([\d.]+)", output)
    assert [int(step) for step, _, _ in found] == [3, 7, 11]  # 14 rows in steps of 4
    assert list(losses(output)) == [0, 10]


@pytest.mark.slow
def test_early_stopping_of_section_4_5_3(run_script: Callable[..., str], photographs: Path) -> None:
    output = run_script("early_stopping.py")
    found = [int(step) for step in re.findall(r"\[EarlyStopping\] step: (\d+) accuracy: [\d.]+", output)]
    assert len(found) >= 4  # the first has nothing to be compared with
    assert found == list(range(3, 4 * len(found), 4))
    assert max(losses(output)) <= found[-1] + 1


@pytest.mark.slow
def test_keras_models_of_section_4_6_go_through_json(run_script: Callable[..., str], tmp_path: Path) -> None:
    first = losses(run_script("keras_save.py"))
    assert list(first) == [0, 10]
    assert '"class_name": "LSTM"' in (tmp_path / "keras_model.json").read_text()
    again = losses(run_script("keras_load.py"))
    assert list(again) == [0, 10]
    assert again[10] != again[0]


@pytest.mark.slow
def test_strings_of_section_4_7_come_through_the_model(run_script: Callable[..., str], trained: Path) -> None:
    output = run_script("strings.py", folder=trained)
    names = re.findall(r"^(\S*\.jpg): \[", output, re.MULTILINE)
    assert sorted(Path(name).name for name in names) == sorted(f"{part}.jpg" for part in range(8, 12) for _ in "ab")


@pytest.mark.slow
def test_half_precision_of_section_4_8(run_script: Callable[..., str]) -> None:
    assert "float16 {'float32'}" in run_script("half_resnet.py")
    tensor, variable = run_script("var_scope.py").splitlines()[-2:]
    assert tensor == 'Tensor("Cast:0", shape=(), dtype=float16)'
    assert variable == "<tf.Variable 'a:0' shape=() dtype=float32>"


@pytest.mark.slow
def test_transfer_learning_of_section_1_2_2(run_script: Callable[..., str], photographs: Path) -> None:
    data = f"--data_url={photographs / 'flowers/raw/split/train'}"
    options = [data, "--model_name=lenet", "--batch_size=1"]
    run_script("transfer_flowers.py", *options, "--train_url=first")
    assert (photographs / "first" / "model.ckpt-2.index").exists()
    # Its checkpoint, all but the last layer and the step count, starts another training.
    output = run_script("transfer_flowers.py", *options, "--train_url=second", "--checkpoint_url=first")
    assert "step: 0(global step: 0)" in output
    assert re.search(r"not restored: global_step, LeNet/fc4/weights, .*left out by the patterns", output)
    assert (photographs / "second" / "model.ckpt-2.index").exists()


@pytest.mark.slow
def test_an_export_needs_the_size_of_images_as_pitfall_4_1_1_says(
    run_script: Callable[..., str], photographs: Path
) -> None:
    data = f"--data_url={photographs / 'flowers/raw/split/train'}"
    output = run_script("flowers_export.py", data, "--train_url=a", succeeds=False)
    assert "`image_height` and `image_width` should be given to `mox.get_model_fn` when `run_mode` is" in output
    assert not (photographs / "a" / "1").exists()


def _layouts(saved_model: Path) -> set[bytes]:
    """The layouts of images that the convolutions of a SavedModel work in; NHWC is left out of it as the default."""
    from tensorflow.core.protobuf import saved_model_pb2

    [graph] = saved_model_pb2.SavedModel.FromString(saved_model.read_bytes()).meta_graphs
    return {node.attr["data_format"].s or b"NHWC" for node in graph.graph_def.node if node.op == "Conv2D"}
