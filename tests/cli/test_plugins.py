"""`moxserve plugins`: what is listed and shown, to the letter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

RATES = "float | Piecewise | LinearCosine | Polynomial"
WRAPPERS = "list of BatchGradients | Clip | Dgc | Easgd | Lars | LossScale | SimpleSync"
SHOW_ADAM = f"""\
optimizer.adam: Adam (Kingma and Ba, 2014).
from moxserve (moxserve_plugins.optimizers.config:Adam)

PARAMETER      {"TYPE":75}  DEFAULT   MEANING
learning_rate  {RATES:75}  required  Step size: a number, or a schedule.
wrappers       {WRAPPERS:75}  []        Wrappers around it, from the inside out.
beta1          {"float":75}  0.9       Decay of the mean of gradients.
beta2          {"float":75}  0.999     Decay of the mean of squared gradients.
epsilon        {"float":75}  1e-08     Added where a division could be by zero.
"""


def test_list_one_slot(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("plugins", "list", "--slot", "model", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["PLUGIN", "SOURCE", "WHAT"]
    assert [line.split()[0] for line in lines[1:]] == [
        "model.function", "model.lenet", "model.mnist_softmax", "model.network",
        "model.resnet_v1_20", "model.wide_and_deep",
    ]  # fmt: skip
    assert "slim's LeNet: two convolutions" in lines[2]


@pytest.mark.slow
def test_list_shows_broken_and_doubled_plugins_and_still_works(run_moxserve: Run, tmp_path: Path):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "bad.py").write_text("PLUGINS = {'model.bad': 'bad:X'}\nimport nothing_like_it\n")
    (folder / "twice.py").write_text("PLUGINS = {'model.lenet': 'twice:X'}\n")
    (folder / "odd.py").write_text("PLUGINS = 5\n")
    done = run_moxserve("plugins", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0
    facts = {(f["plugin"], f["source"]): f for f in json.loads(done.stdout)}
    assert facts["model.mnist_softmax", "moxserve"]["error"] == ""
    assert facts["model.bad", "folder plugins"]["error"] == (
        "model plugin 'bad' of folder plugins does not load: ModuleNotFoundError: No module named 'nothing_like_it'"
    )
    twice = "is given twice: by moxserve (moxserve_plugins.lenet.config:LeNet) and folder plugins (twice:X)"
    assert twice in facts["model.lenet", "moxserve"]["error"]
    assert twice in facts["model.lenet", "folder plugins"]["error"]
    assert "no readable PLUGINS table: PLUGINS is not a dict of strings" in facts["odd.py", "folder plugins"]["error"]
    names_only = run_moxserve("plugins", "list", "--no-load", "--slot", "model", cwd=tmp_path)
    assert "model.bad            folder plugins\n" in names_only.stdout


@pytest.mark.slow
def test_show(run_moxserve: Run, tmp_path: Path):
    done = run_moxserve("plugins", "show", "optimizer.adam", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(SHOW_ADAM)
    assert "# Optimizers" in done.stdout
    # A name that only one slot has needs no slot.
    assert run_moxserve("plugins", "show", "adam", cwd=tmp_path).stdout == done.stdout
    facts = json.loads(run_moxserve("plugins", "show", "input.image_folder", "--json", cwd=tmp_path).stdout)
    resize = next(p for p in facts["parameters"] if p["name"] == "resize")
    assert (resize["type"], resize["default"]) == ("'bilinear' | 'nearest' | 'area'", "'bilinear'")


def test_every_plugin_is_shown_with_a_meaning_for_each_parameter_and_a_readme(run_moxserve: Run, tmp_path: Path):
    from moxserve.registry import discover

    for plugin in discover([]):
        name = f"{plugin.slot}.{plugin.name}"
        model = discover([]).load(plugin.slot, plugin.name)
        assert all(info.description for info in model.model_fields.values()), name
        assert model.__doc__, name
        readme = Path(__import__(model.__module__, fromlist=["x"]).__file__).parent / "README.md"
        assert plugin.name in readme.read_text(), name


@pytest.mark.slow
def test_wrong_names(run_moxserve: Run, tmp_path: Path):
    for name, message in (
        ("optimizer.adm", "no optimizer plugin 'adm'; did you mean 'adam'?"),
        ("lenett", "no plugin 'lenett'; did you mean 'lenet'?"),
        ("imput.numpy", "no plugin 'imput.numpy'; did you mean 'input.numpy'?"),
    ):
        done = run_moxserve("plugins", "show", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    done = run_moxserve("plugins", "list", "--slot", "modell", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: 'modell' is no plugin slot; did you mean 'model'?\n")
    done = run_moxserve("plugins", "lst", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'list'?" in done.stderr
