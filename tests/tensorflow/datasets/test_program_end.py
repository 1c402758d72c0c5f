"""A program may end while its sessions, which nobody closed, still read ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Without what is tested three of four such programs never ended; with more sessions, or other readers, fewer.
_PROGRAM = """
import sys
import moxserve.tensorflow as mox
from moxserve.tensorflow.executor.env import tf1

metadata = mox.ImageClassificationRawMetadata(sys.argv[1])
dataset = mox.ImageClassificationRawDataset(metadata, batch_size=4, image_size=8)
image = dataset.get(["image"])
session = tf1.Session()
for _ in range(3):
    session.run(image)
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_program_ends_though_its_sessions_still_read(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)], check=False, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
