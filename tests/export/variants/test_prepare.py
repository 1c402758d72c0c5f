"""The graph that variants are made of: frozen and transformed, with nothing left over."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moxserve.export.targets import VariantOptions


def test_folded_weights_do_not_stay_beside_the_new_ones(tmp_path: Path, eager: None) -> None:
    """TensorFlow 2 lets the end of a function wait for the reads of all variables."""
    import tensorflow as tf

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, 16, 32], [1, 2]))
            self.statistics = [tf.Variable(tf.fill([32], value)) for value in (1.5, 0.2, 0.1, 2.0)]

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 16], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            y = tf.nn.conv2d(x, self.kernel, 1, "SAME")
            return {"y": tf.compat.v1.nn.fused_batch_norm(y, *self.statistics, is_training=False)[0]}

    model = Model()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures={"serving_default": model.serve})
    rows = {"x": np.random.default_rng(1).standard_normal((4, 8, 8, 16)).astype(np.float32)}
    expected = model.serve(tf.constant(rows["x"]))["y"].numpy()
    from moxserve.export.variants.prepare import prepare

    graph = prepare(str(tmp_path / "model"), "serving_default", VariantOptions(), rows).graph
    kernels = [node for node in graph.graph_def.node if node.op == "Const" and node.ByteSize() > 3 * 3 * 16 * 32 * 4]
    assert len(kernels) == 1
    assert not {"NoOp", "FusedBatchNormV3"} & {node.op for node in graph.graph_def.node}
    np.testing.assert_allclose(graph.run(rows)["y"], expected, rtol=1e-5, atol=1e-5)
