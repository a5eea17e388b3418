"""``ufm advise``: which classes collapse, and what saves them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from ufm.cli.flags import COUNTS_HELP, Json, ProblemFlags
from ufm.cli.output import emit
from ufm.conventions import from_training
from ufm.inputs.checks import InputError
from ufm.inputs.files import counts_of
from ufm.inputs.layers import read_layer
from ufm.profiles import parse_counts, remark
from ufm.text import wrapped

#: What a training script is missing, and how to get it.
NEEDED = (
    "feature_decay must be given, and a training script rarely has one: train once, save features, labels and "
    "weight, and pass --measured layer.npz (or the decays that `ufm verify layer.npz` estimates)"
)
CAVEAT = (
    "Predictions are global optima: near its threshold a network may still lose a class that lives here (one "
    "trained at weight decay 4e-2 lost two); with a fixed ETF margins of networks were 1 to 1.3 nats off."
)


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The training set and the decays: given, taken from a training script, or measured."""

    counts: Annotated[
        str | None, arg(help=f"{COUNTS_HELP}; default: those of --measured, else {ProblemFlags.counts}")
    ] = None
    weight_decay: Annotated[float | None, arg(help="lambda_W, on |W|^2/2")] = None
    feature_decay: Annotated[
        float | None, arg(help="lambda_H, on the sum over samples of |h|^2/2 (with --batch-size: of a batch)")
    ] = None
    torch_weight_decay: Annotated[
        float | None,
        arg(help="weight_decay of SGD or Adam on all layers (not AdamW): lambda_W, and classes pay"),
    ] = None
    batch_size: Annotated[
        int | None, arg(help="the feature decay stands in a training step, on the sum over such a batch")
    ] = None
    measured: Annotated[
        Path | None,
        arg(aliases=["--like"], help="npz of a trained last layer: decays and charge are estimated from it"),
    ] = None
    charge: Annotated[
        str | None,
        arg(
            help="who pays for features: sample, class, or the exponent g; default: as measured, class with a torch "
            "weight decay, else sample"
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class _Training:
    """What `ufm.advise` takes, and sentences that say where it comes from."""

    counts: Any
    weight_decay: float
    feature_decay: float
    charge: float
    notes: tuple[str, ...] = ()
    assumed: bool = False


def advise_command(
    training: OmitArgPrefixes[TrainingFlags] = TrainingFlags(),
    solve: Annotated[
        bool, arg(help="solve for remedies without a closed form (few kinds of classes)")
    ] = True,
    json: Json = False,
) -> int:
    """Say which classes will collapse, which nearly do, and what saves them.

    A training script has a decay in torch's units and a last layer, which is
    --torch-weight-decay 5e-4 --like layer.npz.

    Example: ufm advise --counts 500x5,5x5 --weight-decay 5e-3 --feature-decay 2e-5
    """
    from ufm.prediction.advice import advise

    given = _measured(training, training.measured) if training.measured is not None else _given(training)
    advice = advise(given.counts, given.weight_decay, given.feature_decay, given.charge, solve)
    said = (*given.notes, remark(training.counts or ""), *_on_all_layers(training, advice), CAVEAT)
    notes = [wrapped(note) for note in said if note]
    text = "\n".join([str(advice), "", advice.table(), "", *notes])
    basis = {"notes": list(given.notes), "feature_decay_assumed": given.assumed}
    emit(advice.to_dict() | basis, json, text)
    return 0


def _on_all_layers(training: TrainingFlags, advice: Any) -> list[str]:
    if training.torch_weight_decay is None:
        return []
    largest = training.torch_weight_decay / advice.reduction**0.5
    return [
        f"Weight decay on all layers moves lambda_H, too: if in proportion, all classes live below {largest:.4g} "
        f"and not above. That is an assumption; measure again there."
    ]


def _given(training: TrainingFlags) -> _Training:
    """Decays from flags; the package's own example where there are none, and saying so."""
    counts = parse_counts(training.counts or ProblemFlags.counts)
    default = "class" if training.torch_weight_decay is not None else "sample"
    charge = _exponent(training.charge or default)
    weight = _weight_decay(training)
    if training.batch_size is not None and training.feature_decay is None:
        raise InputError(
            "batch_size needs feature_decay, which stands in a training step on the sum over such a batch"
        )
    if weight is None and training.feature_decay is None:
        decay = ProblemFlags.feature_decay
        note = f"Here lambda_H = {decay:g}, which is a default for show, as is lambda_W: give your own."
        return _Training(counts, ProblemFlags.weight_decay, decay, charge, (note,), assumed=True)
    if training.feature_decay is None:
        raise InputError(NEEDED)
    if weight is None:
        raise InputError("weight_decay (or torch_weight_decay) must be given with feature_decay, got None")
    feature = training.feature_decay
    if training.batch_size is not None:
        total = max(round(float(counts.sum())), 1)
        feature = from_training(
            weight, feature, num_samples=total, batch_size=training.batch_size
        ).feature_decay
    return _Training(counts, weight, float(feature), charge)


def _measured(training: TrainingFlags, file: Path) -> _Training:
    """Effective decays and charge of a trained last layer, for its own counts or others."""
    from ufm.verification.verify import verify

    if training.feature_decay is not None or training.batch_size is not None:
        raise InputError(
            "feature_decay and batch_size must be left out with measured, which estimates the decay"
        )
    arrays = read_layer(file)
    own = counts_of(arrays["labels"], len(arrays["weight"]))
    report = verify(**arrays, charge=None if training.charge is None else _exponent(training.charge))
    found = report.estimate
    if found is None:
        raise InputError(f"measured must allow an estimate of the decays; {report.notes[0]}")
    counts = own if training.counts is None else parse_counts(training.counts)
    given = _weight_decay(training)
    weight = found["weight_decay"] if given is None else given
    feature = found["nuclear_weight"] ** 2 / weight * float(own.sum() / counts.sum())
    notes = [note for note in report.notes if note.startswith(("Effective", "Charge"))]
    if given is not None:
        notes.append(
            f"lambda_W is {given:.4g} as given; the margins then say lambda_H. The measured ratio of norms would "
            f"make lambda_W {found['weight_decay']:.4g}: if that is far off, the layer is not stationary."
        )
    if found["spread"] > 1.5:
        notes.append(
            f"WARNING: single classes deviate by a factor {found['spread']:.3g} from these decays: take the advice "
            f"as a trend, not as numbers. Networks near a threshold have lost classes that are said to live here."
        )
    return _Training(counts, weight, feature, found["charge"], tuple(notes))


def _weight_decay(training: TrainingFlags) -> float | None:
    if training.weight_decay is not None and training.torch_weight_decay is not None:
        raise InputError("weight_decay and torch_weight_decay must not be given both: here they are the same")
    return training.weight_decay if training.torch_weight_decay is None else training.torch_weight_decay


def _exponent(text: str) -> float:
    """Read who pays for features."""
    if text in ("sample", "class"):
        return float(text == "class")
    try:
        return float(text)
    except ValueError:
        raise InputError(f"charge must be sample, class or a number of at least 0, got {text!r}") from None
