"""Pipeline files: every mistake told at once, with its place, what was given, what was expected, and the nearest."""

# ruff: noqa: E501 - messages are asserted to the letter

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from moxserve.config import LoadedPipeline, load_pipeline
from moxserve.config.dump import config_hash, to_data, to_yaml
from moxserve.errors import ConfigError

GOOD = """\
version: 1
input: {plugin: mnist_idx, dir: d, batch_size: 10}
model: {plugin: lenet}
optimizer:
  plugin: adam
  learning_rate: 1e-3
run:
  plugin: train
  log_dir: r
  max_number_of_steps: 5
"""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load(text: str, *overrides: str, check: bool = False, **environment: str) -> LoadedPipeline:
    Path("p.yaml").write_text(text)
    return load_pipeline("p.yaml", overrides, environment=environment, check=check)


def _told(text: str, *overrides: str, check: bool = False, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(text, *overrides, check=check, **environment)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_file():
    config = _load(GOOD).config
    assert config.optimizer.learning_rate == 0.001
    assert (config.run.log_dir, config.export, config.run.plugin) == ("r", None, "train")
    assert list(config.stages()) == ["input", "model", "optimizer", "run"]


def test_every_mistake_at_once():
    text = """\
    version: 1
    input:     {plugin: image_folder, train_dr: data, batch_size: many}
    model:
      plugin: lenett
    optimizer: {plugin: adam, learning_rate: -0.1, beta1: 1.5}
    run:
      plugin: train
      max_number_of_steps: true
      log_every_n_steps: 0
    exprt: {}
    export:
      tf_serving: 5
      warmup: [1, x]
    predict: {output: "${NOPE}/x"}
    """
    assert (
        _told(textwrap.dedent(text), "run.foo=5")
        == textwrap.dedent("""\
        p.yaml:2:35: input.train_dr: unknown key 'train_dr'; did you mean 'train_dir'?
            input:     {plugin: image_folder, train_dr: data, batch_size: many}
                                              ^
        p.yaml:2:63: input.batch_size: expected a whole number, got 'many'
            input:     {plugin: image_folder, train_dr: data, batch_size: many}
                                                                          ^
        p.yaml:4:11: model.plugin: no model plugin 'lenett'; did you mean 'lenet'?
              plugin: lenett
                      ^
        p.yaml:5:42: optimizer.learning_rate: expected a number greater than 0, got -0.1
            optimizer: {plugin: adam, learning_rate: -0.1, beta1: 1.5}
                                                     ^
        p.yaml:5:55: optimizer.beta1: expected a number less than 1, got 1.5
            optimizer: {plugin: adam, learning_rate: -0.1, beta1: 1.5}
                                                                  ^
        p.yaml:6:1: run: missing key 'log_dir': Folder for checkpoints, TensorBoard summaries and reports.
            run:
            ^
        p.yaml:8:24: run.max_number_of_steps: expected a number, got true
              max_number_of_steps: true
                                   ^
        p.yaml:9:22: run.log_every_n_steps: expected a number of at least 1, got 0
              log_every_n_steps: 0
                                 ^
        p.yaml:10:1: exprt: unknown stage 'exprt'; did you mean 'export'?
            exprt: {}
            ^
        p.yaml:12:15: export.tf_serving: expected text, got 5
              tf_serving: 5
                          ^
        p.yaml:13:15: export.warmup.1: expected a whole number, got 'x'
              warmup: [1, x]
                          ^
        p.yaml:14:20: predict.output: environment variable NOPE is not set and has no default (a default is written ${NOPE:-value})
            predict: {output: "${NOPE}/x"}
                               ^
        --set run.foo=5: run.foo: unknown key 'foo'; known: checkpoint_exclude_patterns, checkpoint_include_patterns, checkpoint_path, compute_dtype, deterministic, evaluation, log_dir, log_every_n_steps, loss_scale, max_number_of_steps, save_model_secs, save_model_steps, save_summary_steps, seed, trainable_exclude_patterns, trainable_include_patterns, warm_start""")
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("version: 1\n", ""), "p.yaml: missing key 'version'; write `version: 1` at the top"),
        (("version: 1", "version: 2"), "p.yaml:1:10: version: expected 1, the only version this moxserve reads, got 2\n    version: 2\n             ^"),
        (("version: 1", "version: true"), "p.yaml:1:10: version: expected 1, the only version this moxserve reads, got true\n    version: true\n             ^"),
        (
            ("model: {plugin: lenet}\n", ""),
            "p.yaml: missing stage 'model'; write for example `model: {plugin: lenet}`",
        ),
        (
            ("model: {plugin: lenet}", "model: lenet"),
            "p.yaml:3:8: model: expected a mapping such as `model: {plugin: lenet}`, got 'lenet'\n    model: lenet\n           ^",
        ),
        (
            ("model: {plugin: lenet}", "model: {num_classes: 3}"),
            "p.yaml:3:1: model: missing key 'plugin'; one of function, lenet, mnist_softmax, network, resnet_v1_20, wide_and_deep, or module:Class\n    model: {num_classes: 3}\n    ^",
        ),
        (
            ("plugin: lenet", "plugin: adam"),
            "p.yaml:3:17: model.plugin: no model plugin 'adam'; known: function, lenet, mnist_softmax, network, resnet_v1_20, wide_and_deep\n    model: {plugin: adam}\n                    ^",
        ),
        (("  learning_rate: 1e-3\n", ""), "p.yaml:4:1: optimizer: missing key 'learning_rate': Step size: a number, or a schedule.\n    optimizer:\n    ^"),
        (
            ("plugin: lenet", "plugin: lenet, dropout_keep_prob: .inf"),
            "p.yaml:3:43: model.dropout_keep_prob: expected a finite number, got inf\n    model: {plugin: lenet, dropout_keep_prob: .inf}\n                                              ^",
        ),
        (
            ("plugin: mnist_idx", "plugin: image_folder, train_dir: d, resize: bilinar"),
            "p.yaml:2:53: input.resize: expected 'bilinear', 'nearest' or 'area', got 'bilinar'; did you mean 'bilinear'?",
        ),
    ],
)  # fmt: skip
def test_one_mistake(change: tuple[str, str], expected: str):
    told = _told(GOOD.replace(*change))
    assert told.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("learning_rate: 1e-3", "learning_rte: 1e-3", "p.yaml:6:3: optimizer.learning_rte: unknown key 'learning_rte'"),
        ("model:", "modle:", "p.yaml:3:1: modle: unknown stage 'modle'; did you mean 'model'?"),
        ("version:", "verson:", "p.yaml:1:1: verson: unknown stage 'verson'; did you mean 'version'?"),
        ("log_dir: r", "logdir: r", "p.yaml:9:3: run.logdir: unknown key 'logdir'; did you mean 'log_dir'?"),
    ],
)
def test_a_misspelt_key_is_one_problem_not_two(old: str, new: str, told: str):
    with pytest.raises(ConfigError) as caught:
        _load(GOOD.replace(old, new))
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(told)


def test_optimizer_is_needed_only_to_train():
    without = GOOD.replace("optimizer:\n  plugin: adam\n  learning_rate: 1e-3\n", "")
    assert _told(without) == (
        "p.yaml: missing stage 'optimizer': run plugin 'train' trains; "
        "write for example `optimizer: {plugin: adam, learning_rate: 0.001}`"
    )
    evaluate = without[: without.index("run:")] + "run: {plugin: evaluate, log_dir: r, checkpoint_path: c}\n"
    assert _load(evaluate).config.optimizer is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "p.yaml:1:1: the file is empty; expected the keys version, input, model, optimizer, run"),
        ("# nothing\n", "p.yaml:1:1: the file is empty; expected the keys version, input, model, optimizer, run"),
        ("- a\n", "p.yaml:1:1: expected a mapping with the keys version, input, model, …, got ['a']\n    - a\n    ^"),
        (
            "hello",
            "p.yaml:1:1: expected a mapping with the keys version, input, model, …, got 'hello'\n    hello\n    ^",
        ),
    ],
)
def test_no_mapping(text: str, expected: str):
    assert _told(text) == expected


def test_missing_file_names_the_nearest():
    Path("digits.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as caught:
        load_pipeline("digitz.yaml")
    assert str(caught.value) == "digitz.yaml: no such file; did you mean 'digits.yaml'?"
    with pytest.raises(ConfigError, match="is a directory; expected a YAML file"):
        load_pipeline(".")


def test_not_utf8():
    Path("p.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_pipeline("p.yaml")


def test_interpolation_and_overrides_reach_the_plugins():
    text = GOOD.replace("1e-3", "${LR:-0.5}").replace("log_dir: r", "log_dir: ${ROOT}/r")
    config = _load(text, "run.max_number_of_steps=7", ROOT="/runs").config
    assert (config.optimizer.learning_rate, config.run.log_dir, config.run.max_number_of_steps) == (0.5, "/runs/r", 7)


def test_null_drops_an_optional_stage():
    text = GOOD + "export: {tf_serving: m}\n"
    assert _load(text).config.export is not None
    assert _load(text, "export=null").config.export is None


def test_what_is_on_disk_is_looked_at_on_request():
    assert _load(GOOD).config.input.dir == "d"
    told = _told(GOOD, check=True)
    assert told.startswith(f"p.yaml:2:33: input.dir: no such directory: 'd' (the current directory is {os.getcwd()})")
    Path("d").write_text("")
    assert "input.dir: expected a directory: 'd' is a file" in _told(GOOD, check=True)
    Path("d").unlink()
    Path("d").mkdir()
    assert "p.yaml:2:33: input.dir: 'd' lacks train-images-idx3-ubyte.gz, train-labels" in _told(GOOD, check=True)


def test_the_check_of_a_broken_plugin_is_a_problem_of_that_plugin():
    Path("mine.py").write_text(
        "from moxserve.pipeline.slots import ModelPlugin\n"
        "class Mine(ModelPlugin):\n"
        "    def check(self): raise KeyError('oops')\n"
        "    def build(self, data): raise AssertionError\n"
    )
    Path("d").mkdir()
    text = GOOD.replace("plugin: lenet", "plugin: ./mine.py:Mine").replace("mnist_idx, dir: d", "numpy, train: x.npz")
    told = _told(text, check=True)
    assert "p.yaml:3:8: model: the check of plugin './mine.py:Mine' failed: KeyError: 'oops'" in told
    assert "p.yaml:2:31: input.train: no such file: 'x.npz'" in told


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        ("./nope.py:X", "no such file: './nope.py'"),
        ("nope.module:X", "'nope.module:X' does not load: ModuleNotFoundError: No module named 'nope'"),
        ("./m.py:fn", "'./m.py:fn' is a function, not a plugin; write {plugin: function, target: ./m.py:fn}"),
        ("./m.py:Run", "'./m.py:Run' is a plugin for run, not for model"),
        ("./m.py:Other", "expected a subclass of moxserve.pipeline.slots.ModelPlugin"),
        ("./m.py:Runn", "has no 'Runn'; did you mean 'Run'"),
        ("./bad.py:X", "'./bad.py:X' does not load: ZeroDivisionError: division by zero"),
        ("./syntax.py:X", "'./syntax.py:X' does not load: SyntaxError"),
        (":X", "':X': expected module:attribute or ./file.py:attribute"),
    ],
)
def test_plugins_by_module_or_file_that_are_none(plugin: str, told: str):
    Path("m.py").write_text(
        "from moxserve.pipeline.slots import RunPlugin\n"
        "class Run(RunPlugin): pass\nclass Other: pass\ndef fn(inputs, mode): pass\n"
    )
    Path("bad.py").write_text("1 / 0\n")
    Path("syntax.py").write_text("def\n")
    message = _told(GOOD.replace("plugin: lenet", f"plugin: '{plugin}'"))
    assert message.startswith("p.yaml:3:17: model.plugin: ")
    assert told in message


def test_a_file_plugin_is_used_and_may_import_what_lies_beside_it():
    Path("sub").mkdir()
    Path("sub/beside_it.py").write_text("DEFAULT = 3\n")
    Path("sub/plugin.py").write_text(
        "from beside_it import DEFAULT\nfrom moxserve.pipeline.slots import ModelPlugin\n"
        "class Mine(ModelPlugin):\n    depth: int = DEFAULT\n    def build(self, data): return None\n"
    )
    config = _load(GOOD.replace("plugin: lenet", "plugin: ./sub/plugin.py:Mine")).config
    assert config.model.depth == 3


@pytest.mark.parametrize("folder", ["plugins", "pipes/plugins", "elsewhere"])
def test_plugin_folders(folder: str):
    Path(folder).mkdir(parents=True)
    name = f"own_{folder.replace('/', '_')}"
    Path(folder, f"{name}.py").write_text(
        f"from moxserve.pipeline.slots import ModelPlugin\nPLUGINS = {{'model.mine': '{name}:Mine'}}\n"
        "class Mine(ModelPlugin):\n    def build(self, data): return None\n"
    )
    text = GOOD.replace("plugin: lenet", "plugin: mine")
    if folder == "elsewhere":
        text += "plugin_folders: [elsewhere]\n"
    Path("pipes").mkdir(exist_ok=True)
    Path("pipes/p.yaml").write_text(text)
    assert type(load_pipeline("pipes/p.yaml").config.model).__name__ == "Mine"


def test_plugin_folders_that_are_none():
    told = _told(GOOD + "plugin_folders: [nope]\n")
    assert told.startswith("p.yaml:11:18: plugin_folders.0: no such directory: 'nope'")
    assert _told(GOOD + "plugin_folders: x\n").startswith(
        "p.yaml:11:17: plugin_folders: expected a list of folders, got 'x'"
    )


def test_resolved_yaml_reads_back_to_the_same():
    text = (
        GOOD.replace("log_dir: r", "log_dir: $${x}/r") + "description: 'a: b'\nevaluate: {require: {accuracy: 0.5}}\n"
    )
    config = _load(text).config
    assert config.run.log_dir == "${x}/r"
    again = _load(to_yaml(to_data(config)).replace("${", "$${")).config
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(_load(text, "optimizer.learning_rate=2").config) != config_hash(config)


def test_dump_with_and_without_defaults_and_absolute():
    config = _load(GOOD).config
    assert to_data(config, defaults=False)["optimizer"] == {"plugin": "adam", "learning_rate": 0.001}
    assert to_data(config)["optimizer"]["beta1"] == 0.9
    data = to_data(config, absolute=True)
    assert (data["input"]["dir"], data["run"]["log_dir"]) == (os.path.abspath("d"), os.path.abspath("r"))
