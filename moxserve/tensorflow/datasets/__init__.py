"""Readers of data sets. `base` has what all share; `raw` reads image files, `reader` says how files are fetched."""

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

__all__ = [
    "AsyncRawGenerator",
    "ImageClassificationRawDataset",
    "ImageClassificationRawMetadata",
    "MultilabelClassificationRawDataset",
    "MultilabelClassificationRawMetadata",
    "ParallelReader",
    "split_image_classification_dataset",
]
