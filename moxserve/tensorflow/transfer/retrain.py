"""Retraining: a new last layer for a network that others trained, on features that are computed once.

    1. Every row of the training input goes through the trunk once; its features are kept on disk, by content.
    2. The head is trained on them with `mox.run`: a step costs as much as the head.
    3. The checkpoint holds trunk and head, and is one of the whole model: `model_fn` evaluates and exports it as any
       other. That both ways give the same outputs is checked.

The trunk is as in evaluation all the time: no dropout, batch norms with their averages.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moxserve.dataflow.order import EpochOrder
from moxserve.errors import CheckpointError, DataError, ModelSpecError, UsageError, VerificationError
from moxserve.tensorflow.datasets.base import ordered_rows
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.flags import get_flag, set_flag
from moxserve.tensorflow.executor.inputs import build_inputs, start_queues
from moxserve.tensorflow.executor.located import local_path
from moxserve.tensorflow.executor.participants import InputEnded
from moxserve.tensorflow.executor.python_calls import python_function
from moxserve.tensorflow.executor.remote import local_checkpoint
from moxserve.tensorflow.executor.run import run
from moxserve.tensorflow.executor.spec import ModeKeys, ModelSpec, RunResult
from moxserve.tensorflow.executor.warm_start import WarmStart
from moxserve.tensorflow.transfer.cut import Cut, cut_model, drop_dependent
from moxserve.tensorflow.transfer.store import FeatureStore, key_of

__all__ = ["RetrainResult", "retrain"]

_FLUSH_S = 10.0
_VERIFIED_ROWS = 32
_TOLERANCE = 1e-3  # of the outputs' size: batches of other sizes are summed in another order


@dataclass(frozen=True)
class RetrainResult:
    """What a retraining came to.

    Attributes:
        run: of the training of the head; its checkpoint is one of the whole model.
        head: names of the variables that were trained.
        rows: how many rows the training input has; 0 where nothing was cached.
        computed: how many of their features were computed now; those of the others were there.
        features: elements of a row's features; 0 where nothing was cached.
        cache_s: seconds that reading the input and computing the features took.
        max_abs_error: largest difference of an output between the whole model and the head on cached features.
    """

    run: RunResult
    head: tuple[str, ...]
    rows: int = 0
    computed: int = 0
    features: int = 0
    cache_s: float = 0.0
    max_abs_error: float = 0.0


def retrain(
    input_fn: Callable[..., Any],
    model_fn: Callable[..., Any],
    optimizer_fn: Callable[..., Any] | None,
    *,
    checkpoint_path: str,
    log_dir: str,
    bottleneck_dir: str,
    batch_size: int,
    max_number_of_steps: int,
    num_samples: int = 0,
    auto_batch: bool = True,
    head: Sequence[str] = (),
    distortions: Callable[[Any], Any] | None = None,
    **run_arguments: Any,
) -> RetrainResult:
    """Train the last layer of a model alone, on cached features.

    Args:
        input_fn: as for `mox.run`; its first tensor is what the features are computed from. Called in TRAIN; must not
            disturb the rows at random, or each is new to the cache.
        model_fn: as for `mox.run`; called in EVAL, must give a loss there.
        optimizer_fn: as for `mox.run`.
        checkpoint_path: of the trained network, as `mox.WarmStart` takes it; must hold the whole trunk.
        log_dir: of the training, a folder of this machine. A checkpoint there is gone on from.
        bottleneck_dir: folder of this machine for the features, which any number of trainings may share.
        batch_size: rows of a step.
        max_number_of_steps: step to train to.
        num_samples: how many rows the training input has; 0: it ends by itself.
        auto_batch: as for `mox.run`.
        head: patterns of the variables to train; empty for those of the last layer.
        distortions: makes other images of a batch of images, at random, anew in each step. Nothing can be cached then:
            each step goes through the whole model.
        **run_arguments: of `mox.run`, such as `log_every_n_steps`.

    Raises:
        ModelSpecError: the model cannot be divided into trunk and head.
        UsageError: a folder is in a store.
        CheckpointError: there is no checkpoint, or it lacks a part of the trunk.
        VerificationError: whole model and head on cached features give different outputs.
    """
    for name, folder in (("log_dir", log_dir), ("bottleneck_dir", bottleneck_dir)):
        local_path(folder, name)
    arguments = {
        "optimizer_fn": optimizer_fn,
        "run_mode": ModeKeys.TRAIN,
        "batch_size": batch_size,
        "log_dir": log_dir,
        "max_number_of_steps": max_number_of_steps,
        **run_arguments,
    }
    with local_checkpoint(checkpoint_path) as start:
        job = _Job(input_fn, model_fn, batch_size, num_samples, auto_batch, tuple(head), start, log_dir)
        return _retrain(job, arguments, bottleneck_dir, distortions)


def _retrain(
    job: _Job, arguments: dict[str, Any], bottleneck_dir: str, distortions: Callable[[Any], Any] | None
) -> RetrainResult:
    if distortions is not None:
        tf1.logging.warning(
            "bottleneck features are not cached: distortions make other images in each step, so each step goes through "
            "the whole model"
        )
        names = job.head_names()
        distorted = _distorted(job.model_fn, job.head, distortions)
        result = _train(names, arguments, job, job.input_fn, distorted, job.auto_batch)
        return RetrainResult(result, names)
    cached = job.collect(bottleneck_dir)
    cached.seed = tf1.get_default_graph().seed
    result = _train(cached.head, arguments, job, cached.input_fn, cached.model_fn(job), False)
    return RetrainResult(
        run=result,
        head=cached.head,
        rows=len(cached.rest[0]) if cached.rest else len(cached.features[0]),
        computed=cached.computed,
        features=sum(array[0].size for array in cached.features),
        cache_s=cached.seconds,
        max_abs_error=job.verify(str(result.checkpoint), cached),
    )


def _train(
    names: Sequence[str], arguments: dict[str, Any], job: _Job, input_fn: Any, model_fn: Any, auto_batch: bool
) -> RunResult:
    import re

    exact = [f"^{re.escape(name)}$" for name in names]
    with _flag("trainable_include_patterns", ",".join(exact)):
        warm_start = WarmStart(job.checkpoint_path, exclude=exact)
        return run(input_fn=input_fn, model_fn=model_fn, auto_batch=auto_batch, warm_start=warm_start, **arguments)


@contextmanager
def _flag(name: str, value: str) -> Iterator[None]:
    before = get_flag(name)
    set_flag(name, value)
    try:
        yield
    finally:
        set_flag(name, before)


def _distorted(model_fn: Callable[..., Any], head: Sequence[str], distortions: Callable[[Any], Any]) -> Any:
    def whole(inputs: Sequence[Any], mode: str) -> ModelSpec:
        spec = cut_model(model_fn, [distortions(inputs[0]), *inputs[1:]], head).spec
        return ModelSpec(loss=spec.loss, log_info=spec.log_info)

    return whole


@dataclass
class _Cached:
    """The training input, gone through the trunk.

    Attributes:
        features: `[rows, ...]` each.
        rest: the inputs after the first, `[rows, ...]` each.
        head: names of the variables to train.
        trunk: names operations and weights.
        tensors: names of the feature tensors.
        shape: of one row of the first input.
        dtype: of the first input.
        sample: the first rows of the first input.
        computed: how many rows' features were computed.
        seconds: how long all of it took.
        batch_size: rows of a step.
        seed: of the order of rows; None draws one.
    """

    head: tuple[str, ...]
    trunk: str
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    sample: np.ndarray
    features: list[np.ndarray] = field(default_factory=list)
    rest: list[np.ndarray] = field(default_factory=list)
    computed: int = 0
    seconds: float = 0.0
    batch_size: int = 1
    seed: int | None = None

    def input_fn(self, mode: str, **_: Any) -> Any:
        """Batches of features and the other inputs: endless, each epoch in a new order."""
        columns = [*self.features, *self.rest]
        numbers = ordered_rows(EpochOrder(len(columns[0]), seed=self.seed), None).batch(
            self.batch_size, drop_remainder=True
        )

        def take(rows: Any) -> tuple[Any, ...]:
            types = tuple(tf.as_dtype(column.dtype) for column in columns)
            taken = python_function(lambda index: [column[index] for column in columns], [rows], types, stateful=False)
            for tensor, column in zip(taken, columns, strict=True):
                tensor.set_shape([self.batch_size, *column.shape[1:]])
            return tuple(taken)

        return tf1.data.make_one_shot_iterator(numbers.map(take).prefetch(4)).get_next()

    def model_fn(self, job: _Job) -> Callable[..., ModelSpec]:
        """The model with features in the place of its trunk, which is there and never run."""

        def head_alone(inputs: Sequence[Any], mode: str) -> ModelSpec:
            features, rest = inputs[: len(self.features)], inputs[len(self.features) :]
            summaries = list(tf1.get_collection(tf1.GraphKeys.SUMMARIES))
            first = tf.zeros([tf.shape(features[0])[0], *self.shape], self.dtype, name="no_input")
            cut = cut_model(job.model_fn, [first, *rest], job.head)
            if len(cut.features) != len(features):
                raise ModelSpecError(
                    f"model_fn has {len(cut.features)} feature tensors, and had {len(features)} before"
                )
            cut.use(features)
            return ModelSpec(loss=cut.spec.loss, log_info=drop_dependent(cut.spec, first, summaries))

        return head_alone


@dataclass(frozen=True)
class _Job:
    """The arguments of a retraining that concern input, model and where it starts."""

    input_fn: Callable[..., Any]
    model_fn: Callable[..., Any]
    batch_size: int
    num_samples: int
    auto_batch: bool
    head: tuple[str, ...]
    checkpoint_path: str
    log_dir: str

    def head_names(self) -> tuple[str, ...]:
        """Build the model to learn which variables are the head's."""
        with self._graph() as (_, _, cut):
            return tuple(variable.op.name for variable in cut.head)

    @contextmanager
    def _graph(self) -> Iterator[tuple[Any, list[Any], Cut]]:
        """Input, placeholders in its place, and the divided model, in a graph of their own."""
        with tf1.Graph().as_default() as graph:
            graph.seed = 1
            with tf.device("/cpu:0"):
                source = build_inputs(self.input_fn, ModeKeys.TRAIN, self.batch_size, self.auto_batch)
            try:
                given = [tf1.placeholder(t.dtype, [None, *t.shape[1:]]) for t in source.tensors]
                yield source, given, cut_model(self.model_fn, given, self.head)
            finally:
                source.close()

    def collect(self, bottleneck_dir: str) -> _Cached:
        """Read the training input once, and compute the features that are not there.

        Raises:
            DataError: the input gives no row.
        """
        begun = time.monotonic()
        with self._graph() as (source, given, cut), tf1.Session() as session:
            session.run([tf1.global_variables_initializer(), tf1.local_variables_initializer()])
            session.run(tf1.tables_initializer())
            checkpoint = self._restore_trunk(session, cut)
            cached = _Cached(
                head=tuple(variable.op.name for variable in cut.head),
                trunk=_named(session, cut),
                tensors=tuple(tensor.name for tensor in cut.features),
                shape=tuple(given[0].shape.as_list()[1:]),
                dtype=given[0].dtype,
                sample=np.zeros([0]),
                batch_size=self.batch_size,
            )
            about = {"features": list(cached.tensors), "checkpoint": checkpoint, "input": [None, *cached.shape]}
            store = FeatureStore(bottleneck_dir, cached.trunk, about)
            tf1.logging.info(
                "retraining %s; bottleneck features of %s in %s", ", ".join(cached.head), checkpoint, store.folder
            )
            source.start(session)
            coordinator = tf1.train.Coordinator()
            threads = start_queues(session, coordinator)
            try:
                self._read(session, source, _Trunk(session, given[0], cut, store), cached)
            finally:
                store.flush()
                coordinator.request_stop()
                source.close()
                session.close()
                coordinator.join(threads, stop_grace_period_secs=5, ignore_live_threads=True)
        cached.seconds = time.monotonic() - begun
        tf1.logging.info(
            "bottleneck features: %d rows, %d computed, in %.1f s", len(cached.features[0]), cached.computed,
            cached.seconds,
        )  # fmt: skip
        return cached

    def _read(self, session: Any, source: Any, trunk: _Trunk, cached: _Cached) -> None:
        keys: list[bytes] = []
        rest: list[list[np.ndarray]] = []
        samples: list[np.ndarray] = []
        while not self.num_samples or len(keys) < self.num_samples:
            try:
                first, *others = source.fetch(session)
            except InputEnded:
                break
            left = self.num_samples - len(keys) if self.num_samples else len(first)
            keys += trunk.keys_of(first[:left])
            rest.append([array[:left] for array in others])
            if sum(map(len, samples)) < _VERIFIED_ROWS:
                samples.append(first[:left])
        if not keys:
            raise DataError("the training input gave no row to compute features of")
        cached.computed = trunk.computed
        cached.sample = np.concatenate(samples)[:_VERIFIED_ROWS]
        cached.features = trunk.store.take(keys)
        cached.rest = [np.concatenate(parts) for parts in zip(*rest, strict=True)]

    def _restore_trunk(self, session: Any, cut: Cut) -> str:
        """Give the trunk the weights that the training will start from."""
        prefix = checkpoints.latest_checkpoint(self.log_dir) or checkpoints.find_checkpoint(self.checkpoint_path)
        if prefix is None:
            raise CheckpointError(
                f"no checkpoint at {self.checkpoint_path!r}: there is no trained network to take features of",
                hint="give checkpoint_path",
            )
        checkpoints.restore(session, prefix, cut.trunk)
        return prefix

    def verify(self, checkpoint: str, cached: _Cached) -> float:
        """Hold the whole model against the head on cached features, with the trained weights.

        Returns:
            The largest difference of an output.

        Raises:
            VerificationError: it is too large, or training changed the trunk.
        """
        with self._graph() as (_, given, cut), tf1.Session() as session:
            session.run([tf1.global_variables_initializer(), tf1.local_variables_initializer()])
            session.run(tf1.tables_initializer())
            checkpoints.restore(session, checkpoint, [*cut.trunk, *cut.head])
            if _named(session, cut) != cached.trunk:
                raise VerificationError("training changed the trunk, whose features are cached")
            count = len(cached.sample)
            feed = dict(zip(given, [cached.sample, *(array[:count] for array in cached.rest)], strict=True))
            wanted = [t for t in [*cut.spec.output_info.values(), *cut.spec.losses] if t.dtype.is_floating]
            whole = session.run(wanted, feed)
            features = [array[:count] for array in cached.features]
            apart = session.run(wanted, {**feed, **dict(zip(cut.features, features, strict=True))})
        errors = [float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(whole, apart, strict=True)]
        limits = [_TOLERANCE * (1.0 + float(np.max(np.abs(a), initial=0.0))) for a in whole]
        for tensor, error, limit in zip(wanted, errors, limits, strict=True):
            if not error <= limit:
                raise VerificationError(
                    f"{tensor.name!r} of the whole model differs by {error:g} from that of the head on cached features",
                    hint="does model_fn draw random numbers in EVAL, or mix the rows of a batch?",
                )
        return max(errors, default=0.0)


@dataclass
class _Trunk:
    """Computes the features that a store lacks."""

    session: Any
    first: Any
    cut: Cut
    store: FeatureStore
    computed: int = 0
    flushed_at: float = field(default_factory=time.monotonic)

    def keys_of(self, rows: np.ndarray) -> list[bytes]:
        """Return the keys of rows, whose features are in the store afterwards."""
        keys = [key_of(row) for row in rows]
        new = {key: index for index, key in enumerate(keys) if key not in self.store}
        if new:
            features = self.session.run(self.cut.features, {self.first: rows[list(new.values())]})
            if any(len(feature) != len(new) for feature in features):
                shapes = ", ".join(str(list(feature.shape)) for feature in features)
                raise UsageError(
                    f"the features ({shapes}) have not one row for each of {len(new)} rows",
                    hint="give patterns of more variables as the head",
                )
            self.store.add(list(new), features)
            self.computed += len(new)
        if time.monotonic() - self.flushed_at > _FLUSH_S:
            self.store.flush()
            self.flushed_at = time.monotonic()
        return keys


def _named(session: Any, cut: Cut) -> str:
    """Name what is computed, and with which weights."""
    found = hashlib.sha256(cut.digest.encode())
    for variable in sorted(cut.trunk, key=lambda variable: variable.op.name):
        found.update(variable.op.name.encode())
        found.update(session.run(variable).tobytes())
    return found.hexdigest()[:20]
