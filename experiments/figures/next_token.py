r"""Next-token prediction as a model of free features: Zipf contexts, a vocabulary, dimensions from few to all.

Every context stands for the samples that share it; its target is the distribution of the next token. Contexts are
drawn by a Zipf law, their tokens from a law of their own around a common Zipf law, so that frequent contexts have
soft targets and rare ones, seen once, hard ones: those seen with the same token are one context by Jensen's
inequality. With free features the bound holds for every d; it is attained once d reaches the rank of the optimum,
below that the gap says what a larger d could gain at most. Every dimension begins where the one before ended. A
second table is of the words of this project's README, solved in float64 to 1e-8.

    python -m experiments.figures.next_token [--quick] [--suffix pdf]
    python -m experiments.figures.next_token --vocabulary 2000 --contexts 5000 --dims 8 16 64 128 256 512 \
        --precision float32 --tol 1e-3 --max-steps 400 --no-escapes    # the full size
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from tyro.conf import OmitArgPrefixes

import ufm
from experiments.common import Outputs
from ufm.plots.style import BLACK, BLUE, GREEN, ORANGE, PAGE, PURPLE, VERMILLION, canvas
from ufm.targets import Contexts, bigrams, next_token
from ufm.text import plain_table
from ufm.verification.contexts import context_rows

README = Path(__file__).parent.parent.parent / "README.md"
#: ``N sqrt(lambda_W lambda_H)`` over the square root of the mean count of a context.
STRENGTH = 0.5
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, BLACK)


def zipf(number: int) -> np.ndarray:
    """Return probabilities proportional to one over the rank."""
    weights = 1 / np.arange(1, number + 1)
    return weights / weights.sum()


def zipf_contexts(contexts: int, vocabulary: int, samples: int, seed: int = 0) -> Contexts:
    """Return the table of pairs that so many samples give, as contexts with their targets."""
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, rng.multinomial(samples, zipf(contexts)))
    laws = rng.dirichlet(20 * zipf(vocabulary), contexts)  # few tokens each, common ones more often
    return next_token(np.stack([rng.multinomial(n, law) for n, law in zip(counts, laws, strict=True)]))


def readme_contexts(most: int) -> Contexts:
    """Return the words of the README, the most frequent ones, all others one token."""
    words = re.findall(r"[a-z]+", README.read_text(encoding="utf-8").lower())
    common = {word for word, _ in sorted(_frequencies(words).items(), key=lambda pair: -pair[1])[:most]}
    return next_token(bigrams([word if word in common else "..." for word in words])[0])


def _frequencies(words: list[str]) -> dict[str, int]:
    names, counts = np.unique(words, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def solved(
    contexts: Contexts, dims: Sequence[int], strength: float, **settings: Any
) -> Iterator[dict[str, Any]]:
    """Solve at one dimension after another, each from where the last ended, and yield what is reported.

    Args:
        contexts: the table.
        dims: feature dimensions d, ascending.
        strength: ``N sqrt(lambda_W lambda_H)`` over the square root of the mean count of a context.
        settings: of `ufm.solve`.
    """
    nuclear = strength * float(np.sqrt(contexts.counts.mean()) / contexts.counts.sum())
    problem = ufm.Problem(
        contexts.counts, dims[0], nuclear, nuclear, features="free", targets=contexts.targets
    )
    start: Any = None
    for dim in dims:
        began = time.process_time()
        problem = problem.replace(dim=dim)
        solution = ufm.solve(problem, start=start, **settings)
        yield _reported(solution, time.process_time() - began)
        more = dims[min(dims.index(dim) + 1, len(dims) - 1)] - dim
        size = 0.0 if solution.certified else 0.03
        start = tuple(_with_room(rows, more, size) for rows in (solution.weight, solution.features))


def _with_room(rows: np.ndarray, columns: int, size: float) -> np.ndarray:
    """Return rows with more columns, random ones of this relative size."""
    sizes = size * np.sqrt(np.mean(rows**2, axis=1, keepdims=True))
    return np.hstack([rows, sizes * np.random.default_rng(0).standard_normal((len(rows), columns))])


def _reported(solution: ufm.Solution, spent: float) -> dict[str, Any]:
    """Return what is reported of one dimension."""
    problem, dim = solution.problem, solution.problem.dim
    point = (solution.weight, solution.features, solution.labels, solution.bias)
    rows, described = context_rows(problem, point, solution.certificate, None)
    report = {row.name: row for row in rows}
    measured: Any = described
    found = {
        name: report[name].measured
        for name in ("distinct features", "vanished features", "rank of the logits")
    }
    apart = (
        np.abs(measured.spectra["features"] - measured.spectra["classifier"]).max(initial=0.0)
        if dim <= min(problem.num_classes, problem.num_logits)
        else np.nan
    )
    return {
        "contexts": problem.num_classes,
        "tokens": problem.num_logits,
        "dim": dim,
        "status": str(solution.status),
        "relative gap": solution.certificate.relative_gap,
        "objective": solution.objective,
        "entropy": problem.entropy,
        "excess": solution.excess,
        "lower bound of the excess": solution.certificate.lower_bound - problem.entropy,
        "steps": solution.steps,
        **found,
        "tokens that coincide": _coinciding(solution.weight),
        "W and H spectra apart": float(apart / measured.spectra["features"].max()),
        "processor seconds": spent,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "spectrum": measured.spectra["features"].tolist(),
        "counts": measured.counts.tolist(),
        "divergences": measured.divergences.tolist(),
    }


def _coinciding(rows: np.ndarray) -> int:
    """Return how many classifier rows have a twin, to a thousandth of the longest."""
    grid = np.round(rows / (1e-3 * np.linalg.norm(rows, axis=1).max()))
    _, inverse, sizes = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    return int(np.sum(sizes[inverse.reshape(-1)] > 1))


def figure(zipf_law: list[dict[str, Any]], words: list[dict[str, Any]]) -> Figure:
    """Return the figure: the gap against d, spectra, and what is left of targets by count."""
    with canvas(PAGE, 2.6) as drawn:
        gaps, spectra, left = drawn.subplots(1, 3)
        for runs, name, style in ((zipf_law, "Zipf law", "o-"), (words, "README words", "s--")):
            values = [max(run["relative gap"], 1e-14) for run in runs]
            gaps.loglog([run["dim"] for run in runs], values, style, color=BLACK, label=name, markersize=3.5)
        gaps.axhline(1e-8, color=BLACK, linewidth=0.7, linestyle=":")
        gaps.set_xscale("log", base=2)
        gaps.set(xlabel="dimension $d$", ylabel="relative duality gap")
        gaps.set_title("(a) gap; dotted: $10^{-8}$", loc="left")
        for run, colour in zip(zipf_law, COLOURS, strict=False):
            sizes = np.array(run["spectrum"])
            spectra.plot(np.arange(1, len(sizes) + 1), sizes, color=colour, label=f"$d = {run['dim']}$")
        spectra.set_xscale("log", base=2)
        spectra.set(xlabel="number", ylabel="singular value of $H$, balanced")
        spectra.set_title("(b) Zipf law: spectra", loc="left")
        for run, colour in zip(
            (zipf_law[0], zipf_law[-1]), (COLOURS[0], COLOURS[len(zipf_law) - 1]), strict=True
        ):
            left.scatter(
                run["counts"], run["divergences"], s=3, color=colour, linewidths=0, rasterized=True,
            )  # fmt: skip
        left.set_xscale("log")
        left.set(xlabel="samples of a context", ylabel=r"$\mathrm{KL}(t_c\,\|\,p_c)$ (nats)")
        left.set_ylim(bottom=0)
        left.set_title("(c) Zipf law: left of targets", loc="left")
        drawn.legend(*gaps.get_legend_handles_labels(), loc="outside lower left")
        handles, labels = spectra.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower right", ncols=3)
    return drawn


def main(
    outputs: OmitArgPrefixes[Outputs] = Outputs(),
    vocabulary: int = 200,
    contexts: int = 500,
    dims: tuple[int, ...] = (8, 16, 32, 64, 256),
    max_steps: int = 6000,
    tol: float = 1e-8,
    precision: Literal["float64", "float32"] = "float64",
    escapes: bool = True,
    quick: bool = False,
) -> int:
    """Solve at every dimension, print the table, draw; return 1 if the largest dimension is not certified.

    Args:
        outputs: where results and the picture go.
        vocabulary: tokens K.
        contexts: contexts, before those alike are merged.
        dims: feature dimensions.
        max_steps: limit; where it ends a run the gap is stated.
        tol: relative gap asked for in the Zipf table.
        precision: of its steps; the bound is in float64.
        escapes: whether to look for escape moves there, which cost as much as a hundred steps.
        quick: 40 tokens, 100 contexts, three dimensions.
    """
    results = outputs.of("next_token", quick)
    if quick:
        vocabulary, contexts, dims = 40, 100, (4, 16, 64)
    zipf = zipf_contexts(contexts, vocabulary, 10 * contexts)
    given: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "precision": precision, "escapes": escapes}
    words = [dim for dim in dims if dim <= 256]
    runs = {
        "zipf": list(solved(zipf, dims, STRENGTH, **given)),
        "readme": list(solved(readme_contexts(min(vocabulary, 200)), words, STRENGTH, max_steps=6000)),
    }
    results.save(runs)
    results.draw(figure(runs["zipf"], runs["readme"]))
    for name, found in runs.items():
        print(f"\n{name}: {found[0]['contexts']} contexts, {found[0]['tokens']} tokens")
        columns = [
            "dim",
            "status",
            "relative gap",
            "excess",
            "rank of the logits",
            "vanished features",
            "steps",
        ]
        print(
            plain_table(
                ["d", "status", "gap", "excess", "rank", "vanished", "steps"],
                [_line(run, columns) for run in found],
            )
        )
    brief = [
        {k: v for k, v in run.items() if not isinstance(v, list)} for found in runs.values() for run in found
    ]
    results.save(brief, "report")
    print(json.dumps(brief[-1], indent=1))
    return int(any(found[-1]["status"] != "certified" for found in runs.values()))


def _line(run: dict[str, Any], columns: list[str]) -> list[str]:
    return [f"{run[name]:.3g}" if isinstance(run[name], float) else str(run[name]) for name in columns]


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
