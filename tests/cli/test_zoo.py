"""`moxserve models list | show | check | convert` as somebody with a checkpoint runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from moxserve.cli.main import cli


def run(*args: str | Path) -> Result:
    """Run the command in this process; errors come as exceptions."""
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_list_shows_all_networks_of_a_pattern() -> None:
    lines = run("models", "list", "resnet_v2_*").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "CLASSES", "OFFSET", "PARAMETERS", "GFLOPS", "PREPARED", "PAPER"]
    assert lines[1] == "resnet_v2_50    224     1000       1  25,568,360    6.96  vgg       2016"
    assert [line.split()[0] for line in lines[1:]] == [f"resnet_v2_{n}" for n in (50, 101, 152, 200)]
    assert len(run("models", "list").stdout.splitlines()) == 45


def test_a_part_of_a_name_and_several_patterns_pick_too() -> None:
    found = json.loads(run("models", "list", "lenet", "*_cifar", "--json").stdout)["networks"]
    assert [row["name"] for row in found] == ["lenet", "nasnet_cifar"]
    assert found[0]["trainable_parameters"] == 3274634
    assert found[0]["paper"].endswith("(LeCun et al. 1998)")


@pytest.mark.parametrize(("order", "column"), [("parameters", "trainable_parameters"), ("flops", "flops"),
                                               ("name", "name")])  # fmt: skip
def test_list_sorts(order: str, column: str) -> None:
    rows = json.loads(run("models", "list", "--sort", order, "--json").stdout)["networks"]
    assert [row[column] for row in rows] == sorted(row[column] for row in rows)


def test_markdown_is_a_table() -> None:
    lines = run("models", "list", "vgg_16", "--format", "markdown").stdout.splitlines()
    assert lines[:2] == [
        "| Name | Size | Classes | Offset | Parameters | GFLOPs | Preprocessing | Paper |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    assert lines[2] == (
        "| `vgg_16` | 224 | 1000 | 1 | 138,357,544 | 30.94 | vgg "
        "| [Simonyan, Zisserman 2014](https://arxiv.org/abs/1409.1556) |"
    )


def test_every_paper_has_a_year_but_the_tutorials() -> None:
    lines = run("models", "list").stdout.splitlines()[1:]
    without = [line.split()[0] for line in lines if not line.split()[-1].isdigit()]
    assert without == ["cifarnet"]


def test_show_tells_sizes_options_and_checkpoints() -> None:
    text = run("models", "show", "resnet_v2_50").stdout
    for said in (
        "arXiv:1603.05027",
        "25,568,360, and 45,440 moving averages",
        "6.96 GFLOPs",
        "224x224x3, vgg_preprocessing",
        "resnet_v2_50/logits/biases [1000]",
        "resnet_v2_50_2017_04_14.tar.gz (1001 classes",
        "keras.applications.ResNet50V2",
        "output_stride",
    ):
        assert said in text


def test_unknown_networks_name_the_nearest(run_moxserve: Any) -> None:
    done = run_moxserve("models", "show", "resnet_v1_5")
    assert done.returncode == 2
    assert "no network 'resnet_v1_5'; did you mean 'resnet_v1_50'" in done.stderr
    for args in (["list", "resnett"], ["check", "lennet", "x"], ["convert", "lennet", "x", "--output", "y"]):
        assert "did you mean" in str(run("models", *args).exception)


def test_list_and_show_need_no_tensorflow(run_moxserve: Any, tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    for args in (["list"], ["show", "lenet"]):
        done = run_moxserve("models", *args, env={"PYTHONPATH": str(tmp_path)})
        assert (done.returncode, done.stderr) == (0, "")


def test_help_keeps_servers_and_networks_apart() -> None:
    text = run("models", "--help").stdout
    assert "networks that training builds by name" in text
    for name in ("check", "convert", "list", "reload", "show", "status"):
        assert f"\n  {name} " in text


@pytest.mark.slow
def test_show_builds_for_tables_sizes_and_classes() -> None:
    found = json.loads(run("models", "show", "lenet", "--end-points", "--variables", "--layers", "--image-size", "32",
                           "--num-classes", "7", "--json").stdout)  # fmt: skip
    assert found["end_points"][0] == {"name": "conv1", "shape": [1, 32, 32, 32]}
    assert found["variables"][-1] == {"name": "LeNet/fc4/biases", "shape": [7], "trained": "yes", "parameters": 7}
    assert [layer["name"] for layer in found["layers"]] == [f"LeNet/{n}" for n in ("conv1", "conv2", "fc3", "fc4")]
    assert found["images"] == "32x32x1, lenet_preprocessing"
    text = run("models", "show", "lenet", "--num-classes", "7").stdout
    assert "LeNet/fc4/biases [7]" in text


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Six classes of LeNet, a step, and moving averages."""
    from moxserve.inspect.convert.arrays import write_checkpoint
    from moxserve.tensorflow.nets.checkpoints.fit import network_variables

    values = {v.op.name: np.ones(v.shape.as_list(), np.float32) for v in network_variables("lenet", 6)}
    averages = {f"{name}/ExponentialMovingAverage": value * 2 for name, value in values.items()}
    write_checkpoint(str(tmp_path / "lenet.ckpt"), {**values, **averages, "global_step": np.int64(5)})
    return tmp_path / "lenet.ckpt"


@pytest.mark.slow
def test_check_tells_what_fits_and_what_to_do(run_moxserve: Any, checkpoint: Path) -> None:
    done = run_moxserve("models", "check", "lenet", checkpoint)
    assert done.returncode == 5
    assert "restored      6 of 8 variables" in done.stdout
    assert "LeNet/fc4: 6 classes in the checkpoint, 10 here: exclude 'LeNet/fc4'" in done.stdout
    assert "does not give 2 of the 8 variables" in done.stderr
    fitting = run("models", "check", "lenet", checkpoint, "--num-classes", "6", "--moving-averages")
    assert fitting.exit_code == 0
    assert "8 of them from moving averages" in fitting.stdout
    left_out = json.loads(run("models", "check", "lenet", checkpoint, "--exclude", "LeNet/fc4", "--json").stdout)
    assert (left_out["fits"], left_out["form"], len(left_out["restored"])) == (True, "V2", 6)
    assert left_out["left_out"] == ["LeNet/fc4/weights", "LeNet/fc4/biases"]


@pytest.mark.slow
def test_convert_writes_a_checkpoint_and_replaces_none(checkpoint: Path, tmp_path: Path) -> None:
    args = ["models", "convert", "lenet", checkpoint, "--moving-averages", "--output", tmp_path / "made" / "lenet.ckpt"]
    done = run(*args)
    assert done.exit_code == 0
    assert 'mox.get_model_fn("lenet", run_mode, num_classes=6)' in done.stdout
    assert "exists already" in str(run(*args).exception)
    told = json.loads(run(*args, "--force", "--json").stdout)
    assert (told["variables"], told["num_classes"], told["unused"][-1]) == (8, 6, "global_step")
    assert run("models", "check", "lenet", tmp_path / "made", "--num-classes", "6").exit_code == 0
