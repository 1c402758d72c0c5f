"""Feature columns: the columns of a table as inputs of a network, and as a linear model.

    columns = mox.feature_columns({
        "age": {"kind": "numeric", "fit": True},
        "ages": {"kind": "bucketized", "of": "age", "boundaries": [20, 30, 40]},
        "job": {"kind": "vocabulary", "values": ["farmer", "teacher"], "oov_buckets": 1},
        "job_vector": {"kind": "embedding", "of": "job", "dimension": 4},
    })
    features = columns.prepare({"age": age, "job": job})        # tensors [batch] or [batch, values], dense
    deep = features.dense(["age", "job_vector"])                # [batch, width] float32
    wide = features.linear(["ages", "job"], units=1)            # [batch, 1] float32
    spec = columns.example_spec()                               # for tf.io.parse_example, and mox.ExportSpec

What kinds there are and what they mean: `moxserve.tabular.columns`. `prepare` does what the columns share (missing
values, normalization, categories as sparse tensors); `columns` makes TensorFlow's own columns of the declarations.

The foundation is TensorFlow's `tf.feature_column` with `input_layer` and `linear_model` of `tf.compat.v1`. What else
TensorFlow 2.21 brings, tried in graph mode:

* `tf.feature_column`: every kind above; tables shared by name, embeddings that begin with a checkpoint; variables of
  `get_variable`, which towers and modes share by name, and which scopes give to one optimizer or another. It is marked
  as not for new code, but part of the API that TensorFlow keeps stable, and needs no eager execution.
* `tf_keras.layers.DenseFeatures` takes the same columns; its variables are a layer's, not `get_variable`'s, and its
  linear part is a Keras model of its own.
* Keras 3: `FeatureSpace.adapt` fails in graph mode. Single layers (StringLookup, HashedCrossing, Embedding) work there,
  but a list of them has no weighted categories for embeddings, no sqrtn, no table from a TensorFlow checkpoint, and no
  spec for tf.Examples: it would be this package written again.
"""

from moxserve.tensorflow.feature_columns.columns import FeatureColumns, feature_columns
from moxserve.tensorflow.feature_columns.prepare import Features

__all__ = ["FeatureColumns", "Features", "feature_columns"]
