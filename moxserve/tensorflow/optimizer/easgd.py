"""`easgd`: elastic averaging (Zhang, Choromanska and LeCun, "Deep learning with Elastic Averaging SGD", 2014,
arXiv:1412.6651).
"""

from __future__ import annotations

from typing import Any

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers import current_workers
from moxserve.tensorflow.optimizer.wrapper import OptimizerWrapper, Pairs, apart, count_step, replicas, tensors

__all__ = ["Easgd"]


class Easgd(OptimizerWrapper):
    """Lets each worker train weights of its own, tied to a common centre by a spring.

    At each `period`-th step a worker with the weights w moves towards the centre c, and the centre towards it:

        w -= alpha * (w - c)        c += alpha * (w - c)

    then the optimizer inside applies the step's gradient to w. The centre starts as the weights of the first step, and
    is saved in checkpoints beside the weights of the chief (`easgd/<variable>/center`).

    With parameter servers the centre is there, and workers do not wait for each other (the paper's asynchronous
    algorithm). Without (`variable_update=all_reduce`) they meet at each `period`-th step.

    Args:
        optimizer: the one inside.
        period: steps between two moves, tau in the paper.
        alpha: share of the distance that is moved. None: `beta` / number of workers, as in the paper.
        beta: see `alpha`.

    Raises:
        UsageError: a number is out of its range.
    """

    kind = "easgd"
    meets = True
    gathers = True

    def __init__(self, optimizer: Any, period: int = 10, alpha: float | None = None, beta: float = 0.9) -> None:
        super().__init__(optimizer)
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise UsageError(f"easgd: period={period!r}, expected a whole number above 0")
        self._alpha = beta / replicas() if alpha is None else alpha
        if not 0 < self._alpha < 1:
            raise UsageError(f"easgd: alpha={self._alpha:g}, expected a share above 0 and below 1")
        self._period = period

    def _apply(self, pairs: Pairs, global_step: Any) -> Any:
        workers = current_workers()
        servers = workers.topology.ps if workers is not None else ()
        for _, variable in pairs:
            if "/job:ps" in (variable.device or ""):
                raise UsageError(
                    f"easgd needs weights of each worker's own, and {variable.op.name} is on a parameter server",
                    hint="--variable_update=replicated, or all_reduce without --ps_hosts",
                )
        centers = [self._center(variable, position, servers) for position, (_, variable) in enumerate(pairs)]
        springs = list(zip(centers, (variable for _, variable in pairs), strict=True))
        count = self._state("count", [], tf.int64)
        # Not before the gradients are known: they are those of the weights before the move.
        with tf1.control_dependencies([part for gradient, _ in pairs for part in tensors(gradient)]):
            begun = self._begun(springs, servers)
        with tf1.control_dependencies([begun]):
            steps = count.assign_add(1, read_value=True)
        moved = tf1.cond(
            tf.equal(steps % self._period, 0), lambda: self._move(springs, bool(servers)), lambda: tf.constant(0)
        )
        with tf1.control_dependencies([moved]):
            applied = self._optimizer.apply_gradients(pairs)
        return count_step(global_step, [applied])

    def _center(self, variable: Any, position: int, servers: tuple[str, ...]) -> Any:
        name = f"{variable.op.name}/center"
        return self._shared(name, variable.shape, variable.dtype.base_dtype, position, servers)

    def _shared(self, name: str, shape: Any, dtype: Any, position: int, servers: tuple[str, ...]) -> Any:
        """Make a variable that all processes have in common: on a parameter server, or equal in all of them."""
        with tf1.device(f"/job:ps/task:{position % len(servers)}/device:CPU:0" if servers else None):
            return self._global(name, shape, dtype)

    def _begun(self, springs: list[tuple[Any, Any]], servers: tuple[str, ...]) -> Any:
        """Put the centres where the weights are, at the first step of all."""
        begun = self._shared("begun", [], tf.bool, 0, servers)

        def begin() -> Any:
            placed = [center.assign(variable.read_value(), read_value=False) for center, variable in springs]
            with tf1.control_dependencies(placed), tf1.control_dependencies([begun.assign(True, read_value=False)]):
                return tf.constant(True)

        return tf1.cond(begun.read_value(), lambda: tf.constant(True), begin)

    def _move(self, springs: list[tuple[Any, Any]], served: bool) -> Any:
        stretched = [variable.read_value() - center.read_value() for center, variable in springs]
        together = apart() and not served
        with tf1.control_dependencies(stretched):
            moves = [
                variable.assign_sub(self._alpha * length, read_value=False)
                for length, (_, variable) in zip(stretched, springs, strict=True)
            ]
            if together:  # the mean of the workers' forces, times their number, is the sum that the paper has
                force = [(-length, center) for length, (center, _) in zip(stretched, springs, strict=True)]
                moves.append(self._pull(force))
            else:
                moves += [
                    center.assign_add(self._alpha * length, read_value=False)
                    for length, (center, _) in zip(stretched, springs, strict=True)
                ]
        with tf1.control_dependencies(moves):
            return tf.constant(1)

    def _pull(self, force: Pairs) -> Any:
        workers = current_workers()
        descent = tf1.train.GradientDescentOptimizer(self._alpha * replicas())
        return descent.apply_gradients(force) if workers is None else workers.apply_together(descent, force)
