"""Commands that are given URLs: what they read and write in a store, and which only take paths of this machine."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from moxserve import file
from moxserve.cli.main import cli
from moxserve.errors import UsageError
from moxserve.export.request_logs import find_logs


class Told:
    """Runs `moxserve`, and sees to it that no path of this machine is told and nothing stays here."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def __call__(self, *args: object) -> str:
        result = CliRunner().invoke(cli, [*map(str, args)])
        assert result.exit_code == 0, (result.output, result.exception)
        assert str(self._scratch) not in result.output
        assert list(self._scratch.glob(f"{file.TEMP_PREFIX}*")) == []
        return result.stdout


@pytest.fixture
def told(store: Any, scratch: Path) -> Told:
    return Told(scratch)


@pytest.mark.slow
def test_data_sets_of_a_store_are_looked_into_measured_and_made_records(
    told: Told, store: Any, digits_dir: Path, tmp_path: Path
) -> None:
    names = [name for name in file.list_directory(digits_dir / "images/eval", recursive=True) if name.endswith(".png")]
    file.copy_parallel(digits_dir / "images/eval", f"{store.base}/eval", file_list=names[::8])
    url = f"{store.base}/eval"
    report = json.loads(told("data", "inspect", url, "--json"))
    assert (report["path"], sum(found["images"] for found in report["classes"])) == (url, len(names[::8]))
    store.write("team/digits/eval/3/broken.png", b"no picture")
    assert "broken.png" in told("data", "inspect", url, "--json")
    made = json.loads(told("data", "to-tfrecord", url, "--out", tmp_path / "records", "--json"))
    assert (made["samples"], made["skipped"]) == ({"train": len(names[::8])}, 1)
    file.remove(f"{url}/3/broken.png")
    assert json.loads(told("data", "bench", url, "--steps", "1", "--batch-size", "4", "--json"))["path"] == url


@pytest.mark.slow
def test_a_model_of_a_store_predicts_and_is_loaded(
    told: Told, run_moxserve: Any, store: Any, toy_base: Path, toy_server: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((3, 8, 8, 1), np.uint8))
    file.copy(tmp_path / "rows.npy", f"{store.base}/rows.npy")
    file.copy_parallel(toy_base, f"{store.base}/toy")
    rows, out = f"{store.base}/rows.npy", f"{store.base}/out.jsonl"
    done = json.loads(told("predict", "--local", f"{store.base}/toy", "--input", rows, "--output", out, "--json"))
    assert (done["model"], done["rows"], len(file.read(out).splitlines())) == ("toy", 3, 3)
    if find_spec("locust") is None:
        pytest.skip("needs the extra loadtest")
    page = f"{store.base}/report.html"
    # In a process of its own: Locust changes the one that it is imported into.
    load = ("loadtest", "--grpc", toy_server.grpc, "--model", "toy", "--duration", "1s", "--users", "1", "--json")
    ended = run_moxserve(*load, "--input", rows, "--report", page)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["report"] == page
    assert rows in file.read(page)


@pytest.mark.slow
def test_weights_of_a_store_are_checked_and_converted(told: Told, store: Any, tmp_path: Path) -> None:
    from moxserve.inspect.convert.arrays import write_checkpoint
    from moxserve.tensorflow.nets.checkpoints.fit import network_variables

    values = {v.op.name: np.ones(v.shape.as_list(), np.float32) for v in network_variables("lenet", 6)}
    write_checkpoint(str(tmp_path / "lenet.ckpt"), values)
    file.copy_parallel(tmp_path, f"{store.base}/given", file_list=[p.name for p in tmp_path.glob("lenet.ckpt.*")])
    prefix, made = f"{store.base}/given/lenet.ckpt", f"{store.base}/made/lenet.ckpt"
    done = json.loads(told("models", "convert", "lenet", prefix, "--output", made, "--json"))
    assert done["checkpoint"] == made
    found = json.loads(told("models", "check", "lenet", f"{store.base}/made", "--num-classes", "6", "--json"))
    assert (found["fits"], found["path"]) == (True, made)


def test_small_files_go_to_a_store(told: Told, store: Any) -> None:
    store.write("team/digits/pipelines/p.yaml", b"version: 2")
    assert f"{store.base}/pipelines/p.yaml" in told("pipeline", "list", f"{store.base}/pipelines")
    told("pipeline", "schema", "--output", f"{store.base}/schema.json")
    assert json.loads(file.read(f"{store.base}/schema.json"))["$schema"]
    told("deploy", "kserve", "--model", "half=s3://models/half", "--out", f"{store.base}/half.yaml")
    assert "s3://models/half" in file.read(f"{store.base}/half.yaml")
    plan = told("launch", "--workers", "2", "--dry-run", f"{store.base}/pipelines/p.yaml")
    assert plan.count(f"pipeline run {store.base}/pipelines/p.yaml") == 2


def test_request_logs_of_a_store_are_found(store: Any) -> None:
    for name in ("r.m.1.tfrecord", "r.m.2.tfrecord.gz", "notes.txt"):
        store.write(f"team/digits/logs/{name}")
    urls = [f"{store.base}/logs/r.m.1.tfrecord", f"{store.base}/logs/r.m.2.tfrecord.gz"]
    for name in ("logs", "logs/r.*", "logs/r"):
        assert find_logs([f"{store.base}/{name}"]) == urls
    assert find_logs(urls[:1]) == urls[:1]
    with pytest.raises(UsageError, match=f"there is no request log '{store.base}/none'"):
        find_logs([f"{store.base}/none"])


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["data", "digits", "--out", "{}"], "--out"),
        (["data", "table", "--out", "{}"], "--out"),
        (["data", "to-tfrecord", ".", "--out", "{}"], "--out"),
        (["quickstart", "--out", "{}"], "--out"),
        (["run", "{}"], "SCRIPT"),
        (["launch", "--log-dir", "{}", "train.py"], "--log-dir"),
        (["export", ".", "--report", "{}"], "--report"),
        (["export", ".", "--op-library", "{}"], "--op-library"),
    ],
)
def test_what_is_for_this_machine_alone_says_so(
    args: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/x", "obs://bucket/x"):
        result = CliRunner().invoke(cli, [arg.format(url) for arg in args])
        assert isinstance(result.exception, UsageError), result.output
        assert result.exception.message == f"{name} '{url}': expected a path of this machine"
        assert result.exception.hint
    assert list(tmp_path.iterdir()) == []


def test_no_folder_is_called_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (lambda url: file.atomic_write(url, "x"), lambda url: file.staging_directory(url).__enter__()):
        for url in ("s3://bucket/x", "obs://bucket/x", Path("s3://bucket/x")):
            with pytest.raises(UsageError, match="bucket/x' is in a store; expected a path of this machine"):
                write(url)
    assert list(tmp_path.iterdir()) == []
