"""The solver: certified optima that agree with the closed form, from every start, and a status that never lies."""

import dataclasses
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.cases import few_daily

import ufm
from ufm.model.objective import to_point
from ufm.model.stack import build_objective, random_start, scaling
from ufm.profiles import parse_counts
from ufm.solvers import compiled
from ufm.solvers.accelerated import GROWTH
from ufm.solvers.compiled import chunk_of_one
from ufm.theory import collapse_counts

STEP = ufm.Problem([500] * 5 + [50] * 5, 16, 5e-3, 1e-6)


def errors_against_closed_form(solution):
    """Largest relative errors of norms and margins, and the largest cosine between class means."""
    prediction, counts = ufm.predict(solution.problem), solution.problem.counts
    labels = solution.labels
    means = np.stack([solution.features[labels == k].mean(axis=0) for k in range(len(counts))])
    logits = means @ solution.weight.T
    margins = np.diagonal(logits) - np.where(np.eye(len(counts)) == 1, -np.inf, logits).max(axis=1)
    alive = ~prediction.collapsed
    norms = np.linalg.norm(means, axis=1)
    unit = means[alive] / norms[alive][:, None]
    gram = solution.weight @ solution.weight.T
    return {
        "norms": np.max(np.abs(norms / np.where(alive, prediction.norms, 1) - 1)[alive], initial=0),
        "weight_norms": np.max(np.abs(np.sqrt(np.diagonal(gram)) / prediction.weight_norms - 1)),
        "margins": np.max(np.abs(margins / np.where(alive, prediction.margins, 1) - 1)[alive], initial=0),
        "cosines": np.max(np.abs(unit @ unit.T - np.eye(alive.sum())), initial=0),
        "gram_weights": np.max(np.abs(gram - prediction.gram_weights)) / np.max(prediction.gram_weights),
        "collapsed": np.max(norms[~alive], initial=0) / max(norms.max(), 1e-300),
    }


PUBLISHED = {
    "icml2024-cifar10": (parse_counts("1000x2,2000x2,3000x2,4000x2,5000x2"), 1024, "class"),
    "icml2024-mnist": (parse_counts("100x2,200x2,300x2,400x2,500x2"), 256, "sample"),
    "step": (parse_counts("500x5,50x5"), 64, "class"),
    "cifar100-lt-100": (parse_counts("cifar100-lt-100"), 512, "class"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "step" else pytest.mark.slow) for name in PUBLISHED],
)
def test_published_settings_are_certified_and_every_verdict_passes(name):
    counts, dim, level = PUBLISHED[name]
    decays = {
        "icml2024-cifar10": (2e-4, 2 * 1e-5 * 256 / 30_000),
        "icml2024-mnist": (2e-4, 2 * 1e-5 * 256 / 3_000),
        "step": (5e-3, 1e-6),
        "cifar100-lt-100": (5e-4, 1e-4),
    }[name]
    # the smallest margin of the longest tail is thousands of times as far off as the residual
    solution = ufm.solve(ufm.Problem(counts, dim, *decays), level=level, residual_tol=1e-10)
    prediction = ufm.predict(solution.problem)
    assert solution.status is ufm.Status.CERTIFIED
    assert solution.certificate.relative_gap <= 1e-8
    assert abs(solution.objective - prediction.objective) <= 1e-8 * prediction.objective
    report = ufm.verify(solution)
    assert report.passed, report.table()
    assert all(row.verdict in ("pass", "info") for row in report.rows), report.table()
    if level == "class":
        assert max(errors_against_closed_form(solution).values()) <= 1e-6, errors_against_closed_form(
            solution
        )


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_both_levels_reach_the_same_value(seed):
    problem = STEP.replace(counts=[40, 30, 20, 10], dim=6)
    values = [ufm.solve(problem, level=level, seed=seed).objective for level in ("class", "sample")]
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert values[0] == pytest.approx(ufm.predict(problem).objective, rel=1e-10)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("smallest", [20, 100])
def test_collapse_threshold_to_the_sample(offset, smallest):
    """The class at the threshold collapses with one sample fewer and exactly there, and lives with one more."""
    counts = [400, 300, 200, smallest + offset]
    strength = (smallest + 1e-9 * smallest) * 3 / 4  # c such that n = smallest is the last count to collapse
    decay = np.sqrt(strength) / sum(counts)
    problem = ufm.Problem(counts, 6, decay, decay)
    assert collapse_counts(problem)[3] == pytest.approx(smallest, rel=1e-6)
    solution = ufm.solve(problem, tol=1e-12)
    prediction = ufm.predict(problem)
    assert prediction.collapsed.tolist() == [False, False, False, offset <= 0]
    assert solution.certified
    report = ufm.verify(solution)
    assert report.passed, report.table()
    norms = np.linalg.norm(solution.features, axis=1)
    if offset:
        assert (norms[3] < 1e-4 * norms[0]) == (offset < 0)
        assert 3 not in report.unresolved_classes
    else:
        assert 3 in report.unresolved_classes or norms[3] < 1e-3 * norms[0]


@pytest.mark.parametrize(
    ("dim", "starts"), [(10, 5), *(pytest.param(dim, 20, marks=pytest.mark.slow) for dim in (10, 16))]
)
def test_every_start_reaches_the_global_optimum(dim, starts):
    """A few starts; the slow tests of `test_stress` take more of them, in more dimensions."""
    problem = ufm.Problem([100] * 2 + [200] * 2 + [300] * 2 + [400] * 2 + [500] * 2, dim, 1e-4, 1e-5)
    for seed in range(starts):
        solution = ufm.solve(problem, seed=seed)
        assert solution.certified, (seed, solution.status, solution.certificate)


def test_plain_gradient_gets_stuck_where_escape_moves_do_not():
    problem = ufm.Problem([500] * 5 + [100] * 5, 10, 2.5e-3, 2.5e-3)
    stuck = [ufm.solve(problem, seed=seed, escapes=False) for seed in range(6)]
    assert all(solution.status is ufm.Status.STALLED for solution in stuck)
    assert all(solution.certificate.relative_gap > 1e-3 for solution in stuck)
    for start in stuck:
        solution = ufm.solve(problem, start=start)
        assert solution.certified
        assert any(record["event"] for record in solution.history)


def test_escape_moves_never_increase_the_objective():
    problem = ufm.Problem([500] * 5 + [100] * 5, 10, 2.5e-3, 2.5e-3)
    seen = 0
    for seed in range(10):
        history = ufm.solve(problem, seed=seed).history
        for before, after in itertools.pairwise(history):
            if after["event"]:
                seen += 1
                assert after["objective"] < before["objective"]
                assert after["step"] == before["step"]
    assert seen >= 5


@pytest.mark.parametrize("level", ["class", "sample"])
def test_a_start_at_zero_is_left(level):
    problem = STEP.replace(counts=[40, 30, 26, 4], dim=6)
    rows = 4 if level == "class" else 100
    solution = ufm.solve(problem, level=level, start=(np.zeros((4, 6)), np.zeros((rows, 6))))
    assert solution.certified
    assert solution.objective == pytest.approx(ufm.predict(problem).objective, rel=1e-8)


DEGENERATE = {
    "all collapsed": ufm.Problem([30, 20, 10], 3, 1.0, 1.0),
    "two classes": ufm.Problem([1000, 3], 2, 1e-4, 1e-4),
    "two classes, collapsed": ufm.Problem([1000, 3], 2, 1e-2, 1e-2),
    "one sample each": ufm.Problem([1, 1, 1, 1], 6, 1e-2, 1e-2),
    "counts 1 to 1e7": ufm.Problem([10**k for k in range(8)], 8, 1e-6, 1e-10),
    "counts 1 to 1e7, tiny decays": ufm.Problem([10**k for k in range(8)], 8, 1e-12, 1e-12),
    "tiny decays": ufm.Problem([500, 50, 5], 3, 1e-12, 1e-12),
    "large decays": ufm.Problem([500, 50, 5], 3, 10.0, 10.0),
    "unequal decays": ufm.Problem([500, 50, 5], 3, 10.0, 1e-12),
    "balanced": ufm.Problem([100] * 6, 6, 1e-3, 1e-5),
}


#: The largest of them run with the slow tests.
LARGE = ("counts 1 to 1e7", "counts 1 to 1e7, tiny decays", "balanced")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else []) for name in DEGENERATE]
)
def test_degenerate_problems_are_certified(name):
    for seed in range(3):
        solution = ufm.solve(DEGENERATE[name], seed=seed, max_steps=20_000)
        assert solution.certified, (seed, solution.status, solution.certificate)
        assert solution.objective == pytest.approx(ufm.predict(DEGENERATE[name]).objective, rel=1e-8)
        assert np.all(np.isfinite(solution.features))
        assert np.all(np.isfinite(solution.weight))


@pytest.mark.parametrize("dim", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_too_few_dimensions_stall_honestly(dim):
    solution = ufm.solve(STEP.replace(dim=dim))
    assert solution.status is ufm.Status.STALLED
    assert solution.certificate.relative_gap > 1e-3
    assert solution.certificate.residual < 1e-6
    assert solution.certificate.lower_bound <= ufm.predict(STEP).objective * (1 + 1e-12)
    assert "dim" in solution.status.sentence


def test_a_fixed_point_is_no_overflow():
    """Once the iterates stop moving there is no curvature to observe: the step must not become infinite."""
    problem = STEP.replace(counts=[100, 20, 3], dim=1)
    solution = ufm.solve(problem, tol=1e-300, residual_tol=1e-300, max_steps=5000, record_every=500)
    assert not any(record["event"] for record in solution.history if "overflow" in str(record["event"]))
    assert solution.status in (ufm.Status.STALLED, ufm.Status.MAX_STEPS)


@pytest.mark.parametrize(
    "seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.slow)], ids=["few", "more"]
)
def test_ten_digits_are_the_norm_in_float64(seeds):
    gaps = [ufm.solve(STEP, seed=seed).certificate.relative_gap for seed in seeds]
    assert max(gaps) <= 1e-10


def test_float32_reaches_1e_5_and_leaves_no_trace():
    solutions = [ufm.solve(STEP, seed=seed, tol=1e-5, precision="float32") for seed in range(10)]
    assert all(solution.certified for solution in solutions)
    assert solutions[0].features.dtype == np.float64
    assert max(abs(solution.objective / ufm.predict(STEP).objective - 1) for solution in solutions) <= 1e-5


def test_the_callers_jax_settings_are_left_alone():
    before = jax.config.jax_enable_x64
    solution = ufm.solve(STEP)
    assert jax.config.jax_enable_x64 == before
    assert jax.numpy.ones(1).dtype == (np.float64 if before else np.float32)
    assert solution.weight.dtype == np.float64


def test_one_compilation_serves_every_problem_of_a_shape():
    ufm.solve(STEP)
    compiled = chunk_of_one._cache_size()
    for weight_decay in (1e-3, 1e-4):
        for seed in range(2):
            ufm.solve(STEP.replace(weight_decay=weight_decay), seed=seed)
    assert chunk_of_one._cache_size() == compiled


def test_looking_more_often_changes_nothing():
    often = ufm.solve(STEP, record_every=7, max_steps=70, tol=1e-15, escapes=False)
    rarely = ufm.solve(STEP, record_every=35, max_steps=70, tol=1e-15, escapes=False)
    np.testing.assert_array_equal(often.features, rarely.features)


def test_same_seed_same_answer_other_seed_other_start():
    first, again, other = (ufm.solve(STEP, seed=seed, max_steps=1, tol=1e-15) for seed in (0, 0, 1))
    assert np.array_equal(first.features, again.features)
    assert not np.allclose(first.features, other.features)


OPTIMISERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(1e-2),
}


@pytest.mark.parametrize("name", few_daily(OPTIMISERS, (1,)))
def test_optax_transformations_descend_to_the_optimum(name):
    problem = ufm.Problem([40, 20, 10], 8, 5e-2, 1e-3)
    rule = ufm.ProjectedGradient(OPTIMISERS[name], coordinates="balanced")
    solution = ufm.solve(problem, solver=rule, tol=1e-6, residual_tol=1.0, max_steps=50_000)
    assert solution.certified, solution.certificate
    assert np.all(solution.features >= 0)


def test_natural_coordinates_are_the_fields_training():
    """One SGD step in (W, H) is W - rate dP/dW, H - rate dP/dH clipped at zero."""
    problem = ufm.Problem([4, 2], 3, 1e-2, 1e-3)
    rng = np.random.default_rng(0)
    weight, features = rng.normal(size=(2, 3)), np.abs(rng.normal(size=(6, 3)))
    rule = ufm.ProjectedGradient(optax.sgd(0.5), coordinates="natural")
    solution = ufm.solve(
        problem, "sample", solver=rule, start=(weight, features), max_steps=1, tol=1e-15, escapes=False
    )
    labels = np.repeat([0, 1], [4, 2])
    residual = problem.loss.gradient(features @ weight.T, labels) / 6
    np.testing.assert_allclose(
        solution.weight, weight - 0.5 * (residual.T @ features + 1e-2 * weight), rtol=1e-12
    )
    expected = np.maximum(features - 0.5 * (residual @ weight + 1e-3 * features), 0)
    np.testing.assert_allclose(solution.features, expected, rtol=1e-12)


def test_statuses_say_what_happened():
    few = ufm.solve(STEP, max_steps=3)
    assert (few.status, few.steps) == (ufm.Status.MAX_STEPS, 3)
    focal = ufm.solve(STEP.replace(loss=ufm.Focal(2.0)))
    assert focal.status is ufm.Status.CERTIFIED
    assert focal.certificate.residual <= 1e-7
    wild = ufm.ProjectedGradient(optax.sgd(1e300), coordinates="natural")
    overflow = ufm.solve(STEP, solver=wild)
    assert overflow.status is ufm.Status.NONFINITE
    assert np.all(np.isfinite(overflow.features))
    assert all(status.sentence for status in ufm.Status)


def test_progress_and_observers_see_every_record():
    records = []
    solution = ufm.solve(
        STEP,
        progress=records.append,
        observe=lambda variables, labels: {"largest": float(variables.features.max())},
    )
    assert tuple(records) == solution.history
    assert all(record["largest"] > 0 for record in records)
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "batch"}, "level must be one of auto, class, group, sample; got 'batch'"),
        ({"tol": 0.0}, "tol must be a finite number above 0, got 0.0"),
        ({"tol": float("nan")}, "tol must be a finite number above 0, got nan"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"precision": "float16"}, "precision must be one of float64, float32; got 'float16'"),
        ({"start": (np.zeros((2, 2)), np.zeros((10, 16)))}, "start weight must have shape"),
        ({"start": (np.full((10, 16), np.nan), np.zeros((10, 16)))}, "start weight must be finite"),
    ],
)
def test_bad_arguments_name_the_argument(arguments, message):
    with pytest.raises(ufm.InputError, match=message.replace("(", "\\(")):
        inspect.unwrap(ufm.solve)(STEP, **arguments)  # without the run-time type checks of the test suite


@dataclasses.dataclass(frozen=True)
class Climber(ufm.Accelerated):
    """The default rule, except that steps at full length end in a leap uphill, as after a plateau."""

    leap: float = 20.0

    def step(self, objective, state):
        state = super().step(objective, state)
        far = (state.caution < 2) & (state.taken % 30 == 0)
        weight = jnp.where(far, self.leap * state.point.weight, state.point.weight)
        return state._replace(point=state.point._replace(weight=weight))


def test_a_climb_is_taken_back():
    solution = ufm.solve(STEP, solver=Climber(), record_every=10)
    assert solution.certified
    assert any("climbed" in str(record["event"]) for record in solution.history)
    objectives = [record["objective"] for record in solution.history]
    assert all(later <= 1.01 * earlier for earlier, later in itertools.pairwise(objectives))


def test_at_sample_level_a_climb_is_taken_back_to_the_last_certificate():
    """Features may fill the memory there, so the point before every chunk is not kept."""
    problem = ufm.Problem([12, 8, 4], 6, 1e-2, 1e-3)
    solution = ufm.solve(problem, "sample", solver=Climber())
    assert solution.certified
    assert sum("climbed" in str(record["event"]) for record in solution.history) in (1, 2)


@pytest.mark.parametrize("seed", few_daily(range(3), (0,)))
def test_momentum_settles_under_an_imbalance_of_200000(seed):
    """Steps a little too long for the stiffest direction went up and down for 100,000 steps, never uphill in sum."""
    problem = ufm.Problem([200_000] * 10 + [1] * 10, 40, 6e-6, 1.2e-7, features="free")
    assert ufm.solve(problem, seed=seed, max_steps=1500).certified


@pytest.mark.slow
def test_steps_grow_by_no_more_than_the_factor():
    """A window that forgets a wall must not send the next step into it: without this, runs ended in limit cycles."""
    rule, start = ufm.Accelerated(window=1), random_start(STEP, "class", 0)
    with jax.enable_x64(True):
        objective = build_objective(STEP, "class", "balanced", "float64")
        point = to_point(start, scaling(STEP, "class", "balanced"), "float64")
        state, known = rule.init(objective, point, jnp.ones(())), []
        for _ in range(40):
            state = rule.step(objective, state)
            known.append((float(state.made_for), float(jnp.max(state.curvatures))))
    assert all(later >= earlier / GROWTH for (earlier, _), (later, _) in itertools.pairwise(known))
    assert all(made_for >= seen for made_for, seen in known)
    assert any(made_for > 1.01 * seen for made_for, seen in known)


def test_problems_of_many_shapes_do_not_fill_the_process(monkeypatch):
    """Each program takes memory maps, of which a process has so many and no more."""
    monkeypatch.setattr(compiled, "MOST_PROGRAMS", 2)
    problems = [ufm.Problem([30, 10, *[5] * more], 6, 1e-2, 1e-3) for more in range(4)]
    first = [ufm.solve(problem, "class", max_steps=20).objective for problem in problems]
    assert 0 < compiled.chunk_of_one._cache_size() <= 3
    assert [ufm.solve(problem, "class", max_steps=20).objective for problem in problems] == first
