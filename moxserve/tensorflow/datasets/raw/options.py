"""What a user asks of a raw image data set, checked."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

from moxserve.cores import available_cores
from moxserve.errors import UsageError
from moxserve.tensorflow.datasets.reader.raw_reader import ParallelReader
from moxserve.tensorflow.datasets.tfrecord_files import cache_folder
from moxserve.tensorflow.executor.env import tf

__all__ = ["OnBadImage", "RawOptions"]

OnBadImage = Literal["skip", "raise"]
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class RawOptions:
    """Arguments that all raw image data sets have; their documentation is at the classes that users construct.

    Raises:
        UsageError: a value makes no sense.
    """

    batch_size: int | None = None
    num_readers: int = 8
    num_epochs: int | None = None
    capacity: int = 256
    cache_dir: str | None = None
    preprocess_fn: Callable[..., Any] | None = None
    preprocess_threads: int = 12
    image_size: Any = None
    remove_cache_on_finish: bool = True
    private_num_threads: int = 0
    reader_class: Callable[..., Any] | None = None
    reader_kwargs: Mapping[str, Any] | None = None
    drop_remainder: Any = False
    augmentation_fn: Callable[..., Any] | None = None
    position: int = 0
    on_bad_image: OnBadImage = "skip"
    channels: int = 3
    cache_decoded: bool = False
    size: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (("num_readers", 1), ("capacity", 1), ("preprocess_threads", 1), ("position", 0)):
            _check_integer(name, getattr(self, name), least)
        _check_integer("private_num_threads", self.private_num_threads, 0)
        for name in ("batch_size", "num_epochs"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        for name in ("preprocess_fn", "augmentation_fn", "reader_class"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UsageError(f"{name}={value!r} cannot be called")
        if self.reader_kwargs is not None and not isinstance(self.reader_kwargs, Mapping):
            raise UsageError(f"reader_kwargs={self.reader_kwargs!r}: expected a dict of keyword arguments")
        if self.on_bad_image not in get_args(OnBadImage):
            raise UsageError(f"on_bad_image={self.on_bad_image!r}: expected 'skip' or 'raise'")
        if self.channels not in _CHANNELS:
            raise UsageError(f"channels={self.channels!r}: expected 1 (gray), 3 (colour) or 4 (colour and alpha)")
        if self.cache_decoded and (self.cache_dir is None or self.preprocess_fn is not None):
            raise UsageError("cache_decoded=True needs a cache_dir, and no preprocess_fn, which decodes itself")
        object.__setattr__(self, "size", _size(self.image_size))
        self._check_batch()

    @classmethod
    def pick(cls, arguments: Mapping[str, Any]) -> RawOptions:
        """Take what belongs here out of the arguments of a constructor."""
        return cls(**{option.name: arguments[option.name] for option in fields(cls) if option.init})

    def _check_batch(self) -> None:
        if self.batch_size is None or self.size or self.preprocess_fn or self.augmentation_fn:
            return
        raise UsageError(
            f"batch_size={self.batch_size} without image_size: images of different sizes cannot be a batch",
            hint="give image_size, preprocess_fn or augmentation_fn; or no batch_size, and mox.run(auto_batch=True)",
        )

    @property
    def threads(self) -> int:
        """How many threads decode."""
        return min(self.preprocess_threads, available_cores())

    @property
    def cache_folder(self) -> str | None:
        """Where the cache shall be, `ENV` looked up.

        Raises:
            UsageError: it is `ENV`, and the variable is not set.
        """
        return None if self.cache_dir is None else cache_folder(self.cache_dir)

    @property
    def geometry(self) -> Any:
        """The augmentation's windows, where batches can be decoded by them; None otherwise."""
        if self.batch_size is None or self.preprocess_fn is not None or self.size is not None:
            return None
        finish = getattr(self.augmentation_fn, "finish", None)
        return getattr(self.augmentation_fn, "geometry", None) if callable(finish) else None

    @property
    def window(self) -> tuple[int, int] | None:
        """Height and width of images that are decoded straight into a batch; None where they are not."""
        if self.geometry is not None:
            window = self.geometry.window(1 << 10, 1 << 10, np.random.default_rng(0))
            return window.out_height, window.out_width
        resized = self.batch_size is not None and self.preprocess_fn is None and self.augmentation_fn is None
        return self.size if resized else None

    @property
    def full_batches(self) -> Any:
        """Whether all batches have `batch_size` rows: a bool, or a tensor of one."""
        return True if self.num_epochs is None else self.drop_remainder

    def inline_reading(self, remote: bool) -> bool:
        """Tell whether the threads that decode also read, as local files need no more, and are as many as may read."""
        usual = self.reader_class in (None, ParallelReader) and not self.reader_kwargs
        return not remote and usual and self.num_readers >= self.threads


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise UsageError(f"{name}={value!r}: expected an integer of at least {least}")


def _size(value: Any) -> tuple[int, int] | None:
    """Return height and width of `image_size`: a number, a pair, or a tensor that is known while the graph is built."""
    if value is None:
        return None
    known = np.asarray(tf.get_static_value(value) if tf.is_tensor(value) else value)
    sides = known.ravel()
    numeric = known.shape in ((), (2,)) and known.dtype.kind in "iuf"
    if not numeric or not all(float(side).is_integer() and side >= 1 for side in sides):
        raise UsageError(f"image_size={value!r}: expected [height, width] in pixels, or one number for both")
    return int(sides[0]), int(sides[-1])
