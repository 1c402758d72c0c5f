"""What all data sets of images do with decoded, or encoded, images: preprocess, augment, batch, read ahead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.datasets.raw.options import RawOptions
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = ["BATCHES_AT_ONCE", "ImagePipeline", "is_good", "without_good"]

# Two batches overlap, so that no thread waits for the last image of one.
BATCHES_AT_ONCE = 2
_PREFETCHED_BATCHES = 2

Element = Mapping[str, Any]


class ImagePipeline:
    """The steps from single images to the elements that a model gets.

    Args:
        options: what the user asked for.
        seed: the user's; random operations of an `augmentation_fn` follow it. None: they follow none.
    """

    def __init__(self, options: RawOptions, seed: int | None) -> None:
        self.options, self.seed = options, seed
        self.finish = self._finish if options.geometry is not None else None
        self.wants_seed = _takes_seed(options.augmentation_fn) and self.finish is None

    def _endless(self, dataset: Any) -> Any:
        """Tell that a data set never ends, where that got lost."""
        if self.options.num_epochs is not None:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    def _preprocessed(self, dataset: Any) -> Any:
        options = self.options

        def preprocess(element: Element) -> dict[str, Any]:
            result = options.preprocess_fn(  # type: ignore[misc]
                *(element[name] for name in ("image_name", "image_buf", "label", "label_desc"))
            )
            if not isinstance(result, (tuple, list)) or len(result) != 4:
                raise UsageError(
                    f"preprocess_fn returned {_describe(result)}",
                    hint="expected (image_name, image, label, label_desc), all of them tensors",
                )
            made = dict(zip(("image_name", "image", "label", "label_desc"), result, strict=True))
            return {**element, **made, "image": self._resized(tf.convert_to_tensor(made["image"]))}

        if options.batch_size is not None:
            dataset = dataset.batch(options.batch_size, drop_remainder=options.full_batches)
        dataset = self._map(dataset, preprocess)
        if options.augmentation_fn is None:
            return dataset
        if options.batch_size is None:
            return self._augmented(dataset)
        return self._batched(self._augmented(dataset.unbatch()))

    def _resized(self, image: Any) -> Any:
        size = self.options.size
        if size is None or tuple(image.shape[-3:-1]) == size:
            return image
        return tf1.image.resize(image, size, tf1.image.ResizeMethod.NEAREST_NEIGHBOR)

    def _augmented(self, dataset: Any) -> Any:
        stateful = False

        def augment(element: Element) -> dict[str, Any]:
            nonlocal stateful
            rest = {name: value for name, value in element.items() if name != "seed"}
            graph = tf1.get_default_graph()
            if self.seed is not None and graph.seed is None:
                graph.seed = self.seed
            kwargs = {"seed": element["seed"]} if self.wants_seed else {}
            image = self.options.augmentation_fn(element["image"], **kwargs)  # type: ignore[misc]
            if not tf.is_tensor(image):
                raise UsageError(f"augmentation_fn returned {_describe(image)}; expected the image, a tensor")
            stateful = any(_is_random(op) for op in graph.get_operations())
            return {**rest, "image": image}

        augmented = self._map(dataset, augment)
        if stateful and self.seed is not None:
            # Random operations with a state give numbers in the order in which they are called.
            return dataset.map(tf.autograph.experimental.do_not_convert(augment))
        return augmented

    def _batched(self, dataset: Any) -> Any:
        options = self.options
        if options.batch_size is None:
            return dataset
        shape = dataset.element_spec["image"].shape
        if not shape.is_fully_defined():
            raise UsageError(
                f"batch_size={options.batch_size}: augmentation_fn gives images of shape {shape}, and only images of"
                " one known shape can be a batch",
                hint="give image_size, or resize in augmentation_fn and tell it: image.set_shape([height, width, 3])",
            )
        return dataset.batch(options.batch_size, drop_remainder=options.full_batches)

    def _finish(self, element: Element) -> Element:
        rest = {name: value for name, value in element.items() if name != "seed"}
        finish = self.options.augmentation_fn.finish  # type: ignore[union-attr]
        # A batch follows the seed of its first image.
        kwargs = {"seed": element["seed"][0]} if "seed" in element and _takes_seed(finish) else {}
        return {**rest, "image": finish(element["image"], **kwargs)}

    def _map(self, dataset: Any, function: Callable[..., Any], at_once: int | None = None) -> Any:
        # Users' functions run as they are, as they did when this API was made: nothing rewrites their source.
        plain = tf.autograph.experimental.do_not_convert(function)
        return dataset.map(plain, num_parallel_calls=at_once or self.options.threads, deterministic=True)

    def _ahead(self, dataset: Any) -> Any:
        """Read ahead, and give the data set its own threads where that is wanted."""
        options = self.options
        if options.batch_size is None:
            dataset = dataset.prefetch(min(options.capacity, 2 * options.threads))
        else:
            dataset = dataset.prefetch(min(_PREFETCHED_BATCHES, max(1, options.capacity // options.batch_size)))
        settings = tf.data.Options()
        settings.deterministic = True
        if options.private_num_threads:
            settings.threading.private_threadpool_size = options.private_num_threads
        return dataset.with_options(settings)


@tf.autograph.experimental.do_not_convert
def is_good(element: Element) -> Any:
    """Tell whether an element is to be kept."""
    return element["good"]


@tf.autograph.experimental.do_not_convert
def without_good(element: Element) -> Element:
    """Return an element without what tells that it is kept."""
    return {name: value for name, value in element.items() if name != "good"}


def _takes_seed(function: Callable[..., Any] | None) -> bool:
    """Tell whether a function has a parameter that is named `seed`."""
    if function is None:
        return False
    try:
        return "seed" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_random(op: Any) -> bool:
    return any(name in op.node_def.attr for name in ("seed", "seed2"))


def _describe(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
