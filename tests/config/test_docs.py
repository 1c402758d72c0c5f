"""The documentation's examples are true: YAML that loads, a plugin that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moxserve.config import load_pipeline
from moxserve.registry import discover


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_pipelines_in_the_docs_are_valid(repo_root: Path, tmp_path: Path):
    blocks = [b for b in _blocks(repo_root / "docs" / "pipelines.md", "yaml") if "version:" in b]
    assert len(blocks) == 1
    (tmp_path / "p.yaml").write_text(blocks[0])
    assert load_pipeline(tmp_path / "p.yaml").config.evaluate.require == {"accuracy": 0.97}


def test_yaml_of_the_plugin_readmes_is_valid(repo_root: Path, tmp_path: Path):
    rest = {
        "version": "version: 1\n",
        "input": "input: {plugin: mnist_idx, dir: d, batch_size: 1}\n",
        "model": "model: {plugin: lenet}\n",
        "optimizer": "optimizer: {plugin: sgd, learning_rate: 1}\n",
        "run": "run: {plugin: train, log_dir: r, max_number_of_steps: 1}\n",
    }
    blocks = [b for f in (repo_root / "plugins").rglob("README.md") for b in _blocks(f, "yaml")]
    assert len(blocks) >= 3
    for block in blocks:
        given = block.partition(":")[0]
        (tmp_path / "p.yaml").write_text(block + "".join(text for key, text in rest.items() if key != given))
        load_pipeline(tmp_path / "p.yaml")


@pytest.mark.slow
def test_the_plugin_of_the_docs_trains(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from moxserve.pipeline.runner import run_pipeline

    monkeypatch.chdir(tmp_path)
    [code] = _blocks(repo_root / "docs" / "plugins.md", "python")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stripes.py").write_text(code)
    assert discover().find("input", "stripes").source == "folder plugins"
    (tmp_path / "p.yaml").write_text(
        "version: 1\ninput: {plugin: stripes, batch_size: 16}\nmodel: {plugin: mnist_softmax}\n"
        "optimizer: {plugin: sgd, learning_rate: 0.5}\n"
        "run: {plugin: train_and_evaluate, log_dir: run, max_number_of_steps: 5}\n"
    )
    assert run_pipeline("p.yaml").evaluate["accuracy"] == 1.0


@pytest.mark.parametrize("page", ["pipelines.md", "plugins.md", "data.md"])
def test_links_lead_somewhere_or_to_a_page_of_the_index(repo_root: Path, page: str):
    index = (repo_root / "docs" / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", (repo_root / "docs" / page).read_text()):
        if not target.startswith("http"):
            assert (repo_root / "docs" / target).exists() or f"({target})" in index, target
