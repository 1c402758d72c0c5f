"""Small pipelines for real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def softmax(work: Path, digits_dir: Path) -> Callable[..., Path]:
    """Write a pipeline that trains the softmax for a few steps, with changes to its text and lines at its end."""

    def write(*changes: tuple[str, str], more: str = "", name: str = "p.yaml") -> Path:
        text = f"""\
version: 1
input: {{plugin: mnist_idx, dir: {digits_dir}/idx, batch_size: 50, eval_batch_size: 77, seed: 1}}
model: {{plugin: mnist_softmax}}
optimizer: {{plugin: sgd, learning_rate: 0.5}}
run: {{plugin: train, log_dir: run, max_number_of_steps: 30, log_every_n_steps: 10}}
"""
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = work / name
        path.write_text(text + more)
        return path

    return write
