"""What each form of a model costs, and what it gives: every variant of LeNet and ResNet-50, in one run.

    python benchmarks/export.py                     # both, about half an hour on two cores
    python benchmarks/export.py lenet               # some minutes
    python benchmarks/export.py resnet50 --targets "--openvino bf16,int8"

The exporter does the work, as `moxserve export` does it for anybody; this prints its report as ratios to the SavedModel
that the variants were made of, and holds them against the aims. LeNet is trained here on real handwritten digits.
ResNet-50 has random weights with a fixed seed, and batch norms that have seen the images: weights do not change speed,
but activations that explode would make the figures of int8 mean nothing. Sources are kept below `build/export`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SEED = 20
TARGETS = (
    "--frozen fp32,bf16 --onnx fp32,fp16,dynamic,int8 --tflite fp32,fp16,dynamic,int8 --openvino fp32,bf16,fp16,int8"
)


@dataclass(frozen=True)
class Aim:
    """A bound on the best of some variants, as a ratio to the SavedModel at batch 1."""

    what: str
    variants: tuple[str, ...]
    least: float


AIMS = (
    Aim("frozen", ("frozen",), 1.3),
    Aim("best float-equivalent", ("frozen", "frozen_bf16", "onnx", "onnx_fp16", "openvino", "openvino_bf16"), 5.0),
    Aim("int8", ("onnx_int8", "tflite_int8", "openvino_int8"), 8.0),
)


@dataclass(frozen=True)
class Model:
    """A model to export.

    Attributes:
        prepare: makes its source in a folder and returns what `moxserve export` is given.
        rows: arguments for its real rows.
        aims: whether the aims are about it.
    """

    prepare: Callable[[Path], list[str]]
    aims: bool


def lenet(folder: Path) -> list[str]:
    """Train LeNet on the digits, once."""
    run = folder / "run"
    if not (run / "checkpoint").exists():
        _moxserve("data", "digits", "--out", str(folder / "data"))
        images = folder / "data" / "images"
        settings = [f"input.train_dir={images}/train", f"input.eval_dir={images}/eval", f"run.log_dir={run}"]
        sets = [word for setting in settings for word in ("--set", setting)]
        text = (ROOT / "pipelines" / "digits.yaml").read_text()
        pipeline = folder / "lenet.yaml"
        pipeline.write_text(text[: text.index("\nexport:")] + "\n")
        _moxserve("pipeline", "run", str(pipeline), *sets)
    return [str(run)]


def resnet50(folder: Path) -> list[str]:
    """Make a ResNet-50 whose batch norms have seen the images, once, in a process of its own."""
    if not (folder / "saved_model" / "saved_model.pb").exists():
        subprocess.run([sys.executable, __file__, "--make-resnet50", str(folder)], check=True)
    return [str(folder / "saved_model"), "--rows", str(folder / "rows.npz"), "--samples", "64", "--max-drop", "1"]


MODELS: Mapping[str, Model] = {"lenet": Model(lenet, aims=False), "resnet50": Model(resnet50, aims=True)}


def make_resnet50(folder: Path) -> None:
    """Write `saved_model` and `rows.npz`."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(SEED)
    model = tf_keras.applications.ResNet50(weights=None)
    images = _images(128, 224)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.5
            if layer.name.endswith("_3_bn"):
                # The last of each block: training leaves the branches small beside what they are added to. With random
                # weights at full strength a network is chaotic, and any rounding grows to a tenth of the answer.
                layer.gamma.assign(0.25 * layer.gamma)
    # Each pass moves the statistics halfway to those of its batch.
    for start in range(0, 128, 16):
        model(images[start : start + 16], training=True)

    class Exported(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec([None, 224, 224, 3], tf.float32, name="images")])
        def serve(self, images: Any) -> dict[str, Any]:
            return {"probabilities": self.model(images, training=False)}

    exported = Exported()
    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(exported, str(unfinished), signatures={"serving_default": exported.serve})
    np.savez(folder / "rows.npz", images=images)
    unfinished.rename(folder / "saved_model")


def _images(count: int, side: int) -> np.ndarray:
    """Return images with structure at all sizes, as photographs have: noise whose power falls with frequency."""
    rng = np.random.default_rng(SEED)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    weight = 1 / np.maximum(frequency, 1 / side)
    noise = np.fft.rfft2(rng.standard_normal((count, 3, side, side)), axes=(2, 3)) * weight
    images = np.fft.irfft2(noise, s=(side, side), axes=(2, 3)).transpose(0, 2, 3, 1)
    return (images / images.std((1, 2, 3), keepdims=True)).astype(np.float32)


def _moxserve(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "moxserve", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(name: str, folder: Path, targets: str) -> dict[str, Any]:
    """Export a model in every form and return the report."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report"
    source, *rows = MODELS[name].prepare(folder)
    shutil.rmtree(folder / "published", ignore_errors=True)
    command = [sys.executable, "-m", "moxserve", "export", source, "--tf-serving", str(folder / "published")]
    command += [*rows, *shlex.split(targets), "--report", str(report)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((report / "report.json").read_text())


def table(name: str, report: Mapping[str, Any]) -> None:
    """Print a report as ratios to its SavedModel, and the aims."""
    variants = report["variants"]
    base = _timings(variants[0])
    print(f"\n{name}: {report['rows']} rows, ratios to the SavedModel; fastest calls (the machine is shared)")
    heads = (
        "variant",
        "MB",
        "load s",
        "b1 ms",
        "b1 x",
        "b32 ms",
        "b32 x",
        "peak MB",
        "rel L2",
        "top-1",
        "accuracy",
        "",
    )
    print("  ".join(head.rjust(width) for head, width in zip(heads, _WIDTHS, strict=True)))
    ratios: dict[str, float] = {}
    for variant in variants:
        cells = _cells(variant, base)
        if variant["measured"]:
            ratios[variant["name"]] = base[1] / _timings(variant)[1]
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)))
    if MODELS[name].aims:
        for aim in AIMS:
            found = {v: ratios[v] for v in aim.variants if v in ratios}
            best = max(found, key=found.__getitem__, default="")
            if best:
                verdict = "met" if found[best] >= aim.least else "missed"
                print(f"  aim: {aim.what} >= {aim.least:g} x at batch 1: {verdict}, {best} {found[best]:.1f} x")


_WIDTHS = (17, 8, 7, 8, 6, 8, 6, 8, 8, 7, 8, 10)


def _timings(variant: Mapping[str, Any]) -> dict[int, float]:
    return {timing["batch"]: timing["min_ms"] for timing in variant["measured"]["timings"]}


def _cells(variant: Mapping[str, Any], base: Mapping[int, float]) -> list[str]:
    figures, measured = variant["figures"], variant["measured"]
    cells = [variant["name"], f"{variant['size_bytes'] / 1e6:.2f}" if variant["size_bytes"] else ""]
    if measured is None:
        cells += [""] * 6
    else:
        own = _timings(variant)
        cells.append(f"{measured['load_s']:.2f}")
        for batch in (1, 32):
            known = batch in own and batch in base
            cells += [f"{own[batch]:.2f}", f"{base[batch] / own[batch]:.2f}"] if known else ["", ""]
        cells.append(f"{measured['peak_memory_mb']:.0f}")
    if figures is None:
        cells += [""] * 3
    else:
        errors = [output["rel_l2"] for output in figures["outputs"]]
        cells.append(f"{max(errors):.1e}" if errors else "")
        cells += [_share(figures["top1_agreement"]), _share(figures["accuracy"])]
    return [*cells, "" if variant["verdict"] in ("source", "published") else variant["verdict"]]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], help="which models; all by default")
    parser.add_argument("--targets", default=TARGETS, help="arguments of moxserve export that say which variants")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "export", help="folder for sources and results")
    parser.add_argument("--make-resnet50", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments.make_resnet50:
        make_resnet50(arguments.make_resnet50)
        return
    for name in arguments.models or MODELS:
        table(name, measure(name, arguments.work / name, arguments.targets))


if __name__ == "__main__":
    main()
