"""Loading and unloading versions again and again gives the memory back."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CYCLES = 200

# A version is renamed to the next number: the server loads it under its new number and unloads the old one.
SCRIPT = """
import json, os, shutil, sys, time
import numpy as np
from moxserve.export.manifest import Manifest, Source, write_manifest
from moxserve.serving.main import Server, ServerOptions
from moxserve.serving.manager import ManagerOptions
from moxserve.types import ModelRef

source, base, cycles = sys.argv[1], sys.argv[2], int(sys.argv[3])
shutil.copytree(source, f"{base}/1")
write_manifest(f"{base}/1", Manifest(model_name="m", signatures={}, source=Source(checkpoint="c"), variants=()))

def resident_bytes():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

seen = []
with Server(ServerOptions(model_base_path=base, manager=ManagerOptions(poll_interval_s=0.02))) as server:
    manager = server._manager
    for number in range(1, cycles + 1):
        os.rename(f"{base}/{number}", f"{base}/{number + 1}")
        deadline = time.monotonic() + 240
        while manager.available("default") != {number + 1}:
            assert time.monotonic() < deadline, manager.statuses("default")
            time.sleep(0.002)
        with manager.borrow(ModelRef("default")) as servable:
            signature = servable.backend.signatures["serving_default"]
            servable.backend.run("serving_default", {a: np.ones((1, 1), np.float32) for a in signature.inputs})
        seen.append(resident_bytes())
print(json.dumps(seen))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["tensorflow", "onnx"])
def test_two_hundred_loads_and_unloads(
    name: str, testdata: Path, tmp_path: Path, half_onnx: Callable[[], Path]
) -> None:
    source = testdata / "saved_model_half_plus_two_cpu" / "00000123" if name == "tensorflow" else half_onnx()
    command: list[Any] = [sys.executable, "-c", SCRIPT, source, tmp_path / "base", str(CYCLES)]
    # One arena for all threads: how many the allocator makes otherwise is up to which of them meet.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == CYCLES
    # The first half fills caches and free lists. A hundred models that stayed would be 80 MiB.
    before, after = statistics.median(seen[80:100]), statistics.median(seen[-20:])
    assert after - before <= 30 << 20, f"from {before / 2**20:.1f} to {after / 2**20:.1f} MiB"


@pytest.fixture
def half_onnx(tmp_path: Path) -> Callable[[], Path]:
    """A version directory with y = x / 2 + 2 as ONNX."""
    from onnx import TensorProto, helper

    def make() -> Path:
        info, number = helper.make_tensor_value_info, helper.make_tensor
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "half"], ["t"]), helper.make_node("Add", ["t", "two"], ["y"])],
            "half_plus_two",
            [info("x", TensorProto.FLOAT, ["n", 1])],
            [info("y", TensorProto.FLOAT, ["n", 1])],
            [number("half", TensorProto.FLOAT, [], [0.5]), number("two", TensorProto.FLOAT, [], [2.0])],
        )
        path = tmp_path / "onnx"
        path.mkdir()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (path / "model.onnx").write_bytes(model.SerializeToString())
        return path

    return make
