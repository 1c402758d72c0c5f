"""docs/models.md: its table, its options and its script are true."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import moxserve.tensorflow as mox
from moxserve.cli.main import cli
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.catalog import NETWORKS
from moxserve.tensorflow.nets.factory import network_options


@pytest.fixture
def page(repo_root: Path) -> str:
    return (repo_root / "docs" / "models.md").read_text()


def between(page: str, mark: str) -> str:
    """What stands between a mark and the end that follows it."""
    [found] = re.findall(rf"<!-- {re.escape(mark)} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    return str(found)


def test_the_table_is_what_the_command_prints(page: str) -> None:
    command = "moxserve models list --format markdown"
    result = CliRunner().invoke(cli, command.split()[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert between(page, command) == result.stdout
    assert re.findall(r"^\| `(\w+)`", result.stdout, re.MULTILINE) == list(NETWORKS)


def _row(line: str) -> tuple[Callable[[str], bool], dict[str, str | None]]:
    """Which networks a row is about, and its options with their defaults."""
    names, options = line[2:-2].split(" | ")
    wanted, _, but = names.partition(", but ")
    patterns, without = re.findall(r"`([\w*]+)`", wanted), re.findall(r"`([\w*]+)`", but)

    def about(name: str) -> bool:
        if not patterns:  # "all with batch norms"
            return "batch_norm_decay" in network_options(name)
        return any(fnmatchcase(name, p) for p in patterns) and name not in without

    return about, {name: default or None for name, default in re.findall(r"`([a-z][a-z_]+)(?:=([^`]*))?`", options)}


def _is(default: Any, told: str) -> bool:
    if callable(default):
        return told == f"tf.nn.{default.__name__}"
    return told == repr(default) or (isinstance(default, float) and float(told) == default)


def test_the_options_are_those_of_the_networks(page: str) -> None:
    rows = [_row(line) for line in between(page, "options").splitlines()[2:]]
    for name in NETWORKS:
        told: dict[str, str | None] = {}
        for about, options in rows:
            if about(name):
                assert not set(options) & set(told), name
                told |= options
        known = network_options(name)
        assert set(told) == set(known), name
        for option, default in told.items():
            assert default is None or _is(known[option], default), f"{name}: {option}"


@pytest.mark.slow
def test_the_script_builds_in_every_mode(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [script] = re.findall(r"```python\n# train\.py\n(.*?)```", page, re.DOTALL)
    given: dict[str, Any] = {}
    monkeypatch.setattr(mox, "run", lambda **kwargs: given.update(kwargs))
    exec(compile(script, "train.py", "exec"), {})
    images, labels = tf.zeros([2, 96, 96, 3]), tf.constant([1, 5], tf.int64)
    for mode in (mox.ModeKeys.TRAIN, mox.ModeKeys.EVAL, mox.ModeKeys.EXPORT):
        with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
            spec = given["model_fn"]([images, labels], mode)
        assert spec.export_spec.outputs_dict["probabilities"].shape == [2, 6]
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        assert session.run(spec.loss) > 0
