"""`moxserve inspect`: what it prints, its JSON, its exit codes, and how fast it starts."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from moxserve.cli.main import cli
from moxserve.protocol import messages
from moxserve.protocol.tensors import to_proto


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = x * w, as a GraphDef, and a SavedModel of it in `model/1` with two broken files beside."""
    folder = tmp_path_factory.mktemp("graphs")
    graph = messages.GraphDef()
    graph.versions.producer = 2474
    x = graph.node.add(name="x", op="Placeholder")
    x.attr["dtype"].type = 1
    dims = x.attr["shape"].shape.dim
    dims.add().size = -1
    dims.add().size = 2
    w = graph.node.add(name="w", op="Const")
    w.attr["dtype"].type = 1
    w.attr["value"].tensor.CopyFrom(to_proto(np.array([1.0, 0.0], np.float32)))
    y = graph.node.add(name="y", op="Mul", input=["x", "w"], device="/device:GPU:0")
    y.attr["T"].type = 1
    (folder / "graph.pb").write_bytes(graph.SerializeToString())
    saved = messages.SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.meta_info_def.tensorflow_version = "2.21.0"
    meta.graph_def.CopyFrom(graph)
    definition = meta.signature_def["serving_default"]
    definition.method_name = "tensorflow/serving/predict"
    for side, name in ((definition.inputs, "x"), (definition.outputs, "y")):
        side[name].name, side[name].dtype = f"{name}:0", 1
        side[name].tensor_shape.dim.add().size = -1
        side[name].tensor_shape.dim.add().size = 2
    for version in ("1", "2"):
        (folder / "model" / version).mkdir(parents=True)
        (folder / "model" / version / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def test_show_prints_facts_and_tables(run_moxserve, graph_file: Path) -> None:
    done = run_moxserve("inspect", "show", graph_file / "model")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == str(graph_file / "model" / "2")
    facts = dict(line.strip().split("  ", 1) for line in lines[1 : lines.index("")])
    facts = {key: value.strip() for key, value in facts.items()}
    assert (facts["form"], facts["tags"], facts["nodes"], facts["producer"]) == (
        "SavedModel (binary)",
        "serve",
        "3",
        "2474",
    )
    assert "signatures (1)" in lines
    start = lines.index("signatures (1)")
    assert lines[start + 1].split() == ["SIGNATURE", "METHOD", "SIDE", "ALIAS", "DTYPE", "SHAPE", "TENSOR"]
    assert lines[start + 2].split() == [
        "serving_default", "tensorflow/serving/predict", "input", "x", "float32", "[?,", "2]", "x:0",
    ]  # fmt: skip
    assert "/device:GPU:0      1" in done.stdout
    assert done.stderr == "note: version 2, the newest of 2: 1, 2\n"


def test_show_json(run_moxserve, graph_file: Path) -> None:
    found = json.loads(run_moxserve("inspect", "show", graph_file / "model" / "1", "--json").stdout)
    assert (found["kind"], found["path"]) == ("version", str(graph_file / "model" / "1"))
    assert found["signatures"][0] == {
        "signature": "serving_default", "method": "tensorflow/serving/predict", "side": "input", "alias": "x",
        "dtype": "float32", "shape": [None, 2], "tensor": "x:0",
    }  # fmt: skip
    assert found["operations"] == [
        {"operation": "Const", "nodes": 1}, {"operation": "Mul", "nodes": 1}, {"operation": "Placeholder", "nodes": 1},
    ]  # fmt: skip
    assert (found["notes"], found["problems"]) == ([], [])


@pytest.mark.slow
def test_signatures_ops_and_variables(run_moxserve, graph_file: Path) -> None:
    done = run_moxserve("inspect", "signatures", graph_file / "model" / "1")
    assert [line.split()[0] for line in done.stdout.splitlines()[3:]] == ["SIGNATURE", *["serving_default"] * 2]
    done = run_moxserve("inspect", "ops", graph_file / "graph.pb", "--nodes", "--filter", "Mul", "--json")
    assert json.loads(done.stdout)["nodes"] == [
        {
            "name": "y",
            "operation": "Mul",
            "dtype": "float32",
            "device": "/device:GPU:0",
            "function": "",
            "inputs": "x, w",
        }
    ]
    done = run_moxserve("inspect", "variables", graph_file / "graph.pb", "--stats", "--json")
    (row,) = json.loads(done.stdout)["variables"]
    assert (row["name"], row["shape"], row["size"]) == ("w", [2], 8)
    assert (row["min"], row["max"], row["mean"], row["std"], row["zeros"]) == (0, 1, 0.5, 0.5, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["show", "{}/nothing"], 2, "no such file, directory or checkpoint"),
        (["show", "{}/cut.pb"], 1, "cut.pb cannot be read"),
        (["variables", "{}/model/1"], 2, "this SavedModel has no variables"),
        (["ops", "{}/w.npz"], 2, "w.npz is an npz file, which has no TensorFlow graph; expected a version directory"),
        (["signatures", "{}/w.npz"], 2, "is an npz file, which has no signatures"),
        (["warmup", "{}/model"], 2, "has no warmup records"),
        (["checkpoint", "{}/w.npz"], 2, "is an npz file, which has no checkpoint"),
        (["show", "{}/model", "--tags", "gpu"], 2, "no graph has the tags gpu; there are: serve"),
        (["variables", "{}/w.npz", "--filter", "b"], 2, "no variable is called 'b'; known: a"),
        (["convert", "{}/w.npz", "{}/x.pb"], 2, "is an npz file, which becomes checkpoint, not pb"),
        (["convert", "{}/graph.pb", "{}/w.npz"], 2, "w.npz' exists already"),
        (["convert", "{}/graph.pb", "{}/x", "--input", "x"], 2, "'x': expected NAME=TENSOR"),
        (["diff", "{}/model/1", "{}/graph.pb"], 5, "differ"),
    ],
)
def test_errors_name_the_file_and_what_was_expected(
    run_moxserve, graph_file: Path, args: list[str], status: int, message: str
) -> None:
    (graph_file / "cut.pb").write_bytes((graph_file / "graph.pb").read_bytes()[:-9])
    np.savez(graph_file / "w.npz", a=np.zeros(1))
    done = run_moxserve("inspect", *[arg.format(graph_file) for arg in args])
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert message in done.stderr


def test_problems_are_told_and_fail(run_moxserve, graph_file: Path, tmp_path: Path) -> None:
    shutil.copytree(graph_file / "model" / "1", tmp_path / "1")
    (tmp_path / "1" / "assets.extra").mkdir()
    (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"not records")
    for command in ("show", "warmup"):
        done = run_moxserve("inspect", command, tmp_path / "1")
        assert done.returncode == 5
        assert "record 0 is cut off in its header" in done.stderr
        assert done.stdout.splitlines()[0].startswith(str(tmp_path / "1"))


@pytest.mark.slow
def test_text_and_npz_without_tensorflow(run_moxserve, graph_file: Path, tmp_path: Path) -> None:
    done = run_moxserve("inspect", "convert", graph_file / "model", tmp_path / "g.pbtxt", "--json")
    assert json.loads(done.stdout)["form"] == "pbtxt"
    done = run_moxserve("inspect", "convert", tmp_path / "g.pbtxt", tmp_path / "g.pb")
    assert done.stdout.startswith(f"wrote {tmp_path / 'g.pb'} (pb) from {tmp_path / 'g.pbtxt'}\n")
    read = messages.SavedModel.FromString
    first, again = (read(p.read_bytes()) for p in (graph_file / "model/2/saved_model.pb", tmp_path / "g.pb"))
    assert first == again
    assert run_moxserve("inspect", "convert", graph_file / "graph.pb", tmp_path / "w.npz").returncode == 0
    with np.load(tmp_path / "w.npz") as found:
        assert found["w"].tolist() == [1, 0]


def test_checkpoint_prints_values(tmp_path: Path) -> None:
    def run(*args: object) -> str:
        result = CliRunner().invoke(cli, ["inspect", *map(str, args)])  # here: each process would import TensorFlow
        assert result.exit_code == 0, result.output
        return result.stdout

    np.savez(tmp_path / "w.npz", **{"net/w": np.arange(4.0).reshape(2, 2), "words": np.array([b"a", b"b"])})
    run("convert", tmp_path / "w.npz", tmp_path / "m.ckpt")
    assert run("checkpoint", tmp_path, "--print", "net/*").splitlines() == [
        "net/w: float64[2, 2]", "[[0. 1.]", " [2. 3.]]",
    ]  # fmt: skip
    found = json.loads(run("checkpoint", tmp_path / "m.ckpt", "--print", "*", "--json"))
    assert found == {"net/w": [[0, 1], [2, 3]], "words": ["a", "b"]}
    assert run("checkpoint", tmp_path / "m.ckpt", "--filter", "words").splitlines()[-1].split() == [
        "words", "string", "[2]", "2", "0", "B",
    ]  # fmt: skip
    assert "equal variables  2" in run("diff", tmp_path / "w.npz", tmp_path / "m.ckpt")


def test_long_names_are_cut_on_a_narrow_terminal(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"a_very_long_scope/" * 6 + "weights": np.zeros((3, 3, 64, 64), np.float32)})
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "moxserve", "inspect", "variables", str(tmp_path / "w.npz")]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    done = subprocess.run(command, stdout=slave, env=environment, check=False)
    os.close(slave)
    with open(master, "rb", buffering=0) as terminal:
        lines = terminal.read(65536).decode().splitlines()
    assert done.returncode == 0
    row = lines[-1]
    assert len(row) <= 80
    assert row.startswith("a_very_long_scope/")
    assert "…" in row
    assert "[3, 3, 64, 64]" in row
    assert row.endswith("147.5 kB")


def test_what_needs_no_values_needs_no_tensorflow(graph_file: Path) -> None:
    code = """
import sys
from click.testing import CliRunner
from moxserve.cli.main import cli
for line in ("show {0}/model", "ops {0}/graph.pb", "variables {0}/graph.pb", "graph {0}/graph.pb --out {0}/tb"):
    result = CliRunner().invoke(cli, ["inspect", *line.split()])
    assert result.exit_code == 0, result.output
print([m for m in ("tensorflow", "onnx", "openvino", "onnxruntime") if m in sys.modules])
""".replace("{0}", str(graph_file))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
