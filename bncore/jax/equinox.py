"""Equinox's norms, computed by bncore.  Only this module imports equinox."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from bncore.extras import pip_install

try:
    import equinox
except ImportError as error:
    raise ImportError(
        f"bncore.jax.equinox: expected equinox, got none: {pip_install('equinox')} installs it"
    ) from error

from bncore.jax import layers
from bncore.jax.functional import batch_norm_infer
from bncore.jax.layers import computed, running
from bncore.jax.statistics import moments


class BatchNorm(equinox.nn.BatchNorm):
    """`equinox.nn.BatchNorm` with another forward: same constructor, fields and state.

    Parameters
    ----------
    input_size, axis_name, eps, channelwise_affine, momentum, inference, dtype, mode
        As in `equinox.nn.BatchNorm`.  `momentum` is the weight of the *old* running statistics, as
        in Equinox and unlike `bncore.jax.update_running_stats`.

    Notes
    -----
    As Equinox's layer it takes one example, of shape (C, ...), and a state, and returns y and a new
    state.  It must be called inside of `jax.vmap`, `jax.shard_map` or `jax.pmap` with this
    `axis_name`, over which the batch is normalized.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015.

    Examples
    --------
    >>> import equinox
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import bncore.jax.equinox
    >>> make = equinox.nn.make_with_state(bncore.jax.equinox.BatchNorm)
    >>> layer, state = make(2, axis_name="batch", mode="batch")
    >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0]])
    >>> batched = jax.vmap(layer, (0, None), (0, None), axis_name="batch")
    >>> y, state = batched(x, state)
    >>> print(y.round(2))
    [[-1. -1.]
     [ 1.  1.]]
    """

    def __call__(
        self, x: Any, state: Any, *, key: Any = None, inference: bool | None = None
    ) -> tuple[Any, Any]:
        """Normalize one example, and return y and the state with new running statistics.

        Parameters
        ----------
        x : (C, ...) array
        state, key, inference
            As in Equinox; `key` is not used.
        """
        infers = self.inference if inference is None else inference
        values = x if x.ndim > 1 else x[:, None]
        step = self._ema if self.mode == "ema" else self._batch
        y, state = step(values, state, infers)
        return y.reshape(x.shape), state

    def _batch(self, x: Any, state: Any, infers: bool) -> tuple[Any, Any]:
        """Normalize by the batch, and by running statistics without their bias towards 0, 1."""
        counter, hidden = state.get(self.batch_counter), state.get(self.batch_state_index)
        if infers:
            scale = jnp.where(counter == 0, 1, 1 - self.momentum**counter)
            mean, var = (one / scale for one in hidden)
            return self._inferred(x, mean, var), state
        y, batch = computed(
            x,
            None,
            self.weight,
            self.bias,
            jnp.result_type(x, *hidden),
            axis=0,
            eps=self.eps,
            where=None,
            residual=None,
            axis_name=self.axis_name,
            axis_index_groups=None,
        )
        state = state.set(self.batch_counter, counter + 1)
        assert batch is not None
        mean, var = hidden
        new = running(mean, var, batch, self.momentum, x.dtype)
        return y, state.set(self.batch_state_index, new)

    def _ema(self, x: Any, state: Any, infers: bool) -> tuple[Any, Any]:
        """Normalize by running statistics that have this batch in them."""
        mean, var = state.get(self.ema_state_index)
        if not infers:
            first = state.get(self.ema_first_time_index)
            batch = moments(x, axis=0, axis_name=self.axis_name)
            new = running(mean, var, batch, self.momentum, x.dtype)
            mean = jnp.where(first, batch.mean.astype(mean.dtype), new[0])
            var = jnp.where(first, batch.var.astype(var.dtype), new[1])
            state = state.set(self.ema_first_time_index, jnp.array(False))
            state = state.set(self.ema_state_index, (mean, var))
        return self._inferred(x, mean, var), state

    def _inferred(self, x: Any, mean: Any, var: Any) -> Any:
        x = x.astype(jnp.result_type(x, mean, var))
        return batch_norm_infer(x, mean, var, self.weight, self.bias, axis=0, eps=self.eps)


_ABSENT: Any = object()  # of a state


def _with_state(y: Any, state: Any) -> Any:
    return y if state is _ABSENT else (y, state)


class GroupNorm(equinox.nn.GroupNorm):
    """`equinox.nn.GroupNorm` with another forward: same constructor and fields.

    Parameters
    ----------
    groups, channels, eps, channelwise_affine, dtype
        As in `equinox.nn.GroupNorm`.

    Notes
    -----
    As Equinox's layer it takes one example, of shape (C, ...).  The examples of a `jax.vmap` around
    it are one call.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", ECCV 2018.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bncore.jax.equinox
    >>> layer = bncore.jax.equinox.GroupNorm(2, 4)
    >>> print(layer(jnp.array([0.0, 2.0, 5.0, 9.0])).round(2))
    [-1.  1. -1.  1.]
    """

    def __call__(self, x: Any, state: Any = _ABSENT, *, key: Any = None) -> Any:
        """Normalize one example, and return it, with the state if there is one.

        Parameters
        ----------
        x : (C, ...) array
        state, key
            As in Equinox; they are not used.
        """
        norm = layers.by_groups(x[None], self.groups, 1) if x.ndim else None
        if norm is None or not jnp.issubdtype(x.dtype, jnp.floating):
            return _with_state(super().__call__(x), state)
        y = norm(x[None], weight=self.weight, bias=self.bias, eps=self.eps)[0]
        return _with_state(y, state)


class LayerNorm(equinox.nn.LayerNorm):
    """`equinox.nn.LayerNorm` with another forward: same constructor and fields.

    Parameters
    ----------
    shape, eps, use_weight, use_bias, dtype
        As in `equinox.nn.LayerNorm`.

    Notes
    -----
    As Equinox's layer it takes one example, of the shape of the layer.  The examples of a
    `jax.vmap` around it are one call.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450 (2016).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import bncore.jax.equinox
    >>> layer = bncore.jax.equinox.LayerNorm(2)
    >>> print(jax.vmap(layer)(jnp.array([[0.0, 2.0], [5.0, 9.0]])).round(2))
    [[-1.  1.]
     [-1.  1.]]
    """

    def __call__(self, x: Any, state: Any = _ABSENT, *, key: Any = None) -> Any:
        """Normalize one example, and return it, with the state if there is one.

        Parameters
        ----------
        x : array of the layer's shape
        state, key
            As in Equinox; they are not used.
        """
        every = tuple(range(x.ndim))
        norm = layers.by_rows(x, every, every) if x.shape == self.shape else None
        if norm is None or not jnp.issubdtype(x.dtype, jnp.floating):
            return _with_state(super().__call__(x), state)
        y = norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return _with_state(y, state)
