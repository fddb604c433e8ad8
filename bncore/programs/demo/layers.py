"""The layers of a network in plain NumPy, each with forward and backward.

They have the interface of :class:`bncore.BatchNorm`: ``forward(x)``; ``backward(dy)``, which takes
the gradient of the layer's output, stores the gradients of the parameters, and returns the gradient
of the input; ``parameters()`` and ``gradients()``, in the same order. x is the input, y the output,
and dx and dy are their gradients. Images are channels last, ``(images, height, width, channels)``,
because a convolution's matrix product then needs no transposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

import bncore

Array = NDArray[np.floating[Any]]
Label = NDArray[np.int64]


class Layer(Protocol):
    """The interface of a layer."""

    def forward(self, x: Array) -> Array: ...

    def backward(self, dy: Array) -> Array: ...

    def parameters(self) -> Sequence[Array]: ...

    def gradients(self) -> Sequence[Array]: ...


class Parameterless:
    """The base class of layers without parameters."""

    def parameters(self) -> Sequence[Array]:
        return ()

    def gradients(self) -> Sequence[Array]:
        return ()


class Linear:
    """y = x @ weight + bias.

    Weights are drawn from a normal distribution of variance 2 / inputs, times `scale` squared.
    With scale 1 this keeps the size of signals constant through layers with ReLU.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", ICCV 2015, equation 10.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Linear(3, 2, np.random.default_rng(0))
    >>> layer.forward(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rng: np.random.Generator,
        *,
        scale: float = 1.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        std = scale * np.sqrt(2.0 / inputs)
        self.weight: Array = rng.normal(0.0, std, (inputs, outputs)).astype(dtype)
        self.bias: Array = np.zeros(outputs, dtype)

    def forward(self, x: Array) -> Array:
        self.x = x
        y: Array = x @ self.weight
        y += self.bias
        return y

    def backward(self, dy: Array) -> Array:
        self.dweight = self.x.T @ dy
        self.dbias = dy.sum(axis=0)
        return dy @ self.weight.T

    def parameters(self) -> Sequence[Array]:
        return self.weight, self.bias

    def gradients(self) -> Sequence[Array]:
        return self.dweight, self.dbias


class Conv2d:
    """Cross-correlation with square filters of odd size and zero padding, channels last.

    Every output pixel is the product of a row (the pixels under the filter) and the matrix of all
    filters.  So a convolution is a :class:`Linear` layer over all positions.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    size : int
        Height and width of a filter, odd.
    rng, scale, dtype
        As in `Linear`, whose inputs here are ``size * size * inputs``.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Conv2d(1, 4, 3, np.random.default_rng(0))
    >>> layer.forward(np.ones((2, 8, 8, 1), np.float32)).shape
    (2, 8, 8, 4)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        rng: np.random.Generator,
        *,
        scale: float = 1.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if size % 2 == 0:
            raise ValueError(f"size: expected an odd number, got {size}")
        self.size = size
        self.product = Linear(inputs * size * size, outputs, rng, scale=scale, dtype=dtype)

    @property
    def weight(self) -> Array:
        """Filters, (inputs * size * size, outputs)."""
        return self.product.weight

    @property
    def dweight(self) -> Array:
        """Gradient of the filters."""
        return self.product.dweight

    def forward(self, x: Array) -> Array:
        images, height, width, channels = self.shape = x.shape
        padded = np.zeros(self._padded_shape(), x.dtype)
        padded[self._inside()] = x
        windows = np.empty((images, height, width, self.size, self.size, channels), x.dtype)
        for i, j in np.ndindex(self.size, self.size):
            windows[:, :, :, i, j] = padded[:, i : i + height, j : j + width]
        rows = windows.reshape(images * height * width, -1)
        return self.product.forward(rows).reshape(images, height, width, -1)

    def backward(self, dy: Array) -> Array:
        images, height, width, channels = self.shape
        drows = self.product.backward(dy.reshape(images * height * width, -1))
        dwindows = drows.reshape(images, height, width, self.size, self.size, channels)
        dpadded = np.zeros(self._padded_shape(), dy.dtype)
        for i, j in np.ndindex(self.size, self.size):
            dpadded[:, i : i + height, j : j + width] += dwindows[:, :, :, i, j]
        return dpadded[self._inside()]

    def _padded_shape(self) -> tuple[int, ...]:
        images, height, width, channels = self.shape
        return images, height + self.size - 1, width + self.size - 1, channels

    def _inside(self) -> tuple[slice, ...]:
        """Return the position of x in the array that is padded with zeros."""
        _, height, width, _ = self.shape
        pad = self.size // 2
        return slice(None), slice(pad, pad + height), slice(pad, pad + width)

    def parameters(self) -> Sequence[Array]:
        return self.product.parameters()

    def gradients(self) -> Sequence[Array]:
        return self.product.gradients()


class MaxPool2d(Parameterless):
    """The largest of every 2 x 2 pixels; the gradient goes to the first pixel that is largest."""

    CORNERS = tuple(
        (slice(None), slice(i, None, 2), slice(j, None, 2)) for i, j in np.ndindex(2, 2)
    )

    def forward(self, x: Array) -> Array:
        if x.shape[1] % 2 or x.shape[2] % 2:
            raise ValueError(f"x: expected an even height and width, got shape {x.shape}")
        self.x = x
        first, second, third, fourth = (x[corner] for corner in self.CORNERS)
        self.y: Array = np.maximum(np.maximum(first, second), np.maximum(third, fourth))
        return self.y

    def backward(self, dy: Array) -> Array:
        dx = np.zeros_like(self.x)
        left = np.ones(dy.shape, bool)
        for corner in self.CORNERS:
            chosen = left & (self.x[corner] == self.y)
            dx[corner] = np.where(chosen, dy, 0)
            left &= ~chosen
        return dx


class Relu(Parameterless):
    """y = max(x, 0)."""

    def forward(self, x: Array) -> Array:
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        return dy * self.positive


class Flatten(Parameterless):
    """Flatten the values of each image into a row."""

    def forward(self, x: Array) -> Array:
        self.shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.shape)


class Sequential:
    """Several layers, one after the other, as one layer.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> rng = np.random.default_rng(0)
    >>> net = Sequential(Linear(3, 8, rng), bncore.BatchNorm(8), Relu(), Linear(8, 2, rng))
    >>> net.forward(np.eye(3, dtype=np.float32)).shape
    (3, 2)
    >>> [value.shape for value in net.parameters()]
    [(3, 8), (8,), (8,), (8,), (8, 2), (2,)]
    """

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Array, *, update_stats: bool = True) -> Array:
        for layer in self.layers:
            if isinstance(layer, bncore.BatchNorm):
                x = layer.forward(x, update_stats=update_stats)
            else:
                x = layer.forward(x)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def parameters(self) -> Sequence[Array]:
        return [value for layer in self.layers for value in layer.parameters()]

    def gradients(self) -> Sequence[Array]:
        return [value for layer in self.layers for value in layer.gradients()]

    @property
    def norms(self) -> list[bncore.BatchNorm]:
        """The batch norms among the layers."""
        return list(bncore.batch_norms(self))

    def train(self) -> None:
        """Switch all batch norms to training, with the statistics of the batch."""
        for layer in self.norms:
            layer.train()

    def eval(self) -> None:
        """Switch all batch norms to evaluation, with running statistics."""
        for layer in self.norms:
            layer.eval()


def softmax_loss(score: Array, label: Label) -> tuple[float, Array]:
    """Compute the mean cross-entropy of softmax(score), and the gradient of score.

    Parameters
    ----------
    score : (images, classes) ndarray of float
    label : (images,) ndarray of int
        The right class of each image.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dscore = softmax_loss(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dscore
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    shifted = score - score.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    row = np.arange(len(label))
    loss = float(np.mean(np.log(total[:, 0]) - shifted[row, label]))
    dscore = exp / total
    dscore[row, label] -= 1
    return loss, dscore / len(label)


def step(network: Layer, rate: float) -> None:
    """Move every parameter against its gradient: plain stochastic gradient descent."""
    for value, gradient in zip(network.parameters(), network.gradients(), strict=True):
        value -= rate * gradient
