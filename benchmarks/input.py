"""Images from disk to batches: ours, tf.data, torch and tensorpack in one run, and what the decoders can do at most.

    python benchmarks/input.py --setup-peers    # once: environments for torch and tensorpack under build/peers
    moxserve data native-decoder                # optional: the rows with the native decoder
    python benchmarks/input.py [--rounds 5] [--epochs 2] [--only ours,tfdata] [--json]

Random resized crop to 224, random flip, batch 64, shuffled, on 640 JPEGs of about 500 x 375 that are crops of real
photographs. The figure is **images per CPU-second**: user + system of a pipeline's whole process tree, so that other
work on the machine disturbs it less than the clock. All pipelines live at once and are asked in turns, each in each
round; before and after, a pipeline is left alone until its buffers are full and it is idle, so that what it read ahead
is counted where it belongs. A measurement is whole epochs, since some pipelines do not read ahead over their end.
Ratios are taken within a round; the table has their medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from input_images import write_images
from serving_processes import tree, tree_cpu_s
from serving_targets import install

from moxserve.images.native.library import SWITCH, installed

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / "build" / "peers"
PEER_REQUIREMENTS = {
    "torch": ("torch==2.15.0", "opencv-python-headless==5.0.0.93", "numpy>=2,<3"),
    "tensorpack": ("tensorpack==0.11", "opencv-python-headless==5.0.0.93", "numpy>=2,<3"),
}
BATCH = 64


@dataclass(frozen=True)
class Pipeline:
    """One row of the table.

    Attributes:
        worker: the program that has it.
        name: what that program calls it.
        title: what it does.
        against: name of the pipeline of ours that is compared with it, without the native decoder and with it.
    """

    worker: str
    name: str
    title: str
    against: str = ""

    @property
    def key(self) -> str:
        """Name over all workers."""
        return f"{self.worker}.{self.name}"


PIPELINES = (
    Pipeline("ours", "limit_opencv", "OpenCV, decoding alone, one thread"),
    Pipeline("ours", "limit_simplejpeg", "simplejpeg, decoding alone, one thread"),
    Pipeline("ours", "uint8", "ours, raw data set, uint8"),
    Pipeline("ours", "batches", "ours, BatchDecoder alone, uint8"),
    Pipeline("native", "uint8", "ours with the native decoder, raw data set, uint8", "uint8"),
    Pipeline("native", "batches", "ours with the native decoder, BatchDecoder alone, uint8", "batches"),
    Pipeline("tfdata", "naive_uint8", "tf.data: decode, crop, resize, uint8", "uint8"),
    Pipeline("tfdata", "fused_uint8", "tf.data: decode_and_crop, resize, uint8", "uint8"),
    Pipeline("torch", "uint8", "torch DataLoader, OpenCV, uint8", "uint8"),
    Pipeline("tensorpack", "uint8", "tensorpack MultiProcessMapData, uint8", "uint8"),
    Pipeline("ours", "float32", "ours, raw data set, float32"),
    Pipeline("native", "float32", "ours with the native decoder, raw data set, float32", "float32"),
    Pipeline("tfdata", "naive_float32", "tf.data: decode, crop, resize, float32", "float32"),
    Pipeline("tfdata", "fused_float32", "tf.data: decode_and_crop, resize, float32", "float32"),
    Pipeline("torch", "float32", "torch DataLoader, OpenCV, float32", "float32"),
    Pipeline("tensorpack", "float32", "tensorpack MultiProcessMapData, float32", "float32"),
    Pipeline("ours", "cached_uint8", "ours, raw data set, decoded cache, uint8"),
    Pipeline("ours", "batches_cached", "ours, BatchDecoder, decoded cache, uint8"),
    Pipeline("tfdata", "cached_uint8", "tf.data: cache() of decoded images, uint8", "cached_uint8"),
    Pipeline("ours", "bytes", "ours, bytes only"),
    Pipeline("tfdata", "bytes", "tf.data: read_file, bytes only", "bytes"),
)


class Worker:
    """A program that gives images when it is asked; see `peers/input_worker.py`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self.log = log
        self._answer("ready")

    def _answer(self, word: str) -> list[str]:
        # Libraries may print when they are imported.
        for line in self.process.stdout or ():
            if line.startswith(word):
                return line.split()
        raise SystemExit(f"a worker ended; its last words:\n{self.log.read_text()[-2000:]}")

    def ask(self, name: str, images: int) -> float:
        """Consume images; return images per CPU-second."""
        before = self.idle()
        self._send(name, images)
        _, given = self._answer("done")
        return int(given) / (self.idle() - before)

    def _send(self, name: str, images: int) -> None:
        if self.process.stdin:
            self.process.stdin.write(f"{name} {images}\n")
            self.process.stdin.flush()

    def idle(self) -> float:
        """Wait until nothing is read ahead any more; return the CPU seconds of the process tree until then."""
        known = tree_cpu_s(self.process.pid)
        for _ in range(200):
            time.sleep(0.15)
            now = tree_cpu_s(self.process.pid)
            if now - known <= 0.02:
                return now
            known = now
        raise SystemExit("a worker does not come to rest")

    def stop(self) -> None:
        """End the program and what it started."""
        for pid in tree(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def commands(folder: Path, listed: Path, only: Sequence[str]) -> dict[str, list[str]]:
    """Return the programs that can be run here, and say which cannot."""
    threads = len(os.sched_getaffinity(0))
    arguments = [str(threads), str(BATCH), str(listed)]
    ours = [sys.executable, str(HERE / "input_ours.py"), *arguments, str(folder / "cache")]
    found = {
        "ours": ["env", f"{SWITCH}=0", *ours],
        "tfdata": [sys.executable, str(HERE / "input_tfdata.py"), *arguments],
    }
    if installed() is not None:
        found["native"] = ours
    elif "native" in only:
        print("the native decoder is left out: `moxserve data native-decoder` builds it", file=sys.stderr)
    for peer in PEER_REQUIREMENTS:
        if (PEERS / peer / ".complete").exists():
            found[peer] = [str(PEERS / peer / "bin" / "python"), str(HERE / "peers" / f"input_{peer}.py"), *arguments]
        elif peer in only:
            print(f"{peer} is left out: it is not installed; --setup-peers does it", file=sys.stderr)
    return {name: command for name, command in found.items() if name in only}


def measure(workers: dict[str, Worker], rounds: int, images: int) -> dict[str, list[float]]:
    """Ask all pipelines in turns; return images per CPU-second of each round."""
    wanted = [pipeline for pipeline in PIPELINES if pipeline.worker in workers]
    found: dict[str, list[float]] = {pipeline.key: [] for pipeline in wanted}
    for number in range(-1, rounds):
        for pipeline in wanted:
            # The round before the first fills caches.
            one = workers[pipeline.worker].ask(pipeline.name, images * _longer(pipeline))
            if number >= 0:
                found[pipeline.key].append(one)
        print(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return found


def _longer(pipeline: Pipeline) -> int:
    if "bytes" in pipeline.name:
        return 20
    return 4 if "cached" in pipeline.name else 1


def report(found: dict[str, list[float]]) -> list[dict[str, object]]:
    """Return the rows of the table."""
    rows: list[dict[str, object]] = []
    for pipeline in PIPELINES:
        values = found.get(pipeline.key)
        if not values:
            continue
        row: dict[str, object] = {
            "pipeline": pipeline.title,
            "images_per_cpu_s": statistics.median(values),
            "best": max(values),
        }
        for worker in ("ours", "native"):
            mine = found.get(f"{worker}.{pipeline.against}")
            if mine and pipeline.worker != worker:
                ratios = [one / other for one, other in zip(mine, values, strict=True)]
                row[f"{worker}_against_it"] = [statistics.median(ratios), min(ratios), max(ratios)]
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Print as Markdown."""
    print("| pipeline | images/CPU-s | best | ours / it (lowest..highest) | with the native decoder / it |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [str(row["pipeline"]), *(f"{row[key]:,.0f}" for key in ("images_per_cpu_s", "best"))]
        cells += [_ratio(row.get(f"{worker}_against_it")) for worker in ("ours", "native")]
        print(f"| {' | '.join(cells)} |")


def _ratio(found: object) -> str:
    return "{:.2f} ({:.2f}..{:.2f})".format(*found) if isinstance(found, list) else ""


def setup_peers() -> None:
    """Make the peers' environments; say why one cannot be made."""
    for name, requirements in PEER_REQUIREMENTS.items():
        done = PEERS / name / ".complete"
        if done.exists():
            continue
        print(f"installing {' '.join(requirements)} into {PEERS / name} ...", file=sys.stderr, flush=True)
        try:
            install(PEERS / name, requirements, sys.executable)
        except subprocess.CalledProcessError as error:
            print(f"{name} cannot be installed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        done.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--setup-peers", action="store_true", help="make the peers' environments under build/peers, and end")
    add("--rounds", type=int, default=5)
    add("--epochs", type=int, default=2, help="of one measurement; more where images are cached")
    add("--batches", type=int, default=10, help="of an epoch: so many times 64 files are made")
    add("--only", default="ours,native,tfdata,torch,tensorpack", help="which programs, with commas")
    add("--json", action="store_true")
    options = parser.parse_args()
    if options.setup_peers:
        setup_peers()
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths = write_images(folder / "images", options.batches * BATCH)
        listed = folder / "paths.txt"
        listed.write_text("\n".join(paths))
        workers: dict[str, Worker] = {}
        try:
            for name, command in commands(folder, listed, options.only.split(",")).items():
                workers[name] = Worker(command, folder / f"{name}.log")
            found = measure(workers, options.rounds, options.epochs * len(paths))
        finally:
            for worker in workers.values():
                worker.stop()
        size_kb = sum(os.path.getsize(path) for path in paths) / len(paths) / 1000
    rows = report(found)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print_table(rows)
    print(f"\n({len(paths)} files of {size_kb:.0f} KB on average, {options.rounds} rounds)")


if __name__ == "__main__":
    main()
