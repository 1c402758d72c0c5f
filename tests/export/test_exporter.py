"""The export as a whole: versions, the manifest, what a failure leaves, and several exporters at once."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import CheckpointError, ExportError, UsageError, VersionExistsError
from moxserve.export.job import ExportJob
from moxserve.export.manifest import check_files, read_manifest
from moxserve.export.publish import list_versions
from moxserve.serving.source import find_versions


def test_the_version_counts_up(half_job: ExportJob, export: Any) -> None:
    assert [export(half_job).version for _ in range(3)] == [1, 2, 3]
    assert list_versions(half_job.base_dir) == [1, 2, 3]


@pytest.mark.parametrize(("given", "folder"), [(9, "9"), ("12", "12"), ("model", "model"), ("-1", "1")])
def test_the_version_is_the_jobs(given: int | str, folder: str, half_job: ExportJob, export: Any) -> None:
    result = export(half_job, version=given)
    assert result.path == os.path.join(half_job.base_dir, folder)
    assert str(result.version) == folder


@pytest.mark.parametrize("version", [5, "model"])
def test_the_version_of_the_export_spec_counts(version: Any, half_job: ExportJob, export: Any) -> None:
    original = half_job.model_fn

    def model_fn(inputs: Any, mode: str) -> Any:
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        spec = original(inputs, mode).export_spec
        return ModelSpec(export_spec=ExportSpec(spec.inputs_dict, spec.outputs_dict, version=version))

    job = dataclasses.replace(half_job, model_fn=model_fn)
    assert export(job).version == version
    expected = f"Export directory already exists. Please specify a different export directory: .*/{version}"
    with pytest.raises(VersionExistsError, match=expected):
        export(job)
    assert export(job, version=77).version == 77


def test_a_version_that_is_none_is_refused_before_any_work(half_job: ExportJob, export: Any) -> None:
    with pytest.raises(UsageError, match=r"version '../x': expected -1"):
        export(half_job, version="../x", model_fn=None)


def test_the_manifest_tells_what_was_done(conv_case: Any, export: Any) -> None:
    result = export(conv_case.job, metadata={"metrics": {"accuracy": np.float32(0.5)}})
    manifest = read_manifest(result.path)
    assert manifest is not None
    assert check_files(result.path) == []
    assert manifest.model_name == "conv"
    assert manifest.source.checkpoint == conv_case.job.checkpoint
    assert manifest.source.global_step == 7
    assert manifest.tools["tensorflow"].startswith("2.")
    assert manifest.metadata == {"metrics": {"accuracy": 0.5}}
    assert manifest.signature_map() == dict(result.signatures)
    (variant,) = manifest.variants
    assert (variant.name, variant.format, variant.path) == ("saved_model", "saved_model", ".")
    assert variant.verification.mode == "samples"
    assert variant.verification.rows == result.verified_rows == 70
    assert variant.verification.references == ("EXPORT graph", "EVAL graph")
    assert {(c.signature, c.output) for c in variant.verification.outputs} == {
        ("serving_default", "logits"),
        ("serving_default", "probabilities"),
        ("serving_default", "classes"),
        ("classify", "scores"),
        ("classify", "classes"),
    }
    assert manifest.warmup.batch_sizes == (1, 8, 32)
    on_disk = sum(f.stat().st_size for f in Path(result.path).rglob("*") if f.is_file())
    assert result.size_bytes == on_disk


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_bad_checkpoint_leaves_nothing(damage: str, half_job: ExportJob, export: Any) -> None:
    if damage == "missing":
        half_job = dataclasses.replace(half_job, checkpoint=half_job.checkpoint + "0")
    else:
        Path(f"{half_job.checkpoint}.index").write_bytes(b"not an index")
    with pytest.raises(CheckpointError, match=r"building the model for export: checkpoint .* cannot be read"):
        export(half_job)
    assert not os.path.exists(half_job.base_dir)


def test_tensorflows_long_messages_become_the_line_that_tells_the_cause() -> None:
    import tensorflow as tf

    from moxserve.export.place import place

    message = (
        "Graph execution error:\n\nDetected at node 'save/SaveV2' defined at (most recent call last):\n"
        "Node: 'save/SaveV2'\nvariables.data; No space left on device\n\t [[{{node save/SaveV2}}]]\n"
        "Hint: If you want to see a list of allocated tensors when OOM happens, add this option.\n"
    )
    with pytest.raises(ExportError) as caught, place("writing the SavedModel"):
        raise tf.errors.ResourceExhaustedError(None, None, message)
    expected = "writing the SavedModel: ResourceExhaustedError: variables.data; No space left on device"
    assert caught.value.message == expected


def test_a_file_in_the_place_of_the_base_directory_is_told(half_job: ExportJob, export: Any) -> None:
    Path(half_job.base_dir).write_text("a file")
    with pytest.raises(UsageError, match=r"is a file; expected a directory for the versions"):
        export(half_job)


def test_a_full_disk_leaves_nothing(half_job: ExportJob, export: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moxserve.file import atomic

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(half_job)
    assert os.listdir(half_job.base_dir) == []


def test_an_error_of_the_users_own_code_stays_what_it_is(half_job: ExportJob, export: Any) -> None:
    def model_fn(inputs: Any, mode: str) -> Any:
        raise ZeroDivisionError("my mistake")

    with pytest.raises(ZeroDivisionError, match="my mistake") as raised:
        export(half_job, model_fn=model_fn)
    assert raised.value.__notes__ == ["raised while building the model for export"]


def test_two_exporters_at_once_take_different_numbers(half_job: ExportJob, export: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: export(half_job), range(4)))
    assert sorted(r.version for r in results) == [1, 2, 3, 4]
    assert sorted(os.listdir(half_job.base_dir)) == ["1", "2", "3", "4"]
    for result in results:
        assert check_files(result.path) == []


CRASHES = """
import json, os, random, signal, sys, time
# Imported once, in the parent; sessions, and with them TensorFlow's threads, live in the forked children only.
from moxserve.export.exporter import export_tf_serving
from moxserve.export.job import ExportJob
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec
from moxserve.types import TensorSpec, dtype_by_name
import numpy as np

base, prefix, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
inputs = [TensorSpec("x", dtype_by_name("float32"), (None, 64))]

def model_fn(inputs, mode):
    x = tf.nn.relu(tf.matmul(inputs[0], tf1.get_variable("w1", [64, 2048])))
    scores = tf.nn.softmax(tf.matmul(x, tf1.get_variable("w2", [2048, 10])))
    return ModelSpec(export_spec=ExportSpec({"x": inputs[0]}, {"scores": scores}, scores="scores"))

def save():
    with tf.Graph().as_default(), tf1.Session() as session:
        model_fn([tf1.placeholder(tf.float32, [None, 64])], "TRAIN")
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, prefix)

rows = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
job = ExportJob(model_fn, inputs, prefix, base_dir=base, samples=[rows], labels=[f"digit {i}" for i in range(10)])

def child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid

def export_forever():
    while True:
        export_tf_serving(job)

def litter():
    return {name for name in os.listdir(base) if name.startswith(".moxserve-tmp-")}

def until(true):
    end = time.monotonic() + 100
    while not true():
        if time.monotonic() > end:
            sys.exit("an export hangs")
        time.sleep(0.002)

if os.waitpid(child(save), 0)[1]:
    sys.exit("no checkpoint")
# How long a version is in the making here and now: kills by a fixed clock miss the exports of a slower machine.
pid = child(lambda: export_tf_serving(job))
until(litter)
began = time.monotonic()
until(lambda: not litter())
takes = time.monotonic() - began
os.waitpid(pid, 0)
moments, hits, misses = random.Random(3), 0, 0
while hits < wanted and misses < 60:
    old = litter()
    pid = child(export_forever)
    until(lambda: litter() - old)
    time.sleep(moments.uniform(0, 1.5 * takes))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    hits, misses = (hits + 1, misses) if litter() else (hits, misses + 1)
status = os.waitpid(child(lambda: export_tf_serving(job)), 0)[1]
print(json.dumps({"hits": hits, "status": status, "litter": sorted(litter())}))
"""


def _watch(base: str, stop: threading.Event, problems: list[str], seen: set[int]) -> None:
    """Poll the base directory as a server does, and note every version that is listed and not complete."""
    while not stop.is_set():
        problems += [f"the server waits for version {v}: {what}" for v, what in find_versions(base).incomplete.items()]
        for version in set(list_versions(base)) - seen:
            path = os.path.join(base, str(version))
            found = check_files(path)
            if found or read_manifest(path) is None:
                problems.append(f"version {version}: {found or 'no manifest'}")
            seen.add(version)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_at_random_moments_never_shows_a_partial_version(tmp_path: Path) -> None:
    base = tmp_path / "models"
    base.mkdir()
    stop, problems, seen = threading.Event(), list[str](), set[int]()
    watcher = threading.Thread(target=_watch, args=(str(base), stop, problems, seen))
    watcher.start()
    try:
        run = subprocess.run(
            [sys.executable, "-c", CRASHES, str(base), str(tmp_path / "model.ckpt"), "8"],
            capture_output=True,
            text=True,
            timeout=580,
            check=False,
        )
    finally:
        stop.set()
        watcher.join()
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(run.stdout.splitlines()[-1])
    assert problems == []
    assert report["hits"] == 8, "the kills missed the exports"
    assert report["status"] == 0, run.stderr[-3000:]
    assert report["litter"] == [], "the next export did not sweep"
    versions = list_versions(str(base))
    assert versions == list(range(1, len(versions) + 1))
    assert seen <= set(versions)
    assert [v for v in versions if check_files(str(base / str(v)))] == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_during_an_export_leaves_no_litter(
    signum: signal.Signals, half_job: ExportJob, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python turns the signal into an exception at any step; here it is raised while the manifest is written."""
    from moxserve.export import exporter

    def interrupted(*args: Any) -> None:
        previous = signal.signal(signum, signal.default_int_handler)
        try:
            signal.raise_signal(signum)
        finally:
            signal.signal(signum, previous)

    monkeypatch.setattr(exporter, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(half_job)
    assert os.listdir(half_job.base_dir) == []
