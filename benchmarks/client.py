"""Our client against tensorflow-serving-api, both against the same server in one run.

    python benchmarks/client.py [--runs 5] [--json]

CPU seconds are user + system of the whole process, so a busy machine blurs them less than the clock; runs of both sides
alternate, and the table shows medians and their ratio. tensorflow-serving-api needs the `dev` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

MODEL = """
import sys, tensorflow as tf
class Bench(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], tf.float32, name="images")])
    def corner(self, images):
        return {"corner": images[:, 0, 0, :]}
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def echo(self, x):
        return {"y": x + 1.0}
bench = Bench()
tf.saved_model.save(bench, sys.argv[1], signatures={"serving_default": bench.echo, "image": bench.corner})
"""

# Each program prints one JSON line; {n} requests follow the first, whose CPU is told apart.
OURS = """
import sys, time, json
import numpy as np
from moxserve.client import Client
n, kind, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
value = np.ones((1, 3) if kind == "serving_default" else (1, 224, 224, 3), np.float32)
client = Client(address, check={check})
name = "x" if kind == "serving_default" else "images"
def call():
    return client.predict("bench", {{name: value}}, signature=kind)
"""
OFFICIAL = """
import sys, time, json
import grpc, numpy as np, tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
n, kind, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
value = np.ones((1, 3) if kind == "serving_default" else (1, 224, 224, 3), np.float32)
channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
name = "x" if kind == "serving_default" else "images"
def call():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "bench"
    request.model_spec.signature_name = kind
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    answer = stub.Predict(request, 30.0)
    return {k: tf.make_ndarray(v) for k, v in answer.outputs.items()}
"""
TAIL = """
assert len(call()) == 1
first = time.process_time()
for _ in range(n):
    call()
steady = (time.process_time() - first) / n if n else 0.0
print(json.dumps({"first_cpu_s": first, "steady_cpu_s": steady}))
"""
PROGRAMS = {
    "moxserve.client": OURS.format(check=True) + TAIL,
    "moxserve.client, check=False": OURS.format(check=False) + TAIL,
    "tensorflow-serving-api": OFFICIAL + TAIL,
}

SERIALISE = """
import json, time
import numpy as np, tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from moxserve.client.calls import PredictCall
from moxserve.client.wire import encode
from moxserve.types import ModelRef
value = np.random.default_rng(0).random((1, 224, 224, 3), np.float32)
def ours():
    return encode(PredictCall(ModelRef("bench"), {"images": value})).payload
def official():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "bench"
    request.model_spec.signature_name = "serving_default"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(value))
    return request.SerializeToString()
assert predict_pb2.PredictRequest.FromString(ours()) == predict_pb2.PredictRequest.FromString(official())
found = {"moxserve.client": [], "tensorflow-serving-api": []}
for _ in range(7):
    for name, function in zip(found, (ours, official)):
        start = time.process_time()
        for _ in range(100):
            function()
        found[name].append((time.process_time() - start) / 100)
print(json.dumps(found))
"""


def run_program(code: str, *args: str) -> tuple[dict[str, float], float, float]:
    """Run a program; return what it printed, its CPU seconds and its peak memory in MB."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"a benchmark program failed with status {status}; run its code by hand to see why")
    return json.loads(output.splitlines()[-1]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(address: str, runs: int) -> dict[str, dict[str, list[float]]]:
    """Alternate the programs; return figure -> program -> values."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(figure: str, name: str, value: float) -> None:
        found.setdefault(figure, {}).setdefault(name, []).append(value)

    for _ in range(runs):
        for name, code in PROGRAMS.items():
            _, cpu_s, peak_mb = run_program(code, "0", "serving_default", address)
            note("process start to first reply, CPU s", name, cpu_s)
            note("peak memory, MB", name, peak_mb)
    for _ in range(min(runs, 3)):
        for name, code in PROGRAMS.items():
            result, _, _ = run_program(code, "1000", "serving_default", address)
            note("request of 12 bytes, client CPU µs", name, result["steady_cpu_s"] * 1e6)
            result, _, _ = run_program(code, "200", "image", address)
            note("request of 600 KB, client CPU µs", name, result["steady_cpu_s"] * 1e6)
    serialised, _, _ = run_program(SERIALISE)
    for name, values in serialised.items():
        for value in values:  # type: ignore[attr-defined]
            note("serialise a request of 600 KB, CPU µs", name, value * 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    from moxserve.client import Client

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", MODEL, str(Path(folder) / "bench" / "1")], check=True, stderr=subprocess.DEVNULL
        )
        socket = Path(folder) / "grpc.sock"
        command = [
            sys.executable, "-m", "moxserve", "serve", "--port=0", f"--grpc_socket_path={socket}", "--model_name=bench",
            f"--model_base_path={folder}/bench",
        ]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with Client(f"unix:{socket}") as client:
                client.wait_ready("bench", 60)
            start = time.monotonic()
            found = measure(f"unix:{socket}", options.runs)
        finally:
            server.terminate()
            server.wait()
    medians = {f: {n: statistics.median(v) for n, v in names.items()} for f, names in found.items()}
    if options.json:
        print(json.dumps(medians, indent=2, ensure_ascii=False))
        return
    for figure, names in medians.items():
        print(figure)
        official = names["tensorflow-serving-api"]
        for name, value in names.items():
            low, high = min(found[figure][name]), max(found[figure][name])
            digits = 3 if value < 10 else 0
            ratio = f"1/{official / value:.1f}" if value < official else f"{value / official:.2f}"
            print(f"  {name:30} {value:10.{digits}f}   ({low:.{digits}f}..{high:.{digits}f})   {ratio}")
    print(f"({options.runs} alternating runs, {time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()
