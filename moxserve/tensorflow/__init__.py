"""The training framework: `import moxserve.tensorflow as mox` in place of `import moxing.tensorflow as mox`.

Importing it imports TensorFlow and switches the process to graph mode (see `executor.env`). Look in `executor` for
`run` and its loop, `optimizer` for `get_optimizer_fn`, `datasets` for readers.
"""

from typing import TYPE_CHECKING, NoReturn

from moxserve import file
from moxserve.errors import did_you_mean
from moxserve.export.op_libraries import load_op_library
from moxserve.protocol.examples import make_example, parse_example, read_examples, write_examples
from moxserve.tensorflow import auto
from moxserve.tensorflow.datasets import (
    AsyncRawGenerator,
    BaseTFRecordDataset,
    BaseTFRecordMetadata,
    ImageClassificationRawDataset,
    ImageClassificationRawMetadata,
    ImageClassificationTFRecordDataset,
    ImageClassificationTFRecordMetadata,
    MultilabelClassificationRawDataset,
    MultilabelClassificationRawMetadata,
    ParallelReader,
    get_dataset,
    get_dataset_meta,
    get_tfrecord,
    split_image_classification_dataset,
)
from moxserve.tensorflow.executor import (
    AggregativeSessionRunHook,
    BestCheckpointHook,
    EarlyStoppingHook,
    ExportKeys,
    ExportSpec,
    FeedSessionRunHook,
    InputSpec,
    LogEvaluationMetricHook,
    ModeKeys,
    ModelSpec,
    PlateauLREarlyStoppingHook,
    RunResult,
    SignatureSpec,
    auc,
    env,  # noqa: F401 - first: it sets the process up
    get_collection,
    get_flag,
    over_all_rows,
    run,
    set_flag,
    var_scope,
)
from moxserve.tensorflow.executor.checkpoint import load_checkpoint
from moxserve.tensorflow.executor.observe.timeline import TimelineHook
from moxserve.tensorflow.executor.warm_start import VocabularyChange, WarmStart
from moxserve.tensorflow.feature_columns import FeatureColumns, Features, feature_columns
from moxserve.tensorflow.multi_head import Head, multi_head
from moxserve.tensorflow.nets import NetworkKeys, default_preprocess_fn, get_model_fn, get_model_meta
from moxserve.tensorflow.optimizer import get_optimizer_fn, get_optimizer_wrapper_fn
from moxserve.tensorflow.preprocessing import PreprocessingKeys, get_data_augmentation_fn
from moxserve.tensorflow.pruning import Pruning, prune_model_fn
from moxserve.tensorflow.quantization import Quantization, quantize_model_fn
from moxserve.tensorflow.transfer.embeddings import PretrainedEmbedding
from moxserve.tensorflow.transfer.retrain import RetrainResult, retrain

__all__ = [
    "AggregativeSessionRunHook",
    "AsyncRawGenerator",
    "BaseTFRecordDataset",
    "BaseTFRecordMetadata",
    "BestCheckpointHook",
    "EarlyStoppingHook",
    "ExportKeys",
    "ExportSpec",
    "FeatureColumns",
    "Features",
    "FeedSessionRunHook",
    "Head",
    "ImageClassificationRawDataset",
    "ImageClassificationRawMetadata",
    "ImageClassificationTFRecordDataset",
    "ImageClassificationTFRecordMetadata",
    "InputSpec",
    "LogEvaluationMetricHook",
    "ModeKeys",
    "ModelSpec",
    "MultilabelClassificationRawDataset",
    "MultilabelClassificationRawMetadata",
    "NetworkKeys",
    "ParallelReader",
    "PlateauLREarlyStoppingHook",
    "PreprocessingKeys",
    "PretrainedEmbedding",
    "Pruning",
    "Quantization",
    "RetrainResult",
    "RunResult",
    "SignatureSpec",
    "TimelineHook",
    "VocabularyChange",
    "WarmStart",
    "auc",
    "auto",
    "default_preprocess_fn",
    "feature_columns",
    "file",
    "get_collection",
    "get_data_augmentation_fn",
    "get_dataset",
    "get_dataset_meta",
    "get_flag",
    "get_model_fn",
    "get_model_meta",
    "get_optimizer_fn",
    "get_optimizer_wrapper_fn",
    "get_tfrecord",
    "load_checkpoint",
    "load_op_library",
    "make_example",
    "multi_head",
    "over_all_rows",
    "parse_example",
    "prune_model_fn",
    "quantize_model_fn",
    "read_examples",
    "retrain",
    "run",
    "set_flag",
    "split_image_classification_dataset",
    "var_scope",
    "write_examples",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> NoReturn:
        """Tell what was meant by a name that is not here: `mox.MokeKeys`."""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {did_you_mean(name, __all__)}")
