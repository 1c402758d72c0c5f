"""Readers of data sets. `base` has what all share; `raw` reads image files, `reader` says how files are fetched;
`tfrecord*` read TFRecord files.
"""

from moxserve.tensorflow.datasets.dataset_factory import DatasetMeta, get_dataset, get_dataset_meta
from moxserve.tensorflow.datasets.raw.multilabel_dataset import (
    MultilabelClassificationRawDataset,
    MultilabelClassificationRawMetadata,
)
from moxserve.tensorflow.datasets.raw.raw_dataset import (
    ImageClassificationRawDataset,
    ImageClassificationRawMetadata,
    split_image_classification_dataset,
)
from moxserve.tensorflow.datasets.reader.raw_reader import AsyncRawGenerator, ParallelReader
from moxserve.tensorflow.datasets.tfrecord import get_tfrecord
from moxserve.tensorflow.datasets.tfrecord_common import (
    BaseTFRecordDataset,
    BaseTFRecordMetadata,
    ImageClassificationTFRecordMetadata,
)
from moxserve.tensorflow.datasets.tfrecord_image import ImageClassificationTFRecordDataset, ProgressiveImagenetDataset

__all__ = [
    "AsyncRawGenerator",
    "BaseTFRecordDataset",
    "BaseTFRecordMetadata",
    "DatasetMeta",
    "ImageClassificationRawDataset",
    "ImageClassificationRawMetadata",
    "ImageClassificationTFRecordDataset",
    "ImageClassificationTFRecordMetadata",
    "MultilabelClassificationRawDataset",
    "MultilabelClassificationRawMetadata",
    "ParallelReader",
    "ProgressiveImagenetDataset",
    "get_dataset",
    "get_dataset_meta",
    "get_tfrecord",
    "split_image_classification_dataset",
]
