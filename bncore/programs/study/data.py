"""Splits of the real handwritten digits, and shifts and rotations of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from sklearn.datasets import load_digits

Images = NDArray[np.float32]
Label = NDArray[np.int64]

PARTS = {"train": 0.6, "validation": 0.2, "test": 0.2}
SHIFT = 1.0  # pixels, either way
TURN = 15.0  # degrees, either way


@dataclass(frozen=True)
class Part:
    """Images, (n, 8, 8) in [0, 1], and their labels."""

    images: Images
    label: Label

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Split:
    """One random split of the 1,797 digits into three parts.

    The learning rate is chosen with the validation part; results are measured on the test part.
    `mean` and `std` are those of all training pixels, for the preprocessing of every network.
    """

    train: Part
    validation: Part
    test: Part
    mean: float
    std: float

    def standardized(self, images: Images) -> Images:
        """Return images in the shape that a network takes: (n, 8, 8, 1), channels last."""
        scaled: Images = (images[..., np.newaxis] - np.float32(self.mean)) / np.float32(self.std)
        return scaled


@cache
def _digits() -> tuple[Images, Label]:
    data: Any = load_digits()
    return (data.images / 16.0).astype(np.float32), data.target.astype(np.int64)


@cache
def split(seed: int) -> Split:
    """Split the digits into three parts, differently for every seed.

    Examples
    --------
    >>> [len(part) for part in (split(0).train, split(0).validation, split(0).test)]
    [1078, 360, 359]
    """
    images, label = _digits()
    order = np.random.default_rng((seed, 0)).permutation(len(images))
    cuts = np.round(np.cumsum(list(PARTS.values()))[:-1] * len(order)).astype(int)
    train, validation, test = (Part(images[pick], label[pick]) for pick in np.split(order, cuts))
    return Split(train, validation, test, float(train.images.mean()), float(train.images.std()))


def shifted_and_turned(images: Images, rng: np.random.Generator) -> Images:
    """Shift and turn every image by small random amounts, with linear interpolation.

    Parameters
    ----------
    images : (n, height, width) ndarray of float32
    rng : Generator
        It draws shifts of up to `SHIFT` pixels in each direction and turns of up to `TURN` degrees.

    Returns
    -------
    (n, height, width) ndarray of float32
        The images; a pixel that comes from outside is 0.
    """
    n, height, width = images.shape
    shift = rng.uniform(-SHIFT, SHIFT, (2, n, 1, 1))
    angle = np.deg2rad(rng.uniform(-TURN, TURN, (n, 1, 1)))
    row, col = np.mgrid[:height, :width]
    row, col = row - (height - 1) / 2, col - (width - 1) / 2
    cos, sin = np.cos(angle), np.sin(angle)
    from_row = cos * row - sin * col + (height - 1) / 2 + shift[0]
    from_col = sin * row + cos * col + (width - 1) / 2 + shift[1]
    which = np.broadcast_to(np.arange(n)[:, np.newaxis, np.newaxis], from_row.shape)
    moved: Images = map_coordinates(
        images, [which, from_row, from_col], order=1, mode="constant", output=np.float32
    )
    return moved
