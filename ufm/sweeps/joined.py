"""The batches of a store as one data set: every variable reads what is asked of it, from the files that hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ufm.sweeps.dataset import Layout, place
from ufm.sweeps.sealed import Archive, DamageError

#: Files by batch, each with the positions of its members in the grid, in C order.
Archives = Mapping[int, tuple[Archive, np.ndarray]]


class _StoredVariable(BackendArray):
    """One variable of the data set. Where nothing has been computed it has its fill value."""

    def __init__(
        self, layout: Layout, name: str, archives: Archives, damaged: Callable[[int], Exception]
    ) -> None:
        self.layout, self.name, self.archives, self.damaged = layout, name, archives, damaged
        self.variable = layout.variables[name]
        self.shape = (*layout.shape, *layout.inner_shape(self.variable))
        self.dtype = np.dtype(self.variable.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Return the part of the variable that integers and slices choose."""
        outer = len(self.layout.shape)
        wanted = np.arange(self.layout.size).reshape(self.layout.shape)[key[:outer]]
        row_of = np.full(self.layout.size, -1)
        row_of[wanted.ravel()] = np.arange(wanted.size)
        inner = self.layout.inner_shape(self.variable)
        found = np.full((wanted.size, *inner), self.variable.fill, self.dtype)
        for batch, (archive, members) in self.archives.items():
            rows = row_of[members]
            chosen = rows >= 0
            if np.any(chosen):
                place(found, rows[chosen], self._values(batch, archive)[chosen])
        return found.reshape(wanted.shape + inner)[(..., *key[outer:])]

    def _values(self, batch: int, archive: Archive) -> np.ndarray:
        try:
            return archive.read((self.name,))[0]
        except DamageError:
            raise self.damaged(batch) from None


def joined(layout: Layout, archives: Archives, damaged: Callable[[int], Exception]) -> xr.Dataset:
    """Return the data set of a store's batches; a variable is read when it is used, and then kept.

    Args:
        layout: of the data set.
        archives: the files.
        damaged: what to raise where a file has been damaged since it was opened.
    """

    def values(name: str) -> Any:
        stored = _StoredVariable(layout, name, archives, damaged)
        lazy: Any = indexing.LazilyIndexedArray(stored)
        kept: Any = indexing.MemoryCachedArray(lazy)
        return indexing.CopyOnWriteArray(kept)

    return layout.dataset(values)
