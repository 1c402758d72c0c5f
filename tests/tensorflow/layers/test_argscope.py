"""`argscope`, `LinearWrap` and `layer_register`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.layers import (
    BatchNorm,
    Conv2D,
    Deconv2D,
    FullyConnected,
    LinearWrap,
    MaxPooling,
    TowerContext,
    argscope,
    enable_argscope_for_function,
    enable_argscope_for_module,
    get_arg_scope,
    layer_register,
)
from moxserve.tensorflow.layers.symbolic import registry

IMAGES = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def evaluation() -> Iterator[None]:
    with TowerContext("", is_training=False):
        yield


@pytest.fixture
def own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_LAYERS", {name: list(layers) for name, layers in registry._LAYERS.items()})


def func(x: Any, factor: float, offset: float = 0.0) -> Any:
    return x * factor + offset


def test_the_chain_of_the_tutorial_is_the_same_as_its_calls() -> None:
    image = tf.constant(IMAGES)
    args, kwargs = (2.0,), {"offset": 1.0}
    # fmt: off
    with argscope(Conv2D, filters=32, kernel_size=3, activation=tf.nn.relu):
        chain = (LinearWrap(image)  # the starting brace is only for line-breaking
                 .Conv2D('conv0')
                 .MaxPooling('pool0', 2)
                 .Conv2D('conv1', padding='SAME')
                 .Conv2D('conv2', kernel_size=5)
                 .FullyConnected('fc0', 512, activation=tf.nn.relu)
                 .Dropout('dropout', rate=0.5)
                 .tf.multiply(0.5)
                 .apply(func, *args, **kwargs)
                 .FullyConnected('fc1', units=10, activation=tf.identity)())
    # fmt: on
    assert chain.name == "fc1/output:0"
    assert [v.op.name for v in tf1.global_variables()] == [
        f"{layer}/{name}" for layer in ("conv0", "conv1", "conv2", "fc0", "fc1") for name in ("W", "b")
    ]
    assert chain.variables.W.shape.as_list() == [512, 10]
    with tf1.variable_scope("", reuse=True):
        l = Conv2D("conv0", image, 32, 3, activation=tf.nn.relu)  # noqa: E741 - as in the tutorial
        l = MaxPooling("pool0", l, 2)  # noqa: E741
        l = Conv2D("conv1", l, 32, 3, padding="SAME", activation=tf.nn.relu)  # noqa: E741
        l = Conv2D("conv2", l, 32, 5, activation=tf.nn.relu)  # noqa: E741
        l = FullyConnected("fc0", l, 512, activation=tf.nn.relu)  # noqa: E741
        l = tf.multiply(l, 0.5)  # noqa: E741
        l = func(l, *args, **kwargs)  # noqa: E741
        l = FullyConnected("fc1", l, 10, activation=tf.identity)  # noqa: E741
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        one, two = session.run([chain, l])
    np.testing.assert_array_equal(one, two)


def test_scopes_nest_inner_wins_and_calls_win_over_all() -> None:
    x = tf.constant(IMAGES)
    with argscope([Conv2D, Deconv2D], out_channel=4, kernel_size=3):
        with argscope(Conv2D, filters=5, nl=tf.nn.relu):
            assert get_arg_scope()["Conv2D"] == {"filters": 5, "kernel_size": 3, "activation": tf.nn.relu}
            inner, given, positional = Conv2D("a", x), Conv2D("b", x, filters=6), Conv2D("c", x, 7)
            assert Deconv2D("d", x).shape[-1] == 4
        outer = Conv2D("e", x)
    assert [t.shape[-1] for t in (inner, given, positional, outer)] == [5, 6, 7, 4]
    assert inner.op.inputs[0].op.type == "Relu"
    assert outer.op.inputs[0].op.type == "BiasAdd"
    assert get_arg_scope() == {}


def test_after_an_exception_the_scope_is_as_before() -> None:
    with argscope(Conv2D, filters=4):
        with pytest.raises(KeyError), argscope(Conv2D, filters=5):
            raise KeyError("x")
        assert get_arg_scope() == {"Conv2D": {"filters": 4}}
    assert get_arg_scope() == {}


def test_wrong_scopes_are_refused_at_once() -> None:
    with (
        pytest.raises(UsageError, match="argscope: MaxPooling has no argument 'filters'"),
        argscope([Conv2D, MaxPooling], filters=3),
    ):
        pass
    with pytest.raises(UsageError, match="argscope: relu is no layer"), argscope(tf.nn.relu, name="x"):
        pass
    assert get_arg_scope() == {}


def test_functions_and_modules_take_part(console: Any) -> None:
    scaled = enable_argscope_for_function(func)
    x = tf.constant(IMAGES)
    with argscope(scaled, factor=3.0, offset=1.0):
        both, one = scaled(x), scaled(x, 2.0)
    with tf1.Session() as session:
        np.testing.assert_allclose(session.run([both, one]), [IMAGES * 3 + 1, IMAGES * 2 + 1], rtol=1e-6)
    assert console.text.count("func: (2, 28, 28, 3) -> (2, 28, 28, 3)") == 1

    module = types.ModuleType("my_layers")
    module.func = func  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    enable_argscope_for_module(module, log_shape=False)
    with argscope(module.func, factor=0.0):
        zero = module.func(x)
    assert module.number == 3
    with tf1.Session() as session:
        assert not session.run(zero).any()
    with pytest.raises(UsageError, match="not a function"):
        enable_argscope_for_function(3)  # type: ignore[arg-type]


def test_own_layers(own_layers: None, console: Any) -> None:
    @layer_register(log_shape=True)
    def Scale(x: Any, initial: float = 2.0) -> Any:
        """Multiply by a learned factor."""
        return x * tf1.get_variable("factor", [], initializer=tf1.constant_initializer(initial))

    @layer_register(use_scope=None)
    def Twice(x: Any) -> Any:
        return x + x

    assert Scale.__doc__ == "Multiply by a learned factor."
    x = tf.constant(IMAGES)
    with argscope(Scale, initial=5.0):
        y = LinearWrap(x).Scale("first").Scale("second", 0.5).Twice().Twice("named")()
    assert [v.op.name for v in tf1.global_variables()] == ["first/factor", "second/factor"]
    assert y.op.name.startswith("named/")
    with tf1.variable_scope("", reuse=True):
        Scale("first", x)
    assert console.text.count("first: (2, 28, 28, 3) -> (2, 28, 28, 3)") == 1
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        np.testing.assert_allclose(session.run(y), IMAGES * 10, rtol=1e-5)

    def make() -> None:
        @layer_register()
        def Scale(x: Any) -> Any:
            return x

    make()
    with pytest.raises(UsageError, match="several layers are called 'Scale'"):
        LinearWrap(x).Scale("third")


def test_chains() -> None:
    x = tf.constant(IMAGES)
    wrapped = LinearWrap(x)
    assert wrapped.tensor() is x
    assert wrapped() is x
    assert wrapped.print_tensor() is wrapped
    assert wrapped.tf.nn.relu().tensor().op.type == "Relu"
    assert wrapped.tf.layers.flatten()().shape.as_list() == [2, 2352]  # of tf.compat.v1
    assert wrapped.tf.to_double()().dtype == tf.float64
    subtracted = wrapped.apply2(tf.subtract, 1.0)()
    assert wrapped.Deconv2D("up", 3, 3, 2)().shape.as_list() == [2, 56, 56, 3]
    with tf1.Session() as session:
        np.testing.assert_allclose(session.run(subtracted), 1 - IMAGES)
    with pytest.raises(UsageError, match="no first argument"):
        wrapped.apply2(tf.subtract)


def test_what_is_no_layer_is_told_with_a_hint() -> None:
    wrapped = LinearWrap(tf.constant(IMAGES))
    with pytest.raises(
        UsageError, match=r"LinearWrap.shape: neither a layer nor 'tf'.*Did you forget to extract the tensor"
    ):
        _ = wrapped.shape
    with pytest.raises(UsageError, match="did you mean 'Conv2D'"):
        wrapped.Conv2d("a", 3, 3)
    with pytest.raises(AttributeError, match="has no 'rely'"):
        wrapped.tf.nn.rely()
    with pytest.raises(UsageError, match="Did you forget to take the tensor out of a LinearWrap"):
        FullyConnected("fc", wrapped, 3)
    assert not hasattr(wrapped, "shape")
    assert isinstance(BatchNorm("bn", wrapped()), tf.Tensor)
