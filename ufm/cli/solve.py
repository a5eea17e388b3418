"""``ufm solve``: a certified global optimum, verified and drawn."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from ufm.cli.flags import Flags, Forget, Json, Panel, ProblemFlags, SolverFlags, Style, given_settings
from ufm.cli.output import Output, emit, problem_dict, written
from ufm.cli.processes import ProcessFlags
from ufm.inputs.checks import CheckpointError
from ufm.inputs.files import check_output
from ufm.text import class_table, progress_bar


def solve_command(
    problem: Flags = ProblemFlags(),
    settings: OmitArgPrefixes[SolverFlags] = SolverFlags(),
    figure: Annotated[Path | None, arg(help="PNG, PDF or SVG; None for no figure")] = Path("ufm-solve.png"),
    style: Style = "paper",
    panel: Panel = None,
    save: Annotated[Path | None, arg(help="npz file for features, labels, weight")] = None,
    checkpoint: Annotated[Path | None, arg(help="file to keep the state of the run in, every minute")] = None,
    resume: Annotated[bool, arg(help="go on from --checkpoint")] = False,
    processes: OmitArgPrefixes[ProcessFlags] = ProcessFlags(),
    forget: Forget = False,
    json: Json = False,
) -> int:
    """Solve to a certified global optimum and compare it with the closed form.

    Example: ufm solve --counts 5000x5,50x5 --weight-decay 5e-4 --feature-decay 1e-5
    """
    from ufm.plots.style import SUFFIXES

    given, chosen = problem.problem(), given_settings(settings)
    check_output("figure", figure, SUFFIXES)
    check_output("save", save)
    from ufm.model.compilation import keep_compiled_programs

    if not forget:
        keep_compiled_programs()
    first = processes.join()
    from ufm.model.devices import use_all_cores
    from ufm.solvers.coordinates import chosen_level
    from ufm.solvers.rules import rule_parameters, step_rule
    from ufm.solvers.solve import solve
    from ufm.verification.observer import collapse_observer
    from ufm.verification.verify import verify

    if chosen["level"] == "sample" and not processes.distributed:
        use_all_cores(given.num_samples, given.dim)
    show = first and not json and sys.stderr.isatty()
    rule = step_rule(chosen["solver"], rule_parameters(chosen))
    watched = figure is not None and chosen_level(given, chosen["level"], rule) != "group"
    watch = collapse_observer(given) if watched else None
    unsaved = None
    try:
        solution = solve(given, progress=show, observe=watch, checkpoint=checkpoint, resume=resume, **chosen)
    except CheckpointError as error:
        solution, unsaved = error.solution, error
    with progress_bar(show, "verifying, writing"):
        report = verify(solution)
        plot = functools.partial(report.plot, style=style, panel=panel)
        outputs: dict[str, Output] = {"Solution": (save, solution.save), "Figure": (figure, plot)}
        lines, failure = written(outputs) if first else ([], None)
    if first:
        outcome = problem_dict(given) | solution.to_dict() | {"report": report.to_dict()}
        emit(outcome, json, "\n".join([_solution_text(solution, report), *problem.notes(), *lines]))
    failure = failure or unsaved
    if failure is not None:  # said last: what took long to find is printed all the same
        raise failure
    return 0 if solution.certified and report.passed else 1


def _solution_text(solution: Any, report: Any) -> str:
    lines = [
        str(solution),
        "",
        class_table(solution.problem.counts, report.columns),
        *(["Columns with * are predicted."] if report.prediction is not None else []),
        "",
        report.table(),
    ]
    return "\n".join(lines)
