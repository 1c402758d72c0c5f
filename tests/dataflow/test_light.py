"""Data flows load no TensorFlow, and other packages only when they are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["tensorflow", "tf_keras", "keras", "torch", "pandas", "sklearn", "pyarrow", "grpc"]
# What the extra `dataflow` brings, and what only some flows need.
OPTIONAL = ["cv2", "zmq", "lmdb", "h5py", "rich"]

CORE = """
import sys
import numpy as np
import moxserve.dataflow as df
flow = df.DataFromList([[np.zeros((4, 4, 3), np.uint8), i] for i in range(9)])
flow = df.MapDataComponent(flow, lambda x: x + 1)
flow = df.RepeatedData(df.CacheData(df.JoinData([flow, df.FakeData([(2,)], 9)])), 2)
flow = df.BatchData(df.FixedSizeData(df.LocallyShuffleData(flow, 5), 18), 6)
assert [b[0].shape for b in flow] == [(6, 4, 4, 3)] * 3
"""

FILES = """
for name in ("LMDBSerializer", "NumpySerializer", "TFRecordSerializer"):
    getattr(df, name).save(flow, sys.argv[1] + name)
    assert len(list(getattr(df, name).load(sys.argv[1] + name))) == 3
df.HDF5Serializer.save(flow, sys.argv[1] + "h5", ["image", "label", "fake"])
df.TestDataSpeed(flow).start()
from moxserve.dataflow import imgaug
list(df.AugmentImageComponent(df.DataFromList([[np.zeros((4, 4, 3), np.uint8)]]), [imgaug.Resize(8)]))
"""


def loaded_by(code: str, folder: Path, names: list[str]) -> list[str]:
    # A package that must not be there cannot be used by accident either.
    code = f"import sys; sys.modules['tensorflow'] = None\n{code}\nimport json, sys\ndel sys.modules['tensorflow']\n"
    code += f"print(json.dumps([m for m in {names} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code, f"{folder}/"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", ["import moxserve.dataflow", CORE])
def test_core_loads_nothing_but_numpy(code: str, tmp_path: Path) -> None:
    assert loaded_by(code, tmp_path, HEAVY + OPTIONAL) == []


def test_everything_works_without_tensorflow(tmp_path: Path) -> None:
    assert loaded_by(CORE + FILES, tmp_path, HEAVY) == []


def test_every_name_resolves() -> None:
    import moxserve.dataflow as flows

    for name in flows.__all__:
        assert getattr(flows, name) is not None
        assert name in dir(flows)
    with pytest.raises(AttributeError, match="no attribute 'BatchDta'"):
        flows.BatchDta  # noqa: B018
