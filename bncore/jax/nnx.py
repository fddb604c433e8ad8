"""The norms of `flax.nnx`, computed by bncore."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from bncore.extras import pip_install

try:
    from flax import nnx
    from flax.nnx.module import first_from
    from flax.nnx.nn.dtypes import canonicalize_dtype
except ImportError as error:
    raise ImportError(
        f"bncore.jax.nnx: expected flax, got none: {pip_install('flax')} installs it"
    ) from error

from bncore.jax import layers
from bncore.jax.layers import computed, feature_axis, running

UNDECIDED = (
    "use_running_average: expected True or False, in the constructor or in the call, got None"
)


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` with another forward: same constructor, attributes and state.

    Parameters
    ----------
    num_features, use_running_average, axis, momentum, epsilon, dtype, param_dtype
        As in `flax.nnx.BatchNorm`.  `momentum` is the weight of the *old* running statistics, as in
        Flax and unlike `bncore.jax.update_running_stats`.  `axis` is one axis.
    use_bias, use_scale, bias_init, scale_init, axis_name, axis_index_groups, promote_dtype, rngs
        As in `flax.nnx.BatchNorm`.
    use_fast_variance
        Has no effect: bncore computes the variance in one pass without losing digits.

    Raises
    ------
    TypeError, ValueError
        If x is not real, has one dimension, or `axis` names several.

    Notes
    -----
    As in `bncore.jax.linen.BatchNorm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import bncore.jax.nnx
    >>> layer = bncore.jax.nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
    >>> y = layer(jnp.array([[0.0, 1.0], [2.0, 5.0]]))
    >>> print(y.round(2), layer.mean[...].round(2))
    [[-1. -1.]
     [ 1.  1.]] [0.5 1.5]
    """

    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: Any = None,
        activation: Literal["relu", "leaky_relu"] | None = None,
        negative_slope: float = 0.01,
        residual: Any = None,
    ) -> Any:
        """Normalize x, and update the running statistics in training.

        Parameters
        ----------
        x, use_running_average, mask
            As in Flax; False in the mask is what does not count.
        activation, negative_slope, residual
            Are fused, as in `bncore.jax.batch_norm_train`.
        """
        average = first_from(use_running_average, self.use_running_average, error_msg=UNDECIDED)
        scale, bias = (None if one is None else one[...] for one in (self.scale, self.bias))
        x, mean, var, scale, bias = self.promote_dtype(
            (x, self.mean[...], self.var[...], scale, bias), dtype=self.dtype
        )
        given = [one for one in (x, scale, bias) if one is not None]
        y, moments = computed(
            x,
            (mean, var) if average else None,
            scale,
            bias,
            canonicalize_dtype(*given, dtype=self.dtype),
            axis=feature_axis(x, self.axis),
            eps=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
        )
        if moments is not None:
            old = self.mean[...], self.var[...]
            new = running(*old, moments, self.momentum, old[0].dtype)
            if getattr(self.mean, "_can_update", False):  # references take no gradient
                new = jax.lax.stop_gradient(new)
            self.mean[...], self.var[...] = new
        return y


def _normalized(layer: Any, norm: layers.Norm, x: Any, shape: tuple[int, ...]) -> Any:
    """Compute a norm of samples with a layer's own parameters, in a shape."""
    scale, bias = (None if one is None else one[...] for one in (layer.scale, layer.bias))
    x, scale, bias = layer.promote_dtype((x, scale, bias), dtype=layer.dtype)
    given = [one for one in (x, scale, bias) if one is not None]
    dtype = canonicalize_dtype(*given, dtype=layer.dtype)
    scale, bias = (None if one is None else one.reshape(shape) for one in (scale, bias))
    return layers.normalized(norm, x, scale, bias, dtype, layer.epsilon)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` with another forward: same constructor, attributes and state.

    Parameters
    ----------
    num_features, num_groups, group_size, epsilon, dtype, param_dtype, use_bias, use_scale
        As in `flax.nnx.GroupNorm`.
    bias_init, scale_init, promote_dtype, rngs, bias_metadata, scale_metadata
        As in `flax.nnx.GroupNorm`.
    use_fast_variance, reduction_axes, axis_name, axis_index_groups
        As in `bncore.jax.linen.GroupNorm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import bncore.jax.nnx
    >>> layer = bncore.jax.nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[0.0, 2.0, 5.0, 9.0]])).round(2))
    [[-1.  1. -1.  1.]]
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x; its last axis has the channels."""
        plain = self.reduction_axes is None and self.axis_name is None and mask is None
        norm = layers.by_groups(jnp.asarray(x), self.num_groups) if plain else None
        if norm is None:
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, x.shape[-1:])


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` with another forward: same constructor, attributes and state.

    Parameters
    ----------
    num_features, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init
        As in `flax.nnx.LayerNorm`.
    promote_dtype, rngs, bias_metadata, scale_metadata
        As in `flax.nnx.LayerNorm`.
    use_fast_variance, reduction_axes, feature_axes, axis_name, axis_index_groups
        As in `bncore.jax.linen.LayerNorm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import bncore.jax.nnx
    >>> layer = bncore.jax.nnx.LayerNorm(2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[0.0, 2.0], [5.0, 9.0]])).round(2))
    [[-1.  1.]
     [-1.  1.]]
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x over its last axes."""
        norm = None
        if self.axis_name is None and mask is None:
            norm = layers.by_rows(jnp.asarray(x), self.reduction_axes, self.feature_axes)
        if norm is None:
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, layers.sizes(x, self.feature_axes))


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm` with another forward: same constructor, attributes and state.

    Parameters
    ----------
    num_features, epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init
        As in `flax.nnx.InstanceNorm`.
    promote_dtype, rngs, bias_metadata, scale_metadata
        As in `flax.nnx.InstanceNorm`.
    use_fast_variance, feature_axes, axis_name, axis_index_groups
        As in `bncore.jax.linen.InstanceNorm`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> import bncore.jax.nnx
    >>> layer = bncore.jax.nnx.InstanceNorm(2, rngs=nnx.Rngs(0))
    >>> print(layer(jnp.array([[[0.0, 5.0], [2.0, 9.0]]])).round(2))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x, each channel of each sample."""
        norm = None
        if self.axis_name is None and mask is None:
            norm = layers.by_channels(jnp.asarray(x), self.feature_axes)
        if norm is None:
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, layers.sizes(x, self.feature_axes))
