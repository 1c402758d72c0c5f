"""One step: the train operation together with whatever the active participants ask for, as one call into the runtime.

A distinct merge of fetches, feeds and targets is compiled once into a session callable and kept; a step on which nobody
is active runs the bare callable. That is why idle participants are free, and why a step costs less than `session.run`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moxserve.errors import ModelSpecError
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.fetches import FetchPlan, compile_feed, compile_fetches
from moxserve.tensorflow.executor.participants import Clock, Participant, StepContext

__all__ = ["Fetcher", "Stepper"]

_CACHE_LIMIT = 256


class Fetcher:
    """Session callables by what they fetch, feed and run; the least recently used are dropped beyond a limit.

    Args:
        session: where they run.
        run_options: RunOptions of each, None for TensorFlow's defaults.

    Attributes:
        built: how many callables were compiled so far.
    """

    def __init__(self, session: Any, run_options: Any = None) -> None:
        self._session = session
        self._run_options = run_options
        self._cache: OrderedDict[tuple[tuple[str, ...], ...], Callable[..., list[np.ndarray]]] = OrderedDict()
        self.built = 0

    def callable(
        self, fetches: Sequence[str], feeds: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> Callable[..., list[np.ndarray]]:
        """Give a function that takes the fed arrays in order and returns the fetched ones."""
        key = (tuple(fetches), tuple(feeds), tuple(targets))
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        options = _callable_options(*key)
        if self._run_options is not None:
            options.run_options.CopyFrom(self._run_options)
        # The public make_callable re-parses fetches at each call; this one is what Keras' graph backend used, too.
        made: Callable[..., list[np.ndarray]] = self._session._make_callable_from_options(options)
        self._cache[key] = made
        self.built += 1
        if len(self._cache) > _CACHE_LIMIT:
            self._cache.popitem(last=False)
        return made


def _callable_options(fetches: Sequence[str], feeds: Sequence[str], targets: Sequence[str]) -> Any:
    """Build the CallableOptions proto of one callable."""
    from tensorflow.core.protobuf import config_pb2

    return config_pb2.CallableOptions(fetch=fetches, feed=feeds, target=targets)


class _Merge:
    """The requests of several participants as one: every tensor fetched once, every feed given once."""

    def __init__(self, target: str) -> None:
        self.names: dict[str, None] = {}  # a set that keeps its order
        self.feeds: dict[str, np.ndarray] = {}
        self.targets: list[str] = [target]

    def add(self, plan: FetchPlan) -> None:
        """Add fetches and targets."""
        self.targets.extend(name for name in plan.targets if name not in self.targets)
        self.names.update(dict.fromkeys(plan.names))

    def feed(self, name: str, value: np.ndarray) -> None:
        """Add a feed.

        Raises:
            ModelSpecError: another participant feeds the same tensor with something else.
        """
        if name in self.feeds and not np.array_equal(self.feeds[name], value):
            raise ModelSpecError(f"two hooks feed {name} in the same step", hint="let one hook feed each placeholder")
        self.feeds[name] = value


class Stepper:
    """Runs single steps.

    Args:
        session: a ready session.
        step_op: the operation of one step: the train operation, or what pulls one batch through the model.
        clock: counted once per step.
        run_options: RunOptions of every step, None for TensorFlow's defaults.
    """

    def __init__(self, session: Any, step_op: Any, clock: Clock, run_options: Any = None) -> None:
        self.session = session
        self.clock = clock
        self.fetcher = Fetcher(session, run_options)
        self._run_options = run_options
        self._graph = session.graph
        self._target: str = step_op.name
        self._original_args = tf1.train.SessionRunArgs(fetches=step_op)
        self._plans: dict[int, tuple[Any, FetchPlan]] = {}
        self.quiet = self.fetcher.callable((), (), (self._target,))

    def step(self, active: Sequence[Participant]) -> bool:
        """Run one step with the participants that are active in it.

        Returns:
            Whether one of them asked for this to be the last step.
        """
        context = StepContext(self.session, self.clock, self._original_args)
        asked = [(participant, participant.step_args(context)) for participant in active]
        answers = self._run(asked)
        self.clock.count()
        for (participant, _), values in zip(asked, answers, strict=True):
            participant.step_values(context, values)
        for participant in active:
            participant.step_done(context)
        return context.stop_requested

    def _plan(self, fetches: Any) -> FetchPlan:
        # Containers may be changed by their owner between steps, so only single tensors are remembered by identity.
        if isinstance(fetches, (dict, list, tuple)):
            return compile_fetches(self._graph, fetches)
        known = self._plans.get(id(fetches))
        if known is None or known[0] is not fetches:
            known = self._plans[id(fetches)] = (fetches, compile_fetches(self._graph, fetches))
        return known[1]

    def _run(self, asked: Sequence[tuple[Participant, Any]]) -> list[Any]:
        merge = _Merge(self._target)
        plans = [None if args is None else self._plan(args.fetches) for _, args in asked]
        for (_, args), plan in zip(asked, plans, strict=True):
            if plan is None:
                continue
            merge.add(plan)
            for key, value in (args.feed_dict or {}).items():
                merge.feed(*compile_feed(self._graph, key, value))
        # The runtime refuses to fetch what is fed; whoever asks for it gets what was fed.
        names = [name for name in merge.names if name not in merge.feeds]
        options, metadata, fetcher, more = self._options(asked), None, self.fetcher, {}
        if options is not None:
            fetcher, metadata = Fetcher(self.session, options), tf1.RunMetadata()
            more = {"run_metadata": metadata}
        fetched = fetcher.callable(names, list(merge.feeds), merge.targets)(*merge.feeds.values(), **more)
        known = {**dict(zip(names, fetched, strict=True)), **merge.feeds}
        return [
            _values(None if plan is None else plan.rebuild([known[n] for n in plan.names]), options, metadata)
            for plan in plans
        ]

    def _options(self, asked: Sequence[tuple[Participant, Any]]) -> Any:
        """The RunOptions of all together, where a hook gives some (a profiler, say); None for a step as any other."""
        given = [args.options for _, args in asked if args is not None and args.options is not None]
        if not given:
            return None
        options = tf1.RunOptions()
        if self._run_options is not None:
            options.CopyFrom(self._run_options)
        for more in given:
            _merge_options(options, more)
        return options


def _values(results: Any, options: Any = None, run_metadata: Any = None) -> Any:
    return tf1.train.SessionRunValues(results=results, options=options, run_metadata=run_metadata)


def _merge_options(into: Any, options: Any) -> None:
    """Merge RunOptions as MonitoredSession does: the most tracing, the shortest timeout, all watches."""
    into.trace_level = max(into.trace_level, options.trace_level)
    timeouts = [ms for ms in (into.timeout_in_ms, options.timeout_in_ms) if ms > 0]
    into.timeout_in_ms = min(timeouts, default=0)
    into.output_partition_graphs |= options.output_partition_graphs
    into.debug_options.debug_tensor_watch_opts.extend(options.debug_options.debug_tensor_watch_opts)
    into.report_tensor_allocations_upon_oom |= options.report_tensor_allocations_upon_oom
