"""TFRecord data sets: what files there are (`BaseTFRecordMetadata`), and their records as items by name
(`BaseTFRecordDataset`). Images are in `tfrecord_image`, slim's decoders in `tfrecord`.

Source: MoXing apidoc §2, guide §3.2 and 3-4-1.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from moxserve.errors import UsageError
from moxserve.file.labels import LABELS_FILE, parse_labels
from moxserve.protocol.tfrecord import records_of
from moxserve.protocol.tfrecord_index import RecordFile, RecordIndex, scan_files
from moxserve.tensorflow.datasets.base import BaseDataset
from moxserve.tensorflow.datasets.raw.storage import data_folder, is_remote, join, read_file
from moxserve.tensorflow.datasets.tfrecord_files import RecordSource, cached_copies, find_sources, open_source
from moxserve.tensorflow.datasets.tfrecord_reader import Reading, check_integer, indexed_records, streamed_records
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.epochs import samples_in_files
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["BaseTFRecordDataset", "BaseTFRecordMetadata", "ImageClassificationTFRecordMetadata"]

_log = logging.getLogger(__name__)
_FOUND = "Find tfrecord files. Using tfrecord files in this job."
_FEATURES = ("FixedLenFeature", "FixedLenSequenceFeature", "VarLenFeature", "SparseFeature", "RaggedFeature")
_COUNTING = (
    "Automatically extracting num_samples from tfrecord. If the dataset is large, it may take some time. You can also "
    "manually specify the num_samples to Dataset to save time."
)


class BaseTFRecordMetadata:
    """The TFRecord files of a data set.

    Records are counted by the length fields of the files, without reading the records, when the number is first asked
    for. What was found is kept beside the files (see `protocol.tfrecord_index`). Compressed files (gzip and zlib, told
    by their content) must be read to be counted, and so must files in a bucket.

    Args:
        base_dir: folder of the files; `s3://` and `obs://`, too.
        file_pattern: of their names (`*`, `?`, `[]`), relative to `base_dir` or absolute; or a list of patterns.
        num_samples: how many records there are, where that is known; they are then not counted.
        redirect_dir: a folder with copies: a file is read from there if it holds one of the same relative path and
            size.
        file_patterns: another name of `file_pattern`, which the documents use.

    Raises:
        DataError: no file matches, or `redirect_dir` is not there.
        UsageError: there is no pattern, or two, or the number is negative.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        file_pattern: str | Sequence[str] | None = None,
        num_samples: int | None = None,
        redirect_dir: str | None = None,
        *,
        file_patterns: str | Sequence[str] | None = None,
    ) -> None:
        if (file_pattern is None) == (file_patterns is None):
            raise UsageError("expected one of file_pattern and file_patterns, such as file_pattern='*.tfrecord'")
        given = file_patterns if file_pattern is None else file_pattern
        if num_samples is not None:
            check_integer("num_samples", num_samples, 0)
        self.base_dir = data_folder(base_dir, "base_dir")
        self.redirect_dir = redirect_dir
        self.file_patterns = [given] if isinstance(given, str) else list(given or ())
        self.sources: list[RecordSource] = find_sources(self.base_dir, self.file_patterns, redirect_dir)
        self._num_samples = num_samples
        self._count: int | None = None
        tf1.logging.info(_FOUND)

    @property
    def file_list(self) -> list[str]:
        """Paths of the files, sorted."""
        return [source.path for source in self.sources]

    @property
    def num_samples(self) -> int:
        """How many records there are: as given, as the flag samples_per_epoch(_eval) says, or counted.

        Raises:
            DataError: a file is no TFRecord, damaged or cut off.
        """
        if self._num_samples is not None:
            return self._num_samples
        return samples_in_files(self._counted, self.base_dir, self.file_patterns)

    @property
    def total_num_samples(self) -> int:
        """The same as `num_samples`."""
        return self.num_samples

    @cached_property
    def scanned(self) -> list[RecordFile]:
        """What is known of the records of local files.

        Raises:
            DataError: a file is no TFRecord, damaged or cut off.
        """
        return self.scan()

    def scan(self, damaged: Callable[[str], None] | None = None) -> list[RecordFile]:
        """Find the records of local files.

        Args:
            damaged: told of what is damaged or cut off, instead of an error.
        """
        counting = self._num_samples is None and self._count is None
        return scan_files(self.file_list, damaged, lambda: tf1.logging.info(_COUNTING) if counting else None)

    @property
    def is_remote(self) -> bool:
        """Whether a file is in a bucket."""
        return any(map(is_remote, self.file_list))

    def _counted(self) -> int:
        if self._count is None:
            self._count = self._count_records()
        return self._count

    def _count_records(self) -> int:
        if not self.is_remote:
            return sum(len(file.lengths) for file in self.scanned)

        tf1.logging.info(_COUNTING)
        count = 0
        for path in self.file_list:
            with open_source(path) as file:
                count += sum(1 for _ in records_of(file, path))
        return count


class ImageClassificationTFRecordMetadata(BaseTFRecordMetadata):
    """The TFRecord files of a data set of images with one class each.

    Args:
        base_dir: as `BaseTFRecordMetadata`.
        file_pattern: as `BaseTFRecordMetadata`.
        num_samples: as `BaseTFRecordMetadata`.
        redirect_dir: as `BaseTFRecordMetadata`.
        num_classes: how many classes there are; 0: as many as the file of labels names.
        label_map_file: name of the file in `base_dir` that names the classes, `0: cat` a line; it need not be there.
        file_patterns: as `BaseTFRecordMetadata`.

    Raises:
        DataError: as `BaseTFRecordMetadata`; or the file of labels breaks its rules.
        UsageError: as `BaseTFRecordMetadata`; or `num_classes` is less than what the file names.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        file_pattern: str | Sequence[str] | None = None,
        num_samples: int | None = None,
        redirect_dir: str | None = None,
        num_classes: int = 0,
        label_map_file: str = LABELS_FILE,
        *,
        file_patterns: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(base_dir, file_pattern, num_samples, redirect_dir, file_patterns=file_patterns)
        path = join(self.base_dir, label_map_file)
        self._labels = _labels_of(path)
        if num_classes < 0 or 0 < num_classes < len(self._labels):
            raise UsageError(f"num_classes={num_classes}: {path} names {len(self._labels)} classes")
        self.num_classes = num_classes or len(self._labels)

    def set_classes(self, num_classes: int, names: Sequence[str] = ()) -> None:
        """Say which classes there are, where no file does.

        Args:
            num_classes: how many.
            names: of the first of them, by index.
        """
        self.num_classes, self._labels = num_classes, tuple(names)

    @property
    def labels_to_names(self) -> dict[int, str]:
        """Names of the classes by index; empty without a file of labels."""
        return dict(enumerate(self._labels))

    @property
    def names_to_labels(self) -> dict[str, int]:
        """Indices of the classes by name; empty without a file of labels."""
        return {name: index for index, name in enumerate(self._labels)}

    @property
    def labels_list(self) -> list[str]:
        """Names of the classes by index; empty without a file of labels."""
        return list(self._labels)


def _labels_of(path: str) -> tuple[str, ...]:
    """Read a file of labels; nothing if it is not there."""
    try:
        return parse_labels(read_file(path), path)
    except FileNotFoundError:
        return ()


def read_metadata(
    metadata: BaseTFRecordMetadata,
    reading: Reading,
    cache_dir: str | None = None,
    remove_cache_on_finish: bool = True,
    exact_shuffle: bool = True,
) -> Any:
    """Return the serialized records of a data set, see `tfrecord_reader`, in the current graph.

    Args:
        metadata: the files.
        reading: how they are read.
        cache_dir: local folder that compressed or remote files, and any other, are copied to first; `ENV` for the one
            that $DLS_LOCAL_CACHE_PATH names.
        remove_cache_on_finish: delete the copies when the process ends.
        exact_shuffle: find the records first, to read them in an exact permutation; otherwise, and where records cannot
            be jumped to, files are read from their beginnings through a shuffle buffer.

    Raises:
        DataError: a file is damaged, or there are no records.
    """
    paths = metadata.file_list
    if cache_dir is not None:
        paths = cached_copies(metadata.sources, cache_dir, remove_cache_on_finish, reading.num_parallel)
    elif metadata.is_remote:
        return streamed_records(paths, reading)
    if not exact_shuffle:
        return streamed_records(paths, reading)
    damaged = (lambda message: _log.warning("skipped: %s", message)) if reading.on_bad_record == "skip" else None
    if cache_dir is None:
        files = metadata.scan(damaged) if damaged else metadata.scanned
    else:
        files = scan_files(paths, damaged)
    if any(file.compression for file in files):
        return streamed_records(paths, reading)
    return indexed_records(RecordIndex(files), reading)


class RecordDataset(BaseDataset):
    """A data set of TFRecord files.

    Attributes:
        metadata: the files.
    """

    metadata: BaseTFRecordMetadata

    @property
    def num_samples(self) -> int:
        """How many records the whole data set has."""
        return self.metadata.num_samples

    @property
    def total_num_samples(self) -> int:
        """The same as `num_samples`."""
        return self.metadata.num_samples


class BaseTFRecordDataset(RecordDataset):
    """The records of TFRecord files, each a tf.Example, as items by name.

    A subclass may override `_build_features`, which gets the parsed tensors of one record in the order of the keys and
    calls `_add_feature` for each item that the data set shall have; by default each feature is an item.

    **Order.** With `shuffle` each epoch is an exact permutation of all records, which follows from `seed` alone: for
    any `num_parallel`, and after a run went on, it is the same. Workers that are given the same seed and their `shard`
    read disjoint parts. Files that cannot be jumped in (compressed, in a bucket) are mixed file by file and through a
    buffer of `shuffle_buffer_size` records instead; with a `cache_dir` they can be.

    Args:
        metadata: the files.
        feature_keys: names of the features to be read.
        feature_values: what each is: `tf.io.FixedLenFeature`, `VarLenFeature`, `FixedLenSequenceFeature`, ...
        batch_size: records of a batch; None: the items are those of one record.
        shuffle: another order each epoch.
        shuffle_buffer_size: see above.
        num_parallel: reads, and calls of `_build_features`, at once.
        num_epochs: how often the data set is read; None for no end.
        cache_dir: local folder that the files are copied to first, uncompressed; `ENV` for $DLS_LOCAL_CACHE_PATH.
        remove_cache_on_finish: delete those copies when the process ends.
        private_num_threads: if more than 0, the data set has its own pool of so many threads.
        drop_remainder: leave out a last batch that is smaller.
        seed: of the order; None draws one.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        on_bad_record: what happens to a record whose checksum differs: `raise`, or `skip` with a counted warning.
        exact_shuffle: without it the records are not located first: no scan, and the buffer is used.
        position: how many records were read before: where to go on. `mox.run` tells it by itself.

    Raises:
        UsageError: an argument is out of its range, or keys and values are not of the same number.
        DataError: a file is damaged, or there are no records.
    """

    def __init__(
        self,
        metadata: BaseTFRecordMetadata,
        feature_keys: Sequence[str],
        feature_values: Sequence[Any],
        batch_size: int | None = None,
        shuffle: bool = True,
        shuffle_buffer_size: int = 6400,
        num_parallel: int = 8,
        num_epochs: int | None = None,
        cache_dir: str | None = None,
        remove_cache_on_finish: bool = True,
        private_num_threads: int = 0,
        drop_remainder: bool = False,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        on_bad_record: Literal["raise", "skip"] = "raise",
        exact_shuffle: bool = True,
        position: int = 0,
    ) -> None:
        features = feature_spec(feature_keys, feature_values)
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        reading = Reading(shuffle, shuffle_buffer_size, num_parallel, num_epochs, seed, shard, on_bad_record, position)
        records = read_metadata(metadata, reading, cache_dir, remove_cache_on_finish, exact_shuffle)

        def items_of(element: Mapping[str, Any]) -> dict[str, Any]:
            parsed = tf.io.parse_single_example(element["record"], features)
            return self._built([parsed[key] for key in feature_keys], feature_keys)

        samples = records.map(items_of, num_parallel_calls=num_parallel, deterministic=True)
        super().__init__(finished(samples, batch_size, drop_remainder, private_num_threads))
        self.metadata = metadata

    def _built(self, tensors: Sequence[Any], keys: Sequence[str]) -> dict[str, Any]:
        self._features: dict[str, Any] = {}
        self._keys = list(keys)
        self._build_features(*tensors)
        if not self._features:
            raise UsageError(f"{type(self).__name__}._build_features added no feature", hint="call self._add_feature")
        return self._features

    def _build_features(self, *tensors: Any) -> None:
        """Add the items of one record. Called once, inside the function of a `tf.data` map.

        Args:
            tensors: the parsed features of one record, in the order of the keys.
        """
        for key, tensor in zip(self._keys, tensors, strict=True):
            self._add_feature(key, tensor)

    def _add_feature(self, name: str, tensor: Any) -> None:
        """Make a tensor an item of the data set."""
        self._features[name] = tensor


def feature_spec(keys: Sequence[str] | None, values: Sequence[Any] | None) -> dict[str, Any]:
    """Pair the names of features with what they are.

    Raises:
        UsageError: there is not one value for each name, a value is no feature, or a name is given twice.
    """
    kinds = tuple(getattr(tf.io, kind) for kind in _FEATURES)
    # A single feature is a tuple, too.
    if isinstance(keys, str) or isinstance(values, kinds):
        raise UsageError("feature keys and values: expected a list of each, also for one feature")
    keys, values = list(keys or ()), list(values or ())
    if len(keys) != len(values):
        raise UsageError(f"{len(keys)} feature keys and {len(values)} feature values: expected one value for each key")
    if len(set(keys)) != len(keys):
        raise UsageError(f"a feature key is given twice: {', '.join(keys)}")
    for key, value in zip(keys, values, strict=True):
        if not isinstance(value, kinds):
            raise UsageError(f"feature {key!r} is {value!r}: expected a tf.io.{', '.join(_FEATURES)}")
    return dict(zip(keys, values, strict=True))


def finished(samples: Any, batch_size: int | None, drop_remainder: bool, private_num_threads: int) -> Any:
    """Batch samples, read ahead, and give the data set its own threads where that is wanted."""
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
        samples = samples.batch(batch_size, drop_remainder=drop_remainder)
    samples = samples.prefetch(2)
    check_integer("private_num_threads", private_num_threads, 0)
    if private_num_threads:
        options = tf.data.Options()
        options.threading.private_threadpool_size = private_num_threads
        samples = samples.with_options(options)
    return samples
