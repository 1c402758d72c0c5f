"""Models for `serving.py`: each built once, by the runtimes' own tools, and kept in a cache folder.

    python benchmarks/serving_models.py build/serving/models half_plus_two resnet50 mobilenetv2 digits_resnet50

A model is a folder `FAMILY_VARIANT/1/` that a server can be pointed at (`FAMILY_VARIANT` is its base path), and beside
these `FAMILY_inputs.npy` and `FAMILY_expected.npy`: a few requests and what the float32 SavedModel answers. Weights are
random with a fixed seed (speed does not depend on them), but for the `digits_` families, which are trained here on real
handwritten digits, so that it means something whether two variants agree.

TensorFlow and the converters are imported inside the functions: the benchmark itself stays small.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

HERE = Path(__file__).resolve().parent
SEED = 20
VARIANTS = ("tf", "frozen", "onnx", "onnx_int8", "openvino", "openvino_int8")
# Samples for the quantisers: enough for stable ranges, few enough for seconds.
CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Family:
    """One network and how its variants are made.

    Attributes:
        name: prefix of its folders.
        network: its class in `tf_keras.applications`.
        side: height and width of its images.
        classes: number of them.
        digits: whether it is trained on handwritten digits; otherwise its weights are random.
    """

    name: str
    network: str
    side: int = 224
    classes: int = 1000
    digits: bool = False


FAMILIES = {
    family.name: family
    for family in (
        Family("resnet50", "ResNet50"),
        Family("mobilenetv2", "MobileNetV2"),
        # Not 32 x 32: where int8 convolutions come down to one pixel, OpenVINO 2026.4 answers garbage at batch 1 (this
        # ResNet-50) or ends with a segmentation fault (this MobileNetV2).
        Family("digits_resnet50", "ResNet50", side=48, classes=10, digits=True),
        Family("digits_mobilenetv2", "MobileNetV2", side=64, classes=10, digits=True),
    )
}


@dataclass(frozen=True)
class Store:
    """The cache folder.

    Args:
        root: where; made when it is missing.
        quantizer: Python of an environment that has nncf; None leaves OpenVINO int8 out.
    """

    root: Path
    quantizer: Path | None = None

    def base(self, family: str, variant: str) -> Path:
        """Return the base path of a variant, whether it exists or not."""
        return self.root / f"{family}_{variant}"

    def version(self, family: str, variant: str) -> Path:
        """Return the version directory of a variant, whether it exists or not."""
        return self.base(family, variant) / "1"

    def model_file(self, family: str, variant: str) -> Path:
        """Return the file that the runtime of a variant reads (a directory for TensorFlow)."""
        name = {"onnx": "model.onnx", "openvino": "model.xml"}.get(variant.split("_")[0])
        return self.version(family, variant) / name if name else self.version(family, variant)

    def built(self, family: str, variant: str) -> bool:
        """Return whether a variant is there, whole: a version directory appears by one rename."""
        return self.version(family, variant).is_dir()

    def inputs(self, family: str) -> np.ndarray:
        """Return the requests of a family, `[n, ...]`."""
        return np.load(self.root / f"{family}_inputs.npy")

    def expected(self, family: str) -> np.ndarray:
        """Return what the float32 SavedModel answers to `inputs`."""
        return np.load(self.root / f"{family}_expected.npy")


def build(store: Store, family: str) -> list[str]:
    """Build whatever is missing of a family.

    Returns:
        The variants that are there afterwards.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    if family == "half_plus_two":
        _Step(store, family, "tf").run(_half_plus_two)
        _Step(store, family, "onnx").run(_half_plus_two_onnx)
        inputs = np.array([[[1.0]], [[2.0]], [[5.0]]], np.float32)
        np.save(store.root / f"{family}_inputs.npy", inputs)
        np.save(store.root / f"{family}_expected.npy", inputs / 2 + 2)
    else:
        _build_network(store, FAMILIES[family])
    return [variant for variant in VARIANTS if store.built(family, variant)]


@dataclass(frozen=True)
class _Step:
    """Making of one variant: in a folder beside it, which is renamed when all is there."""

    store: Store
    family: str
    variant: str

    def run(self, make: Callable[[Path], None]) -> None:
        if self.store.built(self.family, self.variant):
            return
        print(f"building {self.family}_{self.variant} ...", file=sys.stderr, flush=True)
        target = self.store.version(self.family, self.variant)
        unfinished = target.with_name(f"unfinished-{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(target)


def _half_plus_two(folder: Path) -> None:
    shared = Path(os.environ.get("MOXSERVE_SHARED", HERE.parent.parent / "shared"))
    original = shared / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu" / "00000123"
    if original.is_dir():
        shutil.copytree(original, folder)
        return
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 1], "x")
        y = tf.identity(x * tf.compat.v1.get_variable("a", initializer=0.5) + 2.0, "y")
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})


def _half_plus_two_onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1])

    def constant(name: str, value: float) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, [], [value])

    nodes = [helper.make_node("Mul", ["x", "half"], ["t"]), helper.make_node("Add", ["t", "two"], ["y"])]
    constants = [constant("half", 0.5), constant("two", 2)]
    graph = helper.make_graph(nodes, "half_plus_two", [info("x")], [info("y")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")


def _build_network(store: Store, family: Family) -> None:
    network = _Network(family, store)
    name = family.name
    _Step(store, name, "tf").run(network.save)
    _Step(store, name, "frozen").run(network.freeze)
    _Step(store, name, "onnx").run(network.to_onnx)
    _Step(store, name, "onnx_int8").run(network.quantize_onnx)
    _Step(store, name, "openvino").run(network.to_openvino)
    if store.quantizer is not None:
        _Step(store, name, "openvino_int8").run(network.quantize_openvino)
    if not (store.root / f"{name}_expected.npy").exists():
        np.save(store.root / f"{name}_inputs.npy", network.requests)
        np.save(store.root / f"{name}_expected.npy", network.answers())


class _Network:
    """The variants of an image network."""

    def __init__(self, family: Family, store: Store) -> None:
        self.family = family
        self.store = store

    def file(self, variant: str) -> Path:
        return self.store.model_file(self.family.name, variant)

    @cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples to calibrate with, and others to ask for."""
        if self.family.digits:
            data = digits(self.family.side)
            return data.train_x[:CALIBRATION_IMAGES], data.test_x
        rng = np.random.default_rng(SEED)
        shape = (CALIBRATION_IMAGES + 4, self.family.side, self.family.side, 3)
        images = rng.standard_normal(shape, np.float32)
        return images[:CALIBRATION_IMAGES], images[CALIBRATION_IMAGES:]

    @property
    def requests(self) -> np.ndarray:
        """`[n, 1, side, side, 3]`: batches of one."""
        return self.images[1][:, None]

    def answers(self) -> np.ndarray:
        import tensorflow as tf

        loaded = tf.saved_model.load(str(self.file("tf")))
        call = loaded.signatures["serving_default"]
        return np.stack([call(images=tf.constant(one))["probabilities"].numpy() for one in self.requests])

    def save(self, folder: Path) -> None:
        import tensorflow as tf
        import tf_keras

        tf_keras.utils.set_random_seed(SEED)
        family = self.family
        shape = (family.side, family.side, 3)
        model = getattr(tf_keras.applications, family.network)(weights=None, input_shape=shape, classes=family.classes)
        if family.digits:
            model = _trained(model, family)

        class Exported(tf.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            @tf.function(input_signature=[tf.TensorSpec([None, *shape], tf.float32, name="images")])
            def serve(self, images: Any) -> dict[str, Any]:
                return {"probabilities": self.model(images, training=False)}

        exported = Exported()
        tf.saved_model.save(exported, str(folder), signatures={"serving_default": exported.serve})

    def freeze(self, folder: Path) -> None:
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        loaded = tf.saved_model.load(str(self.file("tf")))
        frozen = convert_variables_to_constants_v2(loaded.signatures["serving_default"])
        (given,), (output,) = frozen.inputs, frozen.outputs
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            tf.import_graph_def(frozen.graph.as_graph_def(), name="")
            ends = [graph.get_tensor_by_name(tensor.name) for tensor in (given, output)]
            tf.compat.v1.saved_model.simple_save(session, str(folder), {"images": ends[0]}, {"probabilities": ends[1]})

    def to_onnx(self, folder: Path) -> None:
        folder.mkdir()
        command = [
            sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(self.file("tf")), "--opset", "18",
            "--output", str(folder / "model.onnx"),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)

    def quantize_onnx(self, folder: Path) -> None:
        """Static QDQ, U8 activations and S8 weights per channel; the last softmax stays float.

        A quantised softmax answers 0 for every probability under 1/256; U8U8 and S8S8 run three times as long.
        """
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        samples = self.images[0]

        class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            def __init__(self) -> None:
                self.left = iter(samples)

            def get_next(self) -> dict[str, np.ndarray] | None:
                image = next(self.left, None)
                return None if image is None else {"images": image[None]}

        folder.mkdir()
        prepared = folder / "prepared.onnx"
        quant_pre_process(str(self.file("onnx")), str(prepared), skip_symbolic_shape=True)
        softmax = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Softmax"]
        quantize_static(
            str(prepared), str(folder / "model.onnx"), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=softmax,
        )  # fmt: skip
        prepared.unlink()

    def to_openvino(self, folder: Path) -> None:
        import openvino

        folder.mkdir()
        model = openvino.convert_model(str(self.file("onnx")))
        # What it computes in is a runtime option, which may be kept in the file: the weights stay float32.
        model.set_rt_info("bf16", ["runtime_options", "INFERENCE_PRECISION_HINT"])
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)

    def quantize_openvino(self, folder: Path) -> None:
        assert self.store.quantizer is not None
        folder.mkdir()
        samples = folder / "samples.npy"
        np.save(samples, self.images[0])
        program = HERE / "peers" / "nncf_quantize.py"
        command = [self.store.quantizer, program, self.file("openvino"), samples, folder / "model.xml"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        samples.unlink()


@dataclass(frozen=True)
class Digits:
    """Handwritten digits of scikit-learn's own data set: `[n, side, side, 3] float32` in 0..1, and their classes."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def digits(side: int) -> Digits:
    """Return the 1,797 digits, enlarged to `side`: 1,000 to train with, 797 held out."""
    from PIL import Image
    from sklearn.datasets import load_digits

    small, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(y))
    images = [Image.fromarray((row.reshape(8, 8) / 16).astype(np.float32)) for row in small[order]]
    large = [np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    x, y = np.repeat(np.stack(large)[..., None], 3, axis=-1), y[order]
    return Digits(x[:1000], y[:1000], x[1000:], y[1000:])


def _trained(model: Any, family: Family, epochs: int = 12) -> Any:
    """Train on the digits; print the accuracy on those held out."""
    import tensorflow as tf
    import tf_keras

    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 32 steps an epoch: the default would need ten times as many to settle
    data = digits(family.side)
    steps = -(-len(data.train_x) // 32)
    rate = tf_keras.optimizers.schedules.CosineDecay(1e-3, epochs * steps)
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", ["accuracy"])

    def shifted(x: Any, y: Any) -> tuple[Any, Any]:
        padded = tf.pad(x, [[3, 3], [3, 3], [0, 0]])
        return tf.image.random_crop(padded, x.shape, seed=SEED), y

    samples = tf.data.Dataset.from_tensor_slices((data.train_x, data.train_y))
    samples = samples.shuffle(1000, seed=SEED).map(shifted).batch(32)
    model.fit(samples, epochs=epochs, verbose=0)
    accuracy = model.evaluate(data.test_x, data.test_y, batch_size=128, verbose=0)[1]
    print(f"{family.name}: {accuracy:.4f} of the held-out digits right", file=sys.stderr)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("families", nargs="+", choices=["half_plus_two", *FAMILIES])
    parser.add_argument("--quantizer", type=Path, help="Python that has nncf, for OpenVINO int8")
    options = parser.parse_args()
    for family in options.families:
        print(family, *build(Store(options.root, options.quantizer), family))


if __name__ == "__main__":
    main()
