"""The documents' small scripts, changed only in their imports, run as users run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
LINE = re.compile(r"INFO:tensorflow:step: (\d+)\(global step: (\d+)\)\tsample/sec: ([\d.]+)\tloss: ([\d.]+)")


@pytest.fixture
def run_script() -> Callable[..., str]:
    def run(name: str, *arguments: str, succeeds: bool = True) -> str:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
        )
        assert (done.returncode == 0) is succeeds, done.stderr[-3000:]
        return done.stderr

    return run


def losses(stderr: str) -> dict[int, float]:
    return {int(m.group(1)): float(m.group(4)) for m in LINE.finditer(stderr)}


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
    stderr = run_script("mnist_export.py", "--data_url", str(idx_digits), "--train_url", str(log_dir), "--num_gpus=1")
    seen = losses(stderr)
    assert list(seen) == list(range(0, 1000, 10))
    assert seen[990] < seen[0] / 2
    assert "accuracy:" in stderr
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
def test_an_export_needs_the_size_of_images_as_pitfall_4_1_1_says(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    skimage = pytest.importorskip("skimage.data")
    from moxserve.data.textures import jpeg_bytes

    for label in ("brick", "grass"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for part in range(4):
            tile = getattr(skimage, label)()[60 * part : 60 * part + 48, :48]
            (tmp_path / "images" / label / f"{part}.jpg").write_bytes(jpeg_bytes(tile))
    data = f"--data_url={tmp_path / 'images'}"
    stderr = run_script("flowers_export.py", data, f"--train_url={tmp_path / 'a'}", succeeds=False)
    assert "`image_height` and `image_width` should be given to `mox.get_model_fn` when `run_mode` is" in stderr
    assert not (tmp_path / "a" / "1").exists()
    # Given, the export is made, and NCHW, which nothing on a CPU need know, has become NHWC (pitfall 4-4-2).
    run_script("flowers_export.py", data, f"--train_url={tmp_path / 'b'}", "--sized")
    assert _layouts(tmp_path / "b" / "1" / "saved_model.pb") == {b"NHWC"}


def _layouts(saved_model: Path) -> set[bytes]:
    """The layouts of images that the convolutions of a SavedModel work in; NHWC is left out of it as the default."""
    from tensorflow.core.protobuf import saved_model_pb2

    [graph] = saved_model_pb2.SavedModel.FromString(saved_model.read_bytes()).meta_graphs
    return {node.attr["data_format"].s or b"NHWC" for node in graph.graph_def.node if node.op == "Conv2D"}
