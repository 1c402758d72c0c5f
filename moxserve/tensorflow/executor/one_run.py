"""One run, from the user's functions to a result: graph -> participants -> session, initialised and restored -> loop ->
result, and the export call after it. Each is a method of `OneRun`, in this order. `run` decides which runs there are.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from typing import Any

from moxserve.errors import InterruptedRunError, UsageError
from moxserve.tensorflow.executor import checkpoint as checkpoints
from moxserve.tensorflow.executor import job, lock, reporters
from moxserve.tensorflow.executor.branch import Branch, build_branch
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import devices_of
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.exporting import export_run, sample_rows
from moxserve.tensorflow.executor.flags import store
from moxserve.tensorflow.executor.hook_towers import tower_hooks
from moxserve.tensorflow.executor.hooks import HookRun, RunHooks
from moxserve.tensorflow.executor.input_spec import grouped
from moxserve.tensorflow.executor.inputs import ModeInput, build_inputs, explain, start_queues
from moxserve.tensorflow.executor.inter import build_inter
from moxserve.tensorflow.executor.loop import Loop
from moxserve.tensorflow.executor.observe.logs import means_event
from moxserve.tensorflow.executor.observe.setup import Observers
from moxserve.tensorflow.executor.participants import NEVER, Clock, InputEnded, Participant
from moxserve.tensorflow.executor.position import PositionLog
from moxserve.tensorflow.executor.precision import Precision
from moxserve.tensorflow.executor.remote import LogDirSender
from moxserve.tensorflow.executor.repeatable import Repeatable
from moxserve.tensorflow.executor.settings import Functions, Settings
from moxserve.tensorflow.executor.signals import SignalGuard
from moxserve.tensorflow.executor.spec import ModeKeys, RunResult
from moxserve.tensorflow.executor.start import Start
from moxserve.tensorflow.executor.stepper import Stepper
from moxserve.tensorflow.executor.tower_values import BranchValues
from moxserve.tensorflow.executor.train_op import AFTER_START, TrainOptions, build_train_op
from moxserve.tensorflow.executor.workers import Startup, workers_of
from moxserve.types import TensorSpec, dtype_by_name

__all__ = ["OneRun"]


class OneRun:
    """A training, an evaluation or an application. Made once for each attempt, and executed once.

    Args:
        settings: resolved arguments.
        functions: the user's.
        topology: devices and workers.
        number: of this training in the job, for the chief to note its end; 0 for none.
    """

    def __init__(self, settings: Settings, functions: Functions, topology: Topology, number: int = 0) -> None:
        self.settings = replace(settings, export=()) if topology.is_follower else settings
        self.number = number
        self.functions = functions
        self.topology = topology
        self.devices = devices_of(topology)
        self.training = settings.mode == ModeKeys.TRAIN
        self.workers = workers_of(topology, self.devices, training=self.training)
        self.precision = Precision.from_flags(store, self.training)
        self.clock = Clock(counts_globally=self.training)
        self.observers = Observers(settings, store, topology)
        self.start = Start(settings)
        self.repeatable = Repeatable(store.get("deterministic"), self.training, topology.index)
        self.late_signum = 0  # a signal that came when the last step was made: what follows the run must not begin

    def execute(self) -> RunResult:
        """Build, open, loop, close, export."""
        with contextlib.ExitStack() as stack:
            folder = self._checkpoint_dir
            held = None if folder is None else stack.enter_context(lock.held(folder, self._said))
            self._opened = stack
            reason, signum = self._run()
            if held is not None and not signum:
                held.ended(self.clock.global_step)
        if signum or self.late_signum:
            raise self._interrupted(signum or self.late_signum)
        return self._result(reason)

    def _said(self) -> None:
        """How the training goes is in the folder; who watches a store waits for that, too."""
        if self.settings.mirror is not None:
            self.settings.mirror.tell(lock.LOCK_FILE)

    @property
    def _checkpoint_dir(self) -> str | None:
        """Where this run writes checkpoints; None if it does not."""
        return self.settings.log_dir if self.training and self.topology.is_chief else None

    def _run(self) -> tuple[str, int]:
        """Build, open and loop; tells why the run ended, and the signal that ended it (0 for none)."""
        graph = tf1.Graph()
        graph.seed = tf1.get_default_graph().seed  # a script's tf.set_random_seed was for the graph it knew
        with self.repeatable.running(graph), graph.as_default():
            with self.workers.placing():
                self._build()
                for participant in self.participants:
                    participant.begin()
                startup = self._startup()
            graph.finalize()
            config = self.topology.session_config()
            self.workers.configure(config)
            self.precision.configure(config)
            with tf1.Session(self.workers.target, graph=graph, config=config) as session:
                self._initialise(session, startup)
                ended = self._run_loop(session)
            if ended[0] != "signal":
                job.note_end(self.settings, self.number)
            self.workers.finish(graph, ended[0])
            return ended

    # -- graph

    def _build(self) -> None:
        """Build the input, the model, the step operation and the participants into the current graph."""
        settings, places = self.settings, self.devices.places
        with tf.device("/cpu:0"):
            self.global_step = tf1.train.get_or_create_global_step()
            with self.repeatable.input(settings.auto_batch, self.global_step):
                self.source: ModeInput = build_inputs(
                    self.functions.input_fn, settings.mode, settings.batch_size, settings.auto_batch, len(places)
                )
        self._opened.callback(self.source.close)  # also if the model cannot be built
        self.workers.take_ahead(self.source)
        if self.source.endless and not settings.max_steps and (self.training or not self.source.steps):
            raise UsageError(
                f"run(max_number_of_steps=0) in {settings.mode} means to the end of the input, which never ends",
                hint="give max_number_of_steps (for an evaluator: the flag samples_per_epoch_eval), or leave .repeat() "
                "out of input_fn, or give the source infinite=False",
            )
        with self.repeatable.model(self.global_step):
            self.branch: Branch = build_branch(self.functions.model_fn, settings.mode, self.source.towers, places)
        self.values = BranchValues(self.branch, store.get("log_first_clone"))
        self.model_variables = tf1.global_variables()
        with self.repeatable.counted():
            self.step_op = self._step_op()
        self.inter = build_inter(self.functions, settings, self.devices, self.branch, self.clock)
        self.participants = self._participants()
        self.workers.watch(self.participants)

    def _step_op(self) -> Any:
        """The operation that makes one step."""
        if self.training:
            return build_train_op(
                self.branch, self.functions.optimizer_fn, self.global_step, TrainOptions.from_flags(store), self.workers
            )
        return tf.group(*self.values.step, name="step")

    def _participants(self) -> list[Participant]:
        """Everybody who takes part, built-ins first, so that state is safe before a user's hook may fail."""
        settings = self.settings
        listed: list[Participant] = [
            *self.workers.participants(),
            *self.source.participants,
            *([] if self.inter is None else [self.inter]),
        ]
        self.samples = reporters.SampleRows(self.branch.inputs, sample_rows(settings)) if settings.export else None
        self.console = self._console()
        self.means = reporters.EvalMeans(self.values.info) if settings.mode == ModeKeys.EVAL else None
        self.writer: reporters.CheckpointWriter | None = None
        listed += [p for p in (self.samples, self.console, self.means) if p is not None]
        if self.functions.output_fn is not None:
            listed.append(
                reporters.OutputCollector(self.values.outputs, self.functions.output_fn, settings.output_every)
            )
        folder, checkpointer = self._checkpoint_dir, None
        if folder is not None:
            if settings.summary_every is not None:
                listed.append(reporters.SummaryWriter(folder, settings.summary_every, self.values.shown))
            checkpointer = checkpoints.Checkpointer(folder)
            self.writer = reporters.CheckpointWriter(checkpointer, settings.save_every)
            listed.append(self.writer)
        listed += self.observers.participants(listed, self.branch.inputs, self._step_rows)
        hooks = tower_hooks(self.branch, runs_inter=self.inter is not None)
        facts = HookRun(self.clock, self.workers, settings.batch_size, settings.auto_batch, checkpointer)
        self.hooks = RunHooks(hooks, facts, settings.log_dir if self.training else None)
        if self.writer is not None:
            self.writer.before_save = self.hooks.states.save
        sender = [] if settings.mirror is None else [LogDirSender(settings.mirror)]
        return listed + self.hooks.participants + sender

    def _console(self) -> reporters.ConsoleLog | None:
        every, wanted = self.settings.log_every, self.functions.fetch_strategy_fn
        silent = self.training and not (self.topology.is_chief or self.topology.all_log)
        if silent or (every is None and wanted is None):
            return None
        return reporters.ConsoleLog(self.values.shown, every, self._step_rows, wanted)

    @property
    def _step_rows(self) -> int:
        """How many rows a step counts for in throughputs: those of all towers, and workers, that make it together."""
        together = self.training and self.topology.synchronous
        return self.settings.batch_size * (self.topology.global_replicas if together else self.topology.num_devices)

    # -- session

    def _startup(self) -> Startup:
        """How variables get their values; made while the graph is open."""
        variables = tf1.global_variables()

        def restore(session: Any) -> None:
            self.start.restore(session, variables, self.model_variables, self.global_step, self.branch.plan.optional)

        return Startup(
            tf1.global_variables_initializer(),
            (tf1.local_variables_initializer(), tf1.tables_initializer()),
            restore,
            (*self.devices.after_start(self.branch), *tf1.get_collection(AFTER_START)),
            self.global_step,
            anew=self.start.resume is None,
        )

    def _initialise(self, session: Any, startup: Startup) -> None:
        """Give variables their values, start the input, and set the clock."""
        self.workers.start(session, startup)
        self.clock.global_step = int(session.run(self.global_step))
        if self.writer is not None and self.start.resume is not None and not self.workers.joined:
            self.writer.restored(self.start.resume, self.clock.global_step)
        if self.start.resume is not None:
            self.hooks.states.restore(self.clock.global_step)
        self.start_step = self.clock.global_step
        self.source.start(session, self._position(startup))

    def _position(self, startup: Startup) -> int:
        """How many rows this worker has been given by the runs that this one goes on from."""
        settings = self.settings
        if not self.training or settings.log_dir is None or not self.source.positions:
            return 0
        known = PositionLog(settings.log_dir, self.topology.index)
        rows, done = self.source.rows_per_step(settings.batch_size), self.workers.done_steps(self.clock.global_step)
        began = self.workers.began_at(startup, self.clock.global_step)
        given = known.restart(done, rows) if began == done else known.resume(done, rows, began or 0)
        self.source.keep_skipped(known.skipped_path)
        return given

    # -- loop

    def _run_loop(self, session: Any) -> tuple[str, int]:
        """Run the steps; tells why they ended, and the signal that ended them (0 for none)."""
        coordinator = tf1.train.Coordinator()
        threads = start_queues(session, coordinator)
        try:
            done = self.workers.done_steps(self.clock.global_step)
            if not self.workers.joined and (self.hooks.tell_ended() or self.start.is_done(done)):
                self._sample_unstepped(session)
                return "already_trained", 0
            self.clock.steps_per_epoch = self._steps_to_make()
            with SignalGuard() as guard, self.observers.on_demand(self.clock):
                for participant in self.participants:
                    participant.session_ready(session, coordinator)
                if self.inter is not None:
                    self.inter.stopped = lambda: guard.signum != 0
                loop = Loop(
                    Stepper(session, self.step_op, self.clock, self.workers.run_options),
                    self.participants,
                    self.clock,
                    lambda: guard.signum != 0,
                )
                try:
                    reason = loop.run()
                except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
                    explained = explain(error)
                    if explained is None:
                        raise
                    raise explained from error
            self.timing = loop.timing
            self._sample_unstepped(session)
            reason, signum = self.workers.ending(reason, guard.signum)
            self.late_signum = 0 if signum else guard.signum
            return reason, signum
        finally:
            self.source.close()
            if self.inter is not None:
                self.inter.close()
            coordinator.request_stop()
            session.close()  # unblocks threads that wait in a queue
            coordinator.join(threads, stop_grace_period_secs=5, ignore_live_threads=True)

    def _steps_to_make(self) -> int:
        if not self.settings.max_steps:
            return self.source.steps if self.source.endless else NEVER
        if not self.training:
            return self.settings.max_steps
        return self.workers.steps_to_make(self.settings.max_steps, self.clock.global_step)

    def _sample_unstepped(self, session: Any) -> None:
        """Take sample rows for the export from the input, where no step was made that could have brought them."""
        if self.samples is None or self.samples.samples or self.clock.run_step:
            return
        try:
            self.samples.add(self.source.fetch(session))
        except (tf.errors.OpError, InputEnded) as error:
            tf1.logging.warning("no sample rows for the export: %s", error)

    # -- result

    def _interrupted(self, signum: int) -> InterruptedRunError:
        saved = self.settings.shown(self.writer.prefix) if self.writer is not None else None
        state = f"checkpoint {saved} {self.settings.fate}" if saved else "nothing was saved"
        again = "run it again to go on from there" if saved else "run it again"
        hint = again if self.settings.log_dir or not self.training else "with log_dir a checkpoint would be written"
        step = self.clock.global_step if self.training else self.clock.run_step
        message = f"stopped by {signal.Signals(signum).name} after step {step}; {state}"
        tf1.logging.warning("%s; %s", message, hint)  # a script that does not catch the error ends without a word
        return InterruptedRunError(message, signum, hint=hint)

    def _result(self, reason: str) -> RunResult:
        written = self.writer.prefix if self.writer is not None else None
        # What was restored is still the state of the model where no step has changed it.
        checkpoint = written or (self.start.prefix if not self.training or reason == "already_trained" else None)
        metrics: dict[str, float] = {}
        if self.means is not None:
            metrics = self._report_means(self.means)
        elif self.console is not None:
            metrics = dict(self.console.values)
        step_s = 0.0 if reason == "already_trained" else self.timing.step_s
        return RunResult(
            mode=self.settings.mode,
            start_step=self.start_step,
            global_step=self.clock.global_step,
            local_steps=self.clock.run_step,
            stop_reason=reason,
            checkpoint=self.settings.shown(checkpoint),
            metrics=metrics,
            samples_per_s=self._step_rows / step_s if step_s else 0.0,
            step_s=step_s,
            step_cpu_s=0.0 if reason == "already_trained" else self.timing.step_cpu_s,
            export=self._export(self.hooks.exported(checkpoint)) if self.settings.export else None,
            **self.observers.result(self.clock, None if reason == "already_trained" else self.timing),
            best=self.settings.shown(self.hooks.best),
        )

    def _report_means(self, means: reporters.EvalMeans) -> dict[str, float]:
        """Print the means of an evaluation, and write them beside the training summaries."""
        values = means.means
        tf1.logging.info("%s", means_event(self.clock.run_step, self.clock.global_step, values))
        folder = self.settings.log_dir
        if folder is not None and self.clock.run_step and not self.topology.is_follower:
            # Apart from the curves of the training run whose folder this is; TensorBoard shows the two side by side.
            folder = os.path.join(folder, "eval") if self.start.resume is not None else folder
            reporters.write_scalars(folder, values, self.clock.global_step)
        return values

    def _export(self, checkpoint: str | None) -> Any:
        """Call the exporter on the checkpoint that this run ended with."""
        inputs = [
            TensorSpec(f"input_{i}", dtype_by_name(t.dtype.base_dtype.name), self.source.export_shape(t))
            for i, t in enumerate(self.branch.inputs)
        ]
        samples = self.samples.samples if self.samples is not None else ()
        model_fn = grouped(self.functions.model_fn, self.source.towers[0].groups)
        return export_run(self.settings, model_fn, inputs, checkpoint, samples)
