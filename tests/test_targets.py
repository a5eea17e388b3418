"""Builders of soft targets, and what sweeps, verification and the command line make of them."""

import json

import numpy as np
import pytest
from helpers.figures import objections
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import ufm
from ufm import targets
from ufm.cli import main
from ufm.inputs.checks import InputError
from ufm.plots.contexts import context_figure
from ufm.sweeps.grid import make_grid

COUNTS = [50, 20, 5]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 999), min_size=2, max_size=6),
    st.floats(0, 0.99),
    st.sampled_from(targets.KINDS),
    st.floats(0.1, 5),
)
def test_rows_are_distributions_and_samples_are_kept(counts, flip, kind, alpha):
    for made in (targets.noisy(counts, flip, kind), targets.mixup(counts, alpha)):
        np.testing.assert_allclose(made.targets.sum(axis=1), 1, atol=1e-14)
        assert made.targets.min() >= 0
        assert made.counts.sum() == pytest.approx(sum(counts), rel=1e-12)
    # mixing changes no class's share of the targets
    np.testing.assert_allclose(made.counts @ made.targets, counts, rtol=1e-12)


def test_mixup_has_the_moments_of_its_law():
    """Beta(a, a): the second moment of a share is (a+1)/(2(2a+1))."""
    alpha, made = 0.4, targets.mixup([1, 1], 0.4, points=3)
    mixed = (made.targets > 0).all(axis=1)
    second = made.counts[mixed] @ made.targets[mixed, 0] ** 2 / made.counts[mixed].sum()
    assert second == pytest.approx((alpha + 1) / (2 * (2 * alpha + 1)), rel=1e-12)


def test_flips_are_where_they_belong():
    np.testing.assert_allclose(targets.noisy(COUNTS, 0.2, "pair").targets[0], [0.8, 0.2, 0.0])
    np.testing.assert_allclose(targets.noisy(COUNTS, 0.2, "pair").targets[2], [0.2, 0.0, 0.8])
    np.testing.assert_allclose(targets.noisy(COUNTS, 0.2).targets[2], [0.1, 0.1, 0.8])


def test_next_tokens_of_a_text():
    table, names = targets.bigrams(["a", "b", "a", "c", "a", "b", "a", "b"])
    contexts = targets.next_token(sparse.csr_matrix(table))
    assert names == ["a", "b", "c"]
    assert contexts.of.tolist() == [0, 1, 1]  # b and c are both always followed by a
    assert contexts.counts.tolist() == [4, 3]
    np.testing.assert_allclose(contexts.targets, [[0, 0.75, 0.25], [1, 0, 0]])


def test_sets_of_labels_that_are_the_same_become_one():
    made = targets.multilabel([(0, 2), [1], (2, 0)], [3, 4, 5])
    assert made.counts.tolist() == [8, 4]
    np.testing.assert_allclose(made.targets, [[0.5, 0, 0.5], [0, 1, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: targets.noisy(COUNTS, 1.0), "flip must be"),
        (lambda: targets.noisy(COUNTS, 0.1, "cyclic"), "kind must be"),
        (lambda: targets.multilabel([(0,), ()], [1, 2]), "patterns must be"),
        (lambda: targets.multilabel([(0,), (3,)], [1, 2], 2), "labels from 0 to 1"),
        (lambda: targets.multilabel([(-1, 3), (0,)], [5, 3]), "labels from 0 to 3, got -1"),
        (lambda: targets.mixup(COUNTS, 0), "alpha must be"),
        (lambda: targets.next_token([1, 2]), "pairs must be"),
        (lambda: targets.parse_targets("noise", COUNTS), "targets must be one of"),
        (lambda: targets.read_targets("missing.npz", COUNTS), "targets must be an npz file"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_files_are_read(tmp_path):
    rows, file = targets.noisy(COUNTS, 0.2, "pair").targets, str(tmp_path / "given.npz")
    np.savez(file, targets=rows, counts=COUNTS)
    assert targets.read_targets(file, [1, 2]).counts.tolist() == COUNTS
    sparse.save_npz(file, sparse.csr_matrix(rows))
    np.testing.assert_array_equal(targets.read_targets(file, COUNTS).targets, rows)


def test_flips_are_an_axis_of_sweeps():
    fixed = {"counts": "50x2,5x2", "dim": 4, "weight_decay": 1e-3, "feature_decay": 1e-3}
    members = list(make_grid(fixed, {"targets.flip": [0.0, 0.3]}).members())
    assert members[0].problem == ufm.Problem([50, 50, 5, 5], 4, 1e-3, 1e-3)
    assert members[1].problem.loss.smoothing == pytest.approx(0.4)
    assert len({member.key for member in members}) == 2
    assert members[1].command().endswith("--targets noise:0.3")
    with pytest.raises(InputError, match="targets of a sweep must be"):
        next(make_grid(fixed | {"targets": "mixup:1"}, {}).members())


def test_verification_judges_what_a_gap_says_of_contexts():
    contexts = targets.next_token([[5, 3, 0], [0, 6, 2], [1, 1, 1], [0, 0, 7], [1, 2, 0], [2, 2, 2]])
    given = {"dim": 6, "weight_decay": 2e-2, "feature_decay": 2e-3, "features": "free"}
    problem = ufm.Problem(contexts.counts, targets=contexts.targets, **given)
    solution = ufm.solve(problem, progress=lambda record: None)
    report = ufm.verify(solution)
    assert report.passed
    assert report["excess"].measured == pytest.approx(solution.excess)
    assert objections(context_figure(report)) == []
    assert max(map(len, str(report).splitlines())) <= 80
    json.dumps(report.to_dict(), allow_nan=False)
    uneven = ufm.verify(
        features=solution.features / 2,
        labels=solution.labels,
        weight=2 * solution.weight,
        problem=problem,
        tol=1e-8,
    )
    assert uneven["balance"].verdict == "fail"
    assert uneven["duality gap"].verdict == "fail"
    moved = ufm.verify(
        features=solution.features,
        labels=solution.labels,
        weight=solution.weight + 0.01 * np.eye(*solution.weight.shape),
        problem=problem,
        tol=1e-8,
    )
    for name in ("Gram matrix of features", "Gram matrix of classifier", "probabilities"):
        assert (report[name].verdict, moved[name].verdict) == ("pass", "fail")
    np.testing.assert_allclose(
        report.measured.spectra["features"][:2], report.measured.spectra["classifier"][:2]
    )


def test_the_command_line_takes_noise_and_files(tmp_path, capsys):
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    file = str(tmp_path / "given.npz")
    np.savez(file, targets=rows, counts=[9, 8, 7, 3, 2])
    flags = [
        "--dim",
        "6",
        "--features",
        "free",
        "--weight-decay",
        "1e-2",
        "--feature-decay",
        "1e-2",
        "--json",
    ]
    assert main(["solve", "--targets", file, *flags, "--figure", "None", "--forget"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["contexts"], found["logits"], found["status"]) == (5, 3, "certified")
    assert main(["solve", "--targets", file, "--noise", "0.1"]) != 0
    assert "noise and targets exclude each other" in capsys.readouterr().err
