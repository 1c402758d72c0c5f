"""Run-time flags: the table, where values come from, and life beside the user's own parser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor.flag_sources import parse_argv, parse_environment, parse_tf_config
from moxserve.tensorflow.executor.flags import FLAGS, Flag, FlagStore
from moxserve.tensorflow.utils.hyper_param_flags import mox_flags

DOCUMENTED = [
    "num_gpus",
    "job_name",
    "task_index",
    "ps_hosts",
    "worker_hosts",
    "sync_replicas",
    "variable_update",
    "local_parameter_device",
    "clone_on_cpu",
    "log_first_clone",
    "log_first_worker",
    "checkpoint_include_patterns",
    "checkpoint_exclude_patterns",
    "trainable_include_patterns",
    "trainable_exclude_patterns",
    "loss_scale",
    "use_fp16",
    "gradient_clip",
    "gradient_clip_type",
    "num_inter_threads",
    "num_intra_threads",
    "session_timeout",
    "sync_before_server",
    "chief_inc_global_step",
    "server_protocol",
    "samples_per_epoch",
    "samples_per_epoch_eval",
    "save_model_secs",
    "save_summary_steps",
    "log_every_n_steps",
    "max_number_of_steps",
    "batch_size",
    "log_dir",
    "checkpoint_path",
]
SAMPLES = {bool: "true", int: "3", float: "2.5", str: "text"}


def argv(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["script.py", *words])


@pytest.mark.parametrize("name", FLAGS)
def test_every_documented_flag_is_accepted_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = FLAGS[name]
    text = flag.choices[-1] if flag.choices else SAMPLES[flag.kind]
    value = flag.parse(text)
    for words in ([f"--{name}={text}"], [f"--{name}", text], ["--own", f"--{name}={text}", "file"]):
        argv(monkeypatch, *words)
        assert mox.get_flag(name) == value
    argv(monkeypatch)
    assert mox.get_flag(name) == flag.default
    mox.set_flag(name, text)
    assert mox.get_flag(flag_name=name) == value
    assert f"--{name} (" in mox_flags.get_help()


@pytest.mark.parametrize("name", ["num_gpus", "loss_scale", "clone_on_cpu", "max_number_of_steps", "log_dir"])
def test_an_empty_value_means_that_the_field_was_left_blank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv(monkeypatch, f"--{name}=")
    assert mox.get_flag(name) == ("" if FLAGS[name].kind is str else FLAGS[name].default)


def test_the_users_page_names_every_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    assert [name for name in FLAGS if f"`{name}`" not in page] == []


def test_the_table_holds_all_that_is_documented() -> None:
    assert [name for name in DOCUMENTED if name not in FLAGS] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--clone_on_cpu"], True),
        (["--noclone_on_cpu"], False),
        (["--clone_on_cpu", "--other"], True),
        (["--clone_on_cpu", "False"], False),
        (["--clone_on_cpu=0"], False),
        (["--clone_on_cpu", "data.txt"], True),
        (["--", "--clone_on_cpu"], False),
        (["--clone_on_cpu=true", "--clone_on_cpu=false"], False),
    ],
)
def test_booleans(words: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    argv(monkeypatch, *words)
    assert mox.get_flag("clone_on_cpu") is expected


def test_the_number_of_workers_is_counted_as_users_count_it() -> None:
    assert len(mox.get_flag("worker_hosts").split(",")) == 1


def test_set_flag_wins_over_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    argv(monkeypatch, "--loss_scale=2")
    mox.set_flag("loss_scale", 1024)
    assert mox.get_flag("loss_scale") == 1024.0


def test_unknown_flags_name_their_neighbours() -> None:
    with pytest.raises(UsageError, match=r"unknown flag 'num_gpu'; did you mean 'num_gpus'"):
        mox.get_flag("num_gpu")
    with pytest.raises(UsageError, match="checkpoint_exclude_patterns"):
        mox.set_flag("checkpoint_exclude_pattern", "x")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_gpus", "two", "--num_gpus: expected a whole number, got 'two'"),
        ("num_gpus", 1.5, "expected a whole number"),
        ("loss_scale", "big", "--loss_scale: expected a number"),
        ("clone_on_cpu", "maybe", "expected true or false"),
        ("gradient_clip_type", "norms", "is not one of norm, global_norm, value"),
        ("samples_per_epoch", 0, "expected at least 1, got"),
        ("session_timeout", -1, "expected at least 0, got"),
    ],
)
def test_values_that_do_not_fit(name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=message):
        mox.set_flag(name, value)
    argv(monkeypatch, f"--{name}={value}")
    with pytest.raises(UsageError, match=message):
        mox.get_flag(name)


def test_a_flag_without_its_value_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    argv(monkeypatch, "--batch_size")
    with pytest.raises(UsageError, match="end of the command line"):
        mox.get_flag("batch_size")


def test_set_flag_during_a_run_is_refused(train: Callable[..., mox.RunResult], linear: Any) -> None:
    def model_fn(inputs: Any, mode: str) -> Any:
        mox.set_flag("loss_scale", 2.0)
        return linear.model_fn(inputs, mode)

    with pytest.raises(UsageError, match="while a run is in progress"):
        train(model_fn=model_fn)
    mox.set_flag("loss_scale", 2.0)  # and allowed again afterwards


def test_flags_fill_what_the_script_leaves_out(
    train: Callable[..., mox.RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Any, console: Any
) -> None:
    argv(
        monkeypatch,
        *("--batch_size=7", "--max_number_of_steps=3", f"--log_dir={tmp_path}"),
        *("--log_every_n_steps=2", "--save_summary_steps=1"),
    )
    result = train(batch_size=None, max_number_of_steps=0)
    assert result.global_step == 3
    assert result.samples_per_s == pytest.approx(7 / result.step_s)
    assert (tmp_path / "model.ckpt-3.index").exists()
    assert console.text.count("sample/sec") == 2
    argv(monkeypatch, "--batch_size=7", "--max_number_of_steps=99", "--log_every_n_steps=1")
    assert train(batch_size=5, max_number_of_steps=2, log_every_n_steps=2).global_step == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_gpus": 0}, "at least 1"),
        ({"job_name": "ps", "ps_hosts": "a:1"}, "needs --worker_hosts"),
        ({"worker_hosts": "a:1,b:1"}, "--job_name does not say which"),
        ({"worker_hosts": "a:1,b:1", "job_name": "worker", "task_index": 2}, "counted from 0"),
        ({"worker_hosts": "a:1,b:1", "job_name": "worker", "sync_replicas": False}, "must step together"),
        ({"job_name": "evaluator"}, "has no log_dir"),
        ({"loss_scale": -1}, "above 0"),
        ({"trainable_exclude_patterns": "."}, "leave no variable to train"),
        ({"trainable_include_patterns": "("}, "is not a regular expression"),
    ],
)
def test_flags_that_cannot_be_honoured_are_errors(
    flags: dict[str, Any], message: str, train: Callable[..., mox.RunResult]
) -> None:
    for name, value in flags.items():
        mox.set_flag(name, value)
    with pytest.raises(UsageError, match=message):
        train()


CLUSTER = ("job_name", "task_index", "ps_hosts", "worker_hosts")


def tf_config(monkeypatch: pytest.MonkeyPatch, config: Any) -> list[Any]:
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    return [mox.get_flag(name) for name in CLUSTER]


def test_tf_config_fills_the_cluster_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"], "ps": ["p:1"]}
    task = {"type": "worker", "index": 1}
    assert tf_config(monkeypatch, {"cluster": cluster, "task": task}) == ["worker", 2, "p:1", "c:1,a:1,b:1"]
    argv(monkeypatch, "--task_index=0")
    assert mox.get_flag("task_index") == 0
    mox.set_flag("ps_hosts", "q:2,r:2")
    assert mox.get_flag("ps_hosts") == "q:2,r:2"


@pytest.mark.parametrize(
    ("task", "job", "index"),
    [
        ({"type": "master", "index": 0}, "worker", 0),
        ({"type": "worker", "index": "0"}, "worker", 1),
        ({"type": "ps", "index": 0}, "ps", 0),
        ({"type": "evaluator", "index": 0}, "evaluator", 0),
    ],
)
def test_tf_config_roles(task: dict[str, Any], job: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"master": ["c:1"], "worker": {"1": "b:1", "0": "a:1"}, "ps": ["p:1"], "evaluator": ["e:1"]}
    assert tf_config(monkeypatch, {"cluster": cluster, "task": task}) == [job, index, "p:1", "c:1,a:1,b:1"]


@pytest.mark.parametrize("config", [{}, {"cluster": {}, "task": {}}, {"environment": "cloud", "model_dir": "x"}])
def test_tf_config_without_a_cluster_says_nothing(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tf_config(monkeypatch, config) == ["", 0, "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "TF_CONFIG is not a cluster description"),
        ("{", "TF_CONFIG is not a cluster description"),
        ('{"cluster": {"ps": "p:1"}}', "expected a list of host:port, got 'p:1'"),
        ('{"task": {"type": "workers"}}', "type is 'workers'; did you mean 'worker'"),
        ('{"task": {"type": "ps", "index": "x"}}', "TF_CONFIG is not a cluster description"),
    ],
)
def test_tf_config_that_is_none(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=message):
        mox.get_flag("ps_hosts")


def test_the_environment_is_read_like_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXSERVE_FLAGS", "--num_gpus=4 --nosync_replicas --log_dir 'a b' --task_index=")
    tf_config(monkeypatch, {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})
    names = ("num_gpus", "sync_replicas", "log_dir", "task_index", "worker_hosts")
    assert [mox.get_flag(name) for name in names] == [4, False, "a b", 0, "a:1"]
    argv(monkeypatch, "--num_gpus=2")
    assert mox.get_flag("num_gpus") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--num_gpu=2", r"MOXSERVE_FLAGS: '--num_gpu=2' is no run-time flag; did you mean 'num_gpus'"),
        ("train.py", "MOXSERVE_FLAGS: 'train.py' is no run-time flag"),
        ("--log_dir='x", "is not a command line: No closing quotation"),
        ("--num_gpus=two", "expected a whole number, got 'two'"),
    ],
)
def test_an_environment_that_is_wrong(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOXSERVE_FLAGS", text)
    with pytest.raises(UsageError, match=message):
        mox.get_flag("num_gpus")


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


@given(
    before=st.lists(
        WORDS.filter(lambda w: not w.lstrip("-").startswith(tuple(DOCUMENTED)) and w != "--" and not w.startswith("-"))
    ),
    value=WORDS,
)
def test_a_flag_is_found_among_any_words(before: list[str], value: str) -> None:
    assert parse_argv([*before, f"--log_dir={value}", *before], FLAGS) == {"log_dir": value}
    assert parse_argv([*before, "--log_dir", value, *before], FLAGS) == {"log_dir": value}


def _value(flag: Flag) -> st.SearchStrategy[str]:
    if flag.choices:
        return st.sampled_from([choice for choice in flag.choices if choice])
    if flag.kind is str:
        return WORDS.filter(bool)
    least = flag.least if flag.least is not None else -1000
    return {
        bool: st.sampled_from(["true", "False", "1", "no", "ON"]),
        int: st.integers(least, 10**6).map(str),
        float: st.floats(0, 1e6).map(str),
    }[flag.kind]


def _spellings(flag: Flag, text: str) -> list[list[str]]:
    spelt = [[f"--{flag.name}={text}"], [f"--{flag.name}", text], [f"-{flag.name}={text}"]]
    if flag.kind is bool:
        spelt.append([f"--{flag.name}" if flag.parse(text) else f"--no{flag.name}"])
    return spelt


@given(st.data())
def test_every_spelling_of_any_flags_in_any_order(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(FLAGS)), unique=True, max_size=6))
    words, expected = [], {}
    for name in names:
        text = data.draw(_value(FLAGS[name]))
        words += data.draw(st.sampled_from(_spellings(FLAGS[name], text)))
        words += data.draw(st.sampled_from([[], ["file.txt"], ["--own=1"], ["--augment"]]))
        expected[name] = FLAGS[name].parse(text)
    found = parse_argv(words, FLAGS)
    assert {name: FLAGS[name].parse(text) for name, text in found.items()} == expected
    flags = shlex.join(word for name in names for word in [f"--{name}={found[name]}"])
    assert parse_environment(flags, FLAGS) == found


@given(
    chief=st.sampled_from([None, "chief", "master"]),
    workers=st.integers(0, 4),
    servers=st.integers(0, 3),
    data=st.data(),
)
def test_each_task_of_any_cluster_finds_its_own_address(
    chief: str | None, workers: int, servers: int, data: st.DataObject
) -> None:
    cluster = {job: [f"{job}-{i}:1" for i in range(count)] for job, count in (("worker", workers), ("ps", servers))}
    if chief is not None:
        cluster[chief] = [f"{chief}-0:1"]
    tasks = [(job, index) for job, hosts in cluster.items() for index in range(len(hosts))]
    if not tasks:
        return
    job, index = data.draw(st.sampled_from(tasks))
    told = parse_tf_config(json.dumps({"cluster": cluster, "task": {"type": job, "index": index}}))
    members = told["ps_hosts" if told["job_name"] == "ps" else "worker_hosts"].split(",")
    assert members[told["task_index"]] == f"{job}-{index}:1"
    assert len(told["worker_hosts"].split(",")) == max(1, workers + (chief is not None))


@given(st.lists(WORDS))
def test_any_command_line_parses_or_is_refused(words: list[str]) -> None:
    try:
        found = parse_argv(words, FLAGS)
    except UsageError:
        return
    assert set(found) <= set(FLAGS)


def test_stores_are_independent() -> None:
    one, other = FlagStore(), FlagStore()
    one.set("num_gpus", 4)
    assert other.get("num_gpus") == 1


@pytest.fixture
def run_script(run_tensorflow_script: Any) -> Callable[..., dict[str, Any]]:
    def run(text: str, *arguments: str) -> dict[str, Any]:
        done = run_tensorflow_script(text, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


BESIDE_ABSL = """
import json, sys
import tensorflow.compat.v1 as tf
tf.flags.DEFINE_integer('batch_size', 64, 'defined before the import, with the name of one of ours')
import moxserve.tensorflow as mox
tf.flags.DEFINE_string('data_url', './', 'of the platform')
tf.flags.DEFINE_string('log_dir', '/nowhere', 'defined after the import, with the name of one of ours')
tf.flags.DEFINE_boolean('augment', False, 'of the user')
flags = tf.flags.FLAGS
def main(argv):
    print(json.dumps({
        'user': [flags.batch_size, flags.data_url, flags.log_dir, flags.augment],
        'undefined': [flags.train_url, flags.num_gpus, flags.sync_replicas],
        'ours': [mox.get_flag(n) for n in 'batch_size log_dir num_gpus loss_scale sync_replicas use_fp16'.split()],
        'rest': argv[1:],
    }))
tf.app.run(main=main)
"""

BESIDE_ARGPARSE = """
import argparse, json
import moxserve.tensorflow as mox
parser = argparse.ArgumentParser()
parser.add_argument('--data_url')
args, unparsed = parser.parse_known_args()
print(json.dumps({'user': args.data_url, 'ours': [mox.get_flag('num_gpus'), mox.get_flag('checkpoint_path')]}))
"""


@pytest.mark.slow
def test_beside_the_users_own_tf_flags(run_script: Any) -> None:
    arguments = [
        "--num_gpus=2",
        "--augment",
        "--data_url=d",
        "--loss_scale",
        "8",
        "--log_dir=x",
        "--nosync_replicas",
        "--use_fp16",
        "file",
    ]
    for words in (arguments, arguments[3:] + arguments[:3]):
        got = run_script(BESIDE_ABSL, *words)
        assert got["user"] == [64, "d", "x", True]
        assert got["undefined"] == [None, 2, False]
        assert got["ours"] == [None, "x", 2, 8.0, False, True]
        assert got["rest"] == ["file"]


@pytest.mark.slow
def test_beside_the_users_own_argparse(run_script: Any) -> None:
    got = run_script(BESIDE_ARGPARSE, "--num_gpus", "3", "--data_url=d", "--checkpoint_path=c")
    assert got == {"user": "d", "ours": [3, "c"]}
