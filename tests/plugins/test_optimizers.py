"""The optimizer plugins: each builds TensorFlow's optimizer with every parameter it was given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tensorflow as tf
from moxserve_plugins.optimizers.wrappers import KINDS
from pydantic import ValidationError

from moxserve.registry import discover

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "adadelta": ("AdadeltaOptimizer", {"rho": 0.8, "epsilon": 1e-3}, {"_rho": 0.8, "_epsilon": 1e-3}),
    "adagrad": ("AdagradOptimizer", {"initial_accumulator_value": 0.3}, {"_initial_accumulator_value": 0.3}),
    "adam": (
        "AdamOptimizer",
        {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3},
        {"_beta1": 0.8, "_beta2": 0.9, "_epsilon": 1e-3},
    ),
    "ftrl": (
        "FtrlOptimizer",
        {"l1_regularization_strength": 0.1, "l2_regularization_strength": 0.2, "learning_rate_power": -0.4},
        {"_l1_regularization_strength": 0.1, "_l2_regularization_strength": 0.2, "_learning_rate_power": -0.4},
    ),
    "momentum": (
        "MomentumOptimizer",
        {"momentum": 0.7, "use_nesterov": True},
        {"_momentum": 0.7, "_use_nesterov": True},
    ),
    "rmsprop": (
        "RMSPropOptimizer",
        {"decay": 0.7, "momentum": 0.1, "epsilon": 1e-3, "centered": True},
        {"_decay": 0.7, "_momentum": 0.1, "_epsilon": 1e-3, "_centered": True},
    ),
    "sgd": ("GradientDescentOptimizer", {}, {}),
}


def test_all_seven_are_there():
    assert discover([]).names("optimizer") == sorted([*CASES, "per_loss"])


@pytest.mark.parametrize("name", CASES)
def test_parameters_arrive(name: str):
    import tensorflow as tf

    kind, given, expected = CASES[name]
    plugin = discover([]).load("optimizer", name)
    with tf.Graph().as_default():
        optimizer = plugin.model_validate({"plugin": name, "learning_rate": 0.25, **given}).build()()
    assert type(optimizer).__name__ == kind
    rate = getattr(optimizer, "_learning_rate", None) or getattr(optimizer, "_lr", None)
    assert rate == 0.25
    assert {key: getattr(optimizer, key) for key in expected} == expected


@pytest.mark.parametrize("name", CASES)
def test_one_step_lowers_the_loss(name: str):
    import tensorflow as tf

    v1 = tf.compat.v1
    plugin = discover([]).load("optimizer", name)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.get_variable("x", initializer=3.0)
        loss = x * x
        step = plugin.model_validate({"learning_rate": 0.1}).build()().minimize(loss)
        session.run(v1.global_variables_initializer())
        session.run(step)
        assert session.run(loss) < 9.0


def test_one_for_each_loss():
    several = discover([]).load("optimizer", "per_loss")
    config = several(optimizers=[{"plugin": "ftrl", "learning_rate": 0.5}, {"plugin": "sgd", "learning_rate": 0.25}])
    with tf.Graph().as_default():
        first, second = (optimizer_fn() for optimizer_fn in config.build())
    assert (type(first).__name__, first._learning_rate) == ("FtrlOptimizer", 0.5)
    assert (type(second).__name__, second._learning_rate) == ("GradientDescentOptimizer", 0.25)
    assert (
        config.describe() == "ftrl (learning_rate 0.5, learning_rate_power -0.5, initial_accumulator_value 0.1, "
        "l1_regularization_strength 0.0, l2_regularization_strength 0.0); sgd (learning_rate 0.25)"
    )
    with pytest.raises(ValidationError):
        several(optimizers=[{"plugin": "adm", "learning_rate": 1}])


SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "piecewise": (
        {"strategy": "1:0.1->0.3,2:0.5", "samples_per_epoch": 100, "rows_per_step": 25}, [0.1, 0.2, 0.5, 0.5],
    ),
    "linear_cosine": ({"max_lr": 1.0, "max_step": 8, "warmup_ratio": 0.5}, [0.0, 0.5, 1.0, 0.25]),
    "polynomial": ({"max_lr": 1.0, "max_step": 8, "warmup_ratio": 0.5, "power": 3}, [0.0, 0.5, 1.0, 0.125]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_may_follow_a_schedule(name: str):
    options, expected = SCHEDULES[name]
    plugin = discover([]).load("optimizer", "momentum")
    config = plugin.model_validate({"plugin": "momentum", "learning_rate": {"schedule": name, **options}})
    assert config.describe().startswith(f"learning_rate {name} ")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        rate = config.build()()._learning_rate
        step = tf.compat.v1.train.get_or_create_global_step()
        found = []
        for value in (0, 2, 4, 6):
            step.load(value, session)
            found.append(session.run(rate))
    assert found == pytest.approx(expected)


def test_wrappers_go_around_from_the_inside_out():
    config = discover([]).load("optimizer", "adam").model_validate(
        {"learning_rate": 0.1, "wrappers": [{"wrapper": "lars", "ratio": 0.5}, {"wrapper": "clip", "limit": 2}]}
    )  # fmt: skip
    with tf.Graph().as_default():
        optimizer = config.build()()
    assert [optimizer.kind, optimizer.inner.kind, type(optimizer.inner.inner).__name__] == [
        "clip", "lars", "AdamOptimizer",
    ]  # fmt: skip
    assert config.describe().endswith("in lars, in clip")


def test_every_wrapper_has_the_options_of_its_function():
    from moxserve.tensorflow.optimizer import WRAPPERS

    assert set(KINDS) == set(WRAPPERS)
    for name, model in KINDS.items():
        options = dict(list(inspect.signature(WRAPPERS[name]).parameters.items())[1:])
        if name == "simple_sync":  # what it could be told, the run knows
            options = {}
        assert set(model.model_fields) - {"wrapper"} == set(options)
        for option, parameter in options.items():
            field = model.model_fields[option]
            assert field.is_required() == (parameter.default is inspect.Parameter.empty)
            if not field.is_required():
                default = parameter.default
                assert field.default == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": True}, "expected a number"),
        ({"learning_rate": {"schedule": "cosine"}}, "'piecewise', 'linear_cosine', 'polynomial'"),
        (
            {"learning_rate": {"schedule": "piecewise", "strategy": "5:x", "samples_per_epoch": 1, "rows_per_step": 1}},
            "character 3: expected a learning rate, found 'x'",
        ),
        ({"learning_rate": 0.1, "wrappers": [{"wrapper": "lars", "skip": ["("]}]}, "not a regular expression"),
        ({"learning_rate": 0.1, "wrappers": [{"wrapper": "larz"}]}, "larz"),
    ],
)
def test_mistakes_are_found_without_tensorflow(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError) as caught:
        discover([]).load("optimizer", "sgd").model_validate({"plugin": "sgd", **given})
    assert message in str(caught.value)
