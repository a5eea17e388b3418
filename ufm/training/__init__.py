"""Watch a training run: features and logits as they pass, metrics of neural collapse at the end of every epoch.

With torch, three lines in any loop::

    watch = ufm.training.watch(model.fc)          # the classifier layer: its input is the features
    for x, y in loader:
        with watch(y):
            loss = criterion(model(x), y)
        ...
    print(watch.epoch())                          # a flat dict of floats; begins anew

With arrays (JAX, NumPy) `Monitor` does the same from ``(features, labels, weight, bias)``. Sums are kept, features
never are. `METRICS` says what every number means, with the names that others log beside ours.

What it costs (one core of a CPU, batches of 128, d = 512): 29, 18 and 8 per cent of a training step of an MLP with
2, 4 and 8 hidden layers of 512; without the ``d x d`` scatter (``scatter=False``, no NC1) 19, 10 and 5; with
``every=10`` a tenth of that.

The features of an epoch of training come from weights that move while it lasts, so their variability within classes
contains that motion. For the numbers of one network, watch a pass in evaluation mode.
"""

from ufm.training.monitor import Monitor as Monitor
from ufm.training.record import Record as Record
from ufm.training.summary import METRICS as METRICS
from ufm.training.watch import Watch as Watch
from ufm.training.watch import watch as watch

__all__ = ["METRICS", "Monitor", "Record", "Watch", "watch"]
