"""Tables of `serving.py`, in Markdown, from what it wrote: `python benchmarks/serving_report.py RESULTS.json ...`.

Medians over rounds, but for what is compared with a runtime in process: there the least of the rounds of each, since
ratios near 1 are asked for, and a machine that others use makes some rounds up to twice as dear.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
TITLES = {
    "tf": "TensorFlow fp32 SavedModel", "frozen": "TensorFlow fp32, frozen", "frozen_bf16": "TensorFlow bf16, frozen",
    "onnx": "ONNX Runtime fp32", "onnx_int8": "ONNX Runtime int8", "openvino": "OpenVINO bf16",
    "openvino_int8": "OpenVINO int8", "none": "no model",
}  # fmt: skip
INSIDE, BARE = "in process", "transport alone"
# Shares of the in-process limit to reach, for ResNet-50.
SHARES = {"tf": 0.95, "frozen": 0.95, "onnx": 0.95, "onnx_int8": 0.90, "openvino_int8": 0.85}


class Figures:
    """Medians by what was measured.

    Args:
        rows: as `serving.py` writes them.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def where(self, **wanted: Any) -> Figures:
        """Return the rows that have these values."""
        return Figures(row for row in self.rows if all(row[key] == value for key, value in wanted.items()))

    def values(self, key: str) -> list[Any]:
        """Return the different values of a key, in order of appearance."""
        return list(dict.fromkeys(row[key] for row in self.rows))

    def median(self, figure: str) -> float:
        """Return the median of a figure; nan without rows."""
        found = [row[figure] for row in self.rows if figure in row and not math.isnan(row[figure])]
        return statistics.median(found) if found else math.nan

    def least(self, figure: str) -> float:
        """Return the smallest value of a figure, which is of the least disturbed round; nan without rows."""
        return min((row[figure] for row in self.rows if not math.isnan(row[figure])), default=math.nan)

    def __bool__(self) -> bool:
        return bool(self.rows)


def number(value: float) -> str:
    """Return a figure with three digits that mean something."""
    if math.isnan(value):
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 1 else 1}f}" if value >= 0.1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """Return a ratio."""
    return "" if math.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int = 2) -> str:
    """Return a Markdown table; the first columns are text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def servers_table(figures: Figures) -> str:
    """Return CPU-ms per request of every server of a case, with throughput and latency of the middle concurrency."""
    levels = sorted({row["concurrency"] for row in figures.rows if row["server"] != INSIDE})
    middle = levels[len(levels) // 2] if levels else 0
    head = ["server", "wire", *(f"CPU-ms c{level}" for level in levels), f"req/s c{middle}", "p50 ms", "p99 ms"]
    lines = []
    for server in figures.values("server"):
        if server == INSIDE:
            continue
        for variant in figures.where(server=server).values("variant"):
            mine = figures.where(server=server, variant=variant)
            for wire in mine.values("wire"):
                one = mine.where(wire=wire)
                at = one.where(concurrency=middle)
                lines.append(
                    [f"{server}, {TITLES[variant]}", wire]
                    + [number(one.where(concurrency=level).median("cpu_ms")) for level in levels]
                    + [number(at.median(figure)) for figure in ("per_s", "p50_ms", "p99_ms")]
                )
    return table(head, lines)


@dataclass(frozen=True)
class Share:
    """One variant beside its limit; of every figure the least over the rounds, as other work can only add to it.

    Attributes:
        variant: of the model.
        limit: CPU-ms in process, batch 1, one thread and two.
        ours: CPU-ms over gRPC by requests in flight.
        share: limit / ours, the best over the levels, with the limit of as many threads.
        against_tf: CPU-ms of TensorFlow in process at batch 1 over our cheapest.
        against_tf_batch: the same at TensorFlow's batch of 8.
    """

    variant: str
    limit: tuple[float, float]
    ours: dict[int, float]
    share: float
    against_tf: float
    against_tf_batch: float


def shares(figures: Figures, wire: str = "gRPC") -> list[Share]:
    """Return each of our variants beside its in-process limit."""
    inside = figures.where(server=INSIDE)
    tf = inside.where(variant="tf")
    tf_one = tf.where(wire="1 threads, batch 1").least("cpu_ms")
    tf_batch = tf.where(wire="1 threads, batch 8").least("cpu_ms")
    found = []
    for variant in figures.where(server="moxserve").values("variant"):
        limits = [inside.where(variant=variant, wire=f"{n} threads, batch 1").least("cpu_ms") for n in (1, 2)]
        mine = figures.where(server="moxserve", variant=variant, wire=wire)
        if not mine:
            continue
        ours = {level: mine.where(concurrency=level).least("cpu_ms") for level in sorted(mine.values("concurrency"))}
        share = max(limits[level > 1] / cpu for level, cpu in ours.items())
        best = min(ours.values())
        found.append(Share(variant, (limits[0], limits[1]), ours, share, tf_one / best, tf_batch / best))
    return found


def limits_table(figures: Figures) -> str:
    """Return our variants beside their in-process limits."""
    found = shares(figures)
    levels = sorted({level for share in found for level in share.ours})
    head = ["variant", "in process, 1 / 2 threads", *(f"gRPC c{level}" for level in levels), "share of the limit"]
    head += ["× TF in process b1", "× TF in process b8"]
    lines = [
        [TITLES[one.variant], f"{number(one.limit[0])} / {number(one.limit[1])}"]
        + [number(one.ours.get(level, math.nan)) for level in levels]
        + [ratio(one.share), ratio(one.against_tf), ratio(one.against_tf_batch)]
        for one in found
    ]
    return table(head, lines)


def _peers(figures: Figures) -> list[str]:
    return [name for name in figures.values("server") if name not in ("moxserve", INSIDE, BARE)]


def peers_table(figures: Figures) -> str:
    """Return how many times as much CPU each peer's cheapest wire takes as ours, with the same ONNX model."""
    ours = figures.where(server="moxserve", variant="onnx")
    levels = sorted(ours.values("concurrency"))
    # Of large models some wires are asked at one concurrency only.
    whole = [wire for wire in ours.values("wire") if len(ours.where(wire=wire).values("concurrency")) == len(levels)]
    head = ["server", "its cheapest wire", *(f"CPU-ms c{level}" for level in levels)]
    head += [f"× ours over {wire}, c{level}" for wire in whole for level in levels]
    lines = []
    for server in ["moxserve", *_peers(figures)]:
        mine = figures.where(server=server, variant="onnx")
        wires = whole if server == "moxserve" else mine.values("wire")
        if not wires:
            continue
        cheapest = min(wires, key=lambda wire: mine.where(wire=wire).median("cpu_ms"))
        cpu = [mine.where(wire=cheapest, concurrency=level).median("cpu_ms") for level in levels]
        times = [
            value / ours.where(wire=wire, concurrency=level).median("cpu_ms")
            for wire in whole
            for level, value in zip(levels, cpu, strict=True)
        ]
        lines.append([server, cheapest, *map(number, cpu), *map(ratio, times)])
    return table(head, lines)


def extras(found: dict[str, Any]) -> list[str]:
    """Return the tables of whatever extras were measured."""
    parts = []
    if codecs := found.get("codecs"):
        lines = [[name, number(us)] for name, us in codecs.items()]
        parts.append("### Codecs: one image of 602 KB\n\n" + table(["", "CPU µs"], lines, 1))
    if start := found.get("start"):
        base = start["times"]["import tensorflow"]
        lines = [
            [
                name,
                number(t["wall_s"]),
                number(t["cpu_s"]),
                ratio(t["wall_s"] / base["wall_s"]),
                ratio(t["cpu_s"] / base["cpu_s"]),
            ]
            for name, t in start["times"].items()
        ]
        loaded = ", ".join(f"{name}: {'yes' if yes else 'no'}" for name, yes in start["tensorflow_loaded"].items())
        title = "### Start to ready, half_plus_two\n\n"
        head = ["", "s", "CPU s", "× import tensorflow", "× its CPU"]
        parts.append(title + table(head, lines, 1) + f"\n\nTensorFlow loaded into the process: {loaded}")
    if first := found.get("first_request"):
        lines = [[name, number(f["first_ms"]), number(f["p50_ms"]), ratio(f["ratio"])] for name, f in first.items()]
        title = "### First request after a load, MobileNetV2 in TensorFlow\n\n"
        parts.append(title + table(["", "first, ms", "steady p50, ms", "ratio"], lines, 1))
    if agreement := found.get("agreement"):
        lines = [[row["family"], TITLES[row["variant"]], *_agreement(row)] for row in agreement]
        head = ["trained network", "variant", "says the same as fp32", "is right", "largest difference"]
        parts.append("### Agreement on 797 held-out handwritten digits\n\n" + table(head, lines))
    return parts


def _agreement(row: Row) -> list[str]:
    return [f"{row['agreement']:.2%}", f"{row['accuracy']:.2%}", f"{row['largest_difference']:.4f}"]


@dataclass(frozen=True)
class Aim:
    """One aim: what, the bound, what was found, and whether that is enough."""

    what: str
    bound: float
    found: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def aims(results: dict[str, Any]) -> list[Aim]:
    """Return the aims that this run says something about."""
    figures, found = Figures(results["rows"]), []
    resnet, tiny = figures.where(case="resnet50"), figures.where(case="half_plus_two")
    for share in shares(resnet) if resnet else []:
        if share.variant in SHARES:
            what = f"ResNet-50, {TITLES[share.variant]}: share of the in-process limit over gRPC"
            found.append(Aim(what, SHARES[share.variant], share.share))
    by_variant = {share.variant: share.against_tf for share in (shares(resnet) if resnet else [])}
    for label, bound, names in (("bf16", 5, ("frozen_bf16", "openvino")), ("int8", 8, ("onnx_int8", "openvino_int8"))):
        best = max((by_variant[name] for name in names if name in by_variant), default=math.nan)
        found.append(Aim(f"ResNet-50 {label}: × TensorFlow in process, batch 1", bound, best))
    for wire, bound in (("gRPC", 0.25), ("REST", 0.12)):
        for variant in tiny.where(server="moxserve").values("variant"):
            mine = tiny.where(server="moxserve", variant=variant, wire=wire)
            for level in sorted(mine.values("concurrency")):
                what = f"half_plus_two ({TITLES[variant]}) over {wire}, c{level}: CPU-ms"
                found.append(Aim(what, bound, mine.where(concurrency=level).median("cpu_ms"), at_least=False))
    found += [*_peer_aims(tiny, 3.0, "half_plus_two"), *_peer_aims(resnet, 1.0, "ResNet-50"), *_extra_aims(results)]
    return [aim for aim in found if not math.isnan(aim.found)]


def _peer_aims(figures: Figures, bound: float, title: str) -> list[Aim]:
    found = []
    for server in _peers(figures):
        mine, ours = (figures.where(server=name, variant="onnx") for name in (server, "moxserve"))
        for level in sorted(mine.values("concurrency")):
            at, our = mine.where(concurrency=level), ours.where(concurrency=level)
            if not our:
                continue
            peer = min(at.where(wire=wire).median("cpu_ms") for wire in at.values("wire"))
            best = min(our.where(wire=wire).median("cpu_ms") for wire in our.values("wire"))
            found.append(Aim(f"{title}: {server}'s CPU-ms over ours, cheapest wires, c{level}", bound, peer / best))
    return found


def _extra_aims(results: dict[str, Any]) -> list[Aim]:
    extra = results["extras"]
    codecs = extra.get("codecs", {})
    found = [
        Aim("600 KB tensor: encode, CPU µs", 30, codecs.get("server: array to response", math.nan), at_least=False),
        Aim("600 KB tensor: decode, CPU µs", 5, codecs.get("server: request to array", math.nan), at_least=False),
        Aim("3 MB JSON body to array, CPU µs", 7000, codecs.get("server: JSON to array", math.nan), at_least=False),
    ]
    if start := extra.get("start"):
        times = start["times"]
        ready = times.get("moxserve, tf", {}).get("cpu_s", math.nan) / times["import tensorflow"]["cpu_s"]
        found.append(Aim("half_plus_two: start to ready, × import tensorflow, CPU", 1.2, ready, at_least=False))
        if "onnx" in start["tensorflow_loaded"]:
            loaded = float(start["tensorflow_loaded"]["onnx"])
            found.append(Aim("ONNX only: TensorFlow loaded (1 is yes)", 0, loaded, at_least=False))
    if first := extra.get("first_request"):
        found.append(Aim("first request after a load, × p50", 1.5, first["with warmup"]["ratio"], at_least=False))
    for label, bound, names in (
        ("bf16", 0.995, ("frozen_bf16", "openvino")),
        ("int8", 0.99, ("onnx_int8", "openvino_int8")),
    ):
        for row in extra.get("agreement", []):
            if row["variant"] in names:
                what = f"{row['family']}, {TITLES[row['variant']]}: agreement of {label} with fp32"
                found.append(Aim(what, bound, row["agreement"]))
    return found


def aims_table(found: Sequence[Aim]) -> str:
    """Return the aims with what was found."""
    show: Callable[[Aim], str] = lambda aim: f"{aim.found:.3f}" if aim.bound < 2 else number(aim.found)  # noqa: E731
    lines = [
        [aim.what, "yes" if aim.met else "**no**", ("≥ " if aim.at_least else "≤ ") + f"{aim.bound:g}", show(aim)]
        for aim in found
    ]
    return table(["aim", "met", "bound", "found"], lines)


def report(results: dict[str, Any]) -> str:
    """Return everything as Markdown."""
    figures, parts = Figures(results["rows"]), []
    for case in figures.values("case"):
        mine = figures.where(case=case)
        parts.append(f"## {case}: CPU-ms per request\n\n{servers_table(mine)}")
        parts.append(
            f"### {case}: our server beside each runtime in process, least CPU-ms of the rounds\n\n{limits_table(mine)}"
        )
        if _peers(mine) and mine.where(server="moxserve", variant="onnx"):
            parts.append(f"### {case}: peers with the same ONNX model\n\n{peers_table(mine)}")
    parts += extras(results["extras"])
    if found := aims(results):
        parts.append("## Aims\n\n" + aims_table(found))
    if results["notes"]:
        parts.append("## Notes\n\n" + "\n".join(f"* {note}" for note in results["notes"]))
    parts.append(f"({results['settings']['rounds']} rounds, {results['took_s']:.0f} s)")
    return "\n\n".join(parts)


def merged(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return runs of different cases as one."""
    whole = dict(runs[0])
    for run in runs[1:]:
        whole["rows"] = whole["rows"] + run["rows"]
        whole["notes"] = whole["notes"] + run["notes"]
        whole["extras"] = whole["extras"] | run["extras"]
        whole["took_s"] += run["took_s"]
    return whole


if __name__ == "__main__":
    print(report(merged([json.loads(Path(name).read_text()) for name in sys.argv[1:]])))
