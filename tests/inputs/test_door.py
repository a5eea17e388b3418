"""Everything public, called with everything wrong: only `InputError` ever comes out, or an answer."""

import inspect
import resource
from fractions import Fraction

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ufm
from ufm import InputError, conventions, metrics
from ufm.metrics.nearest_mean import NearestMeanAgreement
from ufm.theory import ClosedFormError

PROBLEM = ufm.Problem([4, 3, 2], 4, 5e-2, 1e-2)
LABELS = np.repeat(np.arange(3), PROBLEM.counts)
LAYER = {"features": np.eye(3, 4)[LABELS], "labels": LABELS, "weight": np.eye(3, 4) - 1 / 3}
STATISTICS = metrics.measure(**LAYER)
DECAYS = conventions.Decays(1e-2, 1e-3)
START = (LAYER["weight"], np.eye(3, 4))
TRAINING = {"num_samples": 100, "batch_size": 10, "reduction": "sum", "loss_scale": 1.0}

#: Every public function that takes what users have, with arguments that are right.
CALLS = {
    "certify": (ufm.certify, {"problem": PROBLEM, **LAYER}),
    "separability": (
        ufm.separability,
        {**LAYER, "bias": np.zeros(3), "weighting": "pairs", "pairs": 9, "seed": 0},
    ),
    "verify": (ufm.verify, {**LAYER, "problem": PROBLEM, "tol": 1e-3, "tolerance": 0.1}),
    "verify statistics": (ufm.verify, {"statistics": STATISTICS, "problem": PROBLEM}),
    "measure": (
        metrics.measure,
        {**LAYER, "bias": np.zeros(3), "multiplicities": np.ones(9), "num_classes": 3},
    ),
    "FeatureStatistics": (ufm.FeatureStatistics, {"num_classes": 3, "dim": 4, "weight": LAYER["weight"]}),
    "update": (
        STATISTICS.update,
        {"features": LAYER["features"], "labels": LABELS, "multiplicities": np.ones(9)},
    ),
    "merge": (STATISTICS.merge, {"other": STATISTICS}),
    "NearestMeanAgreement": (NearestMeanAgreement, {"statistics": STATISTICS, "logit_ties": 0.0}),
    "predict": (ufm.predict, {"problem": PROBLEM}),
    "advise": (ufm.advise, {"counts": [4, 3], "weight_decay": 1e-2, "feature_decay": 1e-3}),
    "Problem": (
        ufm.Problem,
        {
            "counts": [4, 3],
            "dim": 3,
            "weight_decay": 1e-2,
            "feature_decay": 1e-3,
            "loss": ufm.MSE(),
            "features": "free",
            "bias": 0.0,
        },
    ),
    "Problem of contexts": (
        ufm.Problem,
        {"counts": [4, 3], "dim": 3, "weight_decay": 1e-2, "feature_decay": 1e-3, "targets": np.eye(2, 3)},
    ),
    "Problem of prototypes": (
        ufm.Problem,
        {"counts": [4, 3], "dim": 3, "weight_decay": 1e-2, "feature_decay": 1e-3, "classifier": np.eye(2, 3)},
    ),
    "simplex_etf": (ufm.simplex_etf, {"num_classes": 3, "dim": 4, "length": 1.0}),
    "orthogonal_frame": (ufm.orthogonal_frame, {"num_classes": 3, "dim": 4, "length": 1.0}),
    "SupervisedContrastive": (
        ufm.SupervisedContrastive,
        {"counts": [4, 3], "dim": 3, "temperature": 0.5, "radius": 1.0},
    ),
    "LayerPeeled": (
        ufm.LayerPeeled,
        {"counts": [4, 3], "dim": 3, "weight_cap": 1.0, "feature_cap": 5.0, "features": "nonnegative"},
    ),
    **{
        f"targets.{name}": (getattr(ufm.targets, name), arguments)
        for name, arguments in {
            "merged": {"counts": [3, 2], "targets": np.eye(2)},
            "noisy": {"counts": [3, 2], "flip": 0.1, "kind": "pair"},
            "multilabel": {"patterns": [(0,), (0, 1)], "counts": [3, 2], "num_labels": 3},
            "mixup": {"counts": [3, 2], "alpha": 1.0, "points": 2},
            "next_token": {"pairs": np.eye(3)},
            "bigrams": {"tokens": list("abab")},
        }.items()
    },
    "collapse_observer": (ufm.collapse_observer, {"problem": PROBLEM}),
    "trace_caps": (conventions.trace_caps, LAYER),
    "Decays": (conventions.Decays, {"weight_decay": 1.0, "feature_decay": 1.0}),
    "from_training": (conventions.from_training, {"weight_penalty": 1.0, "feature_penalty": 1.0, **TRAINING}),
    "to_training": (conventions.to_training, {"decays": DECAYS, **TRAINING}),
    "from_icml2024_code": (
        conventions.from_icml2024_code,
        {"weight_penalty": 1.0, "feature_penalty": 1.0, "num_samples": 300},
    ),
    "to_icml2024_code": (conventions.to_icml2024_code, {"decays": DECAYS, "num_samples": 300}),
    "from_nuclear": (conventions.from_nuclear, {"weight": 1.0, "ratio": 1.0}),
    "to_nuclear": (conventions.to_nuclear, {"decays": DECAYS}),
    **{
        name: (getattr(metrics, name), {"statistics": STATISTICS})
        for name in (
            "accuracy",
            "between_spectrum",
            "between_trace",
            "cdnv",
            "class_logits",
            "margins",
            "mean_cross_entropy",
            "nc1",
            "nc1_sum",
            "nc1_unweighted",
            "squared_distances",
            "variance_ratio",
        )
    },
    **{name: (getattr(metrics, name), {"rows": np.eye(3, 4)}) for name in ("cosines", "gram", "norms")},
    "paired_cosines": (metrics.paired_cosines, {"rows": np.eye(3, 4), "others": np.eye(3, 4)}),
    "norm_ratios": (metrics.norm_ratios, {"values": np.ones(3)}),
    "logit_margins": (metrics.logit_margins, {"logits": np.eye(3)}),
    "collapsed": (metrics.collapsed, {"values": np.ones(3), "threshold": 0.1}),
    "direction_residual": (metrics.direction_residual, {"measured": np.eye(3), "predicted": np.eye(3)}),
    "classifier_from_means": (
        metrics.classifier_from_means,
        {"means": np.eye(3, 4), "counts": np.ones(3), "directions": np.eye(3)},
    ),
    "solve": (ufm.solve, {"problem": PROBLEM, "start": START, "seed": 0, "tol": 1e-6, "max_steps": 300}),
    "LabelSmoothing": (ufm.LabelSmoothing, {"smoothing": 0.1}),
    "WeightedCrossEntropy": (ufm.WeightedCrossEntropy, {"class_weights": np.ones(3)}),
    "LogitAdjustment": (ufm.LogitAdjustment, {"adjustments": np.ones(3)}),
    "LDAM": (ufm.LDAM, {"margins": np.ones(3), "scale": 1.0}),
    "Poly1": (ufm.Poly1, {"epsilon": 1.0}),
    "Focal": (ufm.Focal, {"gamma": 2.0}),
    **{
        f"profiles.{name}": (getattr(ufm.profiles, name), parameters)
        for name, parameters in {
            "balanced": {"K": 3, "n": 4},
            "step": {"K": 3, "n_max": 40, "ratio": 10, "major": 1},
            "exponential": {"K": 3, "n_max": 40, "ratio": 10},
            "zipf": {"K": 3, "n_max": 40, "exponent": 1.0},
            "pareto": {"K": 3, "N": 60, "n_max": 40, "n_min": 4},
            "parse_counts": {"text": "5,4"},
        }.items()
    },
}

SCALARS = [
    None,
    True,
    3,
    -1,
    0,
    2**63 - 1,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    1j,
    Fraction(1, 3),
    "",
    "names",
    b"x",
    object(),
    ...,
]
SHAPES = [(), (0,), (3,), (9,), (9, 1), (0, 4), (9, 0), (3, 4), (4, 9), (9, 4), (3, 3), (9, 3), (2, 3, 4)]
TYPES = [
    "f2",
    "f4",
    ">f8",
    "g",
    "i1",
    "i8",
    "u8",
    "?",
    "c16",
    "O",
    "U3",
    "S2",
    "M8[s]",
    "m8[D]",
    "V4",
    ml_dtypes.bfloat16,
]
FILLS = [0, 1, -1, 0.5, 2**63 - 1, np.nan, np.inf, 1e300]


class Odd:
    """Looks like an array until it is used."""

    shape = (9, 4)

    def __array__(self, *_, **__):
        raise OSError("lost")

    def __getitem__(self, part):
        raise KeyError(part)


FORMS = ["plain", "turned", "reversed", "strided", "masked", "list", "jax", "read-only"]


def array_of(kind, shape, fill, form):
    """An array of a type, shape, order and content that somebody might have."""
    with np.errstate(all="ignore"):
        try:
            array = np.full(shape, fill).astype(kind)
        except (OverflowError, TypeError, ValueError):
            array = np.zeros(shape, kind)
    if form == "turned":
        return array.T
    if form == "reversed" and array.ndim:
        return array[::-1]
    if form == "strided" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    if form == "masked":
        return np.ma.array(array)
    if form == "list":
        return array.tolist()
    if form == "jax" and array.dtype.kind == "f" and array.dtype.itemsize <= 4:
        return jnp.asarray(array)
    array.flags.writeable = form != "read-only"
    return array


LABELS_WRONG = [
    np.array([0, 1, 2] * 2),
    np.array([2**63 - 1, *[0] * 8]),
    np.full(9, -1),
    LABELS + 1,
    LABELS + 0.5,
    LABELS.astype(float),
    np.array(list("aabbbcccc")),
    np.eye(3)[LABELS],
    LABELS[:, None],
    LABELS.tolist(),
    LABELS.astype(np.uint8),
]
OBJECTS = [[[1, 2], [3]], {"a": 1}, {1, 2}, PROBLEM, STATISTICS, ufm.CrossEntropy, np.eye, Odd(), iter([1])]
#: Values that are ready, or what to make an array of.
anything = st.one_of(
    st.sampled_from([(lambda value=value: value) for value in (*SCALARS, *LABELS_WRONG, *OBJECTS)]),
    st.builds(
        lambda *parts: lambda: array_of(*parts),
        *map(st.sampled_from, (TYPES, SHAPES, FILLS, FORMS)),
    ),
)


def answer(call, arguments):
    """Call without the type checks of the test run; return what came out, `InputError` included."""
    inner = inspect.unwrap(call) if inspect.isfunction(call) else call
    try:
        return inner(**arguments)
    except (InputError, ClosedFormError) as sentence:
        return sentence


def test_right_arguments_are_right():
    for name, (call, arguments) in CALLS.items():
        assert not isinstance(answer(call, dict(arguments)), InputError), name


def call_with_something(name, data):
    call, arguments = CALLS[name]
    wrong = data.draw(st.sampled_from(sorted(arguments)))
    value = data.draw(anything)()
    found = answer(call, arguments | {wrong: value})
    array = isinstance(value, np.ndarray) and value.ndim > 0  # a number in an array is a number
    never = array and (isinstance(value, np.ma.MaskedArray) or value.dtype.kind in "cmM")
    assert isinstance(found, InputError | ClosedFormError) or not never, (wrong, value)


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_only_input_errors_come_out(name, data):
    call_with_something(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@settings(
    deadline=None, derandomize=True, max_examples=5000 // len(CALLS) + 1, suppress_health_check=[*HealthCheck]
)
@given(data=st.data())
def test_five_thousand_calls(name, data):
    call_with_something(name, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < BEFORE + 2 * 2**20


BEFORE = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("problem", 3),
        ("solver", 1),
        ("solver", ufm.Accelerated),
        ("start", 3),
        ("start", (1, 2)),
        ("start", (START[0] * 1j, START[1])),
        ("start", (np.ma.array(START[0]), START[1])),
        ("observe", 1),
        ("progress", 1),
        ("checkpoint", 3),
        ("checkpoint", "a\0b"),
        ("devices", 3),
        ("devices", []),
        ("level", 3),
        ("seed", 0.5),
        ("tol", "1e-8"),
        ("max_steps", 1e3),
        ("precision", np.float32),
        ("record_every", 0),
        ("residual_tol", Fraction(-1, 3)),
    ],
)
def test_solve_names_the_argument(argument, value):
    with pytest.raises(InputError, match=argument):
        inspect.unwrap(ufm.solve)(**({"problem": PROBLEM} | {argument: value}))


def test_labels_beyond_the_rows_or_the_classes_never_reach_the_sums():
    """These have corrupted memory, and given an objective below its own lower bound."""
    point = {"problem": PROBLEM, "weight": LAYER["weight"], "features": np.eye(3, 4)}
    for labels in ([0, 1, 2**63 - 1], [0, 1, -1], [0, 1, 2, 0, 1, 2], [0, 1]):
        with pytest.raises(InputError, match="labels must"):
            inspect.unwrap(ufm.certify)(**point, labels=labels)


def test_floats_of_every_kind_say_the_same():
    features = np.round(LAYER["features"] + 0.25, 2)
    wanted = ufm.certify(PROBLEM, LAYER["weight"], features, LABELS)
    for kind in ("f2", "f4", ">f8", ml_dtypes.bfloat16):
        for array in (
            features.astype(kind),
            np.asfortranarray(features.astype(kind)),
            features.astype(kind).tolist(),
        ):
            assert inspect.unwrap(ufm.certify)(PROBLEM, LAYER["weight"], array, LABELS.tolist()) == wanted


def test_hints_say_what_to_type():
    check = inspect.unwrap(metrics.measure)
    for labels, hint in (
        (
            np.array(list("aabbbbbbb")),
            r"each of the 3 classes, got 2 names; .* numpy.unique\(names, return_inverse",
        ),
        (np.eye(3)[LABELS], "argmax"),
        (LABELS[:, None], r"labels\[:, 0\]"),
        (LABELS + 1, "subtract 1"),
        (np.where(LABELS == 0, -1, LABELS), "keep = labels >= 0"),
    ):
        with pytest.raises(InputError, match=hint):
            check(LAYER["features"], labels, LAYER["weight"])
    with pytest.raises(InputError, match="scatter=False"):
        ufm.FeatureStatistics(2, 10**7)
