"""From a serialized tf.Example, or tf.SequenceExample, to items: which features are read, and what is made of them.

A decoder parses the features of `keys_to_features` and hands each item's handler the tensors of its keys. Names,
arguments and results are those of `tf.contrib.slim.tfexample_decoder` (tf_slim 1.1), which the tests hold them against.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.contrib.slim.item_handler import ItemHandler, dense
from moxserve.tensorflow.contrib.slim.sequence_handlers import (
    BoundingBox,
    BoundingBoxSequence,
    KeypointsSequence,
    NumBoxesSequence,
)
from moxserve.tensorflow.executor.env import tf, tf1

__all__ = [
    "BackupHandler",
    "BoundingBox",
    "BoundingBoxSequence",
    "Image",
    "ItemHandler",
    "ItemHandlerCallback",
    "KeypointsSequence",
    "LookupTensor",
    "NumBoxesSequence",
    "SparseTensor",
    "TFExampleDecoder",
    "TFSequenceExampleDecoder",
    "Tensor",
]


class ItemHandlerCallback(ItemHandler):
    """An item that a function makes.

    Args:
        keys: name of a feature, or several.
        func: takes a dict of the parsed tensors by name, and returns the item.
    """

    def __init__(self, keys: str | Sequence[str], func: Callable[[Mapping[str, Any]], Any]) -> None:
        super().__init__(keys)
        self._func = func

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        return self._func(keys_to_tensors)


class Tensor(ItemHandler):
    """A feature as it is, or in another shape; a sparse one is made dense.

    Args:
        tensor_key: the feature.
        shape_keys: the feature that holds the shape, or one for each dimension.
        shape: a fixed shape. With neither, the tensor keeps its own.
        default_value: what a sparse tensor leaves out is filled with.

    Raises:
        UsageError: both `shape_keys` and `shape` are given.
    """

    def __init__(
        self,
        tensor_key: str,
        shape_keys: str | Sequence[str] | None = None,
        shape: Any = None,
        default_value: Any = 0,
    ) -> None:
        if shape_keys and shape is not None:
            raise UsageError(f"Tensor({tensor_key!r}): give shape_keys or shape, not both")
        self._shape_keys = [shape_keys] if isinstance(shape_keys, str) else list(shape_keys or ())
        self._tensor_key, self._shape, self._default_value = tensor_key, shape, default_value
        super().__init__([tensor_key, *self._shape_keys])

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        tensor, shape = keys_to_tensors[self._tensor_key], self._shape
        if self._shape_keys:
            shape = tf.reshape(tf.stack([dense(keys_to_tensors[key]) for key in self._shape_keys]), [-1])
        if not isinstance(tensor, tf.SparseTensor):
            return tensor if shape is None else tf.reshape(tensor, shape)
        if shape is not None:
            tensor = tf.sparse.reshape(tensor, shape)
        # Slim's default 0 is none for text.
        filler = "" if tensor.dtype == tf.string and self._default_value == 0 else self._default_value
        return tf.sparse.to_dense(tensor, filler)


class LookupTensor(Tensor):
    """A feature looked up in a table, such as names of classes.

    Args:
        tensor_key: as `Tensor`.
        table: of `tf.lookup`.
        shape_keys: as `Tensor`.
        shape: as `Tensor`.
        default_value: as `Tensor`.
    """

    def __init__(
        self,
        tensor_key: str,
        table: Any,
        shape_keys: str | Sequence[str] | None = None,
        shape: Any = None,
        default_value: Any = "",
    ) -> None:
        super().__init__(tensor_key, shape_keys, shape, default_value)
        self._table = table

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        return self._table.lookup(super().tensors_to_item(keys_to_tensors))


class BackupHandler(ItemHandler):
    """An item of a first handler, or where that has no elements, of a second.

    Args:
        handler: the first.
        backup: the second.

    Raises:
        UsageError: one is no handler.
    """

    def __init__(self, handler: ItemHandler, backup: ItemHandler) -> None:
        for name, given in (("handler", handler), ("backup", backup)):
            if not isinstance(given, ItemHandler):
                raise UsageError(f"BackupHandler: {name} is a {type(given).__name__}; expected an ItemHandler")
        super().__init__([*handler.keys, *backup.keys])
        self._handler, self._backup = handler, backup

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        first = self._handler.tensors_to_item(keys_to_tensors)
        return tf.cond(
            tf.equal(tf.size(first), 0), lambda: self._backup.tensors_to_item(keys_to_tensors), lambda: first
        )


class SparseTensor(ItemHandler):
    """A sparse vector of two features: where its values are, and what they are.

    Args:
        indices_key: the feature of the places, default `indices`.
        values_key: the feature of the values, default `values`.
        shape_key: the feature that holds the shape.
        shape: a fixed shape. With neither, that of the parsed feature of the places.
        densify: make it dense.
        default_value: what is then filled in.
    """

    def __init__(
        self,
        indices_key: str | None = None,
        values_key: str | None = None,
        shape_key: str | None = None,
        shape: Any = None,
        densify: bool = False,
        default_value: Any = 0,
    ) -> None:
        self._indices_key, self._values_key = indices_key or "indices", values_key or "values"
        self._shape_key, self._shape = shape_key, shape
        self._densify, self._default_value = densify, default_value
        super().__init__([self._indices_key, self._values_key, *([shape_key] if shape_key else [])])

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        places, values = keys_to_tensors[self._indices_key], keys_to_tensors[self._values_key]
        shape = dense(keys_to_tensors[self._shape_key]) if self._shape_key else self._shape
        if shape is None:
            shape = places.dense_shape
        # The last column counts the values of a row; the feature says where they belong instead.
        last = tf.reshape(tf.cast(places.values, tf.int64), [-1, 1])
        item = tf.SparseTensor(tf.concat([places.indices[:, :-1], last], 1), values.values, shape)
        return tf.sparse.to_dense(item, self._default_value) if self._densify else item


class Image(ItemHandler):
    """An encoded image, decoded: `[height, width, channels]`.

    The format `raw` (or `RAW`) stands for pixels as they are in memory; any other image is told by its content (JPEG,
    PNG, BMP, GIF).

    Args:
        image_key: the feature of the encoded bytes, default `image/encoded`.
        format_key: the feature of the format, default `image/format`.
        shape: the image is given this shape: needed for `raw`, otherwise only where all images have it.
        channels: 1 (gray), 3 (colour) or 4.
        dtype: of the result; values are not scaled. `raw` bytes are read as this type.
        repeated: the feature is a list of images, and the result one of them after the other.
        dct_method: how JPEG is decoded, `INTEGER_FAST` or `INTEGER_ACCURATE`.
    """

    def __init__(
        self,
        image_key: str | None = None,
        format_key: str | None = None,
        shape: Any = None,
        channels: int = 3,
        dtype: Any = tf.uint8,
        repeated: bool = False,
        dct_method: str = "",
    ) -> None:
        self._image_key, self._format_key = image_key or "image/encoded", format_key or "image/format"
        super().__init__([self._image_key, self._format_key])
        self._shape, self._channels, self._dtype = shape, channels, tf.as_dtype(dtype)
        self._repeated, self._dct_method = repeated, dct_method

    def tensors_to_item(self, keys_to_tensors: Mapping[str, Any]) -> Any:
        """Make the item; see ItemHandler."""
        encoded, kind = keys_to_tensors[self._image_key], keys_to_tensors[self._format_key]
        if self._repeated:
            return tf.map_fn(lambda one: self._decode(one, kind), dense(encoded), fn_output_signature=self._dtype)
        return self._decode(encoded, kind)

    def _decode(self, encoded: Any, kind: Any) -> Any:
        def by_content() -> Any:
            return tf.cond(tf.io.is_jpeg(encoded), jpeg, other)

        def jpeg() -> Any:
            return tf.cast(tf1.image.decode_jpeg(encoded, self._channels, dct_method=self._dct_method), self._dtype)

        def other() -> Any:
            return tf.cast(tf.io.decode_image(encoded, self._channels), self._dtype)

        is_raw = tf.logical_or(tf.equal(kind, "raw"), tf.equal(kind, "RAW"))
        image = tf.cond(tf.reshape(is_raw, []), lambda: tf.io.decode_raw(encoded, self._dtype), by_content)
        image.set_shape([None, None, self._channels])
        return image if self._shape is None else tf.reshape(image, self._shape)


class _Decoder(ABC):
    """What both decoders do once the example is parsed."""

    def __init__(self, items_to_handlers: Mapping[str, ItemHandler], keys: Iterable[str]) -> None:
        known = list(keys)
        for item, handler in items_to_handlers.items():
            for key in handler.keys:
                if key not in known:
                    raise UsageError(
                        f"item {item!r} needs the feature {key!r}, which is not parsed; " + did_you_mean(key, known)
                    )
        self._items_to_handlers = dict(items_to_handlers)

    def list_items(self) -> list[str]:
        """Return the names of the items."""
        return list(self._items_to_handlers)

    @abstractmethod
    def _parse(self, serialized: Any) -> dict[str, Any]:
        """Return the parsed tensors by the names of their features."""

    def decode(self, serialized: Any, items: Sequence[str] | None = None) -> list[Any]:
        """Decode one example.

        Args:
            serialized: scalar string tensor.
            items: names of items; None for all.

        Returns:
            The items, in the order of their names.

        Raises:
            UsageError: an item is unknown.
        """
        tensors = self._parse(serialized)
        made = []
        for item in items or self._items_to_handlers:
            if item not in self._items_to_handlers:
                raise UsageError(f"no item {item!r}; {did_you_mean(item, self._items_to_handlers)}")
            handler = self._items_to_handlers[item]
            made.append(handler.tensors_to_item({key: tensors[key] for key in handler.keys}))
        return made


class TFExampleDecoder(_Decoder):
    """Decodes a serialized tf.Example.

    Args:
        keys_to_features: what each feature is, by name: `tf.io.FixedLenFeature`, `VarLenFeature`,
            `FixedLenSequenceFeature`, ...
        items_to_handlers: the handler of each item.

    Raises:
        UsageError: a handler needs a feature that is not among them.
    """

    def __init__(self, keys_to_features: Mapping[str, Any], items_to_handlers: Mapping[str, ItemHandler]) -> None:
        super().__init__(items_to_handlers, keys_to_features)
        self._keys_to_features = dict(keys_to_features)

    def _parse(self, serialized: Any) -> dict[str, Any]:
        parsed = tf.io.parse_single_example(serialized, self._keys_to_features)
        return _shaped(parsed, self._keys_to_features)


class TFSequenceExampleDecoder(_Decoder):
    """Decodes a serialized tf.SequenceExample.

    Args:
        keys_to_context_features: what each feature of the whole sequence is, by name.
        keys_to_sequence_features: what each feature of the frames is, by name.
        items_to_handlers: the handler of each item.

    Raises:
        UsageError: a name is in both, or a handler needs a feature that is in none.
    """

    def __init__(
        self,
        keys_to_context_features: Mapping[str, Any],
        keys_to_sequence_features: Mapping[str, Any],
        items_to_handlers: Mapping[str, ItemHandler],
    ) -> None:
        if both := sorted(set(keys_to_context_features) & set(keys_to_sequence_features)):
            raise UsageError(f"{', '.join(both)}: a feature of the context and of the sequence cannot share a name")
        super().__init__(items_to_handlers, [*keys_to_context_features, *keys_to_sequence_features])
        self._context, self._sequence = dict(keys_to_context_features), dict(keys_to_sequence_features)

    def _parse(self, serialized: Any) -> dict[str, Any]:
        context, sequence = tf.io.parse_single_sequence_example(serialized, self._context, self._sequence)
        return {**_shaped(context, self._context), **sequence}


def _shaped(tensors: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """Give features of a fixed length their shape."""
    fixed = {key: spec.shape for key, spec in features.items() if isinstance(spec, tf.io.FixedLenFeature)}
    return {key: tf.reshape(t, fixed[key]) if key in fixed else t for key, t in tensors.items()}
