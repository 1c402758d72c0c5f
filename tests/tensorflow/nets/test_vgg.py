"""VGG beyond what all networks are tested for: sizes of images, options, and batch norms, which slim does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.nets.base import Build
from moxserve.tensorflow.nets.catalog import network
from moxserve.tensorflow.nets.vgg import vgg

NAMES = ("vgg_a", "vgg_16", "vgg_19")
EVAL = Build(num_classes=7, training=False)


def images(height: int, width: int | None = None, batch: int = 1) -> Any:
    values = np.random.RandomState(7).uniform(-1, 1, (batch, height, width or height, 3))
    return tf.constant(values.astype(np.float32))


def built(name: str, batch: Any, build: Build = EVAL, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Build a network of the catalog; several in one test share their variables."""
    with tf1.variable_scope("", reuse=tf1.AUTO_REUSE):
        return vgg(batch, build, **network(name).arguments, **options)


def parameters() -> int:
    return sum(int(np.prod(variable.shape)) for variable in tf1.trainable_variables())


class TestSizes:
    """fc6 is as large as the map of 224x224; SAME frees it."""

    @pytest.mark.parametrize(("padding", "smallest", "largest"), [("VALID", 224, 255), ("SAME", 32, 63)])
    def test_sizes_that_give_one_vector(self, padding: str, smallest: int, largest: int) -> None:
        with pytest.raises(
            UsageError, match=f"^vgg_a expects images of at least {smallest}x{smallest}, got {smallest - 1}x300$"
        ):
            built("vgg_a", images(smallest - 1, 300), fc_conv_padding=padding)
        logits, ends = built("vgg_a", images(smallest, largest), fc_conv_padding=padding)
        assert logits.shape == ends["vgg_a/fc8"].shape == [1, 7]
        with pytest.raises(UsageError, match="give a map of 1x2 logits, which cannot be squeezed to one vector"):
            built("vgg_a", images(largest, largest + 1), fc_conv_padding=padding)

    def test_larger_images_give_a_map(self) -> None:
        logits, ends = built("vgg_a", images(256, 288), spatial_squeeze=False)
        assert logits.shape == ends["vgg_a/fc8"].shape == [1, 2, 3, 7]
        logits, ends = built("vgg_a", images(256, 288), global_pool=True)
        assert logits.shape == [1, 7]
        assert ends["global_pool"].shape == [1, 1, 1, 4096]
        logits, _ = built("vgg_a", images(96), fc_conv_padding="SAME", spatial_squeeze=False)
        assert logits.shape == [1, 3, 3, 7]
        assert parameters() == 132_863_336 - 993 * 4097

    def test_channels_first(self) -> None:
        channels_first = tf.transpose(images(256, 288), [0, 3, 1, 2])
        logits, ends = built("vgg_a", channels_first, Build(7, training=False, data_format="NCHW"), global_pool=True)
        assert logits.shape == [1, 7]
        assert ends["vgg_a/pool5"].shape == [1, 512, 8, 9]

    def test_padding_is_one_of_two(self) -> None:
        with pytest.raises(UsageError, match=r"^fc_conv_padding is 'same'; expected 'VALID' or 'SAME'$"):
            built("vgg_a", images(224), fc_conv_padding="same")

    def test_without_classes_fc7_is_returned(self) -> None:
        net, ends = built("vgg_a", images(224), Build(None, training=False))
        assert net is ends["vgg_a/fc7"]
        assert list(ends)[-1] == "vgg_a/fc7"
        assert not [v for v in tf1.global_variables() if "fc8" in v.op.name]


class TestBatchNorm:
    """A batch norm after each 3x3 convolution, in place of its biases."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_parameters_are_those_of_the_plain_network(self, name: str) -> None:
        """Betas take the biases' place, and there are as many gammas more."""
        build = Build(num_classes=1000, training=False)
        built(name, images(224), build)
        plain = parameters()
        built(f"{name}_bn", images(224), build)
        gammas = sum(np.multiply(network(name).arguments["convolutions"], (64, 128, 256, 512, 512)))
        published = {"vgg_a": 132_866_088, "vgg_16": 138_361_768, "vgg_19": 143_672_744}
        assert parameters() - plain == plain + gammas == published[name]
        assert not [v for v in tf1.global_variables() if "_bn/conv" in v.op.name and v.op.name.endswith("biases")]

    def test_names_and_moving_averages(self) -> None:
        built("vgg_a_bn", images(224, batch=2), Build(7, training=True, weight_decay=1e-4))
        names = [v.op.name for v in tf1.global_variables()]
        norm = "vgg_a_bn/conv3/conv3_2/BatchNorm"
        first = names.index(f"{norm}/gamma")
        assert names[first : first + 4] == [f"{norm}/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")]
        assert names[-6:] == [f"vgg_a_bn/fc{k}/{n}" for k in (6, 7, 8) for n in ("weights", "biases")]
        assert len(tf1.get_collection(tf1.GraphKeys.UPDATE_OPS)) == 2 * 8
        assert len(tf1.get_collection(tf1.GraphKeys.REGULARIZATION_LOSSES)) == 11

    @pytest.mark.slow
    @pytest.mark.parametrize("fused", [False, True])
    def test_folded_into_the_plain_network_it_answers_alike(self, fused: bool) -> None:
        """w' = w gamma / sqrt(variance + epsilon), b' = beta - mean gamma / sqrt(variance + epsilon)."""
        batch = images(64)
        same = {"fc_conv_padding": "SAME", "global_pool": True}
        _, normed = built("vgg_a_bn", batch, Build(7, training=False, fused=fused), **same)
        _, plain = built("vgg_a", batch, **same)
        random = np.random.RandomState(3)
        variables = {v.op.name: v for v in tf1.global_variables() if "/fc" not in v.op.name}
        with tf1.Session() as session:
            session.run([v.initializer for v in variables.values()])
            for name in [n for n in variables if n.endswith("gamma")]:
                scope = name.removesuffix("/BatchNorm/gamma")
                norm = {n: f"{scope}/BatchNorm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")}
                gamma, beta, mean = (random.normal(k, 0.2, variables[name].shape) for k in (1, 0, 0))
                variance = random.uniform(0.5, 2, gamma.shape)
                for key, value in zip(norm.values(), (gamma, beta, mean, variance), strict=True):
                    variables[key].load(value.astype(np.float32), session)
                factor = gamma / np.sqrt(variance + 1e-5)
                target = scope.replace("vgg_a_bn", "vgg_a", 1)
                weights = session.run(variables[f"{scope}/weights"])
                variables[f"{target}/weights"].load((weights * factor).astype(np.float32), session)
                variables[f"{target}/biases"].load((beta - mean * factor).astype(np.float32), session)
            expected, found = session.run([plain["vgg_a/pool5"], normed["vgg_a_bn/pool5"]])
        assert expected.std() > 0
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
