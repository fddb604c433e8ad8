"""Tiles of arrays for the elementwise formulas of the NumPy backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bncore.backends.numpy.order import TILE
from bncore.backends.numpy.weights import Weights
from bncore.backends.partition import Data, Planes, Rows, tile_slices


def tiles(
    geo: Planes | Rows,
    arrays: tuple[Data, ...],
    coefficients: tuple[Data, ...],
    weights: Weights | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the same tile of every array, and the coefficients that broadcast against it.

    What is given as weights for the tile comes last.
    """
    flat = [array.reshape(-1) for array in arrays]
    if isinstance(geo, Planes):
        shapes = [(geo.outer, geo.channels, geo.inner)]
    else:
        shapes = [(geo.full, geo.width, 1), (1, geo.short, 1)]
        coefficients = tuple(np.tile(c.repeat(geo.inner), geo.repeat) for c in coefficients)
    begin = row = 0
    for shape in shapes:
        end = begin + shape[0] * shape[1] * shape[2]
        views = [array[begin:end].reshape(shape) for array in flat]
        for tile in tile_slices(*shape, TILE):
            per_channel = tile[1]
            yield (
                *(view[tile] for view in views),
                *(c[: shape[1]][per_channel, np.newaxis] for c in coefficients),
                1.0 if weights is None else weights.of_tile(row, tile, views[0][tile]),
            )
        begin, row = end, row + shape[0]
