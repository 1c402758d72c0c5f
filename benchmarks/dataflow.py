"""Our flows between processes against tensorpack 0.11, multiprocessing.Pool and a plain loop, in one run.

    python benchmarks/dataflow.py --setup
    python benchmarks/dataflow.py [--rounds 5] [--images 4000] [--json]

transport   one process makes 150 KB images (a copy of one array), this one takes them: what handing over costs
map         two processes read, decode and resize real JPEGs, this one takes 224x224x3 images
batch       as transport, in batches of 32 that are made in the worker

CPU seconds are those of all processes of a program, so a busy machine blurs them less than the clock. Programs take
turns; the table shows medians over rounds, and the median of each round's ratio to tensorpack. tensorpack lives in an
environment of its own, with our versions of NumPy and OpenCV. JPEGs are made of photographs of scikit-image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers"
SHARED = ("numpy", "opencv-python-headless", "pyzmq", "psutil")

# What every program shares: {work} yields datapoints.
PROGRAM = """
import itertools, json, os, sys, time
import cv2, numpy as np, psutil
cv2.setNumThreads(0)
COUNT, FOLDER = int(sys.argv[1]), sys.argv[2]
IMAGE = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
FILES = sorted(os.path.join(FOLDER, name) for name in os.listdir(FOLDER))

def decode(dp):
    with open(dp[0], "rb") as file:
        data = file.read()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return [cv2.resize(image, (224, 224)), dp[1]]

def cpu():
    spent = time.process_time()
    for child in psutil.Process().children(recursive=True):
        spent += time.clock_gettime(~child.pid << 3 | 2)
    return spent

def measure(datapoints, images=1):
    for _ in range(max(100 // images, 3)):
        next(datapoints)
    count = max(COUNT // images, 10)
    wall, used = time.perf_counter(), cpu()
    for _ in range(count):
        next(datapoints)
    wall, used = time.perf_counter() - wall, cpu() - used
    print(json.dumps({{"wall_us": wall / count / images * 1e6, "cpu_us": used / count / images * 1e6}}), flush=True)
    os.kill(0, 9)

{imports}
{work}
"""
OURS = "from moxserve.dataflow import *"
TENSORPACK = """
from tensorpack.utils import logger
logger.setLevel(50)
from tensorpack.dataflow import *
"""
FLOWS = """
class Images(DataFlow):
    def __iter__(self):
        while True:
            yield [IMAGE.copy(), 1]

class Files(DataFlow):
    def __iter__(self):
        while True:
            yield from ([name, i] for i, name in enumerate(FILES))

def take(flow, images=1):
    flow.reset_state()
    measure(iter(flow), images)
"""
LOOP = {
    "transport": "measure(([IMAGE.copy(), 1] for _ in itertools.count()))",
    "map": "measure(decode([FILES[i % len(FILES)], i]) for i in itertools.count())",
    "batch": """
def make(): return [np.stack([IMAGE.copy() for _ in range(32)]), np.ones(32, np.int32)]
measure((make() for _ in itertools.count()), 32)
""",
}
POOL = {
    "transport": """
import multiprocessing
def make(_): return [IMAGE.copy(), 1]
measure(multiprocessing.get_context("fork").Pool(1).imap(make, range(COUNT + 200)))
""",
    "map": """
import multiprocessing
names = [[FILES[i % len(FILES)], i] for i in range(COUNT + 200)]
measure(multiprocessing.get_context("fork").Pool(2).imap(decode, names, chunksize=4))
""",
    "batch": """
import multiprocessing
def make(_): return [np.stack([IMAGE.copy() for _ in range(32)]), np.ones(32, np.int32)]
measure(multiprocessing.get_context("fork").Pool(1).imap(make, range(COUNT // 32 + 200)), 32)
""",
}
FLOW = {
    "transport": FLOWS + "take(MultiProcessRunnerZMQ(Images(), 1, hwm=50))",
    "map": FLOWS + "take(MultiProcessMapData(Files(), 2, decode, buffer_size=100))",
    "batch": FLOWS + "take(MultiProcessRunnerZMQ(BatchData(Images(), 32), 1, hwm=8), 32)",
}
VIEWS = {case: work.replace(", hwm", ", copy=False, hwm") for case, work in FLOW.items()}
CASES = tuple(FLOW)


def setup() -> None:
    """Install tensorpack into an environment of its own."""
    folder = PEERS / "tensorpack"
    python = folder / "bin" / "python"
    pins = [f"{name}=={version(name)}" for name in SHARED]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "tensorpack==0.11", "setuptools<80", *pins], check=True
    )


def write_jpegs(folder: Path, count: int = 24) -> None:
    """Write photographs of about 500 by 375 pixels as JPEGs."""
    import cv2
    from skimage import data

    photographs = [data.astronaut(), data.chelsea(), data.coffee(), data.cat(), data.rocket()]
    for i in range(count):
        image = cv2.resize(photographs[i % len(photographs)], (500, 375))
        cv2.imwrite(str(folder / f"{i:03d}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def run(python: str, text: str, count: int, folder: Path) -> dict[str, float] | None:
    """Run a program in a process group of its own; None if it printed no result."""
    program = folder.parent / "program.py"
    program.write_text(text)
    path = os.pathsep.join(part for part in sys.path if part) if python == sys.executable else ""
    environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [python, str(program), str(count), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return None
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="install tensorpack into .cache/peers, and end")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program runs")
    parser.add_argument("--images", type=int, default=4000, help="images a program measures")
    parser.add_argument("--json", action="store_true", help="print all numbers instead of a table")
    options = parser.parse_args()
    if options.setup:
        setup()
        return
    python = PEERS / "tensorpack" / "bin" / "python"
    sides = {"plain loop": (sys.executable, "", LOOP), "multiprocessing.Pool.imap": (sys.executable, "", POOL)}
    if python.exists():
        sides["tensorpack 0.11"] = (str(python), TENSORPACK, FLOW)
    sides["moxserve"] = (sys.executable, OURS, FLOW)
    sides["moxserve, copy=False"] = (sys.executable, OURS, VIEWS)
    results: dict[str, dict[str, list[dict[str, float]]]] = {
        case: {side: [] for side, (*_, work) in sides.items() if work is not VIEWS or work[case] != FLOW[case]}
        for case in CASES
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "jpegs"
        folder.mkdir()
        write_jpegs(folder)
        for _ in range(options.rounds):
            for case in CASES:
                for side in results[case]:
                    interpreter, imports, work = sides[side]
                    text = PROGRAM.format(imports=imports, work=work[case])
                    if result := run(interpreter, text, options.images, folder):
                        results[case][side].append(result)
    if options.json:
        print(json.dumps(results))
        return
    print_table(results)


def print_table(results: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Print medians, and ratios of the CPU of each round to tensorpack's."""
    print("| case | | wall µs/image | CPU µs/image | CPU, × tensorpack |\n|---|---|---|---|---|")
    for case, sides in results.items():
        peer = sides.get("tensorpack 0.11", [])
        for side, rounds in sides.items():
            if not rounds:
                print(f"| {case} | {side} | no result | | |")
                continue
            wall, cpu = (statistics.median(r[key] for r in rounds) for key in ("wall_us", "cpu_us"))
            ratios = [ours["cpu_us"] / theirs["cpu_us"] for ours, theirs in zip(rounds, peer, strict=False)]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            print(f"| {case} | {side} | {wall:.0f} | {cpu:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
