"""Our server, its limits and its peers, side by side in one run: CPU-ms per request, throughput, latency, as ratios.

    python benchmarks/serving.py --setup-peers        # once: environments for the peers and for nncf, about 1 GB
    python benchmarks/serving.py                      # everything, about 25 minutes
    python benchmarks/serving.py --quick              # half_plus_two, no peers: about a minute
    python benchmarks/serving.py --cases resnet50 --variants onnx,openvino_int8 --peers none --extras none

All servers of a case run at once on loopback and are measured in turns, round after round; the tables show medians. The
figure to compare is CPU-ms per request, of the server's whole process tree (`serving_processes.py`): it changes little
when other work shares the machine, while throughput and latency do. Answers are checked (`serving_load.py`).

References in the same run: each runtime in process, without a server (`serving_inprocess.py`). TensorFlow in process on
the unfrozen SavedModel stands in for the C++ server as its upper bound; that binary itself is not run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import serving_extras
import serving_models
import serving_report
import serving_targets
from serving_load import Plan
from serving_processes import tree_memory_mb
from serving_targets import CASES, PEERS, RUNTIMES, TOLERANCES, Case, Target, Wire

HERE = Path(__file__).resolve().parent
# Different requests, so that an answer to another's request does not pass for right.
REQUESTS = 3


@dataclass
class Settings:
    """What to measure.

    Attributes:
        folder: for models, requests, logs and the peers' environments.
        cases: models.
        variants: of ours; empty is all that the case names.
        peers: names.
        wires: beginnings of the names of wires (`gRPC`, `REST`); empty is all.
        concurrency: requests in flight.
        rounds: of all measurements.
        seconds: of one measurement, at least.
        connections: gRPC channels at most; requests in flight share them.
        flags: further flags of our server.
    """

    folder: Path
    cases: list[str]
    variants: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    wires: list[str] = field(default_factory=list)
    concurrency: list[int] = field(default_factory=lambda: [1, 8, 32])
    rounds: int = 3
    seconds: float = 2.0
    connections: int = 1
    flags: list[str] = field(default_factory=list)

    @property
    def environments(self) -> Path:
        """Where the peers live: beside the folder, so that a fresh one need not install them again."""
        return HERE.parent / "build" / "peers"

    @property
    def store(self) -> serving_models.Store:
        """The models."""
        quantizer = self.environments / serving_targets.QUANTIZER[0] / "bin" / "python"
        return serving_models.Store(self.folder / "models", quantizer if quantizer.exists() else None)


class Note:
    """Tells on stderr what is going on, and keeps what did not work for the report."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def say(self, text: str) -> None:
        """Tell."""
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

    def keep(self, text: str) -> None:
        """Tell, and keep it for the report."""
        self.say(text)
        self.kept.append(text)


def build_models(settings: Settings, families: Sequence[str]) -> None:
    """Build what is missing, in a process of its own: TensorFlow's memory would stay in this one."""
    store = settings.store
    command = [sys.executable, str(HERE / "serving_models.py"), str(store.root), *families]
    if store.quantizer is not None:
        command += ["--quantizer", str(store.quantizer)]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(f"the models could not be built:\n{result.stdout[-3000:]}")


class CaseRun:
    """Measures one case."""

    def __init__(self, case: Case, settings: Settings, note: Note) -> None:
        self.case = case
        self.settings = settings
        self.note = note
        self.rows: list[dict[str, Any]] = []
        self.servers: list[dict[str, Any]] = []
        self._asked: dict[tuple[str, str, str], bool] = {}
        self._requests = settings.folder / "requests" / case.family
        self._logs = settings.folder / "logs"
        for folder in (self._requests, self._logs):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Start everything, measure in turns, stop everything."""
        with ExitStack() as stack:
            targets = [target for target in self._targets() if self._started(target, stack)]
            runtimes = dict(self._runtimes(stack))
            plans = [
                (target, wire, plan)
                for target in targets
                for wire in self._wanted(target.wires)
                for plan in self._plans(target, wire)
            ]
            plans = [entry for entry in plans if self._works(*entry)]
            for turn in range(self.settings.rounds):
                self.note.say(
                    f"{self.case.family}: round {turn + 1} of {self.settings.rounds}, {len(plans)} measurements"
                )
                # A server right after its runtime, so that both meet the machine in the same state.
                for variant, runtime in runtimes.items():
                    self._measure_runtime(variant, runtime, turn)
                    for target, wire, plan in plans:
                        if target.name == "moxserve" and target.variant == variant:
                            self._measure(target, wire, plan, turn)
                for target, wire, plan in plans:
                    if target.name != "moxserve":
                        self._measure(target, wire, plan, turn)
            for target in targets:
                memory = tree_memory_mb(target.process.pid)
                self.servers.append(
                    {"case": self.case.family, "server": target.name, "variant": target.variant, "memory_mb": memory}
                    | {"start_s": target.process.start_s, "start_cpu_s": target.process.start_cpu_s}
                )

    def _variants(self) -> list[str]:
        store, chosen = self.settings.store, self.settings.variants or self.case.variants
        every = [variant for variant in self.case.variants if variant in chosen]
        there = [v for v in every if store.built(self.case.family, serving_targets.stored_variant(v))]
        for variant in sorted(set(every) - set(there)):
            self.note.keep(f"{self.case.family}: no {variant} (its tools are not here; see --setup-peers)")
        return there

    def _targets(self) -> Iterator[Target]:
        store = self.settings.store
        for variant in self._variants():
            yield serving_targets.ours(self.case, variant, store, self._logs, self.settings.flags)
        if not self.case.image:
            yield serving_targets.bare(self.case, store, self._logs)
        for name, peer in serving_targets.available(self.settings.environments).items():
            if name in self.settings.peers:
                yield peer.target(self.case, store, self.settings.environments, self._logs)

    def _started(self, target: Target, stack: ExitStack) -> bool:
        try:
            stack.enter_context(target.process)
        except RuntimeError as error:
            self.note.keep(f"{target.name} ({self.case.family}, {target.variant}) is left out: {error}")
            return False
        return True

    def _runtimes(self, stack: ExitStack) -> Iterator[tuple[str, serving_extras.InProcess]]:
        store, family = self.settings.store, self.case.family
        inputs = store.root / f"{family}_inputs.npy"
        variants = self._variants()
        if "tf" not in variants and store.built(family, "tf"):
            variants = ["tf", *variants]  # every ratio needs it
        for variant in variants:
            path = store.model_file(family, serving_targets.stored_variant(variant))
            yield variant, stack.enter_context(serving_extras.InProcess(RUNTIMES[variant], path, inputs))

    def _wanted(self, wires: Sequence[Wire]) -> list[Wire]:
        return [wire for wire in wires if not self.settings.wires or wire.name.startswith(tuple(self.settings.wires))]

    def _plans(self, target: Target, wire: Wire) -> Iterator[Plan]:
        family = self.case.family
        name = f"{target.name}_{wire.name}".replace(" ", "_").lower()
        inputs = self.settings.store.inputs(family)[:REQUESTS]
        payloads = []
        for index, array in enumerate(inputs):
            path = self._requests / f"{name}_{index}"
            path.write_bytes(wire.body(array))
            payloads.append(str(path))
        expected = self._requests / "expected.npy"
        np.save(expected, self.settings.store.expected(family)[:REQUESTS])
        levels = self.settings.concurrency
        if self.case.image and target.name == "moxserve" and wire.transport == "http":
            levels = levels[len(levels) // 2 :][:1]  # with large models transports differ little
        for concurrency in levels:
            yield Plan(
                transport=wire.transport, address=target.address(wire), method=wire.method, payloads=payloads,
                expected=str(expected), answer=wire.answer, pid=target.process.pid, headers=dict(wire.headers),
                tolerance=TOLERANCES.get(target.variant, 1e-3), concurrency=concurrency, seconds=self.settings.seconds,
                connections=min(concurrency, self.settings.connections), min_requests=concurrency,
            )  # fmt: skip

    def _works(self, target: Target, wire: Wire, plan: Plan) -> bool:
        """Ask a few times: a wire that a server does not have is told once and left out."""
        key = (target.name, target.variant, wire.name)
        if key in self._asked:
            return self._asked[key]
        try:
            found = load({**asdict(plan), "seconds": 0.3, "concurrency": 1, "connections": 1, "min_requests": 1})
        except RuntimeError as error:
            problem = str(error)
        else:
            problem = found["example"] if found["failed"] or found["wrong"] else ""
        self._asked[key] = not problem
        if problem:
            self.note.keep(
                f"{self.case.family}: {target.name} {target.variant} over {wire.name} is left out: {problem}"
            )
        return not problem

    def _measure(self, target: Target, wire: Wire, plan: Plan, turn: int) -> None:
        row = {
            "case": self.case.family, "server": target.name, "variant": target.variant, "wire": wire.name,
            "concurrency": plan.concurrency, "round": turn,
        }  # fmt: skip
        try:
            figures = load(asdict(plan))
        except RuntimeError as error:
            self.note.keep(f"{row}: {error}")
            return
        if figures["failed"] or figures["wrong"]:
            self.note.keep(f"{row}: {figures['failed']} failed, {figures['wrong']} wrong: {figures['example']}")
        self.rows.append(row | figures)

    def _measure_runtime(self, variant: str, runtime: serving_extras.InProcess, turn: int) -> None:
        for threads, batch in ((1, 1), (2, 1), (1, 8)):
            figures = runtime.measure(self.settings.seconds, threads, batch)
            row = {"case": self.case.family, "server": "in process", "variant": variant, "round": turn}
            self.rows.append(row | {"wire": f"{threads} threads, batch {batch}", "concurrency": threads} | figures)


def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Run the load generator.

    Raises:
        RuntimeError: it failed.
    """
    limit = plan["max_seconds"] + 120
    command = [sys.executable, str(HERE / "serving_load.py")]
    try:
        result = subprocess.run(
            command, input=json.dumps(plan), capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end after {limit:.0f} s") from None
    if result.returncode:
        raise RuntimeError(
            result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "the load generator died"
        )
    return dict(json.loads(result.stdout.splitlines()[-1]))


def parse() -> argparse.Namespace:
    """Read the command line."""

    def names(text: str) -> list[str]:
        return [] if text == "none" else text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="half_plus_two, two rounds of a second, no peers")
    add("--setup-peers", action="store_true", help="make the peers' environments under build/peers, and end")
    add("--python", default=_system_python(), help="interpreter of these environments (%(default)s)")
    add("--cases", type=names, default=list(CASES), help="models: " + ",".join(CASES))
    add(
        "--variants", type=names, default=[], help="of our server's models: tf,frozen,frozen_bf16,onnx,...; default all"
    )
    add("--peers", type=names, default=list(PEERS), help="names, or none; default " + ",".join(PEERS))
    add("--wires", type=names, default=[], help="beginnings of wires' names, such as gRPC or REST; default all")
    add("--concurrency", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=2.0, help="of one measurement (%(default)s)")
    add("--connections", type=int, default=1, help="gRPC channels that requests in flight share (%(default)s)")
    add("--extras", type=names, default=list(serving_extras.EXTRAS), help=",".join(serving_extras.EXTRAS) + " or none")
    add("--flag", action="append", default=[], help="a further flag of our server; may be repeated")
    add("--folder", type=Path, default=HERE.parent / "build" / "serving", help="models, requests, logs (%(default)s)")
    add("--json", type=Path, help="where the figures go; default FOLDER/results.json")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.peers, options.rounds = ["half_plus_two"], [], min(options.rounds, 2)
        options.seconds = min(options.seconds, 1.0)
        options.extras = [name for name in options.extras if name in ("codecs", "start")]
    return options


def _system_python() -> str:
    system = Path("/usr/bin/python3")
    return str(system) if system.exists() else sys.executable


def setup_peers(options: argparse.Namespace, folder: Path) -> None:
    failed = serving_targets.setup(folder, [*PEERS, serving_targets.QUANTIZER[0]], options.python)
    for line in failed:
        print(f"could not be made: {line}")
    print(f"in {folder}: {', '.join(serving_targets.available(folder)) or 'no peers'}")


def main() -> None:
    options = parse()
    # An end from outside must take the servers along, as Ctrl-C does: they are in groups of their own.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    settings = Settings(
        folder=options.folder, cases=options.cases, variants=options.variants, peers=options.peers, wires=options.wires,
        concurrency=options.concurrency, rounds=options.rounds, seconds=options.seconds,
        connections=options.connections, flags=options.flag,
    )  # fmt: skip
    if options.setup_peers:
        setup_peers(options, settings.environments)
        return
    note = Note()
    there = serving_targets.available(settings.environments)
    for name in settings.peers:
        if name not in there:
            note.keep(
                f"{PEERS[name].title} is left out: it is not installed; `{Path(sys.argv[0])} --setup-peers` does it"
            )
    began = time.monotonic()
    build_models(settings, [*settings.cases, *serving_extras.families(options.extras)])
    results: dict[str, Any] = {"settings": {**asdict(settings), "folder": ""}, "rows": [], "servers": [], "extras": {}}
    for name in settings.cases:
        run = CaseRun(CASES[name], settings, note)
        run.run()
        results["rows"] += run.rows
        results["servers"] += run.servers
    for name in options.extras:
        note.say(f"measuring {name}")
        try:
            results["extras"][name] = serving_extras.EXTRAS[name](settings)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            note.keep(f"{name} was not measured: {error}")
    results["notes"] = note.kept
    results["took_s"] = time.monotonic() - began
    target = options.json or settings.folder / "results.json"
    target.write_text(json.dumps(results, indent=1))
    print(serving_report.report(results))


if __name__ == "__main__":
    main()
