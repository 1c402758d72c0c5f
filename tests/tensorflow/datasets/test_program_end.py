"""A program may end while its sessions, which nobody closed, still read ahead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import sys
import moxserve.tensorflow as mox
from moxserve.dataflow import DataFromGenerator
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.input_source import dataflow_to_dataset

metadata = mox.ImageClassificationRawMetadata(sys.argv[1])
sessions = []
for _ in range(3):
    for options in ({}, {"reader_class": mox.AsyncRawGenerator}):
        dataset = mox.ImageClassificationRawDataset(metadata, batch_size=4, image_size=8, **options)
        sessions.append((tf1.Session(), dataset.get(["image"])))
flow = dataflow_to_dataset(DataFromGenerator(lambda: iter(lambda: [1], None)), [tf.int64])
sessions.append((tf1.Session(), tf1.data.make_one_shot_iterator(flow.prefetch(5)).get_next()))
for session, image in sessions:
    session.run(image)
print("done", flush=True)
"""


def test_a_program_ends_though_its_sessions_still_read(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
