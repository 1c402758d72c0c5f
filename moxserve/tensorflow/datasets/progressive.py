"""Image and batch sizes that change during the training: small images first, large ones at the end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
from moxserve.images.crops import RandomResizedCrop
from moxserve.tensorflow.datasets.base import INPUT_COUNTS_STEPS, BaseDataset, input_position
from moxserve.tensorflow.datasets.raw.options import OnBadImage, RawOptions
from moxserve.tensorflow.datasets.tfrecord_common import ImageClassificationTFRecordMetadata, read_metadata
from moxserve.tensorflow.datasets.tfrecord_decode import RecordImages
from moxserve.tensorflow.datasets.tfrecord_reader import Reading, check_integer
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers.shards import own_shard

__all__ = ["ProgressiveImagenetDataset"]

_ASPECT_RATIOS = (3 / 4, 4 / 3)


class _Crop:
    """A random part of the image, resized and flipped; nothing is left to do after that."""

    def __init__(self, size: int, min_area: float) -> None:
        self.geometry = RandomResizedCrop(
            size, size, areas=(min_area, 1.0), aspect_ratios=_ASPECT_RATIOS, least_covered=0.0
        )

    def finish(self, images: Any) -> Any:
        """Return the images."""
        return images

    __call__ = finish


@dataclass(frozen=True)
class _Stage:
    pattern: str
    batch_size: int
    image_size: int
    min_area: float
    first_step: int
    steps: int | None  # None: to the end


class ProgressiveImagenetDataset(BaseDataset):
    """ImageNet's TFRecord files in stages, each with its own files, batch size and image size, for training.

        dataset = ProgressiveImagenetDataset(
            num_samples=1281167,
            strategy_spec=[("/imagenet-160/train-*", 224, 128, 0.08), ("/imagenet/train-*", 128, 224, 0.087)],
            ds_switch_steps=[5000],
        )
        image, label = dataset.get(["image", "label"])      # with mox.run(auto_batch=False)

    Items: `image` `[batch, size, size, 3] uint8`, a random part of each image that covers at least `min_area` of it,
    resized, and flipped half of the time; `label` `[batch] int64`. Sizes are not known while the graph is built.

    The sizes change at exactly the steps that are given, and also in a run that goes on from a checkpoint: batches are
    counted, not seen from the global step, so that nothing has to be switched earlier for what is read ahead.
    For each bad image that was left out in its stage, a run that goes on repeats one.

    Args:
        num_samples: how many samples an epoch has; None counts those of the first stage.
        strategy_spec: `(pattern of the files, batch_size, image_size, min_area)` for each stage.
        ds_switch_steps: at which step each stage after the first begins, ascending.
        shuffle: another exact permutation each epoch of a stage.
        num_parallel: reads and decodes at once.
        labels_offset: subtracted from the labels: 1 leaves ImageNet's background out.
        private_num_threads: if more than 0, the data set has its own pool of so many threads.
        shuffle_buffer_size: as `BaseTFRecordDataset`.
        cache_dir: as `BaseTFRecordDataset`.
        remove_cache_on_finish: as `BaseTFRecordDataset`.
        seed: of the orders and of what is random; None draws one.
        shard: number of this worker, from 0, and how many there are; None: those of the run in TRAIN, else all rows.
        on_bad_image: `skip`, or `raise`.

    Raises:
        UsageError: stages and steps do not go together, or a value is out of its range.
        DataError: there are no files for a stage, or one is damaged.
    """

    def __init__(
        self,
        num_samples: int | None,
        strategy_spec: Sequence[tuple[str, int, int, float]],
        ds_switch_steps: Sequence[int] = (),
        shuffle: bool = True,
        num_parallel: int = 8,
        labels_offset: int = 0,
        private_num_threads: int = 0,
        shuffle_buffer_size: int = 6400,
        cache_dir: str | None = None,
        remove_cache_on_finish: bool = True,
        *,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        on_bad_image: OnBadImage = "skip",
    ) -> None:
        shard, seed = own_shard(shard, seed, shuffle=bool(shuffle))
        stages = _stages(strategy_spec, ds_switch_steps)
        step = input_position()
        if not tf1.executing_eagerly():
            tf1.add_to_collection(INPUT_COUNTS_STEPS, step)
        self._metadata: list[ImageClassificationTFRecordMetadata] = []
        parts = []
        for stage in stages:
            metadata = ImageClassificationTFRecordMetadata(*_split(stage.pattern), num_samples)
            self._metadata.append(metadata)
            left = tf.maximum(step - stage.first_step, 0)
            reading = Reading(
                shuffle, shuffle_buffer_size, num_parallel, None, seed, shard, position=left * stage.batch_size
            )
            options = RawOptions(
                batch_size=stage.batch_size,
                preprocess_threads=num_parallel,
                private_num_threads=private_num_threads,
                augmentation_fn=_Crop(stage.image_size, stage.min_area),
                on_bad_image=on_bad_image,
            )
            records = read_metadata(metadata, reading, cache_dir, remove_cache_on_finish)
            part = RecordImages(metadata, options, {}, False, seed, reading.skipped).build(records)
            part = part.map(lambda element: _items(element, labels_offset))
            parts.append(part if stage.steps is None else part.take(tf.maximum(stage.steps - left, 0)))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.concatenate(part)
        super().__init__(whole.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)))

    @property
    def num_samples(self) -> int:
        """How many samples an epoch has."""
        return self._metadata[0].num_samples

    @property
    def total_num_samples(self) -> int:
        """The same as `num_samples`."""
        return self.num_samples


def _items(element: Any, labels_offset: int) -> dict[str, Any]:
    # The stages differ in their sizes: what they have in common is what is known.
    image = tf1.placeholder_with_default(element["image"], [None, None, None, 3])
    label = tf1.placeholder_with_default(element["label"] - labels_offset, [None])
    return {"image": image, "label": label}


def _split(pattern: str) -> tuple[str, str]:
    folder, _, name = pattern.rpartition("/")
    return folder or ".", name


def _stages(spec: Sequence[tuple[str, int, int, float]], switch_steps: Sequence[int]) -> list[_Stage]:
    steps = [0, *switch_steps]
    if not spec or len(spec) != len(steps):
        raise UsageError(
            f"{len(spec)} stages and {len(switch_steps)} ds_switch_steps: expected a step for each stage but the first"
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise UsageError(f"ds_switch_steps={list(switch_steps)}: expected ascending steps from 1")
    ends: list[int | None] = [*steps[1:], None]
    stages = []
    for number, ((pattern, batch_size, size, area), first, end) in enumerate(zip(spec, steps, ends, strict=True)):
        where = f"strategy_spec[{number}]"
        check_integer(f"{where}: batch_size", batch_size, 1)
        check_integer(f"{where}: image_size", size, 1)
        if not 0 < area <= 1:
            raise UsageError(f"{where}: min_area={area!r}: expected a part of the image, more than 0 and at most 1")
        stages.append(_Stage(pattern, batch_size, size, area, first, None if end is None else end - first))
    return stages
