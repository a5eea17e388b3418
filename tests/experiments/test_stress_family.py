"""The judge of the whole family has formulas of its own: they agree with the package's, and it catches lies."""

import dataclasses

import jax
import numpy as np
import pytest

import ufm
from experiments.stress import family
from ufm.losses.by_name import parse_loss

COUNTS = np.array([300.0, 100.0, 30.0, 5.0])


@pytest.mark.parametrize("name", family.LOSSES)
def test_losses_written_out_are_the_losses(name):
    logits = np.random.default_rng(0).normal(size=(4, 4)) * 3
    ours = parse_loss(name, COUNTS).value(logits, np.arange(4))
    with jax.enable_x64(True):
        written = [float(family.own_loss(name, logits[k], k, COUNTS)) for k in range(4)]
    assert written == pytest.approx(ours, rel=1e-12)


def test_the_judge_confirms_a_certified_point_and_catches_lies():
    solution = ufm.solve(ufm.Problem([300, 100, 30, 5], 6, 1e-2, 1e-3))
    assert family.judge("ce", solution)["complaints"] == []
    assert family.judge("ce", solution)["judged_gap"] <= family.CONFIRMED
    moved = dataclasses.replace(solution, weight=solution.weight * 1.01)
    assert family.judge("ce", moved)["judged_gap"] > family.CONFIRMED
    assert "objective" in family.judge("ce", moved)["complaints"]
    negative = dataclasses.replace(solution, features=solution.features - 1e-3)
    assert "negative feature" in family.judge("ce", negative)["complaints"]


def test_problems_are_the_same_in_every_run_and_cover_the_family():
    drawn = [family.random_problem(number) for number in range(300)]
    assert drawn[7][1] == family.random_problem(7)[1]
    assert {name for name, _, _ in drawn} == set(family.LOSSES)
    assert {problem.features for _, problem, _ in drawn} == {"free", "nonnegative"}
    assert {given["kind"] for _, _, given in drawn} == set(family.STARTS)
    assert {given["level"] for _, _, given in drawn} == {"class", "sample"}
    assert max(problem.counts.max() for _, problem, _ in drawn) > 1e8
