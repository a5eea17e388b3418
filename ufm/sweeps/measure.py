"""What a sweep keeps of every member: certificate, geometry, prediction, and how far the two are apart.

The prediction is the closed form; where there is none, the best certified member of the same problem from another
start, if there is one in the batch: it costs nothing, and two starts that agree are worth more than one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ufm.duality.certificate import class_means
from ufm.losses import Loss
from ufm.metrics import measure, nc1, still
from ufm.model.groups import GroupPoint
from ufm.model.problem import Problem, row_labels
from ufm.solvers.status import Status
from ufm.solvers.task import Outcome
from ufm.sweeps.member import Member
from ufm.theory import Prediction, predict_each
from ufm.verification.representatives import Representatives
from ufm.verification.resolution import divergences

#: Relative gaps below this are rounding: what is judged by the gap is judged by at least this one.
SMALLEST_GAP = 1e-13
STATUSES = tuple(Status)


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of the data set: its meaning, further dimensions, and type (floats are NaN where undefined)."""

    meaning: str
    dims: tuple[str, ...] = ()
    dtype: str = "float64"

    @property
    def fill(self) -> Any:
        """What stands where nothing has been computed: NaN, -1, False or 0."""
        return {"float64": np.nan, "int8": -1, "int64": -1, "bool": False, "uint64": 0}[self.dtype]


_CLASS, _PAIR = ("class",), ("class", "other_class")
SCALARS: dict[str, Variable] = {
    "status": Variable("why the solver stopped", dtype="int8"),
    "certified": Variable("whether the duality gap certifies the global optimum", dtype="bool"),
    "steps": Variable("steps taken", dtype="int64"),
    "escapes": Variable("escape moves made", dtype="int64"),
    "objective": Variable("P at the point returned"),
    "lower_bound": Variable("D <= P*, from the dual point"),
    "relative_gap": Variable("(P - D)/P"),
    "residual": Variable("projected gradient in balanced coordinates over sqrt(2 P)"),
    "num_collapsed": Variable("classes whose margin cannot be told from 0 at this gap", dtype="int64"),
    "nc1": Variable("within-class over between-class variability (0 at class level)"),
    "nc2_h": Variable("residual of the Gram matrix of class means against the predicted"),
    "nc2_wwt": Variable("residual of the Gram matrix of the classifier against the predicted"),
    "nc3_wh": Variable("residual of the logits against the predicted"),
    "predicted_objective": Variable("P* in closed form, else of the best certified other start"),
    "predicted_num_collapsed": Variable("collapsed classes as predicted (-1: no prediction)", dtype="int64"),
    "objective_deviation": Variable("(P - P*)/P*"),
    "norm_deviation": Variable("largest | |h_k| - predicted | over the largest predicted"),
    "weight_norm_deviation": Variable("largest | |w_k| - predicted | over the largest predicted"),
    "margin_deviation": Variable("largest |margin - predicted|, in nats"),
    "collapse_mismatches": Variable("classes whose collapse differs from the predicted", dtype="int64"),
    "key": Variable("hash of the member's content", dtype="uint64"),
}
PER_CLASS: dict[str, Variable] = {
    "class_counts": Variable("samples n_k", _CLASS),
    "norms": Variable("|h_k| of the class mean", _CLASS),
    "weight_norms": Variable("|w_k|", _CLASS),
    "margins": Variable("z_kk - max_{j != k} z_kj of the class mean, in nats for softmax losses", _CLASS),
    "zero_margins": Variable("largest margin that the gap cannot tell from 0", _CLASS),
    "collapsed": Variable("margin at most zero_margins", _CLASS, "bool"),
    "weight_cosines": Variable(
        "mean cosine of w_k with the classifier rows of equally large classes", _CLASS
    ),
    "alignment": Variable("cosine of w_k and h_k; 0 for a zero feature", _CLASS),
    "predicted_norms": Variable("|h_k| as predicted", _CLASS),
    "predicted_weight_norms": Variable("|w_k| as predicted", _CLASS),
    "predicted_margins": Variable("margins as predicted", _CLASS),
    "predicted_collapsed": Variable("collapse as predicted", _CLASS, "bool"),
}
MATRICES: dict[str, Variable] = {
    "gram_features": Variable("<h_k, h_l> of class means", _PAIR),
    "gram_weights": Variable("<w_k, w_l>", _PAIR),
    "logits": Variable("W h_k + b of the class mean, class k in row k", _PAIR),
}


def variables(matrices: bool) -> dict[str, Variable]:
    """Return all variables of a data set, with or without K x K matrices."""
    return SCALARS | PER_CLASS | (MATRICES if matrices else {})


def measure_members(
    members: Sequence[Member], solved: Sequence[Outcome], matrices: bool
) -> dict[str, np.ndarray]:
    """Return every variable, one row per member of equal `Member.shape`.

    Where classes are solved for by groups, one row of a K x K matrix stands for those of its group.

    Args:
        members: the members.
        solved: where they ended.
        matrices: whether to keep K x K matrices.
    """
    kinds: dict[Any, list[int]] = {}  # groups are alike where problems are
    for i, (member, end) in enumerate(zip(members, solved, strict=True)):
        grouped = isinstance(end.point, GroupPoint)
        kinds.setdefault(member.problem if grouped else None, []).append(i)
    if len(kinds) > 1:
        places = list(kinds.values())
        parts = [
            measure_members([members[i] for i in each], [solved[i] for i in each], matrices)
            for each in places
        ]
        back = np.argsort(np.concatenate(places))
        return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
    classes, found, bias = _seen(members, solved, matrices)
    rows = _certificates(members, solved) | found
    rows |= _geometry(rows, classes, bias)
    rows["nc1"] = np.array([_nc1(member, end) for member, end in zip(members, solved, strict=True)])
    rows |= _collapse(members, rows)
    rows |= _comparison(members, rows, classes)
    return {name: rows[name].astype(variable.dtype) for name, variable in variables(matrices).items()}


def _seen(
    members: Sequence[Member], solved: Sequence[Outcome], matrices: bool
) -> tuple[Representatives, dict[str, Float[np.ndarray, "members G K"]], Any]:
    """Return which classes have rows, these rows of Gram matrices and logits, and biases or 0."""
    K = members[0].problem.num_classes
    bias: Any = 0.0
    points = [end.point for end in solved if isinstance(end.point, GroupPoint)]
    if points:
        groups = points[0].groups
        classes = Representatives.of_all(K) if matrices else Representatives(groups)
        biases = [point.bias for point in points if point.bias is not None]
        if biases:
            bias = np.stack(biases)[:, groups.of_class]
        return (
            classes,
            {name: np.stack([point.rows(name, classes.first) for point in points]) for name in MATRICES},
            bias,
        )
    labels = row_labels(members[0].problem, members[0].level)
    means = np.stack([class_means(end.variables.features, labels, K) for end in solved])
    weight = np.stack([end.variables.weight for end in solved])
    biases = [end.variables.bias for end in solved if end.variables.bias is not None]
    bias = np.stack(biases) if biases else 0.0
    logits = means @ weight.mT + (bias[:, None] if biases else 0.0)
    found = {"gram_features": means @ means.mT, "gram_weights": weight @ weight.mT, "logits": logits}
    return Representatives.of_all(K), found, bias


def _certificates(members: Sequence[Member], solved: Sequence[Outcome]) -> dict[str, np.ndarray]:
    certificates = [end.certificate for end in solved]
    return {
        "status": np.array([STATUSES.index(end.status) for end in solved]),
        "certified": np.array([end.status is Status.CERTIFIED for end in solved]),
        "steps": np.array([end.steps for end in solved]),
        "escapes": np.array([end.escapes for end in solved]),
        "objective": np.array([certificate.objective for certificate in certificates]),
        "lower_bound": np.array([certificate.lower_bound for certificate in certificates]),
        "relative_gap": np.array([certificate.relative_gap for certificate in certificates]),
        "residual": np.array([certificate.residual for certificate in certificates]),
        "key": np.array([int(member.key, 16) for member in members], dtype=np.uint64),
        "class_counts": np.stack([member.problem.counts for member in members]),
    }


def _geometry(rows: dict[str, np.ndarray], classes: Representatives, bias: Any) -> dict[str, np.ndarray]:
    """Norms, margins and cosines from Gram matrices and logits."""
    own = {name: classes.of_classes(classes.own(rows[name])) for name in MATRICES}
    norms, weight_norms = (np.sqrt(np.maximum(own[f"gram_{of}"], 0)) for of in ("features", "weights"))
    others = np.where(classes.apart, rows["logits"], -np.inf).max(axis=2)
    unit = np.where(weight_norms > 0, weight_norms, 1.0)
    cosines = rows["gram_weights"] / (unit[:, classes.first, None] * unit[:, None, :])
    lengths = norms * weight_norms
    return {
        "norms": norms,
        "weight_norms": weight_norms,
        "margins": own["logits"] - classes.of_classes(others),
        "weight_cosines": classes.of_classes(_mean_over_twins(cosines, rows["class_counts"], classes)),
        "alignment": np.where(lengths > 0, (own["logits"] - bias) / np.where(lengths > 0, lengths, 1.0), 0.0),
    }


def _mean_over_twins(
    cosines: Float[np.ndarray, "members G K"], counts: np.ndarray, classes: Representatives
) -> Float[np.ndarray, "members G"]:
    """Mean over the other classes of equal count; NaN for a class without any."""
    twins = (counts[:, classes.first, None] == counts[:, None, :]) & classes.apart
    number = twins.sum(axis=2)
    return np.where(number > 0, np.sum(cosines * twins, axis=2) / np.maximum(number, 1), np.nan)


def _nc1(member: Member, end: Outcome) -> float:
    if member.level != "sample":
        return 0.0
    labels = row_labels(member.problem, member.level)
    return nc1(measure(end.variables.features, labels, num_classes=member.problem.num_classes))


def _collapse(members: Sequence[Member], rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Decide collapse by what the gap can tell: margins that a point this close to optimal may have by chance."""
    gaps = np.maximum(rows["relative_gap"], SMALLEST_GAP) * rows["objective"]
    usable = np.isfinite(gaps)
    limits = np.where(usable, gaps, 1.0)
    within = np.stack([divergences(member.problem, gap) for member, gap in zip(members, limits, strict=True)])
    zero, undecided = np.full(within.shape, np.nan), np.zeros((len(members), 1), dtype=bool)
    for loss, places in _by_loss(members).items():  # one evaluation for all members of a loss
        bounds = loss.zero_margins(within[places])
        undecided[places] = bounds is None
        zero[places] = np.nan if bounds is None else bounds
    zero[~usable] = np.nan
    collapsed = np.where(undecided, still(rows["norms"], rows["weight_norms"]), rows["margins"] <= zero)
    return {"zero_margins": zero, "collapsed": collapsed, "num_collapsed": collapsed.sum(axis=1)}


def _by_loss(members: Sequence[Member]) -> dict[Loss, list[int]]:
    places: dict[Loss, list[int]] = {}
    for i, member in enumerate(members):
        places.setdefault(member.problem.loss, []).append(i)
    return places


def _comparison(
    members: Sequence[Member], rows: dict[str, np.ndarray], classes: Representatives
) -> dict[str, np.ndarray]:
    """Compare with the closed forms, or the certified optima of other starts; else everything is NaN, -1 or False."""
    predictions = predict_each([member.problem for member in members])
    others = _other_starts(members, predictions, rows)
    known = np.array([prediction is not None for prediction in predictions]) | (others >= 0)

    def asked(prediction: Prediction, name: Any) -> Any:
        return prediction.rows(name, classes.first) if name in MATRICES else getattr(prediction, name)

    def stacked(name: str) -> np.ndarray:
        own = rows[name]
        nothing = np.full(own.shape[1:], np.nan)
        seen = [own[i] if i >= 0 else nothing for i in others]
        return np.stack([x if p is None else asked(p, name) for p, x in zip(predictions, seen, strict=True)])

    found = {f"predicted_{name}": stacked(name) for name in ("objective", "norms", "weight_norms", "margins")}
    collapsed = stacked("collapsed")
    found["predicted_collapsed"] = np.where(known[:, None], collapsed, 0)
    found["predicted_num_collapsed"] = np.where(known, found["predicted_collapsed"].sum(axis=1), -1)
    mismatches = np.sum(rows["collapsed"] != found["predicted_collapsed"], axis=1)
    found["collapse_mismatches"] = np.where(known, mismatches, -1)
    found["objective_deviation"] = rows["objective"] / found["predicted_objective"] - 1
    for name in ("norms", "weight_norms"):
        found[f"{name[:-1]}_deviation"] = _relative(rows[name], found[f"predicted_{name}"])
    found["margin_deviation"] = np.max(np.abs(rows["margins"] - found["predicted_margins"]), axis=1)
    alive = ~np.all(rows["collapsed"], axis=1)
    for residual, name in (("nc2_h", "gram_features"), ("nc2_wwt", "gram_weights"), ("nc3_wh", "logits")):
        measured = rows[name] * alive[:, None, None]  # what cannot be told from zero has no direction
        parts = (_directions(classes.times(matrices)) for matrices in (measured, stacked(name)))
        found[residual] = np.linalg.norm(np.subtract(*parts), axis=(1, 2))
    return found


def _other_starts(
    members: Sequence[Member], predictions: Sequence[Prediction | None], rows: dict[str, np.ndarray]
) -> Int[np.ndarray, " members"]:
    """Return for every member without a theorem the best certified other one of its problem, or -1."""
    gaps = np.where(rows["certified"], rows["relative_gap"], np.inf)
    found = np.full(len(members), -1)
    alike: dict[Problem, list[int]] = {}
    for i in np.argsort(gaps, kind="stable"):
        if predictions[i] is None and np.isfinite(gaps[i]):
            alike.setdefault(members[i].problem, []).append(int(i))
    for i, (member, prediction) in enumerate(zip(members, predictions, strict=True)):
        if prediction is None:
            found[i] = next((j for j in alike.get(member.problem, []) if j != i), -1)
    return found


def _relative(
    measured: Float[np.ndarray, "members K"], predicted: np.ndarray
) -> Float[np.ndarray, " members"]:
    """Largest difference over the largest predicted value, or absolute where all are predicted to be zero."""
    largest = predicted.max(axis=1)
    return np.max(np.abs(measured - predicted), axis=1) / np.where(largest > 0, largest, 1.0)


def _directions(matrices: Float[np.ndarray, "members G K"]) -> Float[np.ndarray, "members G K"]:
    """Return matrices over their Frobenius norms, as in `ufm.metrics.direction_residual`; zero ones stay zero."""
    lengths = np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    return matrices / np.where(lengths > 0, lengths, 1.0)
