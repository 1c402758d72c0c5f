"""`ops_adapter`, `tf_util`: small modules that scripts import by their paths."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

import moxserve.tensorflow as mox
from moxserve.errors import UsageError
from moxserve.tensorflow.executor import ops_adapter
from moxserve.tensorflow.utils import tf_util


def place() -> tuple[int, int]:
    return ops_adapter.size(), ops_adapter.rank()


def test_a_single_process() -> None:
    assert place() == (1, 0)
    mox.set_flag("num_gpus", 4)
    assert place() == (1, 0)


@pytest.mark.parametrize(
    ("job", "index", "expected"),
    [("worker", 0, (3, 0)), ("worker", 2, (3, 2)), ("chief", 0, (3, 0)), ("ps", 1, (3, 0)), ("evaluator", 0, (1, 0))],
)
def test_a_cluster(job: str, index: int, expected: tuple[int, int]) -> None:
    mox.set_flag("worker_hosts", "a:1,b:1,c:1")
    mox.set_flag("ps_hosts", "p:1,q:1")
    mox.set_flag("job_name", job)
    mox.set_flag("task_index", index)
    assert place() == expected


def test_the_shards_of_all_workers_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for index in range(3):
        config = {"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}}
        if index == 2:
            config["task"] = {"type": "chief", "index": 0}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        rows += list(range(10))[ops_adapter.rank() :: ops_adapter.size()]
    assert sorted(rows) == list(range(10))


def test_a_cluster_without_a_job_is_an_error() -> None:
    mox.set_flag("worker_hosts", "a:1,b:1")
    with pytest.raises(UsageError, match="job_name"):
        ops_adapter.rank()


def test_version_info(monkeypatch: pytest.MonkeyPatch) -> None:
    info = tf_util.version_info()
    assert ".".join(map(str, info)) == tf.__version__.split("-")[0]
    assert info > (1, 13, 0)
    monkeypatch.setattr("moxserve.tensorflow.utils.tf_util.tf.__version__", "2.22.1-rc2")
    assert tf_util.version_info() == (2, 22, 1)
