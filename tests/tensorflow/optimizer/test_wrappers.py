"""Optimizer wrappers through `mox.run`, against NumPy and against larger batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moxserve.tensorflow as mox
from moxserve.errors import ModelSpecError, UsageError
from moxserve.tensorflow.executor.env import tf, tf1

Train = Callable[..., mox.RunResult]
Weights = Callable[..., np.ndarray]
BASES: dict[str, Callable[[], Any]] = {
    "sgd": lambda: tf1.train.GradientDescentOptimizer(0.05),
    "momentum": lambda: tf1.train.MomentumOptimizer(0.02, 0.9),
    "adam": lambda: tf1.train.AdamOptimizer(0.05),
}


def wrapped(*layers: tuple[str, dict[str, Any]], base: str = "momentum") -> Callable[[], Any]:
    """Make an optimizer_fn: the first layer is the outermost."""

    def optimizer_fn() -> Any:
        optimizer = BASES[base]()
        for name, options in reversed(layers):
            optimizer = mox.get_optimizer_wrapper_fn(name, optimizer, **options)()
        return optimizer

    return optimizer_fn


@pytest.fixture
def trained(train: Train, variable: Any, tmp_path: Path) -> Weights:
    """Train, and give the weights; an own folder for each call."""

    def call(optimizer_fn: Any, steps: int, batch: int, **kwargs: Any) -> np.ndarray:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result = train(
            optimizer_fn=optimizer_fn, max_number_of_steps=steps, batch_size=batch, log_dir=str(folder), **kwargs
        )
        weights: np.ndarray = variable(result.checkpoint, "w")
        return weights

    return call


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_four_batches_equal_one_of_their_size(base: str, trained: Weights) -> None:
    large = trained(BASES[base], 20, 20)
    gathered = trained(wrapped(("batch_gradients", {"num_batches": 4}), base=base), 80, 5)
    np.testing.assert_allclose(gathered, large, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batch_gradients_of_lars_of_momentum(trained: Weights, linear: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        w = tf1.get_variable("w", initializer=np.full((3, 1), 0.5, np.float32))
        b = tf1.get_variable("b", initializer=[0.0])
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square((x @ w)[:, 0] + b[0] - y)))

    got = trained(
        wrapped(("batch_gradients", {"num_batches": 2}), ("lars", {"ratio": 0.5, "weight_decay": 0.01})),
        20,
        5,
        model_fn=model_fn,
    )
    w, b, velocity, velocity_b = np.full(3, 0.5), 0.0, np.zeros(3), 0.0
    for update in range(10):
        index = np.arange(10 * update, 10 * update + 10) % len(linear.x)
        x, y = linear.x[index].astype(np.float64), linear.y[index].astype(np.float64)
        error = 2 * (x @ w + b - y) / 10
        g, g_b = x.T @ error, error.sum()
        norm = np.linalg.norm(w)
        g = 0.5 * norm / (np.linalg.norm(g) + 0.01 * norm + 1e-9) * (g + 0.01 * w)
        velocity, velocity_b = 0.9 * velocity + g, 0.9 * velocity_b + g_b  # biases are left alone
        w, b = w - 0.02 * velocity, b - 0.02 * velocity_b
    np.testing.assert_allclose(got[:, 0], w, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_sparse_gradients_gather_as_those_of_a_larger_batch(base: str, trained: Weights, linear: Any) -> None:
    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        x, y = inputs
        table = tf1.get_variable("w", initializer=np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2))
        rows = tf.cast(tf.abs(x[:, :2]) * 4, tf.int32)  # rows 0 to 12 at most, some never, some several times
        found = tf.gather(table, tf.clip_by_value(rows, 0, 10))
        return mox.ModelSpec(loss=tf.reduce_mean(tf.square(tf.reduce_sum(found, [1, 2]) - y)))

    large = trained(BASES[base], 6, 20, model_fn=model_fn)
    gathered = trained(wrapped(("batch_gradients", {"num_batches": 4}), base=base), 24, 5, model_fn=model_fn)
    np.testing.assert_allclose(gathered, large, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gathered[11], np.linspace(-1, 1, 24, dtype=np.float32)[22:])  # never asked for


@pytest.mark.slow
def test_what_was_gathered_is_in_the_checkpoint(train: Train, variable: Any, tmp_path: Path) -> None:
    gathering = wrapped(("batch_gradients", {"num_batches": 4}))

    def run(folder: str, steps: int) -> mox.RunResult:
        return train(optimizer_fn=gathering, batch_size=50, max_number_of_steps=steps, log_dir=str(tmp_path / folder))

    first = run("broken off", 6)
    assert variable(first.checkpoint, "batch_gradients/count") == 2
    assert np.abs(variable(first.checkpoint, "batch_gradients/w/sum")).min() > 0
    again, whole = run("broken off", 16), run("whole", 16)
    for name in ("w", "w/Momentum", "batch_gradients/w/sum"):
        np.testing.assert_array_equal(variable(again.checkpoint, name), variable(whole.checkpoint, name))


@pytest.mark.slow
def test_a_wrapper_may_come_and_go_between_runs(train: Train, variable: Any, tmp_path: Path) -> None:
    layers: list[Any] = [(), (("loss_scale", {"dynamic": True}), ("batch_gradients", {"num_batches": 2})), ()]
    for number, chosen in enumerate(layers, 1):
        result = train(optimizer_fn=wrapped(*chosen), max_number_of_steps=4 * number, log_dir=str(tmp_path))
        assert result.start_step == 4 * number - 4


def half_precision(inputs: list[Any], mode: str) -> mox.ModelSpec:
    """The linear problem, computed in float16."""
    x, y = inputs
    w = tf1.get_variable("w", [3], initializer=tf1.zeros_initializer())
    predicted = tf.linalg.matvec(tf.cast(x, tf.float16), tf.cast(w, tf.float16))
    return mox.ModelSpec(loss=tf.reduce_mean(tf.square(tf.cast(predicted, tf.float32) - y)))


@pytest.mark.slow
@pytest.mark.parametrize("by_flag", [False, True])
def test_a_dynamic_loss_scale_finds_its_way_out_of_overflow(
    by_flag: bool, train: Train, variable: Any, tmp_path: Path
) -> None:
    """Each overflow halves the scale and leaves an update out; the rest is what a plain training does."""

    def run(folder: str, optimizer_fn: Any, steps: int) -> mox.RunResult:
        return train(model_fn=half_precision, optimizer_fn=optimizer_fn, batch_size=50, max_number_of_steps=steps,
                     log_dir=str(tmp_path / folder))  # fmt: skip

    layers: list[Any] = [] if by_flag else [("loss_scale", {"dynamic": True, "scale": 2.0**24})]
    mox.set_flag("loss_scale", 0 if by_flag else 1)
    result = run("dynamic", wrapped(*layers), 30)
    assert result.global_step == 30  # steps that are left out count
    left_out = (15 if by_flag else 24) - np.log2(variable(result.checkpoint, "loss_scale/scale"))
    assert left_out == int(left_out) > (0 if by_flag else 8)
    assert variable(result.checkpoint, "loss_scale/good") <= 30 - left_out
    mox.set_flag("loss_scale", 1)
    plain = run("plain", wrapped(), 30 - int(left_out))
    np.testing.assert_allclose(*(variable(one.checkpoint, "w") for one in (result, plain)), rtol=2e-3)


@pytest.mark.slow
def test_a_dynamic_loss_scale_is_doubled_after_good_steps(train: Train, variable: Any, tmp_path: Path) -> None:
    growing = wrapped(("loss_scale", {"dynamic": True, "scale": 8.0, "window": 4}))
    result = train(optimizer_fn=growing, max_number_of_steps=13, log_dir=str(tmp_path))
    assert variable(result.checkpoint, "loss_scale/scale") == 8 * 2**3
    assert variable(result.checkpoint, "loss_scale/good") == 13


@pytest.mark.slow
def test_a_static_loss_scale_changes_no_number(trained: Weights) -> None:
    np.testing.assert_array_equal(
        trained(wrapped(("loss_scale", {"scale": 1024.0})), 7, 10), trained(BASES["momentum"], 7, 10)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["norm", "global_norm", "value"])
def test_the_flags_clip_the_mean_of_all_batches(kind: str, trained: Weights) -> None:
    """Inside of batch_gradients, so that it is the large batch's gradient that is cut."""
    mox.set_flag("gradient_clip", 0.5)
    mox.set_flag("gradient_clip_type", kind)
    mox.set_flag("loss_scale", 64.0)
    gathered = trained(wrapped(("batch_gradients", {"num_batches": 4})), 40, 5)
    np.testing.assert_allclose(gathered, trained(BASES["momentum"], 10, 20), rtol=1e-4)
    mox.set_flag("gradient_clip", 0)
    assert np.abs(gathered - trained(BASES["momentum"], 10, 20)).max() > 0.05


CURVATURE = np.linspace(0.2, 3, 40, dtype=np.float32)


def bowl(inputs: list[Any], mode: str) -> mox.ModelSpec:
    """A loss of 40 weights that knows nothing of the input: its gradient is CURVATURE * (w - 1)."""
    w = tf1.get_variable("w", [8, 5], initializer=tf1.zeros_initializer())
    flat = tf.reshape(w, [-1])
    loss = 0.5 * tf.reduce_sum(CURVATURE * tf.square(flat - 1.0)) + 0.0 * tf.reduce_sum(inputs[0])
    return mox.ModelSpec(loss=loss, log_info={"loss": loss})


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
def test_dgc_is_what_the_paper_says(nesterov: bool, masking: bool, train: Train, variable: Any, tmp_path: Path) -> None:
    def optimizer_fn() -> Any:
        optimizer = tf1.train.MomentumOptimizer(0.01, 0.8, use_nesterov=nesterov)
        return mox.get_optimizer_wrapper_fn(
            "dgc", optimizer, sparsity="0.75,0.9,0.975", steps_per_epoch=10, momentum_factor_masking=masking,
            clip_norm=5.0,
        )()  # fmt: skip

    result = train(model_fn=bowl, optimizer_fn=optimizer_fn, max_number_of_steps=40, log_dir=str(tmp_path))
    w, u, v, sent = np.zeros(40), np.zeros(40), np.zeros(40), []
    for step in range(40):
        g = CURVATURE * (w - 1)
        g = g * min(1.0, 5.0 / np.linalg.norm(g))
        u = 0.8 * (u + g) if nesterov else 0.8 * u + g
        v = v + u + (g if nesterov else 0)
        largest = np.argsort(-np.abs(v))[: [10, 4, 1, 1][step // 10]]
        sent.append(len(largest))
        w[largest] -= 0.01 * v[largest]
        v[largest] = 0
        if masking:
            u[largest] = 0
    for name, want in (("w", w), ("dgc/w/waiting", v), ("dgc/w/momentum", u)):
        np.testing.assert_allclose(variable(result.checkpoint, name).ravel(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dgc_converges_and_sends_what_it_says(train: Train, tmp_path: Path) -> None:
    changed: list[int] = []

    class Watch(tf1.train.SessionRunHook):
        def after_create_session(self, session: Any, coordinator: Any) -> None:
            self.before = np.zeros((8, 5))

        def after_run(self, context: Any, values: Any) -> None:
            after = context.session.run("w/Read/ReadVariableOp:0")
            changed.append(int((after != self.before).sum()))
            self.before = after

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = bowl(inputs, mode)
        spec.hooks.append(Watch())
        return spec

    dgc = wrapped(("dgc", {"sparsity": (0.75, 0.9), "steps_per_epoch": 5, "momentum": 0.5}), base="sgd")
    result = train(model_fn=model_fn, optimizer_fn=dgc, max_number_of_steps=300, log_every_n_steps=299)
    assert changed == [10] * 5 + [4] * 295  # ceil((1 - sparsity) * 40)
    assert result.metrics["loss"] < 0.01 * 0.5 * CURVATURE.sum()


@pytest.mark.slow
def test_easgd_ties_the_weights_to_the_centre(train: Train, variable: Any, tmp_path: Path) -> None:
    """The model's variable is the centre; what is trained is a copy. An interruption changes nothing."""
    elastic = wrapped(("easgd", {"period": 3, "alpha": 0.25}))
    for steps in (8, 20):
        result = train(model_fn=bowl, optimizer_fn=elastic, max_number_of_steps=steps, log_dir=str(tmp_path))
    w, centre, velocity = np.zeros(40), np.zeros(40), np.zeros(40)
    for step in range(1, 21):
        velocity = 0.9 * velocity + CURVATURE * (w - 1)
        force = 0.25 * (w - centre) * (step % 3 == 0)
        w, centre = w - force - 0.02 * velocity, centre + force
    np.testing.assert_allclose(variable(result.checkpoint, "easgd/w/local").ravel(), w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variable(result.checkpoint, "w").ravel(), centre, rtol=1e-4, atol=1e-6)
    # The loss that is shown is that of the weights before the last step; an evaluation's is that of the centre.
    evaluated = train(model_fn=bowl, run_mode=mox.ModeKeys.EVAL, checkpoint_path=str(tmp_path), max_number_of_steps=1)
    assert evaluated.metrics["loss"] == pytest.approx(0.5 * np.sum(CURVATURE * (centre - 1) ** 2), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("outer", [("loss_scale", {"dynamic": True}), ("batch_gradients", {"num_batches": 1})])
def test_easgd_goes_inside_of_what_decides_on_updates(outer: Any, trained: Weights) -> None:
    elastic = ("easgd", {"period": 2, "alpha": 0.25})
    np.testing.assert_allclose(trained(wrapped(outer, elastic), 6, 10), trained(wrapped(elastic), 6, 10), rtol=1e-5)


@pytest.mark.slow
def test_an_optimizer_serves_several_runs(train: Train, linear: Any, trained: Weights) -> None:
    """What a run sets on an optimizer, it takes back; a wrapper is of one run."""

    def model_fn(inputs: list[Any], mode: str) -> mox.ModelSpec:
        spec = linear.model_fn(inputs, mode)
        spec.hooks = [mox.PlateauLREarlyStoppingHook(spec.log_info, "loss", 10, 50, 50)]
        return spec

    momentum = tf1.train.MomentumOptimizer(0.02, 0.9)
    expected = trained(wrapped(), 4, 10)
    for _ in range(2):
        inter = {"model_fn": model_fn, "inter_mode": mox.ModeKeys.EVAL}
        np.testing.assert_allclose(trained(lambda: momentum, 4, 10, **inter), expected, rtol=1e-6)
    first, second = (trained(mox.get_optimizer_wrapper_fn("dgc", momentum, sparsity=0.0), 4, 10) for _ in range(2))
    np.testing.assert_array_equal(first, second)  # dgc has taken the momentum of a copy
    np.testing.assert_allclose(trained(lambda: momentum, 4, 10), expected, rtol=1e-6)
    gathering = wrapped(("batch_gradients", {"num_batches": 2}))()
    train(optimizer_fn=lambda: gathering)
    with pytest.raises(ModelSpecError, match="same wrapper 'batch_gradients' as in an earlier run"):
        train(optimizer_fn=lambda: gathering)


def test_what_is_of_another_graph_or_loss_is_refused(train: Train) -> None:
    with tf1.Graph().as_default():
        rate = tf.constant(0.1, name="rate")
    with pytest.raises(ModelSpecError, match="learning rate of GradientDescentOptimizer is 'rate:0', a tensor of anot"):
        train(optimizer_fn=mox.get_optimizer_fn("sgd", learning_rate=rate))

    def two_losses(inputs: list[Any], mode: str) -> mox.ModelSpec:
        a, b = tf1.get_variable("a", initializer=2.0), tf1.get_variable("b", initializer=2.0)
        return mox.ModelSpec(loss=[a * a, b * b], var_scopes=[["a"], ["b"]])

    gathering = wrapped(("batch_gradients", {"num_batches": 2}))()
    with pytest.raises(ModelSpecError, match="same wrapper 'batch_gradients' twice; each loss"):
        train(model_fn=two_losses, optimizer_fn=lambda: gathering)


@pytest.mark.parametrize("kind", ["norm", "global_norm", "value"])
def test_norms_are_not_taken_in_half_precision(kind: str) -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        half = tf1.get_variable("half", [4], tf.float16, tf1.zeros_initializer())
        full = tf1.get_variable("full", [4], tf.float32, tf1.zeros_initializer())
        clip = mox.get_optimizer_wrapper_fn(
            "clip", tf1.train.GradientDescentOptimizer(1.0), limit=2.0, clip_type=kind
        )()
        pairs = [(tf.fill([4], tf.constant(1000.0, v.dtype)), v) for v in (half, full)]
        update = clip.apply_gradients(pairs)
        session.run(tf1.global_variables_initializer())
        session.run(update)
        each = {"norm": 1.0, "global_norm": 0.5**0.5, "value": 2.0}[kind]
        np.testing.assert_allclose(session.run([half, full]), np.full([2, 4], -each), rtol=1e-3)


def test_a_scale_may_be_larger_than_half_precision_holds() -> None:
    with tf1.Graph().as_default(), tf1.Session() as session:
        w = tf1.get_variable("w", [], tf.float16, tf1.ones_initializer())
        scaled = wrapped(("loss_scale", {"scale": 2.0**20}))()
        ((gradient, _),) = scaled.compute_gradients(tf.cast(w, tf.float32) * 2.0**-10, var_list=[w])
        session.run(w.initializer)
        assert gradient.dtype == tf.float16
        assert session.run(gradient) == 2.0**-10


@pytest.mark.slow
@pytest.mark.parametrize("base", ["adadelta", "adagrad", "adam", "ftrl", "momentum", "rmsprop", "sgd"])
def test_every_optimizer_trains_inside_of_several(base: str, train: Train, variable: Any, tmp_path: Path) -> None:
    def optimizer_fn() -> Any:
        optimizer = mox.get_optimizer_fn(base, learning_rate=0.05)()
        optimizer = mox.get_optimizer_wrapper_fn("lars", optimizer, ratio=0.1)()
        optimizer = mox.get_optimizer_wrapper_fn("loss_scale", optimizer, dynamic=True)()
        return mox.get_optimizer_wrapper_fn("Batch_Gradients", optimizer, num_batches=2, sync_on_apply=True)()

    result = train(optimizer_fn=optimizer_fn, max_number_of_steps=4, log_dir=str(tmp_path))
    assert np.abs(variable(result.checkpoint, "w")).min() > 0


SGD = mox.get_optimizer_fn("sgd", learning_rate=0.1)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: wrapped(("batch_gradient", {})), "did you mean 'batch_gradients'"),
    "option": (lambda: wrapped(("batch_gradients", {"num_batch": 3})), "no option 'num_batch'; did you mean 'num_bat"),
    "missing": (lambda: wrapped(("batch_gradients", {})), "needs the option 'num_batches'"),
    "number": (lambda: wrapped(("batch_gradients", {"num_batches": 0})), "num_batches=0, expected a whole number"),
    "ratio": (lambda: wrapped(("lars", {"ratio": 0})), "lars: ratio=0 is out of range"),
    "pattern": (lambda: wrapped(("lars", {"skip": "("})), "is not a regular expression"),
    "limit": (lambda: wrapped(("clip", {"limit": -1})), "clip: limit=-1, expected a number above 0"),
    "type": (lambda: wrapped(("clip", {"limit": 1, "clip_type": "norms"})), "did you mean 'norm'"),
    "scale": (lambda: wrapped(("loss_scale", {"scale": 0})), "expected numbers above 0"),
    "period": (lambda: wrapped(("easgd", {"period": 1.5})), "period=1.5, expected a whole number"),
    "alpha": (lambda: wrapped(("easgd", {"alpha": 1})), "alpha=1, expected a share"),
    "epoch": (lambda: wrapped(("dgc", {})), "steps_per_epoch=None, and sparsity has 5 numbers"),
    "sparsity": (lambda: wrapped(("dgc", {"sparsity": "0.9;0.99"})), "expected shares from 0"),
    "average": (lambda: wrapped(("dgc", {"sparsity": 0.9}), base="adam"), "dgc around AdamOptimizer"),
    "twice": (lambda: wrapped(("lars", {}), ("lars", {})), "'lars' is twice in a chain"),
    "order": (lambda: wrapped(("lars", {}), ("batch_gradients", {"num_batches": 2})), "lars inside of batch_gradients"),
    "meeting": (lambda: wrapped(("easgd", {}), ("dgc", {"sparsity": 0.9})), "both decide when workers meet"),
    "workers": (lambda: wrapped(("simple_sync", {"num_workers": 3})), "num_workers=3, but --worker_hosts names 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with tf1.Graph().as_default(), pytest.raises(UsageError) as caught:
        make()()
    assert message in str(caught.value)


def test_what_is_no_optimizer_is_refused() -> None:
    for given, message in (
        (SGD, "got function; expected a tf.compat.v1.train.Optimizer: call it"),
        (0.1, "got float; expected"),
        (tf.keras.optimizers.legacy.Adam(), "got Adam, an optimizer of Keras"),
        (tf1.train.SyncReplicasOptimizer(SGD(), 2), "mox.run makes workers step together by itself"),
    ):
        with pytest.raises(UsageError, match=message):
            mox.get_optimizer_wrapper_fn("lars", given)()
