"""`mox.auto.search`: which trials are made, and which one wins; `mox.auto.run`: a normal run with its parameters."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

from moxserve.errors import UsageError, did_you_mean
from moxserve.file import write
from moxserve.tensorflow.auto.params import ParamSpec, giving
from moxserve.tensorflow.auto.trial import Functions, Metric, ModelSize, Range, Trial, TrialRuns
from moxserve.tensorflow.executor import RunResult, get_flag
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.run import run as mox_run

__all__ = ["SearchResult", "run", "search"]


class SearchResult(ParamSpec):
    """The hyper-parameters that won; it knows all trials, too.

    Args:
        params: those that won.
        trials: all, in the order in which they were made.
    """

    trials: tuple[Trial, ...]

    def __init__(self, params: ParamSpec, trials: Sequence[Trial]) -> None:
        super().__init__(**params.as_dict())
        self.__dict__["trials"] = tuple(trials)

    def rows(self) -> list[dict[str, Any]]:
        """The trials as plain values, the best first."""
        return [
            {
                **trial.params.as_dict(),
                "score": trial.score if math.isfinite(trial.score) else None,
                "steps": trial.steps,
                "seconds": round(trial.seconds, 3),
                "chosen": trial.params.as_dict() == self.as_dict(),
                "note": trial.note,
            }
            for trial in sorted(self.trials, key=lambda one: -one.score)
        ]

    def table(self) -> str:
        """The trials as text, a line each, the best first; `*` marks those that won."""
        names = list(self)
        lines = [["", *names, "score", "steps", "seconds", ""]]
        for row in self.rows():
            score = "-" if row["score"] is None else f"{row['score']:.4g}"
            values = [_text(row.get(name)) for name in names]
            lines.append(
                ["*" if row["chosen"] else "", *values, score, str(row["steps"]), f"{row['seconds']:.1f}", row["note"]]
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def search(
    input_fn: Any,
    model_fn: Any,
    optimizer_fn: Any,
    batch_size: int,
    auto_batch: bool,
    total_steps: int,
    evaluation_total_steps: int,
    model_size: ModelSize | None = None,
    by_acc: bool = True,
    checkpoint_path: str | None = None,
    select_by_eval: bool = False,
    weight_decay_diff_thres: float = 0.05,
    max_thres: int = 10,
    window: int = 50,
    warmup_steps: int = 0,
    warmup_lr: float = 0.01,
    evaluate_every_n_steps: int = 1,
    log_every_n_steps: int = 10,
    init_learning_rate: float | None = None,
    end_learning_rate: float | None = None,
    acc_name: str = "accuracy",
    loss_name: str = "loss",
    search_learning_rate: bool = True,
    param_spec: ParamSpec | None = None,
    param_list_spec: ParamSpec | None = None,
    max_trials: int | None = None,
    seed: int = 0,
    results_path: str | None = None,
) -> SearchResult:
    """Find hyper-parameters by short trainings. Every combination of the lists is a trial, a `mox.run` of its own.

    The three functions get the trial's values by the keyword `param_spec`: `optimizer_fn(**kwargs)` reads
    `kwargs['param_spec'].momentum`. One that takes no such keyword is called without.

    The learning rate is found by a range test for each combination: it grows from `init_learning_rate` to
    `end_learning_rate`, and a tenth of the largest rate at which the metric was within 5 % of its best is the
    combination's. In such a trial `param_spec.learning_rate` is a tensor.

    Args:
        input_fn: as of `mox.run`.
        model_fn: as of `mox.run`; its `log_info` has the metric.
        optimizer_fn: as of `mox.run`; may be a list.
        batch_size: as of `mox.run`; a parameter `batch_size` wins over it.
        auto_batch: as of `mox.run`.
        total_steps: training steps of a trial.
        evaluation_total_steps: steps of an evaluation, with `select_by_eval`.
        model_size: which learning rates are tried where the two bounds are not given. None: by the number of
            parameters.
        by_acc: judge by `acc_name`, of which more is better. False: by `loss_name`, of which less is.
        checkpoint_path: where trials start from; None for initial values.
        select_by_eval: train each combination once more, with its learning rate, and judge by an evaluation after it.
            False: judge by the metric of the training steps, which takes half the time.
        weight_decay_diff_thres: combinations that differ in the weight decay count as equal if their metrics differ by
            less than this share of the best; the largest weight decay of them wins.
        max_thres: a range test's rates count until the metric was worse than its best, by more than 5 %, at more
            points than this in a row.
        window: points of the metric that are averaged; in a range test at most a tenth of all.
        warmup_steps: first steps of a range test, at `warmup_lr`, which do not count.
        warmup_lr: see there.
        evaluate_every_n_steps: training steps between two points of the metric.
        log_every_n_steps: as of `mox.run`, for the trials.
        init_learning_rate: first rate of a range test.
        end_learning_rate: last rate of a range test.
        acc_name: name of the accuracy in `log_info`.
        loss_name: name of the loss in `log_info`.
        search_learning_rate: whether there are range tests. Without, and where `param_list_spec` lists learning rates,
            trials train with the rates that are given.
        param_spec: a value for each parameter; what is in no list stays so.
        param_list_spec: lists of values to try.
        max_trials: make at most so many, chosen at random where the lists have more combinations; None for all.
        seed: of the choice, and of each trial.
        results_path: JSON file that gets a row a trial; None for none.

    Returns:
        The parameters that won. `table()` and `trials` tell of all; the table is logged, too.

    Raises:
        UsageError: an argument is wrong, this is one process of several, or every trial diverged.
        ModelSpecError: `log_info` lacks the metric.
    """
    spec, lists = param_spec or ParamSpec(), param_list_spec or ParamSpec()
    rates = None
    if search_learning_rate and "learning_rate" not in lists:
        rates = Range(init_learning_rate, end_learning_rate, warmup_steps, warmup_lr, model_size)
    _check(spec, lists, rates, total_steps, evaluation_total_steps if select_by_eval else 1)
    functions = Functions(input_fn, model_fn, optimizer_fn, batch_size, auto_batch, checkpoint_path)
    metric = Metric(acc_name if by_acc else loss_name, by_acc, max(1, evaluate_every_n_steps), window, max_thres)
    runs = TrialRuns(functions, metric, total_steps, evaluation_total_steps, seed=seed, log_every=log_every_n_steps)
    candidates = _candidates(spec, lists, max_trials, seed)
    trials: list[Trial] = []
    for number, params in enumerate(candidates, 1):
        trials.append(_try(runs, params, rates, select_by_eval))
        tf1.logging.info(
            "[auto] trial %d of %d: %s: %.4g", number, len(candidates), trials[-1].params, trials[-1].score
        )
    result = SearchResult(_winner(trials, "weight_decay" in lists, weight_decay_diff_thres).params, trials)
    tf1.logging.info("[auto] %d trials by %s:\n%s", len(trials), metric.name, result.table())
    if results_path is not None:
        write(results_path, json.dumps(result.rows(), indent=2, default=str) + "\n")
    return result


def run(*args: Any, param_spec: ParamSpec, **kwargs: Any) -> RunResult:
    """Call `mox.run` with functions that get `param_spec`; `batch_size` may come from it.

    Args:
        *args: as of `mox.run`.
        param_spec: what `search` found.
        **kwargs: as of `mox.run`.

    Raises:
        UsageError: an argument is wrong.
    """
    names = ("input_fn", "output_fn", "model_fn", "optimizer_fn")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names):
        raise UsageError("mox.auto.run takes four functions by position, everything else by name")
    for name in names:
        if given.get(name) is not None:
            given[name] = giving(given[name], param_spec, name)
    if given.get("batch_size") is None and "batch_size" in param_spec:
        given["batch_size"] = param_spec.batch_size
    return mox_run(**given)


def _try(runs: TrialRuns, params: ParamSpec, rates: Range | None, evaluated: bool) -> Trial:
    if rates is None:
        return runs.training(params, evaluated=evaluated)
    tested = runs.range_test(params, rates)
    if not evaluated or tested.note:
        return tested
    trial = runs.training(tested.params, evaluated=True)
    trial.steps, trial.seconds = trial.steps + tested.steps, trial.seconds + tested.seconds
    return trial


def _candidates(spec: ParamSpec, lists: ParamSpec, max_trials: int | None, seed: int) -> list[ParamSpec]:
    """The combinations of all lists, in their order."""
    if max_trials is not None and max_trials < 1:
        raise UsageError(f"mox.auto.search: max_trials={max_trials}, expected a number above 0, or None for all")
    names = list(lists)
    combinations = [
        spec.replace(**dict(zip(names, values, strict=True)))
        for values in itertools.product(*(lists.as_dict()[name] for name in names))
    ]
    if max_trials is None or max_trials >= len(combinations):
        return combinations
    chosen = sorted(random.Random(seed).sample(range(len(combinations)), max_trials))
    return [combinations[index] for index in chosen]


def _winner(trials: Sequence[Trial], decays_differ: bool, threshold: float) -> Trial:
    best = max(trials, key=lambda one: one.score)
    if not math.isfinite(best.score):
        raise UsageError(
            f"all {len(trials)} trials of mox.auto.search diverged",
            hint="lower init_learning_rate or the rates in the lists; is the model right? train it once with mox.run",
        )
    if not decays_differ:
        return best

    def rest(trial: Trial) -> dict[str, Any]:
        return {n: v for n, v in trial.params.as_dict().items() if n not in ("weight_decay", "learning_rate")}

    limit = best.score - threshold * abs(best.score)
    equal = [trial for trial in trials if trial.score >= limit and rest(trial) == rest(best)]
    return max(equal, key=lambda one: (one.params.weight_decay, one.score))


def _check(spec: ParamSpec, lists: ParamSpec, rates: Range | None, steps: int, eval_steps: int) -> None:
    where = "mox.auto.search"
    if get_flag("worker_hosts").count(",") or get_flag("ps_hosts"):
        raise UsageError(f"{where}: trials run in a single process", hint="search there, then train on the cluster")
    if steps < 1 or eval_steps < 1:
        raise UsageError(f"{where}: total_steps={steps}, evaluation_total_steps={eval_steps}: expected numbers above 0")
    for name in lists:
        if name not in spec and name not in ("learning_rate", "batch_size"):
            raise UsageError(f"{where}: param_list_spec has {name!r}, param_spec has not; {did_you_mean(name, spec)}")
        if not isinstance(lists.as_dict()[name], (list, tuple)) or not lists.as_dict()[name]:
            raise UsageError(f"{where}: param_list_spec.{name} must be a list of values to try")
    if rates is None:
        if "learning_rate" not in spec and "learning_rate" not in lists:
            raise UsageError(f"{where}: nobody gives a learning_rate", hint="param_spec=ParamSpec(learning_rate=0.1)")
        return
    low, high = rates.first or 1e-5, rates.last or 10.0
    if not 0 < low < high or not 0 <= rates.warmup_steps < steps:
        raise UsageError(
            f"{where}: init_learning_rate={rates.first}, end_learning_rate={rates.last}, "
            f"warmup_steps={rates.warmup_steps}: expected 0 < init < end, and less warm-up than total_steps={steps}"
        )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
