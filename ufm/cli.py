"""The command line: ``ufm predict | solve | verify | advise | sweep | figures``.

Exit codes: 0 = did what was asked and it holds; 1 = ran, but not certified or not verified; 2 = bad input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from ufm.files import check_output, counts_of, read_layer, write_output
from ufm.loss_forms import LOSS_FORMS, parse_loss
from ufm.problem import Problem
from ufm.profiles import parse_counts
from ufm.tables import WIDTH, class_table, describe
from ufm.theory import ClosedFormError, Prediction, predict
from ufm.validation import CheckpointError, InputError
from ufm.waiting import waiting

_LOSS_HELP = "; ".join(f"{name} ({meaning})" for name, (_, meaning, _) in LOSS_FORMS.items())
_COUNTS_HELP = (
    "class counts: 5000x5,50x5 or a profile: cifar10-lt-100, imagenet-lt, exp:K=10,n_max=5000,ratio=100"
)


@dataclasses.dataclass(frozen=True)
class ProblemFlags:
    """The problem. The default is CIFAR-10-LT with the three smallest classes past the collapse threshold."""

    counts: Annotated[str, arg(help=_COUNTS_HELP)] = "cifar10-lt-100"
    dim: Annotated[int, arg(help="feature dimension d")] = 64
    weight_decay: Annotated[float, arg(help="lambda_W, on |W|^2/2")] = 5e-3
    feature_decay: Annotated[float, arg(help="lambda_H, on the sum over samples of |h|^2/2")] = 2e-4
    loss: Annotated[str, arg(help=_LOSS_HELP)] = "ce"
    features: Annotated[str, arg(help="nonnegative (after a ReLU) or free")] = "nonnegative"
    bias: Annotated[float | None, arg(help="decay of a bias; 0 = unregularised; None = no bias")] = None

    def problem(self) -> Problem:
        """Return the validated problem."""
        counts = parse_counts(self.counts)
        loss = parse_loss(self.loss, counts)
        return Problem(
            counts,
            self.dim,
            self.weight_decay,
            self.feature_decay,
            loss,
            self.features,
            self.bias,
        )


Flags = OmitArgPrefixes[ProblemFlags]
Json = Annotated[bool, arg(help="print one JSON object and nothing else")]


@dataclasses.dataclass(frozen=True)
class ProcessFlags:
    """Several processes that share the samples of one problem, each with its own devices."""

    distributed: Annotated[
        bool, arg(help="this is one of several processes; Slurm, MPI and TPU pods say which")
    ] = False
    coordinator: Annotated[str | None, arg(help="elsewhere: HOST:PORT of the first process")] = None
    num_processes: Annotated[int | None, arg(help="elsewhere: how many processes there are")] = None
    process_id: Annotated[int | None, arg(help="elsewhere: which this is, from 0")] = None

    def join(self) -> bool:
        """Join the others, if there are any; return whether this is the process that prints and writes."""
        given = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed:
            if any(part is not None for part in given):
                raise InputError("coordinator, num_processes and process_id need --distributed")
            return True
        from ufm.agreement import is_first_process, join_processes

        _keep_stdout_for_python()
        join_processes(*given)
        return is_first_process()


def predict_command(problem: Flags = ProblemFlags(), json: Json = False) -> int:
    """Print the closed form of the global optimum, without solving anything.

    Example: ufm predict --counts 5000x5,50x5 --weight-decay 5e-4
    """
    given = problem.problem()
    try:
        prediction = predict(given)
    except ClosedFormError as reason:
        _emit({"closed_form": None, "reason": str(reason)}, json, f"No closed form: {reason}")
        return 1
    _emit(_problem_dict(given) | prediction.to_dict(), json, _prediction_text(prediction))
    return 0


def solve_command(
    problem: Flags = ProblemFlags(),
    level: Annotated[
        Literal["class", "sample"], arg(help="one feature row per class, or per sample")
    ] = "class",
    solver: Annotated[str, arg(help="accelerated, sgd, momentum or adam")] = "accelerated",
    learning_rate: Annotated[float, arg(help="of sgd, momentum and adam")] = 0.1,
    precision: Literal["float64", "float32"] = "float64",
    seed: Annotated[int, arg(help="of the random start")] = 0,
    tol: Annotated[float, arg(help="relative duality gap to certify")] = 1e-8,
    max_steps: int = 100_000,
    figure: Annotated[Path | None, arg(help="PNG, PDF or SVG; None for no figure")] = Path("ufm-solve.png"),
    save: Annotated[Path | None, arg(help="npz file for features, labels, weight")] = None,
    checkpoint: Annotated[Path | None, arg(help="file to keep the state of the run in")] = None,
    resume: Annotated[bool, arg(help="go on from --checkpoint")] = False,
    processes: OmitArgPrefixes[ProcessFlags] = ProcessFlags(),
    json: Json = False,
) -> int:
    """Solve to a certified global optimum and compare it with the closed form.

    Example: ufm solve --counts 5000x5,50x5 --weight-decay 5e-4 --feature-decay 1e-5
    """
    from ufm.figures import SUFFIXES

    given = problem.problem()
    check_output("figure", figure, SUFFIXES)
    check_output("save", save)
    first = processes.join()
    from ufm.observer import collapse_observer
    from ufm.solvers import solve
    from ufm.verify import verify

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
        if first and save is not None:
            write_output(save, solution.save)
        if first and figure is not None:
            write_output(figure, report.plot)
    if not first:
        return 0 if solution.certified and report.passed else 1
    outcome = _problem_dict(given) | solution.to_dict() | {"report": report.to_dict()}
    _emit(outcome, json, _solution_text(solution, report, figure, save))
    return 0 if solution.certified and report.passed else 1


def verify_command(
    file: Positional[Path],
    counts: Annotated[str | None, arg(help="class counts; default: as in the labels")] = None,
    weight_decay: Annotated[float | None, arg(help="lambda_W; default: estimated from the margins")] = None,
    feature_decay: Annotated[float | None, arg(help="lambda_H; default: estimated from the margins")] = None,
    loss: Annotated[str, arg(help=_LOSS_HELP)] = "ce",
    features: Annotated[str, arg(help="nonnegative (after a ReLU) or free")] = "nonnegative",
    bias: Annotated[float | None, arg(help="decay of the bias in the file; 0 = unregularised")] = None,
    tol: Annotated[float | None, arg(help="relative duality gap that the point claims")] = None,
    tolerance: Annotated[
        float | None,
        arg(help="judge by this number; default: by the gap if that certifies an optimum, else 0.1"),
    ] = None,
    figure: Annotated[Path | None, arg(help="PNG, PDF or SVG; None for no figure")] = None,
    json: Json = False,
) -> int:
    """Check the last layer of any network: an npz of features, labels, weight[, bias].

    Without the two decays they are estimated, and only what has no scale is a test.

    Example: ufm solve --save layer.npz && ufm verify layer.npz
    """
    from ufm.figures import SUFFIXES
    from ufm.verify import verify

    check_output("figure", figure, SUFFIXES)
    show = not json and sys.stderr.isatty()
    with waiting(f"reading {file}", show):
        arrays = read_layer(file)
    if (weight_decay is None) != (feature_decay is None):
        raise InputError(
            "weight_decay and feature_decay must be given together, or both left out to be estimated"
        )
    problem = None
    if weight_decay is not None and feature_decay is not None:
        sizes = parse_counts(counts) if counts else counts_of(arrays["labels"], len(arrays["weight"]))
        dim = arrays["weight"].shape[1] if arrays["weight"].ndim == 2 else 1
        problem = Problem(sizes, dim, weight_decay, feature_decay, parse_loss(loss, sizes), features, bias)
    with waiting(f"verifying {len(arrays['features']):,} rows", show):
        report = verify(**arrays, problem=problem, tol=tol, tolerance=tolerance)
        if figure is not None:
            write_output(figure, report.plot)
    _emit(report.to_dict(), json, report.table())
    return 0 if report.passed else 1


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The training set and the two decays."""

    counts: Annotated[str, arg(help=_COUNTS_HELP)] = "cifar10-lt-100"
    weight_decay: Annotated[float, arg(help="lambda_W, on |W|^2/2")] = 5e-3
    feature_decay: Annotated[float, arg(help="lambda_H, on the sum over samples of |h|^2/2")] = 2e-4


def advise_command(
    training: OmitArgPrefixes[TrainingFlags] = TrainingFlags(),
    json: Json = False,
) -> int:
    """Say which classes will collapse, which nearly do, and what saves them.

    Example: ufm advise --counts 5000x5,50x5 --weight-decay 5e-3
    """
    from ufm.advice import advise

    advice = advise(parse_counts(training.counts), training.weight_decay, training.feature_decay)
    _emit(advice.to_dict(), json, str(advice))
    return 0


def sweep_command(
    config: Annotated[Positional[Path], arg(help="the TOML file")],
    out: Annotated[Path, arg(help="folder for the results")],
    resume: Annotated[bool, arg(help="go on with the sweep in that folder")] = False,
    process_index: Annotated[int, arg(help="which of --process-count processes this is")] = 0,
    process_count: Annotated[int, arg(help="processes that share the sweep and the folder")] = 1,
    json: Json = False,
) -> int:
    """Solve a grid of problems from a TOML file; killed at any moment, it resumes.

    Example: ufm sweep ratios.toml --out ratios, where ratios.toml holds

    problem = { counts = "exp:K=10,n_max=5000", dim = 16 }

    axes = { "counts.ratio" = [1, 10, 100], nuclear_weight = [1e-3, 2e-3] }
    """
    from ufm.sweep import run_config, summary

    found = run_config(
        config,
        out,
        resume=resume,
        process_index=process_index,
        process_count=process_count,
        progress=not json and sys.stderr.isatty(),
    )
    certified = int(found.certified.sum())
    outcome = {"out": str(out), "members": int(found.certified.size), "certified": certified}
    _emit(outcome, json, f"{summary(found)}\nResults in {out}")
    return 0 if certified == found.certified.size else 1


def figures_command(
    directory: Annotated[Positional[Path], arg(help="what ufm sweep wrote to")],
    format: Annotated[
        Literal["png", "pdf", "svg"], arg(help="of the files; pdf and svg are vectors")
    ] = "png",
    json: Json = False,
) -> int:
    """Draw a sweep, complete or not, into its folder: solved beside predicted.

    Curves along one numeric axis or maps over two; a figure per value of others.

    Example: ufm figures ratios, after ufm sweep ratios.toml --out ratios
    """
    from ufm.sweep import draw_figures, open_dataset

    with waiting(f"drawing {directory}", not json and sys.stderr.isatty()):
        status = open_dataset(directory).status.values
        paths = [str(path) for path in draw_figures(directory, f".{format}")]
    computed = int(np.sum(status != "missing"))
    lines = [
        f"{computed} of {status.size} members computed",
        *(f"Figure written to {path}" for path in paths),
    ]
    _emit({"figures": paths, "members": status.size, "computed": computed}, json, "\n".join(lines))
    return 0


#: What to install where a package is missing: all that the command needs, not one at a time.
_EXTRAS = {"xarray": "xarray zarr", "zarr": "xarray zarr"}
_SMALLER = "try --level class, --precision float32, a smaller --dim, or more devices"

COMMANDS: dict[str, Callable[..., Any]] = {
    "predict": predict_command,
    "solve": solve_command,
    "verify": verify_command,
    "advise": advise_command,
    "sweep": sweep_command,
    "figures": figures_command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; bad input is one sentence on stderr, never a traceback."""
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="ufm",
            description=(
                "Unconstrained-feature models of neural collapse under class imbalance.\n\n"
                "Example: ufm solve    (a default problem: solved, certified, verified, drawn)"
            ),
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except InputError as error:
        print(f"ufm: {error}", file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"ufm: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as missing:
        print(
            f"ufm: this needs {missing.name}: pip install {_EXTRAS.get(missing.name or '', missing.name)}",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"ufm: not enough memory ({str(error).splitlines()[0]}): {_SMALLER}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("ufm: interrupted", file=sys.stderr)
        return 130


def _keep_stdout_for_python() -> None:
    """Send to stderr what compiled libraries write to stdout, as those that connect processes do."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = ours


def _emit(outcome: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(outcome, allow_nan=False) if as_json else text, flush=True)


def _problem_dict(problem: Problem) -> dict[str, Any]:
    return {
        "counts": problem.counts.tolist(),
        "dim": problem.dim,
        "weight_decay": problem.weight_decay,
        "feature_decay": problem.feature_decay,
        "loss": repr(problem.loss),
        "features": problem.features,
        "bias_decay": problem.bias,
    }


def _prediction_text(prediction: Prediction) -> str:
    columns = {
        "|h|": prediction.norms,
        "|w|": prediction.weight_norms,
        "margin": prediction.margins,
        "": np.where(prediction.collapsed, "collapsed", ""),
    }
    return "\n".join(
        [
            describe(prediction.problem),
            "",
            class_table(prediction.problem.counts, columns),
            "",
            f"{prediction.num_collapsed} of {prediction.problem.num_classes} classes collapse.",
            f"Optimal value P* = {prediction.objective:.12g}",
            _wrap(f"Closed form: {prediction.theorem}"),
        ]
    )


def _solution_text(solution: Any, report: Any, figure: Path | None, save: Path | None) -> str:
    certificate, measured, prediction = solution.certificate, report.measured, report.prediction
    columns = {"|h|": measured.norms, "|w|": measured.weight_norms, "margin": measured.margins}
    if prediction is not None:
        expected = (prediction.norms, prediction.weight_norms, prediction.margins)
        pairs = zip(columns.items(), expected, strict=True)
        columns = {
            key: value for (name, seen), due in pairs for key, value in ((name, seen), (f"{name}*", due))
        }
    lines = [
        describe(solution.problem),
        "",
        _wrap(f"Status: {solution.status} after {solution.steps} steps. {solution.status.sentence}"),
        f"Objective   {certificate.objective:.14g}",
        f"Lower bound {certificate.lower_bound:.14g} (relative gap {certificate.relative_gap:.1e})",
        "",
        class_table(solution.problem.counts, columns),
        *(["Columns with * are the closed form."] if prediction is not None else []),
        "",
        report.table(),
    ]
    lines += [f"Figure written to {figure}"] if figure else []
    lines += [f"Solution written to {save}"] if save else []
    return "\n".join(lines)


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _rule(name: str, learning_rate: float) -> Any:
    """Return the step rule called ``name``."""
    import optax

    from ufm.solvers.accelerated import Accelerated
    from ufm.solvers.projected_gradient import ProjectedGradient
    from ufm.validation import one_of, positive_float

    rate = positive_float("learning_rate", learning_rate)
    rules: dict[str, Callable[[], Any]] = {
        "accelerated": Accelerated,
        "sgd": lambda: ProjectedGradient(optax.sgd(rate)),
        "momentum": lambda: ProjectedGradient(optax.sgd(rate, momentum=0.9)),
        "adam": lambda: ProjectedGradient(optax.adam(rate)),
    }
    return rules[one_of("solver", name, tuple(rules))]()
