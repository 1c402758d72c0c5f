"""Models in a store as the source of an export: fetched, known by their URLs, and nothing of them left here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve import file
from moxserve.cli.main import main
from moxserve.export.manifest import read_manifest
from moxserve.file.atomic import TEMP_PREFIX

HALF = """
import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf1

def model_fn(inputs, mode, **kwargs):
    y = tf1.get_variable("a", []) * inputs[0] + tf1.get_variable("b", [])
    return mox.ModelSpec(export_spec=mox.ExportSpec({"x": inputs[0]}, {"y": y}))
"""


def command(*words: str) -> int:
    """Run `moxserve export` in this process; returns its exit code."""
    with pytest.raises(SystemExit) as done:
        main(["export", *words])
    return int(done.value.code or 0)


@pytest.mark.slow
def test_each_kind_of_model(
    half_job: Any, store: Any, load_model: Any, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, here = store.base, tmp_path / "here"
    (tmp_path / "half.py").write_text(HALF)
    np.save(tmp_path / "rows.npy", half_job.samples[0])
    file.copy_parallel(tmp_path / "run", f"{url}/run")
    checkpoint = f"{url}/run/{Path(half_job.checkpoint).name}"
    told = ["--model-fn", f"{tmp_path}/half.py:model_fn", "--input", "x=float32[?]", "--rows", f"{tmp_path}/rows.npy"]
    models = f"{url}/half"
    assert command(checkpoint, *told, "--tf-serving", models, "--frozen") == 0
    assert command(models, "--tf-serving", str(here)) == 0
    assert command(f"{models}/1/saved_model.pb", "--tf-serving", str(here)) == 0
    frozen = next(name for name in file.list_directory(f"{models}/1", recursive=True) if name.endswith("graph.pb"))
    names = ["--input", "x=x:0", "--output", "y=add:0"]
    assert command(f"{models}/1/{frozen}", *names, "--tf-serving", str(here)) == 0, capsys.readouterr().err
    sources = [read_manifest(str(here / version)).source for version in ("1", "2", "3")]
    assert [source.path for source in sources] == [f"{models}/1", f"{models}/1", f"{models}/1/{frozen}"]
    assert [source.checkpoint for source in sources] == [checkpoint, checkpoint, ""]
    for version in ("1", "2", "3"):
        assert load_model(str(here / version))("serving_default", x=[4.0])["y"].tolist() == [4.0]
    assert list(scratch.glob(f"{TEMP_PREFIX}*")) == []


def test_what_is_no_model_is_told_by_its_url(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, out = store.base, str(tmp_path / "out")
    file.write(f"{url}/notes/a.txt", "x")
    file.write(f"{url}/broken/saved_model.pb", "x")
    file.write(f"{url}/model.ckpt-7.index", "x")
    for source, code, message in (
        (f"{url}/none", 2, f"'{url}/none': there is no such file or directory; expected a pipeline file"),
        (f"{url}/notes", 2, f"'{url}/notes' holds no config.resolved.yaml"),
        (f"{url}/notes/a.txt", 2, "expected a pipeline file"),
        (f"{url}/broken", 1, f"{url}/broken"),
        (f"{url}/model.ckpt-7", 2, "is a checkpoint, which does not say what its model is"),
    ):
        assert command(source, "--tf-serving", out) == code
        told = capsys.readouterr().err
        assert message in told
        assert TEMP_PREFIX not in told
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
