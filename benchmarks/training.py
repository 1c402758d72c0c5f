"""Training, in four parts: what `mox.run` adds to a step, towers, workers, and a GPU where there is one.

step      `mox.run` against the bare `sess.run(train_op)` loop on the same graph; see `training_step`. Aim: <= 1.02 of
          its time on lenet, whose steps take milliseconds.
towers    2 and 4 logical CPU devices, `batch` rows each, against one device that takes all these rows at once: what is
          lost by the cut and the meeting of gradients. On one CPU nothing can be gained.
workers   1 and 2 worker processes on this machine, with a parameter server (synchronous) and by all-reduce, against
          TensorFlow's own scripts (`training_workers`) under the same launcher. Aim: >= 0.9 of their rows a second.
gpu       resnet_v1_50, images a second in float32 and with use_fp16, against a hand-written loop (aim >= 1.0) and
          Keras' `model.fit` (aim >= 1.1); see `training_gpu`. Skipped where TensorFlow sees no GPU.

Contenders take turns in each round, and the best round of each counts, because other work on the machine only ever adds
time. Ratios are ours to theirs.

    python benchmarks/training.py [--parts step,towers,workers,gpu] [--rounds 3] [--steps 400] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 600.0
AIMS = {("step", "lenet"): 1.02, ("workers", ""): 0.9}

# Of the part workers: options of the launcher, number of workers, how the plain script trains.
KINDS = {
    "1 worker": (["--workers=1"], 1, "sessions"),
    "2 workers, 1 ps": (["--workers=2", "--ps=1"], 2, "sessions"),
    "2 workers, all-reduce": (["--workers=2"], 2, "strategy"),
}

Row = dict[str, Any]


def json_of(command: list[str], what: str) -> Row:
    """Run a command that prints a line of JSON, alone or behind the name of a process; return that."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=HERE)
    for line in reversed(done.stdout.splitlines()):
        brace = line.find("{")
        if brace >= 0 and (brace == 0 or line.startswith("[worker 0]")):
            found: Row = json.loads(line[brace:])
            return found
    raise SystemExit(
        f"{what} measured nothing (status {done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    )


def best_of(contenders: dict[str, Callable[[], Row]], rounds: int, key: str) -> dict[str, Row]:
    """Let all take turns; return the best reading of each."""
    best: dict[str, Row] = {}
    for number in range(rounds):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            reading = contenders[name]()
            if name not in best or reading[key] < best[name][key]:
                best[name] = reading
    return best


def verdict(ratio: float, aim: float | None, more: bool) -> str:
    """Say whether a ratio is what was aimed at."""
    if aim is None:
        return ""
    met = ratio >= aim if more else ratio <= aim
    return f"  aim {'>=' if more else '<='} {aim:.2f}: {'met' if met else 'MISSED'}"


def step_part(options: argparse.Namespace) -> list[Row]:
    """What a step costs above the bare loop, each model in a process of its own."""
    rows = []
    print("\nstep: mox.run against the bare loop, us a step")
    print(f"{'':10s}{'mox.run':>12s}{'bare loop':>12s}{'ratio':>8s}")
    for model, share in (("tiny", 5.0), ("lenet", 0.25)):
        steps = max(5, int(options.steps * share))
        command = [sys.executable, __file__, "--measure=step", f"--model={model}", f"--steps={steps}"]
        found = json_of([*command, f"--rounds={options.rounds}"], f"step of {model}")
        ratio = found["mox"] / found["bare"]
        aim = AIMS.get(("step", model))
        print(
            f"{model:10s}{found['mox']:12.1f}{found['bare']:12.1f}{ratio:8.3f}{verdict(ratio, aim, more=False)}",
            flush=True,
        )
        rows.append({"part": "step", "model": model, **found, "ratio": ratio, "aim": aim})
    return rows


def measure_step(options: argparse.Namespace) -> Row:
    """Measure one model in this process: best wall times, in us a step."""
    from training_step import GraphContenders

    graph = GraphContenders(options.model, options.steps)
    contenders: dict[str, Callable[[], Row]] = {"mox": graph.run_mox, "bare": graph.run_bare}  # type: ignore[dict-item]
    best = best_of(contenders, options.rounds + 1, "wall")  # the first one warms up
    return {name: reading["wall"] for name, reading in best.items()}


def towers_part(options: argparse.Namespace) -> list[Row]:
    """Towers on logical devices, against one device with all the rows."""
    rows = []
    steps = max(5, options.steps // 10)
    print(f"\ntowers: lenet, {options.batch} rows each, ms a step, each count in a process of its own")
    print(f"{'towers':10s}{'N towers':>12s}{'one device':>12s}{'ratio':>8s}{'rows/s':>10s}")
    for towers in (2, 4):
        command = [sys.executable, __file__, "--measure=towers", f"--towers={towers}", f"--steps={steps}"]
        found = json_of([*command, f"--rounds={options.rounds}", f"--batch={options.batch}"], f"{towers} towers")
        ratio = found["towers"] / found["single"]
        speed = towers * options.batch / found["towers"]
        print(
            f"{towers:<10d}{found['towers'] * 1e3:12.2f}{found['single'] * 1e3:12.2f}{ratio:8.3f}{speed:10.0f}",
            flush=True,
        )
        rows.append({"part": "towers", "count": towers, **found, "ratio": ratio, "rows_per_s": speed})
    return rows


def measure_towers(options: argparse.Namespace) -> Row:
    """Measure N towers and one device with as many rows, in this process; seconds a step."""
    from training_workers import mox_run

    import moxserve.tensorflow as mox

    def run(towers: int, batch: int) -> Row:
        mox.set_flag("num_gpus", towers)
        return {"step_s": mox_run("lenet", options.steps, batch).step_s}

    contenders: dict[str, Callable[[], Row]] = {
        "towers": lambda: run(options.towers, options.batch),
        "single": lambda: run(1, options.towers * options.batch),
    }
    best = best_of(contenders, options.rounds, "step_s")
    return {name: reading["step_s"] for name, reading in best.items()}


def workers_part(options: argparse.Namespace) -> list[Row]:
    """Worker processes, ours and those of plain scripts."""
    from training_step import BATCH

    wanted = options.kinds.split(";")
    kinds = {name: kind for name, kind in KINDS.items() if name in wanted}
    rows = []
    steps = max(5, options.steps // 4)
    print(f"\nworkers: {options.model}, batch {BATCH} each, rows a second of all workers")
    print(f"{'':24s}{'mox.run':>12s}{'plain':>12s}{'ratio':>8s}{'CPU ratio':>11s}")
    for name, (arguments, count, plain) in kinds.items():

        def measure(way: str, arguments: list[str] = arguments) -> Row:
            launch = [sys.executable, "-m", "moxserve", "launch", "--restarts=0", "--grace=1", *arguments]
            script = ["training_workers.py", f"--way={way}", f"--model={options.model}", f"--steps={steps}"]
            return json_of([*launch, *script], f"{way} with {' '.join(arguments)}")

        contenders: dict[str, Callable[[], Row]] = {way: lambda w=way: measure(w) for way in ("mox", plain)}  # type: ignore[misc]
        best = best_of(contenders, options.rounds, "step_s")
        ours, theirs = best["mox"], best[plain]
        ratio, cpu_ratio = theirs["step_s"] / ours["step_s"], theirs["cpu_s"] / ours["cpu_s"]
        speeds = [count * BATCH / side["step_s"] for side in (ours, theirs)]
        told = verdict(ratio, AIMS["workers", ""], more=True)
        print(f"{name:24s}{speeds[0]:12.0f}{speeds[1]:12.0f}{ratio:8.3f}{cpu_ratio:11.3f}{told}", flush=True)
        rows.append(
            {"part": "workers", "kind": name, "model": options.model, "mox": ours, "plain": theirs, "ratio": ratio}
        )
    return rows


def gpu_part(options: argparse.Namespace) -> list[Row]:
    """Images a second of resnet_v1_50 on a GPU."""
    command = [sys.executable, str(HERE / "training_gpu.py"), f"--rounds={options.rounds}", "--print-json"]
    found = json_of(command, "gpu")
    if found.get("skipped"):
        print(f"\ngpu: skipped: {found['skipped']}")
        return [{"part": "gpu", **found}]
    rows: list[Row] = found["rows"]
    print(f"\ngpu: resnet_v1_50 on {found['device']}, batch {found['batch']}, images a second")
    print(f"{'':22s}{'images/s':>10s}{'mox.run / it':>14s}")
    for row in rows:
        told = verdict(row["ratio"], row["aim"], more=True)
        print(f"{row['precision'] + ' ' + row['contender']:22s}{row['images_per_s']:10.0f}{row['ratio']:14.3f}{told}")
    return [{"part": "gpu", "device": found["device"], **row} for row in rows]


PARTS = {"step": step_part, "towers": towers_part, "workers": workers_part, "gpu": gpu_part}
MEASURES = {"step": measure_step, "towers": measure_towers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of step, towers, workers, gpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="from which the numbers of steps of all parts are made")
    parser.add_argument("--batch", type=int, default=32, help="rows of a tower")
    parser.add_argument("--model", choices=["tiny", "lenet"], default="lenet", help="of the part workers")
    parser.add_argument("--kinds", default=";".join(KINDS), help="of the part workers, separated by semicolons")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--towers", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options)))
        return
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    rows = [row for name in names for row in PARTS[name](options)]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
