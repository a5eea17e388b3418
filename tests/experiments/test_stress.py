"""Every start is certified, and a verifier that shares no code agrees; the verifier itself catches planted lies."""

import dataclasses
import json

import numpy as np
import pytest

import ufm
from experiments.common import Outputs
from experiments.figures import landscape
from experiments.stress import independent, trials

TRUE = ufm.Problem([300, 100, 30, 5], 6, 1e-2, 1e-3)


@pytest.fixture(scope="module")
def true_claim():
    return independent.Claim.of(ufm.solve(TRUE))


def test_the_verifier_agrees_with_a_true_claim(true_claim):
    opinion = independent.judge(true_claim)
    assert opinion.complaints == ()
    assert opinion.optimum == pytest.approx(ufm.predict(TRUE).objective, rel=1e-13)
    assert abs(opinion.relative_gap) <= 1e-12


LIES = {
    "a feature is negative": lambda claim: {"features": claim.features - 1e-9},
    "the objective is not what was reported": lambda claim: {"objective": claim.objective * (1 - 1e-10)},
    "the reported lower bound is above the optimal value": lambda claim: {
        "lower_bound": claim.lower_bound * (1 + 1e-10)
    },
    "the reported gap is larger than asked": lambda claim: {"lower_bound": claim.lower_bound * (1 - 1e-7)},
    "the verifier's gap is larger than asked": lambda claim: {"weight": claim.weight * (1 + 1e-3)},
    "certified, but farther from the optimal value than asked": lambda claim: {
        "features": claim.features * (1 + 1e-3)
    },
    "something is not finite": lambda claim: {"weight": np.full_like(claim.weight, np.nan)},
}


@pytest.mark.parametrize("lie", LIES)
def test_the_verifier_catches(lie, true_claim):
    assert lie in independent.judge(dataclasses.replace(true_claim, **LIES[lie](true_claim))).complaints


def test_the_verifier_catches_a_certificate_for_a_stuck_point():
    problem = landscape.PROFILES["100, ..., 500"]
    starts = (ufm.solve(problem, seed=seed, escapes=False) for seed in range(20))
    solution = next(solution for solution in starts if not solution.certified)
    honest = independent.Claim.of(solution)
    assert independent.judge(honest).complaints == ()
    forged = dataclasses.replace(honest, certified=True, lower_bound=honest.objective)
    complaints = independent.judge(forged).complaints
    assert "the reported lower bound is above the optimal value" in complaints
    assert "the verifier's gap is larger than asked" in complaints


@pytest.mark.parametrize("seed", range(20))
def test_the_verifiers_bound_holds_at_any_point(seed):
    """Weak duality, with the closed form as the judge: no point's bound exceeds the optimal value."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 1000, 5)
    problem = ufm.Problem(counts, 5, *10 ** rng.uniform(-5, -1, 2))
    claim = independent.Claim(
        counts,
        problem.weight_decay,
        problem.feature_decay,
        rng.normal(size=(5, 5)) * 10 ** rng.uniform(-2, 1),
        np.abs(rng.normal(size=(5, 5))),
        1.0,
        0.0,
        False,
        1e-8,
    )
    logits = claim.features @ claim.weight.T
    best = ufm.predict(problem).objective
    assert 0 <= independent.lower_bound(claim, logits) <= best * (1 + 1e-12)
    assert independent.objective(claim, logits) >= best
    labels = np.arange(5)
    seen = ufm.certify(problem, claim.weight, claim.features, labels)
    assert independent.objective(claim, logits) == pytest.approx(seen.objective, rel=1e-12)


def test_shapes_take_turns_and_problems_are_the_same_in_every_run():
    every = trials.shapes(trials.CLASSES, 2000)
    assert every[:1500] == trials.shapes(trials.CLASSES, 1500)
    assert {K for K, _ in every} == set(trials.CLASSES)
    assert len(set(every)) == sum(len(trials.dimensions(K)) for K in trials.CLASSES)
    assert trials.random_problem(7, (5, 10)) == trials.random_problem(7, (5, 10))
    assert trials.random_problem(7, (5, 10)) != trials.random_problem(8, (5, 10))


@pytest.mark.parametrize("number", range(12))
def test_random_problems_are_certified_and_the_verifier_agrees(number):
    record = trials.solve_and_judge(number, [(3, 3), (10, 10)][number % 2])
    assert record["complaints"] == []
    assert not trials.failed(record), record


@pytest.mark.slow
@pytest.mark.parametrize("number", [42, 1012, 1645])
def test_problems_that_once_climbed_or_crept(number):
    """Hundreds of classes, decays of 1e-8 and less: steps that forget a wall and leap into it never get done."""
    shape = trials.shapes(trials.CLASSES, 2000)[number]
    record = trials.solve_and_judge(number, shape)
    assert record["complaints"] == []
    assert not trials.failed(record), record
    assert record["steps"] <= 5000


def test_an_interrupted_run_continues_and_the_table_counts_failures(tmp_path, capsys):
    out = tmp_path / "stress.jsonl"
    records = [trials.solve_and_judge(number, (3, 3)) for number in range(3)]
    records[1] |= {"status": "stalled"}
    records[2] |= {"complaints": ["a feature is negative"]}
    out.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert trials.main(problems=3, jobs=1, outputs=Outputs(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED") == 2
    assert printed.splitlines()[1].split()[3:7] == ["3", "2", "1", "0"]
    records[1] |= {"status": "certified"}
    records[2] |= {"complaints": []}
    assert "FAILED" not in trials.summary(records)


def test_a_stuck_point_is_explained():
    problem = landscape.PROFILES["100, ..., 500"]
    method = landscape.METHODS["accelerated, no escapes"]
    solution = next(s for seed in range(20) if not (s := landscape.run(problem, method, seed)).certified)
    found = landscape.stuck_point(solution)
    norms = np.linalg.norm(solution.features, axis=1)
    assert found["living"] == 10
    assert set(found["at_zero"]) == set(np.flatnonzero(norms < 1e-6 * norms.max()))
    assert set(found["at_zero"]) <= set(found["without_own"])
    assert found["without_own"]


def test_success_rates_count_what_happened():
    profile, method = next(iter(landscape.PROFILES)), "Adam"
    records = [
        {"profile": profile, "dim": dim, "method": method, "seed": seed, "certified": seed < won}
        for dim, won in ((10, 1), (20, 4))
        for seed in range(4)
    ]
    assert landscape.rates(records, profile, method) == [(10, 1, 4), (20, 4, 4)]


DIMS = (10, 12, 20, 80)  # K, K + 2, 2 K, 8 K


def failures(dim, seeds):
    found = []
    for profile, problem in landscape.PROFILES.items():
        for seed in seeds:
            solution = ufm.solve(problem.replace(dim=dim), seed=seed)
            opinion = independent.judge(independent.Claim.of(solution))
            if not solution.certified or opinion.complaints:
                found.append((profile, seed, str(solution.status), solution.certificate, opinion.complaints))
    return found


def test_two_profiles_have_collapsed_and_living_classes():
    collapsed = [int(ufm.predict(problem).collapsed.sum()) for problem in landscape.PROFILES.values()]
    assert collapsed[:2] == [0, 0]
    assert all(0 < number < 10 for number in collapsed[2:])


@pytest.mark.parametrize(
    "dim", [pytest.param(dim, marks=[] if dim == 10 else pytest.mark.slow) for dim in DIMS]
)
def test_some_starts_on_every_profile_are_certified(dim):
    assert failures(dim, range(3)) == []


@pytest.mark.slow
@pytest.mark.parametrize("dim", DIMS)
def test_a_hundred_starts_on_every_profile_are_certified(dim):
    assert failures(dim, range(100)) == []
