"""The filter works on a file descriptor of the whole process: each test has a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795239221.868492    8960 port.cc:153] oneDNN custom operations are on.",
    "2026-11-21 05:33:43.318697: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
    "E0000 00:00:1795239224.053450 8960 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed call "
    "to cuInit: UNKNOWN ERROR (303)",
]
NEWS = [
    "Traceback (most recent call last):",
    "F0000 00:00:1795239224.053450 8960 tensor.cc:1] Check failed: a == b",
    "E0000 00:00:1795239224.053450 8960 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_NO_DEVICE (100)",
    "W0000 00:00:1795239224.053450 8960 something.cc:5] out of memory soon",
    "ä binary \ufffd line",
]


def run(code: str) -> subprocess.CompletedProcess[bytes]:
    head = "import os, sys\nfrom moxserve.serving.observe.stderr import StartupNotes\nnotes = StartupNotes()\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, timeout=240)


def test_only_known_noise_is_left_out() -> None:
    lines = "".join(f"{line}\n" for pair in zip(NOISE, NEWS, strict=True) for line in pair)
    done = run(f"os.write(2, {lines.encode()!r})\nnotes.end()\nnotes.end()\nos.write(2, b'I0000 0 1 a.cc:1] after')")
    assert done.stderr.decode().splitlines() == [*NEWS, "I0000 0 1 a.cc:1] after"]
    assert done.returncode == 0


def test_the_servers_own_log_goes_past_it() -> None:
    done = run("notes.stream.write('2026-11-21 05:33:43.3: I our own\\n')\nos.write(2, b'half a line')\nnotes.end()")
    assert done.stderr.decode().splitlines() == ["2026-11-21 05:33:43.3: I our own", "half a line"]


def test_an_error_that_ends_the_process_is_seen() -> None:
    assert b"ZeroDivisionError" in run("try:\n    1 / 0\nfinally:\n    notes.end()").stderr


def test_much_output_blocks_nobody() -> None:
    done = run("for i in range(20000): os.write(2, b'x' * 99 + b'\\n')\nnotes.end()")
    assert done.stderr.count(b"\n") == 20000


def test_what_comes_late_goes_to_stderr_and_nowhere_else(tmp_path) -> None:
    """A process that was started meanwhile has the filter as its stderr for as long as it likes."""
    done = run(
        "import subprocess\n"
        "from moxserve.serving.observe import stderr\n"
        "stderr._PATIENCE_S = 0.1\n"
        "late = 'import sys; sys.stdin.readline(); print(\"late\", file=sys.stderr)'\n"
        "child = subprocess.Popen([sys.executable, '-c', late], stdin=subprocess.PIPE)\n"
        "notes.end()\n"
        f"files = [open({str(tmp_path)!r} + f'/{{i}}', 'w') for i in range(5)]\n"
        "child.communicate(b'go on\\n')\n"
        "notes._thread.join(60)\n"
    )
    assert (done.returncode, done.stderr) == (0, b"late\n")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b""] * 5


def test_the_log_goes_on_after_the_block() -> None:
    code = (
        "import logging, os, sys\n"
        "from moxserve.serving.observe.stderr import startup_notes_hidden\n"
        "logging.basicConfig(stream=sys.stderr, format='%(message)s')\n"
        "with startup_notes_hidden():\n"
        "    os.write(2, b'I0000 0 1 a.cc:1] noise\\nnews\\n')\n"
        "    logging.warning('I0000 0 1 a.cc:1] within')\n"
        "logging.warning('after')\n"
    )
    for level, noise in (("2", []), ("0", ["I0000 0 1 a.cc:1] noise"])):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=240, check=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": level},
        )  # fmt: skip
        assert sorted(done.stderr.decode().splitlines()) == sorted(
            [*noise, "news", "I0000 0 1 a.cc:1] within", "after"]
        )
