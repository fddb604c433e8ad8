"""Flax linen's norms, computed by bncore.  Only this module and `nnx.py` import flax."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from bncore.extras import pip_install

try:
    from flax import linen
    from flax.linen.dtypes import canonicalize_dtype
    from flax.linen.module import compact, merge_param
except ImportError as error:
    raise ImportError(
        f"bncore.jax.linen: expected flax, got none: {pip_install('flax')} installs it"
    ) from error

from bncore.jax import layers
from bncore.jax.layers import computed, feature_axis, running


class BatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm` with another forward: same fields, names, collections and state.

    Parameters
    ----------
    use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale
        As in `flax.linen.BatchNorm`.  `momentum` is the weight of the *old* running statistics, as
        in Flax and unlike `bncore.jax.update_running_stats`.  `axis` is one axis.
    bias_init, scale_init, axis_name, axis_index_groups
        As in `flax.linen.BatchNorm`.
    use_fast_variance
        Has no effect: bncore computes the variance in one pass without losing digits.
    force_float32_reductions
        False gives the running statistics `param_dtype`, as in Flax.  Statistics are computed in
        float64 either way.

    Raises
    ------
    TypeError, ValueError
        If x is not real, has one dimension, or `axis` names several.

    Notes
    -----
    Parameters are in the collection ``params`` (``scale``, ``bias``), running statistics in
    ``batch_stats`` (``mean``, ``var``); the variance is the population variance, as in Flax.  A
    model may take the variables of `flax.linen.BatchNorm`, and the other way round.

    With `axis_name` and a mask, parts count by their numbers of values; Flax averages the
    statistics of the parts, which differs where masks leave them different numbers.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from bncore.jax import linen
    >>> layer = linen.BatchNorm(use_running_average=False, momentum=0.5)
    >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, state = layer.apply(variables, x, mutable=["batch_stats"])
    >>> print(y.round(2), state["batch_stats"]["mean"].round(2))
    [[-1. -1.]
     [ 1.  1.]] [0.5 1.5]
    """

    @compact  # type: ignore[untyped-decorator]
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
        average = merge_param("use_running_average", self.use_running_average, use_running_average)
        x = jnp.asarray(x)
        axis = feature_axis(x, self.axis)
        shape = (x.shape[axis],)
        kind = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, kind))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(shape, kind))
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        given = [one for one in (x, scale, bias) if one is not None]
        y, moments = computed(
            x,
            (mean.value, var.value) if average else None,
            scale,
            bias,
            canonicalize_dtype(*given, dtype=self.dtype),
            axis=axis,
            eps=self.epsilon,
            where=mask,
            axis_name=None if self.is_initializing() else self.axis_name,
            axis_index_groups=None if self.is_initializing() else self.axis_index_groups,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
        )
        if moments is not None and not self.is_initializing():
            wide = jnp.dtype(self.dtype or x.dtype)
            if self.force_float32_reductions:
                wide = jnp.promote_types(wide, jnp.float32)
            new = running(mean.value, var.value, moments, self.momentum, wide)
            mean.value, var.value = new
        return y


def _normalized(layer: Any, norm: layers.Norm, x: Any, shape: tuple[int, ...]) -> Any:
    """Compute a norm of samples with a layer's own parameters of a shape."""
    scale = bias = None
    if layer.use_scale:
        scale = layer.param("scale", layer.scale_init, shape, layer.param_dtype)
    if layer.use_bias:
        bias = layer.param("bias", layer.bias_init, shape, layer.param_dtype)
    given = [one for one in (x, scale, bias) if one is not None]
    dtype = canonicalize_dtype(*given, dtype=layer.dtype)
    return layers.normalized(norm, x, scale, bias, dtype, layer.epsilon)


class GroupNorm(linen.GroupNorm):
    """`flax.linen.GroupNorm` with another forward: same fields, names and state.

    Parameters
    ----------
    num_groups, group_size, epsilon, dtype, param_dtype, use_bias, use_scale
        As in `flax.linen.GroupNorm`.
    bias_init, scale_init
        As in `flax.linen.GroupNorm`.
    use_fast_variance, force_float32_reductions
        Have no effect: bncore computes statistics in float64, in one pass over memory.
    reduction_axes, axis_name, axis_index_groups
        As in `flax.linen.GroupNorm`.  A layer that has `reduction_axes` or an `axis_name`, and a
        call with a mask, is computed by Flax.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", ECCV 2018.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from bncore.jax import linen
    >>> layer, x = linen.GroupNorm(2), jnp.array([[0.0, 2.0, 5.0, 9.0]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(2))
    [[-1.  1. -1.  1.]]
    """

    @compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x; its last axis has the channels."""
        x = jnp.asarray(x)
        groups = self.num_groups
        if self.group_size is not None and groups is None and not x.shape[-1] % self.group_size:
            groups = x.shape[-1] // self.group_size
        plain = self.reduction_axes is None and self.axis_name is None and mask is None
        norm = layers.by_groups(x, groups) if plain else None
        if norm is None or None not in (self.num_groups, self.group_size):
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, x.shape[-1:])


class LayerNorm(linen.LayerNorm):
    """`flax.linen.LayerNorm` with another forward: same fields, names and state.

    Parameters
    ----------
    epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init
        As in `flax.linen.LayerNorm`.
    use_fast_variance, force_float32_reductions
        Have no effect: bncore computes statistics in float64, in one pass over memory.
    reduction_axes, feature_axes, axis_name, axis_index_groups
        As in `flax.linen.LayerNorm`.  bncore computes the norm where both name the last axes, or
        where all axes but the first are reduced and one has the features.  Everything else, a layer
        with an `axis_name` and a call with a mask are computed by Flax.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450 (2016).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from bncore.jax import linen
    >>> layer, x = linen.LayerNorm(), jnp.array([[0.0, 2.0], [5.0, 9.0]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(2))
    [[-1.  1.]
     [-1.  1.]]
    """

    @compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x over its last axes."""
        x = jnp.asarray(x)
        norm = None
        if self.axis_name is None and mask is None:
            norm = layers.by_rows(x, self.reduction_axes, self.feature_axes)
        if norm is None:
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, layers.sizes(x, self.feature_axes))


class InstanceNorm(linen.InstanceNorm):
    """`flax.linen.InstanceNorm` with another forward: same fields, names and state.

    Parameters
    ----------
    epsilon, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init
        As in `flax.linen.InstanceNorm`.
    use_fast_variance, force_float32_reductions
        Have no effect: bncore computes statistics in float64, in one pass over memory.
    feature_axes, axis_name, axis_index_groups
        As in `flax.linen.InstanceNorm`.  A layer with several `feature_axes` or an `axis_name`, and
        a call with a mask, is computed by Flax.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022 (2016).

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from bncore.jax import linen
    >>> layer, x = linen.InstanceNorm(), jnp.array([[[0.0, 5.0], [2.0, 9.0]]])
    >>> print(layer.apply(layer.init(jax.random.key(0), x), x).round(2))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    @compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x, each channel of each sample."""
        x = jnp.asarray(x)
        norm = None
        if self.axis_name is None and mask is None:
            norm = layers.by_channels(x, self.feature_axes)
        if norm is None:
            return super().__call__(x, mask=mask)
        return _normalized(self, norm, x, layers.sizes(x, self.feature_axes))
