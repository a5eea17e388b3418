"""The one engine: compiled chunks of steps, and between chunks the host looks, decides, escapes and records.

A single solve is a batch of one. The rule runs on the device in its own precision; the certificate is evaluated in
float64 at the point that would be returned. Nothing on the device decides when to stop. Many tasks travel in two
blocks, so that the device works on one while the host judges the other; a task that has ended costs nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ufm.duality.certificate import Certificate
from ufm.model.problem import Level, Problem, row_labels
from ufm.model.processes import agreed
from ufm.model.stack import member
from ufm.solvers.batch import Alone, Grouped, Many
from ufm.solvers.checkpoint import Checkpoints
from ufm.solvers.compiled import spare_programs
from ufm.solvers.coordinates import going_on, in_few_numbers
from ufm.solvers.escape import Move
from ufm.solvers.finish import NEGLIGIBLE
from ufm.solvers.limits import Precision
from ufm.solvers.run import Action, Run
from ufm.solvers.starts import best_of_starts
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome, Setup, Task
from ufm.solvers.threads import few_threads

#: What happens to a task at a look: it ends, or begins again from a point (in a box, emptied by whoever takes it).
Result = Outcome | list[Any]


class Block:
    """Some runs with a chunk under way on the device."""

    def __init__(self, device: Alone | Many, runs: list[Run], width: int, setup: Setup) -> None:
        self.device, self.runs, self.width, self.setup = device, runs, width, setup
        self.chunk = 0

    def advance(self) -> None:
        """Send the next chunk on its way: no run is taken beyond its next look."""
        self.chunk = min(run.due - run.steps for run in self.runs)
        self.device.advance(self.chunk)

    def turn(self, waiting: deque[Run]) -> dict[int, Outcome]:
        """Judge all runs after the chunk, fill free slots; return what has ended. The next chunk is not sent."""
        restarts: dict[int, list[Any]] = {}
        ended: dict[int, Outcome] = {}
        for slot, result in self._results():
            if isinstance(result, Outcome):
                ended[slot] = result
            else:
                restarts[slot] = result
        solved = {self.runs[slot].index: outcome for slot, outcome in ended.items()}
        kept = [slot for slot in range(len(self.runs)) if slot not in ended]
        places = {slot: place for place, slot in enumerate(kept)}
        again = {places[slot]: (box, self.runs[slot].caution) for slot, box in restarts.items()}
        new = [waiting.popleft() for _ in range(min(self.width - len(kept), len(waiting)))]
        self.runs = [self.runs[slot] for slot in kept] + new
        if self.runs and (ended or new or again):
            self.device.renew(kept, [run.index for run in new], again)
        return solved

    def _results(self) -> Iterator[tuple[int, Result]]:
        """Yield (slot, end or new start) of the runs for which something happens."""
        seen = self.device.check()
        objectives, residuals, polars = (part.tolist() for part in seen)
        back, looked = [], []
        for slot, run in enumerate(self.runs):
            passed = run.passed(self.chunk, objectives[slot])
            if passed == "back":
                back.append(slot)
            elif passed == "due":
                if run.wants_certificate(objectives[slot], residuals[slot], polars[slot]):
                    looked.append(slot)
                else:
                    self._record(slot, objectives[slot], residuals[slot])
        for slot in back:
            yield slot, self._go_back(slot)
        if looked:
            yield from self._looks(looked)

    def record_start(self) -> None:
        """Begin the history of a run that has one, before its first step."""
        self.device.advance(0)
        objective, residual, _ = (float(part[0]) for part in self.device.check())
        self._record(0, objective, residual)

    def _record(self, slot: int, objective: float, residual: float, point: Any | None = None) -> None:
        """Add to the history of a run, with what its observer sees of the point."""
        task = self.runs[slot].task
        found: dict[str, float] = {}
        if task.observe is not None:
            point = member(self.device.variables([slot]), 0) if point is None else point
            found = task.observe(point, row_labels(task.problem, self.setup.level))
        self.runs[slot].record(objective, residual, found)

    def _go_back(self, slot: int) -> Result:
        """Go on more cautiously from the point before the chunk, or end there if that is exhausted."""
        run, point = self.runs[slot], self.device.variables([slot], before=True)
        if self.device.goes_far_back:
            run.latest = math.inf
        if not run.exhausted:
            return [member(point, 0)]
        certificate = self._certify([slot], point)[0]
        self._record(slot, certificate.objective, certificate.residual, member(point, 0))
        return self._end(slot, member(point, 0), certificate, Status.NONFINITE)

    def _end(self, slot: int, point: Any, certificate: Certificate, status: Status) -> Outcome:
        return self.runs[slot].end(self.device.answer(point), certificate, status)

    def _problems(self, slots: Sequence[int]) -> list[Problem]:
        return [self.runs[slot].task.problem for slot in slots]

    def _certify(self, slots: Sequence[int], points: Any) -> list[Certificate]:
        runs = [self.runs[slot] for slot in slots]
        tol = np.array([run.limits.tol for run in runs])
        residual = np.array([10 * run.limits.residual for run in runs])
        # a solve that is watched gets the sharpest bound there is, wherever it may end
        watched = runs[0].task.report is not None and runs[0].may_end
        found = self.device.certify(self._problems(slots), points, tol, residual, thorough=watched)
        return [Certificate(*agreed(tuple(vars(each).values()))) for each in found]

    def _looks(self, slots: Sequence[int]) -> Iterator[tuple[int, Result]]:
        """Yield (slot, end or new start) of the runs that a certificate ends, frees or calms."""
        points = self.device.variables(slots)
        found = self._certify(slots, points)
        actions: list[Action] = []
        for slot, certificate in zip(slots, found, strict=True):
            run = self.runs[slot]
            actions.append(run.judge(certificate))
            self._record(slot, certificate.objective, certificate.residual)
        stuck = [i for i, action in enumerate(actions) if action == "escape"]
        left = [slots[i] for i in stuck]
        least = [self.runs[slot].least for slot in left]
        moves = self.device.escapes(self._problems(left), member(points, stuck), least) if stuck else []
        for i, move in zip(stuck, moves, strict=True):
            run = self.runs[slots[i]]
            small = move is None or not move.decrease > max(run.least, NEGLIGIBLE * found[i].gap)
            other = None
            if run.late and small:
                other = self.device.descent(run.task.problem, member(points, i), *run.second_order())
                if other is not None and other.steps and (move is None or other.decrease > move.decrease):
                    move = other
            move = move or Move(member(points, i), "", 0.0)
            if agreed(move.steps > 0 or move.decrease > run.least):
                point, decrease, steps = agreed((move.point, move.decrease, move.steps))
                yield slots[i], self._escape(slots[i], Move(point, move.description, decrease, steps))
            else:
                actions[i] = run.refuse(found[i], minimal=other is not None)
        for i, action in enumerate(actions):
            if isinstance(action, Status):
                yield slots[i], self._end(slots[i], member(points, i), found[i], action)
            elif action == "calm":
                yield slots[i], [member(points, i)]

    def _escape(self, slot: int, move: Move) -> Result:
        """Go on from where an escape move leads, or end there: if it took steps to the end, or the last of them."""
        run, task = self.runs[slot], self.runs[slot].task
        run.escaped(move)
        used_up = run.steps >= task.limits.max_steps
        if task.report is None and not move.steps and not used_up:
            return [move.point]
        certificate = self._certify([slot], member(move.point, None))[0]
        run.bound = max(run.bound, certificate.lower_bound)
        self._record(slot, certificate.objective, certificate.residual, move.point)
        ended = run.finished(certificate) if move.steps else None
        ended = ended or (Status.MAX_STEPS if used_up else None)
        return [move.point] if ended is None else self._end(slot, move.point, certificate, ended)


def solve_one(
    task: Task, setup: Setup, checkpoints: Checkpoints | None = None, resume: bool = False
) -> Outcome:
    """Solve one task: the engine with a batch of one, whose state may be kept in a file.

    Args:
        task: the task.
        setup: level, rule, precision, devices.
        checkpoints: where to keep the state of the run, if anywhere.
        resume: go on from the checkpoint.
    """
    if checkpoints is not None:
        return _run(task, setup, checkpoints, resume)
    return _solved([task], setup, lambda tasks: [_run(tasks[0], setup)])[0]


def _solved(
    tasks: Sequence[Task], setup: Setup, run: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """Solve tasks from as many starts as they need, each in as few numbers as it can."""
    return best_of_starts(tasks, setup.level, lambda left: in_few_numbers(left, setup, run))


def as_asked(task: Task, end: Outcome, setup: Setup, level: Level | Literal["auto"]) -> Outcome:
    """Return the end of a task; one that chose groups by itself goes on with classes where it is not certified."""
    if level != "auto" or setup.level != "group" or end.status is Status.CERTIFIED:
        return end
    return going_on(task, end, lambda left: solve_one(left, setup._replace(level="class")))


def _run(task: Task, setup: Setup, checkpoints: Checkpoints | None = None, resume: bool = False) -> Outcome:
    """Run one task in the coordinates of its problem."""
    spare_programs()
    with precision(setup.dtype), few_threads(task.problem, setup.level):
        device = (Grouped if setup.level == "group" else Alone)(task, setup)
        run = Run(0, task, setup)
        block = Block(device, [run], 1, setup)
        if checkpoints is not None and resume:
            checkpoints.restore(device, run)
            device.advance(0)  # and look again, as when the checkpoint was written
        else:
            block.record_start()
            block.advance()
        while True:
            ended = block.turn(deque())
            if checkpoints is not None and not device.fresh:
                last = bool(ended) or run.steps >= task.limits.max_steps
                checkpoints.keep(device, run, now=last)
            if ended:
                return ended[0]
            block.advance()


def solve_many(
    tasks: Sequence[Task],
    setup: Setup,
    width: int,
    sharding: jax.sharding.NamedSharding | None = None,
    report: Callable[[int], None] = lambda tasks: None,
) -> list[Outcome]:
    """Solve tasks of equal shape, at most ``width`` at a time.

    Args:
        tasks: the tasks.
        setup: what they share.
        width: how many share the device at a time, both blocks together.
        sharding: how to spread each block over devices; None for the default device.
        report: called with the number of tasks solved, now and then.

    Returns:
        One outcome per task, in order.
    """
    if setup.level == "group":  # one fills the cache, and groups are seldom alike
        ends = []
        for task in tasks:
            ends.append(solve_one(task, setup))
            report(1)
        return ends
    return _solved(tasks, setup, lambda own: _run_together(own, setup, width, sharding, report))


def _run_together(
    tasks: Sequence[Task],
    setup: Setup,
    width: int,
    sharding: jax.sharding.NamedSharding | None,
    report: Callable[[int], None],
) -> list[Outcome]:
    """Run tasks of equal shape in the coordinates of their problems."""
    spare_programs()
    solved: dict[int, Outcome] = {}
    half = math.ceil(width / 2)
    with precision(setup.dtype), few_threads(tasks[0].problem, setup.level):
        waiting = deque(Run(i, task, setup) for i, task in enumerate(tasks))
        blocks: list[Block] = []
        while waiting and len(blocks) < 2:
            taken = [waiting.popleft() for _ in range(min(half, len(waiting)))]
            device = Many(tasks, [run.index for run in taken], half, setup, sharding)
            blocks.append(Block(device, taken, half, setup))
            blocks[-1].advance()
        while blocks:
            for block in blocks:
                ended = block.turn(waiting)
                solved |= ended
                report(len(ended))
                if block.runs:
                    block.advance()
            blocks = [block for block in blocks if block.runs]
    return [solved[i] for i in range(len(tasks))]


@contextlib.contextmanager
def precision(dtype: Precision) -> Iterator[None]:
    """Allow float64 for this solve only, and full-precision products where an accelerator would round to TF32."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield
