"""One form of a model, tried in a process of its own: what it answers, what it costs, and how it may fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moxserve.export.facts import Measured
from moxserve.export.manifest import TensorNames, Variant
from moxserve.export.variants.work import Rows
from moxserve.probe import ProbeOptions, probe

Make = Callable[..., Rows]
QUICK = ProbeOptions(budget_s=0.05)
ANSWERS = ProbeOptions(measure=False)
X = np.random.default_rng(5).normal(size=(70, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("variant", "platform"),
    [
        pytest.param(None, "tensorflow", marks=pytest.mark.slow),
        pytest.param("frozen", "tensorflow", marks=pytest.mark.slow),
        ("onnx", "onnx"),
        ("tflite", "tflite"),
    ],
)
def test_every_form_answers_all_rows_and_is_measured(
    staged: Path, make_rows: Make, logits: Callable[..., Any], variant: str | None, platform: str
) -> None:
    result = probe(str(staged), variant, "serving_default", make_rows(x=X), QUICK)
    assert (result.error, result.notes, result.platform) == ("", (), platform)
    assert result.variant == (variant or "saved_model")
    np.testing.assert_allclose(result.outputs["logits"], logits(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.outputs["best"], logits(X).argmax(1))
    np.testing.assert_allclose(result.singles["logits"], logits(X[:8]), rtol=1e-5, atol=1e-5)
    check_measured(result.measured)
    folder = staged / "variants" / variant if variant else staged
    own = [p for p in folder.rglob("*") if p.is_file() and (variant or "variants" not in p.parts)]
    assert result.size_bytes == sum(p.stat().st_size for p in own)
    assert len(result.digest) == 64


def check_measured(measured: Measured | None) -> None:
    assert measured is not None
    assert measured.machine.cpus >= 1
    assert "onnxruntime" in measured.machine.versions
    assert measured.load_s > 0
    assert measured.first_call_ms > 0
    assert 10 < measured.base_memory_mb <= measured.peak_memory_mb < 10_000
    assert [t.batch for t in measured.timings] == [1, 32]
    for timing in measured.timings:
        assert timing.calls >= 3
        assert 0 < timing.min_ms <= timing.p50_ms <= timing.p95_ms
        assert timing.cpu_ms >= 0
        assert timing.rows_per_s == pytest.approx(1000 * timing.batch / timing.p50_ms)
        assert timing.best_rows_per_s == pytest.approx(1000 * timing.batch / timing.min_ms)


@pytest.mark.parametrize(
    ("path", "format_name"),
    [
        ("variants/onnx/model.onnx", "onnx"),
        pytest.param("variants/frozen", "saved_model", marks=pytest.mark.slow),
    ],
)
def test_a_variant_as_it_will_be_declared(
    staged: Path, make_rows: Make, logits: Callable[..., Any], path: str, format_name: str
) -> None:
    """Its names are not the signature's: the declaration leads from one to the other, without a manifest."""
    names = TensorNames(inputs={"x": "x:0"}, outputs={"logits": "logits:0", "best": "best:0"})
    variant = Variant(name="v", format=format_name, path=path, signatures={"serving_default": names})
    result = probe(str(staged), variant, "serving_default", make_rows(x=X[:3]), ANSWERS)
    assert (result.error, result.measured) == ("", None)
    np.testing.assert_allclose(result.outputs["logits"], logits(X[:3]), rtol=1e-5, atol=1e-5)


def test_batches_and_single_rows_as_asked(staged: Path, make_rows: Make, logits: Callable[..., Any]) -> None:
    rows = make_rows(x=X)
    fewer = Rows(rows.folder, 5, rows.inputs)
    options = ProbeOptions(batch=2, singles=99, batch_sizes=(3,), budget_s=0.01, intra_op_threads=1)
    result = probe(str(staged), "onnx", "serving_default", fewer, options)
    assert result.outputs["logits"].shape == result.singles["logits"].shape == (5, 10)
    np.testing.assert_allclose(result.outputs["logits"], logits(X[:5]), rtol=1e-5, atol=1e-5)
    assert result.measured is not None
    assert [t.batch for t in result.measured.timings] == [3]
    assert result.measured.threads == 1


@pytest.mark.slow
def test_signatures_of_other_kinds(staged: Path, make_rows: Make) -> None:
    """Strings, bfloat16 with a scalar output, a fixed batch size, and one that refuses large batches."""
    text = np.array([b"a", b"\xff\0b", b""], object)
    result = probe(str(staged), None, "text", make_rows(text=text), QUICK)
    assert (result.error, result.outputs["upper"].tolist()) == ("", [b"A", b"\xff\0B", b""])

    halves = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    result = probe(str(staged), None, "halves", make_rows(h=halves), ANSWERS)
    assert result.error == ""
    assert result.outputs["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result.outputs["y"], halves + halves)
    assert result.outputs["scale"] == 2.0

    pairs = np.arange(30, dtype=np.float32).reshape(10, 3)
    result = probe(str(staged), None, "pairs", make_rows(pair=pairs), QUICK)
    assert (result.error, result.singles) == ("", {})
    np.testing.assert_allclose(result.outputs["total"], pairs.sum(1))
    assert result.notes == ("it takes batches of 4 rows only: no row was asked by itself",)
    assert result.measured is not None
    assert [t.batch for t in result.measured.timings] == [4]

    few = ProbeOptions(batch=10, budget_s=0.02)
    result = probe(str(staged), None, "few", make_rows(some=np.ones((12, 1), np.float32)), few)
    assert (result.error, len(result.outputs["root"])) == ("", 12)
    assert result.notes[0].startswith("batches of 32 were not measured: ")
    assert result.measured is not None
    assert [t.batch for t in result.measured.timings] == [1]


def test_without_rows_it_is_only_loaded(staged: Path, make_rows: Make) -> None:
    result = probe(str(staged), "onnx", "serving_default", make_rows(), QUICK)
    assert (result.error, result.platform, result.outputs, result.measured) == ("", "onnx", {}, None)
    assert result.notes == ("no real rows: it was only loaded",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "signature", "inputs", "message"),
    [
        ("broken", "serving_default", {"x": X}, "variants/broken/model.onnx: "),
        ("onyx", "serving_default", {"x": X}, "has no variant 'onyx'; did you mean 'onnx'?"),
        ("onnx", "text", {"x": X}, "it does not serve signature 'text'; it serves serving_default"),
        ("onnx", "serving_default", {"y": X}, "Signature input alias: x(feed name: x:0) not found"),
        ("onnx", "serving_default", {"x": X[:, :5]}, "has shape [1,5]; expected [?,6] (when it was called first)"),
        ("onnx", "serving_default", {"x": X.astype(np.int32)}, "Expects arg[0] to be float but int32 is provided"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told(
    staged: Path, make_rows: Make, variant: str, signature: str, inputs: dict[str, np.ndarray], message: str
) -> None:
    result = probe(str(staged), variant, signature, make_rows(**inputs), ANSWERS)
    assert message in result.error
    assert (result.outputs, result.measured) == ({}, None)


def test_a_variant_that_cannot_stand_in(staged: Path, make_rows: Make) -> None:
    variant = Variant(name="v", format="onnx", path="variants/onnx/model.onnx", signatures={"text": TensorNames()})
    result = probe(str(staged), variant, "text", make_rows(x=X), ANSWERS)
    assert "variants/onnx/model.onnx cannot stand in for the model: it has no output for 'upper'" in result.error


def test_a_crash_is_told_with_its_signal_and_last_words(
    staged: Path, make_rows: Make, fake_onnxruntime: Callable[[str], Path]
) -> None:
    fake_onnxruntime(
        """
        import os, signal, sys
        __version__ = "0"
        def set_default_logger_severity(level): pass
        class SessionOptions:
            def __getattr__(self, name): return lambda *_: None
        def InferenceSession(*_, **__):
            print("before the end")
            print("the end", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        """
    )
    result = probe(str(staged), "onnx", "serving_default", make_rows(x=X), ANSWERS)
    assert result.error.startswith("the process that ran it was ended by SIGSEGV while it was loaded: ")
    assert result.error.endswith("the end")
    assert result.log.endswith("the end")
    assert result.size_bytes > 0


def test_a_missing_package_is_told_with_its_extra(
    staged: Path, make_rows: Make, fake_onnxruntime: Callable[[str], Path]
) -> None:
    fake_onnxruntime("raise ImportError('no', name='onnxruntime')")
    result = probe(str(staged), "onnx", "serving_default", make_rows(x=X), ANSWERS)
    assert 'serving an ONNX model needs onnxruntime (pip install "moxserve[onnx]")' in result.error


HANGS = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open({pids!r}, "w") as f:
        f.write(f"{{os.getpid()}} {{child.pid}}")
    os.rename({pids!r}, {pids!r} + ".done")
    time.sleep(600)
    """


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_a_hang_is_ended_with_all_that_it_started(
    staged: Path, make_rows: Make, fake_onnxruntime: Callable[[str], Path], tmp_path: Path
) -> None:
    pids = str(tmp_path / "pids")
    fake_onnxruntime(HANGS.format(pids=pids))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for limit_s in (3, 30, 120):  # a busy machine may not come as far as the hang in the first time
        options = ProbeOptions(timeout_s=limit_s, scratch=str(scratch))
        result = probe(str(staged), "onnx", "serving_default", make_rows(x=X), options)
        assert result.error == f"it was ended after {limit_s} s"
        assert result.seconds >= limit_s
        if os.path.exists(pids + ".done"):
            break
    for pid in Path(pids + ".done").read_text().split():
        wait_until(lambda pid=pid: gone(int(pid)))  # type: ignore[misc]
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_process_ends_with_the_one_that_asked(
    staged: Path, make_rows: Make, fake_onnxruntime: Callable[[str], Path], tmp_path: Path, how: signal.Signals
) -> None:
    pids = str(tmp_path / "pids")
    fake = fake_onnxruntime(HANGS.format(pids=pids))
    rows = make_rows(x=X)
    script = f"""
        import sys
        sys.path.insert(0, {str(fake)!r})
        from moxserve.export.variants.work import Rows
        from moxserve.probe import probe
        probe({str(staged)!r}, "onnx", "serving_default", Rows({rows.folder!r}, {rows.count}, {dict(rows.inputs)!r}))
        """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: os.path.exists(pids + ".done"))
        parent.send_signal(how)
        parent.communicate(timeout=240)
        worker, _ = Path(pids + ".done").read_text().split()
        wait_until(lambda: gone(int(worker)))
    finally:
        parent.kill()
        parent.wait()
        for pid in Path(pids + ".done").read_text().split():
            if not gone(int(pid)):
                os.kill(int(pid), signal.SIGKILL)


def test_nothing_is_printed_and_nothing_stays(
    staged: Path, make_rows: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p for p in staged.rglob("*"))
    probe(str(staged), "tflite", "serving_default", make_rows(x=X), ProbeOptions(measure=False, scratch=str(tmp_path)))
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == ["rows"]
    assert sorted(p for p in staged.rglob("*")) == before


@pytest.mark.slow
def test_operations_of_a_library_that_cannot_be_loaded(staged: Path, make_rows: Make, tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"no library")
    options = ProbeOptions(measure=False, op_libraries=(str(library),))
    result = probe(str(staged), None, "serving_default", make_rows(x=X), options)
    assert "ops.so" in result.error


def test_a_damaged_manifest_is_told(staged: Path, make_rows: Make, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(staged, copy)
    (copy / "assets.extra").mkdir()
    (copy / "assets.extra" / "moxserve.json").write_text("{")
    result = probe(str(copy), "onnx", "serving_default", make_rows(x=X), ANSWERS)
    assert "expected a moxserve manifest" in result.error
