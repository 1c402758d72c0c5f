"""Precision: what a whole run computes in, when `--use_fp16` or `--compute_dtype` asks for half precision.

The graph stays the one that `model_fn` builds, in float32. TensorFlow rewrites it when a session first runs it: matrix
products, convolutions and what is between them get half precision; sums, exponentials, statistics of batch norms and
losses keep float32, and so do variables with their gradients ("Mixed Precision Training", Micikevicius et al., 2017,
arXiv 1710.03740). So any `model_fn` trains in half precision as it is, Keras layers included, and checkpoints and
exports know nothing of it. Who wants to say himself what is computed in which dtype casts, under `mox.var_scope`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import FlagStore
from moxserve.tensorflow.executor.spec import ModelSpec

__all__ = ["Precision", "rewrites", "widen"]

_NARROW = (tf.float16, tf.bfloat16)
# Option of RewriterConfig by dtype. The first is for GPUs, and for CPUs with products of float16.
_PASS = {"float16": "auto_mixed_precision", "bfloat16": "auto_mixed_precision_onednn_bfloat16"}
_NEEDS = {
    "float16": "a GPU of compute capability 7.0 or more, or a CPU with AVX512-FP16 or AMX-FP16",
    "bfloat16": "a CPU with AVX512-BF16 or AMX; on GPUs ask for float16",
}


@dataclass(frozen=True)
class Precision:
    """What a run computes in.

    Attributes:
        dtype: `float32`, `float16` or `bfloat16`.
    """

    dtype: str = "float32"

    @classmethod
    def from_flags(cls, store: FlagStore, training: bool) -> Precision:
        """Read the flags, and say what is to be known of half precision.

        Args:
            store: the flags.
            training: whether gradients are computed.

        Raises:
            UsageError: the flags contradict each other.
        """
        dtype = store.get("compute_dtype")
        if store.get("use_fp16"):
            if dtype == "bfloat16":
                raise UsageError(
                    "flags --use_fp16 and --compute_dtype=bfloat16: a run computes in one of them",
                    hint="--use_fp16 means --compute_dtype=float16; leave one out",
                )
            dtype = "float16"
        precision = cls(dtype)
        if dtype != "float32":
            precision._announce(training and dtype == "float16" and store.get("loss_scale") == 1.0)
        return precision

    def _announce(self, unscaled: bool) -> None:
        if not rewrites(self.dtype):
            tf1.logging.warning(
                "half precision has no effect here, the run computes in float32: %s needs %s",
                self.dtype,
                _NEEDS[self.dtype],
            )
            return
        tf1.logging.info("Computing in %s where it is safe; variables and losses are float32", self.dtype)
        if self.dtype == "float16" and not tf.config.list_physical_devices("GPU"):
            tf1.logging.warning("CPUs compute much of float16 slowly; --compute_dtype=bfloat16 is made for them")
        if unscaled:
            tf1.logging.warning(
                "float16 without a loss scale: gradients below 6e-8 become 0; "
                "give --loss_scale=0, which finds it by itself, or a number such as 1024"
            )

    def configure(self, config: Any) -> None:
        """Ask the sessions of a ConfigProto for the rewriting."""
        if self.dtype != "float32":
            _ask(config, self.dtype)


def _ask(config: Any, dtype: str) -> Any:
    from tensorflow.core.protobuf import rewriter_config_pb2

    options = config.graph_options.rewrite_options
    setattr(options, _PASS[dtype], rewriter_config_pb2.RewriterConfig.ON)
    return options


def rewrites(dtype: str) -> bool:
    """Whether TensorFlow computes in a half precision on the devices of this machine; found out on a small product.

    Args:
        dtype: `float16` or `bfloat16`.
    """
    from tensorflow.python.grappler import tf_optimizer

    with tf.Graph().as_default() as graph:
        rows = tf1.placeholder(tf.float32, [64, 64])
        product = tf.identity(tf.nn.relu(tf.matmul(tf.matmul(rows, rows), rows)), name="product")
        tf1.add_to_collection("train_op", product)
        meta = tf1.train.export_meta_graph(graph=graph)
    config = tf1.ConfigProto()
    options = _ask(config, dtype)
    options.min_graph_nodes = -1  # else so small a graph is left alone
    rewritten = tf_optimizer.OptimizeGraph(config, meta)
    kinds = {node.attr["T"].type for node in rewritten.node if node.op.endswith("MatMul")}
    return tf.as_dtype(dtype).as_datatype_enum in kinds


def widen(spec: ModelSpec) -> None:
    """Cast losses and `log_info` that a model computed in half precision to float32: sums, means and loss scales have
    room there.

    Args:
        spec: what `model_fn` returned, checked; changed in place.
    """
    spec.losses = [_wide(loss) for loss in spec.losses]
    spec.log_info = {name: _wide(value) for name, value in spec.log_info.items()}


def _wide(value: Any) -> Any:
    return tf.cast(value, tf.float32) if value.dtype.base_dtype in _NARROW else value
