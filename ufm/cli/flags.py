"""Flags that several commands share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from ufm.inputs.checks import InputError, positive_float
from ufm.losses.by_name import LOSS_FORMS, parse_loss
from ufm.model.problem import Problem
from ufm.profiles import parse_counts, remark
from ufm.solvers.rules import parameters_of, rule_names, rule_parameters, takers
from ufm.solvers.settings import SETTINGS, Setting, check_settings
from ufm.targets import TARGET_FORMS, read_targets
from ufm.text import wrapped
from ufm.theory.prototypes import parse_frame

LOSS_HELP = "a name, or name:number for e, g, t, b, m other than these: " + "; ".join(
    f"{name if default is None else f'{name}:{default:g}'} ({meaning})"
    for name, (default, meaning, _) in LOSS_FORMS.items()
)
COUNTS_HELP = (
    "class counts: 5000x5,50x5; a profile: cifar10-lt-100, imagenet-lt (reconstructed), "
    "exp:K=10,n_max=5000,ratio=100; or a file: CSV, text, JSON, a list 'path label'"
)

TARGETS_HELP = (
    "distributions in the place of labels: "
    + "; ".join(f"{name}:NUMBER ({meaning})" for name, (meaning, _) in TARGET_FORMS.items())
    + "; or an npz file with targets (a row per context; or a SciPy sparse matrix), and counts if not --counts"
)


@dataclasses.dataclass(frozen=True)
class ProblemFlags:
    """The problem. The default is CIFAR-10-LT with the three smallest classes past the collapse threshold."""

    counts: Annotated[str, arg(help=COUNTS_HELP)] = "cifar10-lt-100"
    dim: Annotated[int, arg(help="feature dimension d")] = 64
    weight_decay: Annotated[float, arg(help="lambda_W, on |W|^2/2")] = 5e-3
    feature_decay: Annotated[float, arg(help="lambda_H, on the sum over samples of |h|^2/2")] = 2e-4
    loss: Annotated[str, arg(help=LOSS_HELP)] = "ce"
    features: Annotated[str, arg(help="nonnegative (or relu: after a ReLU) or free")] = "nonnegative"
    bias: Annotated[float | None, arg(help="decay of a bias; 0 = unregularised; None = no bias")] = None

    targets: Annotated[str | None, arg(help=TARGETS_HELP)] = None
    noise: Annotated[
        float | None, arg(help="labels are wrong with this probability: --targets noise:FLIP")
    ] = None

    classifier: Annotated[
        str | None,
        arg(help="a fixed frame for W: etf:LENGTH (simplex ETF) or frame:LENGTH (orthogonal rows)"),
    ] = None

    def problem(self) -> Problem:
        """Return the validated problem."""
        for name in ("weight_decay", "feature_decay"):
            positive_float(name, getattr(self, name))  # before counts that may take long to make
        counts = parse_counts(self.counts)
        loss, targets = parse_loss(self.loss, counts), self.targets
        if self.noise is not None:
            if targets is not None:
                raise InputError("noise and targets exclude each other; give one")
            targets = f"noise:{self.noise!r}"
        rows = None
        if targets is not None:
            counts, rows, _ = read_targets(targets, counts)
        about = (self.dim, self.weight_decay, self.feature_decay, loss, self.features, self.bias)
        frame = None if self.classifier is None else parse_frame(self.classifier, len(counts), self.dim)
        return Problem(counts, *about, targets=rows, classifier=frame)

    def notes(self) -> list[str]:
        """Return what is to be said about the counts."""
        return [wrapped(note) for note in (remark(self.counts),) if note]


def _setting_flag(name: str, setting: Setting) -> tuple[str, Any, Any]:
    """Return name, annotated type and default of a setting's flag; parameters of step rules are None if not given."""
    if not setting.of_rules:
        meaning = rule_names() if name == "solver" else setting.meaning
        return name, Annotated[setting.kind, arg(help=meaning)], setting.default
    meaning = f"{setting.meaning}, of {takers(name)}; None: {setting.default}"
    return name, Annotated[setting.kind | None, arg(help=meaning)], None


if TYPE_CHECKING:
    SolverFlags = Any
else:
    SolverFlags = dataclasses.make_dataclass(
        "SolverFlags",
        [_setting_flag(name, setting) for name, setting in SETTINGS.items()],
        namespace={"__doc__": "How it is solved."},
        frozen=True,
    )


def given_settings(flags: SolverFlags) -> dict[str, Any]:
    """Return the settings as arguments of `ufm.solve`, checked before anything waits for JAX."""
    chosen = dataclasses.asdict(flags)
    check_settings(chosen)
    parameters_of(chosen["solver"], rule_parameters(chosen))
    return {name: value for name, value in chosen.items() if not (SETTINGS[name].of_rules and value is None)}


Flags = OmitArgPrefixes[ProblemFlags]
Forget = Annotated[bool, arg(help="do not keep compiled programs for the next run (UFM_COMPILED=off: never)")]
Style = Annotated[Literal["paper", "screen"], arg(help="figure at a page's width, or half as large again")]
Panel = Annotated[str | None, arg(help="letter of a single panel of the figure, at a column's width")]
Json = Annotated[bool, arg(help="print one JSON object and nothing else")]
