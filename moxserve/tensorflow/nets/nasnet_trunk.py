"""What NASNet and PNASNet share around their cells: options, stems, the second classifier, the classifier.

The variables have no scope of their own, as slim's: `conv0`, `cell_stem_0`, `cell_0`, …, `final_layer`. As slim's,
batch norms are one operation whether the build asks for that or not, unless they are renormalisations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.nasnet_cells import Activation, CellPlan, Cells, DropPath, Place

__all__ = ["NasnetOptions", "Trunk"]

_STEM_CELLS = 2
_STEM_FILTERS = 32
_AUX_POOL = 5  # Side of what the second classifier takes the mean of,
_AUX_UNITS = (128, 768)  # and the channels of its two convolutions.


@dataclass(frozen=True)
class NasnetOptions:
    """Options of NASNet and PNASNet, under the names of slim's hyper-parameters.

    Attributes:
        num_cells: number of cells, without those of the stem and NASNet's reductions.
        num_conv_filters: filters of an operation in the first of them.
        stem_multiplier: factor of the stem's filters.
        filter_scaling_rate: factor of the filters after each reduction.
        num_reduction_layers: how often the map is halved after the stem, at equal distances.
        skip_reduction_layer_input: of NASNet: whether the cell after a reduction reads the last cell but one before it,
            in place of the last. Of PNASNet: whether a cell that halves the map reads the last cell but one, as others
            do, in place of the one before that.
        drop_path_keep_prob: probability that an operation of the last cell stays at the end of training; 1 drops none.
        total_training_steps: when that end is.
        dense_dropout_keep_prob: probability that a feature stays while training, before the classifier.
        use_aux_head: whether training has a second classifier, before the second reduction: end point `AuxLogits`.
        use_bounded_activation: whether all activations are clipped to -6 … 6, for networks of 8-bit integers.
        batch_norm_decay: of the moving averages of batch norms.
        batch_norm_epsilon: what batch norms add to variances.
    """

    num_cells: int
    num_conv_filters: int
    stem_multiplier: float = 3.0
    filter_scaling_rate: float = 2.0
    num_reduction_layers: int = 2
    skip_reduction_layer_input: bool = False
    drop_path_keep_prob: float = 1.0
    total_training_steps: int = 250_000
    dense_dropout_keep_prob: float = 0.5
    use_aux_head: bool = True
    use_bounded_activation: bool = False
    batch_norm_decay: float = 0.9997
    batch_norm_epsilon: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("num_cells", "num_conv_filters", "total_training_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("stem_multiplier", "filter_scaling_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("drop_path_keep_prob", "dense_dropout_keep_prob"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.num_reduction_layers < self.num_cells:
            raise UsageError(
                f"num_reduction_layers must be from 0 to {self.num_cells - 1}, which is one less than num_cells, "
                f"got {self.num_reduction_layers}"
            )

    def changed(self, options: Mapping[str, Any]) -> NasnetOptions:
        """Return these options with some changed.

        Raises:
            UsageError: an unknown option, or a wrong value.
        """
        known = [one.name for one in fields(self)]
        for name in options:
            if name not in known:
                raise UsageError(f"no option {name!r} of NASNet and PNASNet; {did_you_mean(name, known, len(known))}")
        return replace(self, **options)

    @property
    def reductions(self) -> list[int]:
        """Numbers of the cells that have, or (PNASNet) are, a reduction."""
        parts = self.num_reduction_layers + 1
        return [int(part / parts * self.num_cells) for part in range(1, parts)]


class Trunk:
    """A network being built.

    Attributes:
        options: what it is.
        cells: builds its cells.
        end_points: what there is so far.
    """

    def __init__(self, build: Build, options: NasnetOptions, extra_cells: int) -> None:
        """Take what all parts are built with.

        Args:
            build: how.
            options: what.
            extra_cells: how many cells are not among `num_cells`.
        """
        self.options = options
        self.end_points: dict[str, Any] = {}
        self._build = build
        self._layers = build.layers(
            activation=None, initializer=tf1.variance_scaling_initializer(2.0, "fan_out", "truncated_normal")
        )
        norm = build.norm(options.batch_norm_decay, options.batch_norm_epsilon, scale=True)
        self._norm = replace(norm, fused=True)
        self._activation = Activation(options.use_bounded_activation)
        drop_path = None
        if build.training and options.drop_path_keep_prob < 1:
            # Made before any scope is open: else it would be a variable of a cell.
            step = tf1.train.get_or_create_global_step()
            cells = options.num_cells + extra_cells
            drop_path = DropPath(options.drop_path_keep_prob, cells, options.total_training_steps, step)
        self.cells = Cells(
            self._layers,
            self._norm,
            options.num_conv_filters,
            self._activation,
            drop_path,
            options.use_bounded_activation,
        )

    def cifar_stem(self, images: Any) -> list[Any]:
        """Build a convolution; return the outputs of the two cells before the first one, of which one is missing."""
        filters = int(self.options.num_conv_filters * self.options.stem_multiplier)
        net = self._layers.conv2d(images, filters, 3, "l1_stem_3x3", bias=False)
        net = self.end_points["Stem"] = self._layers.batch_norm(net, "l1_stem_bn", norm=self._norm)
        return [None, net]

    def imagenet_stem(self, images: Any, plan: CellPlan) -> list[Any]:
        """Build a strided convolution and two cells that halve the map; return the outputs of the two cells."""
        filters = int(_STEM_FILTERS * self.options.stem_multiplier)
        net = self._layers.conv2d(images, filters, 3, "conv0", stride=2, padding="VALID", bias=False)
        outputs = [None, self._layers.batch_norm(net, "conv0_bn", norm=self._norm)]
        for number in range(_STEM_CELLS):
            scaling = self.options.filter_scaling_rate ** (number - _STEM_CELLS)
            place = Place(f"cell_stem_{number}", number, scaling, stride=2)
            outputs.append(self.cells.build(plan, outputs[-1], outputs[-2], place))
        self.end_points["Stem"] = outputs[-1]
        return outputs[-2:]

    def aux_head(self, net: Any, cell: int) -> None:
        """Build the second classifier, if this is the cell for it; it is for training only.

        Raises:
            UsageError: the map is too small for its pooling.
        """
        reductions, layers, norm = self.options.reductions, self._layers, self._norm
        num_classes = self._build.num_classes
        wanted = self.options.use_aux_head and self._build.training and len(reductions) >= 2
        if not wanted or not num_classes or cell != reductions[1] - 1:
            return
        if min(side or 0 for side in layers.spatial(net)) < _AUX_POOL:
            raise UsageError(
                "the images are too small for the second classifier, which pools 5 x 5 places of a map of {} x {}; "
                "take larger images, or leave it away with use_aux_head=False".format(*layers.spatial(net))
            )
        with layers.scope(f"aux_{cell}/aux_logits"):
            net = layers.avg_pool(self._activation(net), _AUX_POOL, "pool", stride=3)
            net = layers.batch_norm(layers.conv2d(net, _AUX_UNITS[0], 1, "proj", bias=False), "aux_bn0", norm=norm)
            net = self._activation(net)
            net = layers.conv2d(net, _AUX_UNITS[1], layers.spatial(net), "Conv", padding="VALID", bias=False)
            net = self._activation(layers.batch_norm(net, "aux_bn1", norm=norm))
            self.end_points["AuxLogits"] = layers.dense(layers.flatten(net), num_classes, "FC")

    def classifier(self, net: Any) -> tuple[Any, dict[str, Any]]:
        """Build the classifier; return what builders of networks return."""
        layers, ends = self._layers, self.end_points
        with layers.scope("final_layer"):
            net = ends["global_pool"] = layers.global_pool(self._activation(net), "global_pool", keep=False)
            if not self._build.num_classes:
                return net, ends
            net = layers.dropout(net, self.options.dense_dropout_keep_prob, "dropout")
            logits = ends["Logits"] = layers.dense(net, self._build.num_classes, "FC")
            ends["Predictions"] = tf.nn.softmax(logits, name="predictions")
            return logits, ends
