"""The weights of a call as the NumPy backend reads them: by piece, by virtual row and by tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncore.backends import contract
from bncore.backends.numpy.order import Piece
from bncore.backends.partition import Data, Planes, Rows, Stat


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of x, in the order of additions `geo`.

    `values` is (outer, 1 or channels, inner) in planes and flat in rows, or None if all are 1.  In
    rows, `columns` says which of the `width` weights of a virtual row belongs to each column.
    """

    geo: Planes | Rows
    values: Data | None
    shared: bool
    omit_nan: bool
    fill: float | None
    width: int
    columns: Data

    @classmethod
    def of(cls, weights: contract.Weights | None, x: Data, geo: Planes | Rows) -> Weights | None:
        """Read the weights of x, if there are any."""
        if weights is None:
            return None
        values = weights.values
        shared = values is not None and values.size < x.size
        channels = 1 if shared else geo.channels
        width, columns = 0, np.arange(0)
        if isinstance(geo, Rows):
            columns = np.arange(geo.width)
            width = geo.width // geo.channels * channels
            if shared:
                columns = columns // (geo.channels * geo.inner) * geo.inner + columns % geo.inner
        if values is not None:
            places = (geo.outer, channels, geo.inner) if isinstance(geo, Planes) else (-1,)
            values = values.reshape(places)
        return cls(geo, values, shared, weights.omit_nan, weights.fill, width, columns)

    def of_group(self, group: slice) -> Weights:
        """Return the weights of these channels alone."""
        if self.shared or self.values is None:
            return self
        return replace(self, values=self.values[:, group])

    def counted(self, given: Any, numbers: Data) -> Stat:
        """Return the weights of these numbers: 0 for NaN that is omitted."""
        w = np.empty(numbers.shape)
        w[...] = given
        if self.omit_nan:
            w[np.isnan(numbers)] = 0.0
        return w

    def left_out(self, w: Stat, g: Data) -> NDArray[np.bool_]:
        """Tell which values backward skips, because the loss does not depend on them."""
        skipped: NDArray[np.bool_] = w == 0.0
        return skipped if self.fill is not None else skipped & (g == 0.0)

    def filled(self, given: Any, numbers: Data, result: Data) -> Data:
        """Return the result with the constant where the weight of a number is 0."""
        if self.fill is None:
            return result
        fill = result.dtype.type(self.fill)
        return np.where(self.counted(given, numbers) == 0.0, fill, result)

    def at(self, image: int, channels: Any, places: Any, numbers: Data) -> Stat:
        """Return the weights at these places of an image, where x has these numbers."""
        if self.values is None:
            return self.counted(1.0, numbers)
        return self.counted(self.values[image, 0 if self.shared else channels, places], numbers)

    def of_piece(self, piece: Piece, channels: Any, numbers: Data) -> Stat:
        """Return the weights of a piece of these channels."""
        return self.at(piece.image, channels, slice(piece.start, piece.stop), numbers)

    def in_rows(self, rows: Data, columns: Data | slice, numbers: Data) -> Stat:
        """Return the weights in these virtual rows and columns."""
        if self.values is None:
            return self.counted(1.0, numbers)
        return self.counted(self.values[rows * self.width + self.columns[columns]], numbers)

    def of_tile(self, first: int, tile: tuple[slice, slice, slice], numbers: Data) -> Any:
        """Return what is given for a tile of `reference.tiles`, whose rows begin with `first`."""
        if self.values is None:
            return 1.0
        if isinstance(self.geo, Planes):
            return self.values[tile[0], slice(None) if self.shared else tile[1], tile[2]]
        rows = first + tile[0].start + np.arange(numbers.shape[0])[:, np.newaxis]
        columns = self.columns[tile[1]][: numbers.shape[1]]
        return self.values[rows * self.width + columns][..., np.newaxis]
