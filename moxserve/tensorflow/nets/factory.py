"""Networks by name: `get_model_fn` builds one, `get_model_meta` tells what to know before that."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from numbers import Real
from typing import Any, NamedTuple

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import get_flag
from moxserve.tensorflow.executor.spec import ModeKeys
from moxserve.tensorflow.layers.images import onednn_enabled
from moxserve.tensorflow.nets.catalog import Network, network
from moxserve.tensorflow.nets.preprocess import Preparation, default_preprocess_fn
from moxserve.tensorflow.preprocessing.base import check_flag, check_integer

__all__ = ["ModelMeta", "NetworkFn", "get_model_fn", "get_model_meta", "network_options"]

_FORMATS = ("NHWC", "NCHW")
_DECAY = "batch_norm_decay"
# The documents' sentence, as it stands there.
_NO_SIZE = (
    "`image_height` and `image_width` should be given to `mox.get_model_fn` when `run_mode` is `mox.ModeKeys.EXPORT "
    "(When `export_model` is specified in `mox.run`)."
)


class ModelMeta(NamedTuple):
    """What is known of a network before it is built.

    Attributes:
        default_image_size: side, in pixels, of the square images that it was made for.
        default_labels_offset: what is subtracted from ImageNet's labels of 1,001 classes, whose class 0 is background.
        default_logits_pattern: what the names of the variables of its last layer contain; leave them out with
            `checkpoint_exclude_patterns` to start from a checkpoint of other classes.
    """

    default_image_size: int
    default_labels_offset: int
    default_logits_pattern: str


def get_model_meta(name: str) -> ModelMeta:
    """Return what is known of a network before it is built.

    Args:
        name: of the network; see `NetworkKeys`.

    Raises:
        UsageError: there is no such network; the nearest names are told.
    """
    row = network(name)
    return ModelMeta(row.image_size, row.labels_offset, row.logits_pattern)


@dataclass(frozen=True)
class NetworkFn:
    """What `get_model_fn` returns: call it with images, once or more in a graph.

    Attributes:
        row: of the network.
        preparation: what is done to images first.
        data_format: layout that the user asked for.
        build: arguments of `nets.base.Build`.
        options: keyword arguments of the builder.
    """

    row: Network
    preparation: Preparation
    data_format: str
    build: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, images: Any) -> tuple[Any, dict[str, Any]]:
        """Build the network.

        Args:
            images: `[batch, height, width, channels]`, integers or floats, whatever `data_format` is.

        Returns:
            Logits `[batch, num_classes]`, of the images' dtype, or float32 for integers; and the end points by their
            names, in `data_format`. EXPORT is always built as NHWC.

        Raises:
            UsageError: this is no batch of images, or its size is not known.
        """
        from moxserve.tensorflow.nets.base import Build

        built_as = "NHWC" if self.preparation.run_mode == ModeKeys.EXPORT else self.data_format
        images = self.preparation(images, source=self.data_format, target=built_as)
        if built_as == "NCHW" and images.dtype == tf.float16 and not _on_gpu():
            tf1.logging.warning(
                "%s: CPUs convolve float16 in NCHW hundreds of times slower than in NHWC, or than bfloat16 in both",
                self.row.name,
            )
        builder = _builder(self.row)
        made = builder(images, Build(data_format=built_as, **self.build), **{**self.row.arguments, **self.options})
        logits: Any = made[0]
        return logits, made[1]


def get_model_fn(
    name: str,
    run_mode: str,
    num_classes: int | None,
    weight_decay: float = 0.0,
    data_format: str = "NHWC",
    batch_norm_fused: bool = False,
    batch_renorm: bool = False,
    image_height: int | None = None,
    image_width: int | None = None,
    preprocess_fn: Callable[..., Any] | None = default_preprocess_fn,
    **kwargs: Any,
) -> NetworkFn:
    """Return a network, with the preprocessing of its images, as a function of a batch of images.

    Args:
        name: of the network; see `NetworkKeys`.
        run_mode: one of `ModeKeys`. TRAIN drops units and normalises by the statistics of the batch.
        num_classes: length of the logits; None leaves the classifier away and returns the last features.
        weight_decay: factor of the L2 losses of weights, in `mox.get_collection(REGULARIZATION_LOSSES)`.
        data_format: layout inside the network; images are NHWC always. NCHW is faster on GPUs. The variables are the
            same, and EXPORT is built as NHWC, which runs everywhere.
        batch_norm_fused: batch norms in one operation, which is faster.
        batch_renorm: batch renormalisation (Ioffe 2017, arXiv:1702.03275) in place of batch norms.
        image_height: in PREDICT and EXPORT the images are resized to it; in TRAIN and EVAL it is what images of unknown
            size must have.
        image_width: likewise.
        preprocess_fn: `preprocess_fn(images)` or `preprocess_fn(images, run_mode)`, returns images; see
            `default_preprocess_fn` for the default. None: images are only cast to float.
        **kwargs: options of the network, such as `dropout_keep_prob`; see docs/models.md, or `network_options`. All
            with batch norms know `batch_norm_decay`, of the moving averages: those of slim want thousands of steps.

    Returns:
        The function: images -> (logits, end points).

    Raises:
        UsageError: the network, the mode or an option does not exist, or a value makes no sense. In EXPORT: there is no
            size.
    """
    row = network(name)
    if run_mode not in ModeKeys.ALL:
        raise UsageError(f"run_mode={run_mode!r} is no mode; {did_you_mean(str(run_mode).upper(), ModeKeys.ALL)}")
    if num_classes is not None:
        check_integer(name, "num_classes", num_classes, 1)
    check_flag(name, batch_norm_fused=batch_norm_fused, batch_renorm=batch_renorm)
    if not _is_number(weight_decay, below=math.inf):
        raise UsageError(f"{name}: weight_decay must be a number of at least 0, got {weight_decay!r}")
    if preprocess_fn is not None and not callable(preprocess_fn):
        raise UsageError(f"{name}: preprocess_fn must be a function or None, got {preprocess_fn!r}")
    size = _size(row, run_mode, image_height, image_width)
    _check_format(name, run_mode, data_format)
    _check_options(row, kwargs)
    options = dict(kwargs)
    build = {
        "num_classes": num_classes,
        "training": run_mode == ModeKeys.TRAIN,
        "weight_decay": float(weight_decay),
        "fused": batch_norm_fused,
        "renorm": batch_renorm,
        "norm_decay": options.pop(_DECAY, None),
    }
    return NetworkFn(row, Preparation(name, run_mode, row.channels, size, preprocess_fn), data_format, build, options)


def network_options(name: str) -> dict[str, Any]:
    """Return the options of a network, which `get_model_fn` takes as keywords, and their defaults.

    A `batch_norm_decay` of None is the network's own.

    Raises:
        UsageError: there is no such network.
    """
    row = network(name)
    builder = _builder(row)
    parameters = inspect.signature(builder).parameters.values()
    given = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        # Families of many options keep them in a dataclass, which their module tells of.
        given |= asdict(sys.modules[builder.__module__].OPTIONS[builder.__name__])
    options = {option: row.arguments.get(option, default) for option, default in given.items()}
    return options if not row.normalized else {_DECAY: None, **options}


def _builder(row: Network) -> Callable[..., Any]:
    module, function = row.target.split(":")
    builder: Callable[..., Any] = getattr(import_module(module), function)
    return builder


def _check_options(row: Network, options: Mapping[str, Any]) -> None:
    if not options:
        return
    known = network_options(row.name)
    for option, value in options.items():
        if option not in known:
            raise UsageError(f"{row.name}: no option {option!r}; {did_you_mean(option, known)}")
        if option != _DECAY:
            _check_kind(row.name, option, value, known[option])
    decay = options.get(_DECAY)
    if decay is not None and not _is_number(decay, below=1):
        raise UsageError(f"{row.name}: {_DECAY} must be a number from 0 to below 1, got {decay!r}")


def _is_number(value: Any, below: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < below


def _check_kind(name: str, option: str, value: Any, default: Any) -> None:
    """Refuse a value of another kind than the default: 'False' out of a file would count as true."""
    if isinstance(default, bool):
        check_flag(name, **{option: value})
    elif isinstance(default, int):
        check_integer(name, option, value, 0)
    elif isinstance(default, float) and (isinstance(value, bool) or not isinstance(value, Real)):
        raise UsageError(f"{name}: {option} must be a number, got {value!r}")
    elif option.endswith("_fn") and value is not None and not callable(value):
        raise UsageError(f"{name}: {option} must be a function or None, got {value!r}")


def _size(row: Network, run_mode: str, height: int | None, width: int | None) -> tuple[int, int] | None:
    if height is None or width is None:
        if run_mode == ModeKeys.EXPORT:
            raise UsageError(_NO_SIZE, hint=f"mox.get_model_meta({row.name!r}).default_image_size is {row.image_size}")
        if height is not None or width is not None:
            raise UsageError(f"{row.name}: expected image_height and image_width, got one of them")
        return None
    check_integer(row.name, "image_height", height, 1)
    check_integer(row.name, "image_width", width, 1)
    return int(height), int(width)


def _on_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU")) and not get_flag("clone_on_cpu")


def _check_format(name: str, run_mode: str, data_format: str) -> None:
    """Refuse NCHW where it could not run, before a session tells it in words of its own."""
    if data_format not in _FORMATS:
        near = did_you_mean(str(data_format).upper(), _FORMATS)
        raise UsageError(f"{name}: data_format={data_format!r} is no layout of images; {near}")
    if data_format == "NHWC" or run_mode == ModeKeys.EXPORT:
        return
    if not _on_gpu() and not onednn_enabled():  # TensorFlow's other kernels for CPUs know NHWC only
        raise UsageError(
            f"{name}: data_format='NCHW' needs a GPU, or a CPU with TensorFlow's oneDNN kernels; neither is there",
            hint="use data_format='NHWC': the variables are the same, and checkpoints fit both. "
            "TF_ENABLE_ONEDNN_OPTS=0 switches oneDNN off; unset it where it is set",
        )
