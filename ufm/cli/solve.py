"""``ufm solve``: a certified global optimum, verified and drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from ufm.cli.flags import Flags, Json, ProblemFlags
from ufm.cli.output import Output, emit, problem_dict, written
from ufm.cli.processes import ProcessFlags
from ufm.inputs.checks import InputError, one_of, positive_float
from ufm.inputs.files import check_output
from ufm.text import class_table, waiting, wrapped


def solve_command(
    problem: Flags = ProblemFlags(),
    level: Annotated[
        Literal["class", "sample"], arg(help="one feature row per class, or per sample")
    ] = "class",
    solver: Annotated[str, arg(help="accelerated, sgd, momentum or adam")] = "accelerated",
    learning_rate: Annotated[float | None, arg(help="of sgd, momentum and adam; 0.1 if None")] = None,
    precision: Literal["float64", "float32"] = "float64",
    seed: Annotated[int, arg(help="of the random start")] = 0,
    tol: Annotated[float, arg(help="relative duality gap to certify")] = 1e-8,
    max_steps: int = 100_000,
    figure: Annotated[Path | None, arg(help="PNG, PDF or SVG; None for no figure")] = Path("ufm-solve.png"),
    save: Annotated[Path | None, arg(help="npz file for features, labels, weight")] = None,
    checkpoint: Annotated[Path | None, arg(help="file to keep the state of the run in, every minute")] = None,
    resume: Annotated[bool, arg(help="go on from --checkpoint")] = False,
    processes: OmitArgPrefixes[ProcessFlags] = ProcessFlags(),
    json: Json = False,
) -> int:
    """Solve to a certified global optimum and compare it with the closed form.

    Example: ufm solve --counts 5000x5,50x5 --weight-decay 5e-4 --feature-decay 1e-5
    """
    from ufm.plots.style import SUFFIXES

    given = problem.problem()
    check_output("figure", figure, SUFFIXES)
    check_output("save", save)
    first = processes.join()
    from ufm.model.devices import use_all_cores
    from ufm.solvers.solve import solve
    from ufm.verification.observer import collapse_observer
    from ufm.verification.verify import verify

    if level == "sample" and not processes.distributed:
        use_all_cores(given.num_samples, given.dim)
    show = first and not json and sys.stderr.isatty()
    solution = solve(
        given,
        level,
        _rule(solver, learning_rate),
        seed,
        tol,
        max_steps,
        progress=show,
        precision=precision,
        observe=collapse_observer(given) if figure is not None else None,
        checkpoint=checkpoint,
        resume=resume,
    )
    with waiting("verifying, writing", show):
        report = verify(solution)
        outputs: dict[str, Output] = {"Solution": (save, solution.save), "Figure": (figure, report.plot)}
        lines, failure = written(outputs) if first else ([], None)
    if first:
        outcome = problem_dict(given) | solution.to_dict() | {"report": report.to_dict()}
        emit(outcome, json, "\n".join([_solution_text(solution, report), *lines]))
    if failure is not None:  # said last: what took long to find is printed all the same
        raise failure
    return 0 if solution.certified and report.passed else 1


def _solution_text(solution: Any, report: Any) -> str:
    certificate, measured, prediction = solution.certificate, report.measured, report.prediction
    columns = {"|h|": measured.norms, "|w|": measured.weight_norms, "margin": measured.margins}
    if prediction is not None:
        expected = (prediction.norms, prediction.weight_norms, prediction.margins)
        pairs = zip(columns.items(), expected, strict=True)
        columns = {
            key: value for (name, seen), due in pairs for key, value in ((name, seen), (f"{name}*", due))
        }
    lines = [
        str(solution.problem),
        "",
        wrapped(f"Status: {solution.status} after {solution.steps} steps. {solution.status.sentence}"),
        f"Objective   {certificate.objective:.14g}",
        f"Lower bound {certificate.lower_bound:.14g} (relative gap {certificate.relative_gap:.1e})",
        "",
        class_table(solution.problem.counts, columns),
        *(["Columns with * are the closed form."] if prediction is not None else []),
        "",
        report.table(),
    ]
    return "\n".join(lines)


def _rule(name: str, learning_rate: float | None) -> Any:
    """Return the step rule called ``name``."""
    import optax

    from ufm.solvers.accelerated import Accelerated
    from ufm.solvers.projected_gradient import ProjectedGradient

    if name == "accelerated" and learning_rate is not None:
        raise InputError("learning_rate is for sgd, momentum and adam; accelerated chooses its own step")
    rate = 0.1 if learning_rate is None else positive_float("learning_rate", learning_rate)
    rules: dict[str, Callable[[], Any]] = {
        "accelerated": Accelerated,
        "sgd": lambda: ProjectedGradient(optax.sgd(rate)),
        "momentum": lambda: ProjectedGradient(optax.sgd(rate, momentum=0.9)),
        "adam": lambda: ProjectedGradient(optax.adam(rate)),
    }
    return rules[one_of("solver", name, tuple(rules))]()
