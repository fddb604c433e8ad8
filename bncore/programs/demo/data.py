"""Real images: the 1,797 handwritten digits (8 x 8 pixels) that ship inside scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_digits

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Digits:
    """Flat images in [0, 1] and their labels, divided into a training and a test part."""

    train_x: FloatArray
    train_label: NDArray[np.int64]
    test_x: FloatArray
    test_label: NDArray[np.int64]


def split_digits(*, test_fraction: float = 0.25, seed: int = 0) -> Digits:
    """Shuffle the digits and divide them into two parts."""
    images, label = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    x = (images[order] / 16.0).astype(np.float32)
    label = label[order].astype(np.int64)
    cut = round(len(x) * (1.0 - test_fraction))
    return Digits(x[:cut], label[:cut], x[cut:], label[cut:])


def filter_bank() -> FloatArray:
    """Return sixteen fixed 3 x 3 filters: two smoothers, two Laplacians, twelve oriented edges."""
    row, col = np.mgrid[-1:2, -1:2].astype(np.float64)
    bell = np.exp(-(row**2 + col**2))
    filters = [
        np.full((3, 3), 1.0 / 9.0),
        bell / bell.sum(),
        np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=np.float64),
        np.array([[1, 1, 1], [1, -8, 1], [1, 1, 1]], dtype=np.float64),
    ]
    angles = np.arange(12) * (2.0 * np.pi / 12)
    filters += [bell * (np.cos(a) * col + np.sin(a) * row) for a in angles]
    return np.stack(filters)


def feature_maps(limit: int | None = None) -> NDArray[np.float32]:
    """Filter every digit into sixteen feature maps, as a first convolution layer would.

    Returns
    -------
    ndarray
        float32 of shape (images, 16, 8, 8), C-contiguous: NCHW.
    """
    images = load_digits().images[:limit]
    windows = sliding_window_view(np.pad(images, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    maps = np.einsum("nhwij,cij->nchw", windows, filter_bank(), optimize=True)
    return np.ascontiguousarray(maps, dtype=np.float32)
