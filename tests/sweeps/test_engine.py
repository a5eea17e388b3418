import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import few_daily

import ufm
from ufm.duality.certificate import certificates
from ufm.model.objective import Variables
from ufm.model.problem import row_labels
from ufm.model.stack import Stack, random_start
from ufm.model.stack import member as points_at
from ufm.solvers.batch import sizes
from ufm.solvers.compiled import chunk_of_many
from ufm.solvers.escape import escape_all
from ufm.sweeps.batch_work import solve_together
from ufm.sweeps.grid import make_grid
from ufm.sweeps.member import build_member
from ufm.sweeps.plan import plan

SMALL = {"counts": "40x2,10x2", "dim": 6}
SGD = {"solver": "sgd", "learning_rate": 0.5, "max_steps": 400, "escapes": False}
TIGHT = {"counts": "100x2,200x2,300x2,400x2,500x2", "dim": 10, "weight_decay": 1e-4, "feature_decay": 1e-5}


def certify_many(members, points):
    stack = Stack([member.problem for member in members], members[0].level)
    limits = [member.limits for member in members]
    tol, residual = (np.array([getattr(limit, name) for limit in limits]) for name in ("tol", "residual"))
    return certificates(stack, points, tol, residual)


def members_of(fixed, axes):
    return list(make_grid(fixed, axes).members())


def alone(member):
    fields = member.fields
    return ufm.solve(
        member.problem,
        member.level,
        member.rule,
        fields["seed"],
        fields["tol"],
        fields["max_steps"],
        precision=member.precision,
        escapes=fields["escapes"],
        residual_tol=fields["residual_tol"],
    )


def optimum(problem):
    """The global optimum in closed form: every living class on an axis of its own."""
    prediction = ufm.predict(problem)
    features = np.pad(np.diag(prediction.norms), ((0, 0), (0, problem.dim - problem.num_classes)))
    norms = np.where(prediction.norms > 0, prediction.norms, np.inf)
    weight = np.pad((prediction.logits / norms[:, None]).T, ((0, 0), (0, problem.dim - problem.num_classes)))
    return Variables(weight, features)


def rmax(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


@pytest.mark.parametrize(
    "fixed",
    [
        SMALL,
        pytest.param(SMALL | {"features": "free", "bias": 0.01}, marks=pytest.mark.slow),
        pytest.param(
            SMALL | {"level": "sample", "counts": "6x2,3x2", "loss": "weighted:0.5"}, marks=pytest.mark.slow
        ),
        pytest.param(
            SMALL | SGD | {"precision": "float32", "tol": 1e-4, "loss": "mse", "bias": 0.0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda fixed: "-".join(
        str(value) for name, value in fixed.items() if name not in ("dim", "max_steps")
    ),
)
def test_a_member_ends_where_it_ends_alone(fixed):
    axes = {"nuclear_weight": [3e-3, 2e-2], "seed": [0, 1]}
    members = members_of(fixed, axes)
    digits = 1e-3 if fixed.get("precision") == "float32" else 1e-5
    for member, end in zip(members, solve_together(members, 8), strict=True):
        solution = alone(member)
        assert end.status is solution.status
        assert end.certificate.objective == pytest.approx(
            solution.objective, rel=1e-8 if digits < 1e-4 else 1e-5
        )
        mine = end.variables.features @ end.variables.weight.T
        assert rmax(mine, solution.features @ solution.weight.T) < digits
        if end.status is ufm.Status.MAX_STEPS:
            assert end.steps == solution.steps == 400


@pytest.mark.slow
def test_a_loss_that_is_not_convex_ends_stationary_and_certified_where_its_gap_closes():
    for end in solve_together(
        members_of(SMALL | {"loss": "focal:2", "nuclear_weight": 3e-3}, {"seed": [0, 1, 2]}), 8
    ):
        closed = end.certificate.certifies(1e-8)
        assert end.status is (ufm.Status.CERTIFIED if closed else ufm.Status.NO_CERTIFICATE)
        assert end.certificate.residual <= 1e-7
        assert end.certificate.lower_bound <= end.certificate.objective * (1 + 1e-12)


def test_every_member_is_certified_by_the_certificate_itself():
    members = members_of(SMALL, {"nuclear_weight": np.geomspace(1e-3, 1e-1, 12)})
    for member, end in zip(members, solve_together(members, 32), strict=True):
        again = ufm.certify(
            member.problem, end.variables.weight, end.variables.features, row_labels(member.problem, "class")
        )
        assert end.status is ufm.Status.CERTIFIED
        assert again.certifies(1e-8)
        assert again.objective == pytest.approx(end.certificate.objective, rel=1e-13)


@pytest.fixture(scope="module")
def without_escapes():
    """Members from many starts that may not escape, some of them stuck, and their ends."""
    members = members_of(TIGHT | {"escapes": False, "max_steps": 2000}, {"seed": list(range(32))})
    return members, solve_together(members, 64)


@pytest.mark.slow
def test_escape_moves_work_inside_a_sweep(without_escapes):
    _, stuck = without_escapes
    free = solve_together(members_of(TIGHT, {"seed": list(range(32))}), 64)
    lost = [end.status is not ufm.Status.CERTIFIED for end in stuck]
    assert sum(lost) >= 2
    assert all(end.status is ufm.Status.CERTIFIED for end in free)
    assert all(end.escapes > 0 for end, was_lost in zip(free, lost, strict=True) if was_lost)
    assert all(end.escapes == 0 for end in stuck)


def test_one_escape_for_many_lowers_every_objective(without_escapes):
    members, ends = without_escapes
    stuck = [i for i, end in enumerate(ends) if end.status is not ufm.Status.CERTIFIED]
    chosen = [members[i] for i in stuck]
    points = Variables(
        *(np.stack([getattr(ends[i].variables, name) for i in stuck]) for name in ("weight", "features"))
    )
    found = escape_all(Stack([member.problem for member in chosen], "class"), points)
    moves = [move.point for move in found]
    before = certify_many(chosen, points)
    for member, move, old in zip(chosen, moves, before, strict=True):
        assert np.all(move.features >= 0)
        new = ufm.certify(member.problem, move.weight, move.features, np.arange(10))
        assert new.objective < old.objective - 1e-3 * old.gap


KINDS = ["ce", "mse", "smoothing:0.1", "weighted:0.5", "adjustment:1", "cdt:0.2"]


@pytest.mark.parametrize("loss", few_daily(KINDS, (0, 5)))
def test_stacked_certificates_are_those_of_one(loss):
    axes = {"nuclear_weight": np.geomspace(1e-3, 1e-1, 5), "counts.ratio": [1.0, 3.0, 9.0]}
    members = members_of({"counts": "step:K=4,n_max=90", "dim": 5, "loss": loss}, axes)
    known = loss.split(":")[0] not in ("adjustment", "cdt")
    start = optimum if known else lambda problem: random_start(problem, "class", 0)
    planted = [start(member.problem) for member in members]
    rng = np.random.default_rng(0)
    for noise in (0.0, 1e-6, 1e-1):
        points = Variables(
            np.stack([point.weight + noise * rng.standard_normal((4, 5)) for point in planted]),
            np.stack([np.abs(point.features + noise * rng.standard_normal((4, 5))) for point in planted]),
        )
        for i, (member, mine) in enumerate(zip(members, certify_many(members, points), strict=True)):
            point = points_at(points, i)
            one = ufm.certify(member.problem, point.weight, point.features, np.arange(4))
            assert mine.objective == pytest.approx(one.objective, rel=1e-14)
            assert mine.residual == pytest.approx(one.residual, rel=1e-6, abs=1e-13)
            assert mine.polar >= one.polar * (1 - 1e-12)
            assert mine.lower_bound <= mine.objective * (1 + 1e-13)
            if known:
                best = ufm.predict(member.problem).objective
                assert mine.lower_bound <= best * (1 + 1e-13)  # never above the optimum
                assert noise > 1e-3 or mine.certifies(1e-8 if noise == 0 else 1e-4)


def test_infeasible_and_overflowing_points_get_no_stacked_certificate():
    members = members_of(SMALL, {"nuclear_weight": [3e-3, 1e-2]})
    planted = [optimum(member.problem) for member in members]
    weight, features = (
        np.stack([getattr(point, name) for point in planted]) for name in ("weight", "features")
    )
    assert all(
        certificate.certifies(1e-8) for certificate in certify_many(members, Variables(weight, features))
    )
    features[0, 0, 0] = -1e-12
    weight[1, 0, 0] = np.nan
    for certificate in certify_many(members, Variables(weight, features)):
        assert not certificate.certifies(1.0)


def test_the_width_changes_nothing():
    axes = {"nuclear_weight": np.geomspace(1e-3, 1e-1, 21)}
    members = members_of(SMALL, axes)
    wide, narrow = solve_together(members, 32), solve_together(members, 8)
    backwards = solve_together(members[::-1], 32)[::-1]
    for others in (narrow, backwards):
        for a, b in zip(wide, others, strict=True):
            assert a.status is b.status is ufm.Status.CERTIFIED
            assert a.steps == b.steps
            np.testing.assert_allclose(a.variables.weight, b.variables.weight, rtol=1e-9, atol=1e-12)


def test_steps_are_those_of_single_solves():
    members = members_of(SMALL, {"nuclear_weight": np.geomspace(1e-3, 1e-2, 6)})
    for member, end in zip(members, solve_together(members, 8), strict=True):
        assert end.steps == alone(member).steps


def test_an_overflow_ends_one_member_and_spares_the_others():
    fixed = SMALL | {"nuclear_weight": 3e-3, "solver": "sgd", "max_steps": 200}
    members = [build_member(fixed | {"learning_rate": 1.0}) for _ in range(3)]
    wild = build_member(fixed | {"learning_rate": 1.0, "decay_ratio": 1e250})
    ends = solve_together([*members, wild], 8)
    assert [end.status for end in ends[:3]] == [ends[0].status] * 3
    assert math.isfinite(ends[0].certificate.objective)
    assert ends[3].status is ufm.Status.NONFINITE
    assert ends[0].steps > 0


def test_limits_are_those_of_each_member():
    members = [
        build_member(SMALL | {"nuclear_weight": 3e-3, "max_steps": steps}) for steps in (1, 30, 100_000)
    ]
    ends = solve_together(members, 8)
    assert [end.steps for end in ends[:2]] == [1, 30]
    assert [end.status for end in ends] == ["max_steps", "max_steps", "certified"]
    loose = [
        build_member(SMALL | {"nuclear_weight": 3e-3, "tol": 1e-2, "residual_tol": tol})
        for tol in (1e-1, 1e-9)
    ]
    rough, exact = solve_together(loose, 8)
    assert rough.steps < exact.steps
    assert exact.certificate.residual <= 1e-9


@pytest.mark.slow
def test_fewer_dimensions_than_classes_end_stalled():
    members = members_of(SMALL | {"dim": 2, "counts": "40x4"}, {"nuclear_weight": [1e-3, 1e-2]})
    for end in solve_together(members, 8):
        assert end.status is ufm.Status.STALLED
        assert end.certificate.relative_gap > 1e-3


def test_compilations_are_bounded_by_the_sizes():
    members = members_of(
        {"counts": "30,7", "dim": 2}, {"nuclear_weight": np.geomspace(1e-3, 1e-1, 20), "seed": [0, 1]}
    )
    before = chunk_of_many._cache_size()
    solve_together(members, 32)
    assert 1 <= chunk_of_many._cache_size() - before <= len(sizes(16, 1))
    solve_together(members[::-1], 32)
    assert chunk_of_many._cache_size() - before <= len(sizes(16, 1))


def test_sizes_shrink_to_few_and_divide_among_devices():
    assert sizes(256, 1) == [16, 64, 256]
    for width in range(1, 70):
        for devices in (1, 2, 4):
            found = sizes(width, devices)
            assert found[-1] >= width
            assert all(size % devices == 0 for size in found)
            assert len(found) <= 1 + math.log(max(found[-1], 2), 3)


def test_float64_stays_inside():
    assert not jax.config.jax_enable_x64
    solve_together(members_of(SMALL, {"nuclear_weight": [3e-3]}), 8)
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32


def test_batches_hold_members_of_one_shape():
    axes = {"dim": [5, 6], "loss": ["ce", "mse", "smoothing:0.1"], "seed": [0, 1, 2, 3, 4]}
    members = members_of({"counts": "9x4", "nuclear_weight": 1e-2}, axes)
    grid = make_grid({"counts": "9x4", "nuclear_weight": 1e-2}, axes)
    batches = [batch.tolist() for batch in plan(grid, 2).members]
    assert sorted(i for batch in batches for i in batch) == list(range(30))
    assert all(len(batch) <= 2 and len({members[i].shape for i in batch}) == 1 for batch in batches)
    assert batches == [batch.tolist() for batch in plan(grid, 2).members]
