"""`mean_var` and `normalize` for xarray's arrays, in memory or chunked, and for their groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from xarray.core.groupby import DataArrayGroupBy

import bncore
from bncore.arguments import scalars
from bncore.arguments.weights import NanPolicy
from bncore.functions.over_axes import normalize_over, reduced_moments

Dims: TypeAlias = Hashable | Iterable[Hashable] | None

# The two results of a group in one Dataset, by names that no coordinate has.
MEAN, VAR = "mean of a group in bncore", "variance of a group in bncore"


def mean_var(
    x: xr.DataArray | DataArrayGroupBy,
    dim: Dims = None,
    *,
    correction: float | None = None,
    keepdims: bool = False,
    dtype: npt.DTypeLike | None = None,
    scale: float | None = None,
    ddof: float | None = None,
    where: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    nan_policy: NanPolicy = "propagate",
) -> tuple[xr.DataArray, xr.DataArray]:
    """Compute mean and variance over some dimensions, in one pass.

    Parameters
    ----------
    x : xarray.DataArray, or groups of one
        Of a dtype that `bncore.mean_var` takes, and with NumPy or Dask arrays in it.  Groups, such
        as ``x.groupby("time.month")``, are reduced one by one and joined along a new dimension.
        It takes the place of the grouped one.  In place of ``x.resample(time="MS")``, pass
        ``x.groupby(time=xarray.groupers.TimeResampler("MS"))``.  Make a dimension of the blocks of
        ``coarsen`` and the windows of ``rolling`` by their ``construct``.
    dim : name or names of dimensions, optional
        The dimensions to reduce; all by default, as ``...`` says, too.
    correction, keepdims, dtype, scale, ddof, nan_policy
        As in `bncore.mean_var`.
    where, weights : xarray.DataArray, optional
        What counts, as in `bncore.mean_var`; their dimensions are some of x's, in any order, with
        the same coordinates.  Of groups, x is the array that was grouped.

    Returns
    -------
    mean, var : xarray.DataArray
        With x's name, attributes and the coordinates that remain.  If x holds a Dask array they do,
        too, and one ``dask.compute(mean, var)`` computes both from one pass.

    Raises
    ------
    TypeError, ValueError
        As `bncore.mean_var`; and if x is no DataArray, a dimension does not exist in x, or the
        coordinates of `where` or `weights` differ from x's.

    Examples
    --------
    >>> import xarray as xr
    >>> import bncore.xarray
    >>> x = xr.DataArray([[0.0, 1.0], [2.0, 5.0]], dims=("time", "place"), name="rain")
    >>> mean, var = bncore.xarray.mean_var(x, "time")
    >>> mean.name, mean.dims, mean.values, var.values
    ('rain', ('place',), array([1., 3.]), array([1., 4.]))
    """
    options: dict[str, Any] = {
        "correction": correction, "dtype": dtype, "scale": scale, "ddof": ddof,
        "nan_policy": nan_policy,
    }  # fmt: skip
    keep = scalars.boolean("keepdims", keepdims)
    counted = {"where": where, "weights": weights}
    if not isinstance(x, DataArrayGroupBy):
        return _mean_var(_labelled("x", x), dim, keep, counted, options)
    parts = _of_groups(x, counted)
    seen: list[xr.DataArray] = []

    def of_group(group: xr.DataArray) -> xr.Dataset:
        seen[:] = [group]
        mean, var = _mean_var(group, dim, keep, next(parts), options)
        return xr.Dataset({MEAN: mean, VAR: var})

    both = x.map(of_group)
    order = _order_of_groups(both.dims, seen[0].dims, x)
    mean, var = (both[name].rename(seen[0].name).transpose(*order) for name in (MEAN, VAR))
    return mean, var


def _mean_var(
    x: xr.DataArray, dim: Dims, keepdims: bool, counted: dict[str, Any], options: dict[str, Any]
) -> tuple[xr.DataArray, xr.DataArray]:
    """Compute mean and variance of one array; the results take labels from `DataArray.reduce`."""
    own = {name: _against(name, value, x) for name, value in counted.items()}
    names = _names(x, dim)
    held = x.copy(deep=False, data=x.data)  # so that a file is read once
    found = _functions(x).mean_var(held.data, axis=_axes(x, names), **own, **options)

    def labelled(values: Any) -> xr.DataArray:
        return held.reduce(
            lambda data, axis=None: values, names, keep_attrs=True, keepdims=keepdims
        )

    return labelled(found[0]), labelled(found[1])


def normalize(
    x: xr.DataArray | DataArrayGroupBy,
    dim: Dims = None,
    *,
    eps: float = 0.0,
    where: xr.DataArray | None = None,
    weights: xr.DataArray | None = None,
    nan_policy: NanPolicy = "propagate",
    fill: float | None = None,
) -> xr.DataArray:
    """Subtract the mean over some dimensions, and divide by the standard deviation.

    ``y = (x - mean) / sqrt(var + eps)``, with the population variance.

    Parameters
    ----------
    x : xarray.DataArray of float16, bfloat16, float32 or float64, or groups of one
        With NumPy or Dask arrays in it.  Each group is normalized by its own statistics.
    dim, where, weights
        As in `mean_var`.
    eps : float, default 0
        Added to the variance, >= 0, in x's unit squared.  With 0, y of constant data is NaN.
    nan_policy, fill
        As in `bncore.normalize`.

    Returns
    -------
    xarray.DataArray
        y, with x's dtype, name, attributes, dimensions and coordinates.

    Raises
    ------
    TypeError, ValueError
        As `mean_var`.

    Notes
    -----
    The attributes are x's, units included, although y has none.

    Examples
    --------
    >>> import xarray as xr
    >>> import bncore.xarray
    >>> x = xr.DataArray([[0.0, 1.0], [2.0, 5.0]], dims=("time", "place"))
    >>> bncore.xarray.normalize(x, "time").values
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    options: dict[str, Any] = {"eps": eps, "nan_policy": nan_policy, "fill": fill}
    counted = {"where": where, "weights": weights}

    if isinstance(x, DataArrayGroupBy):
        parts = _of_groups(x, counted)
        return x.map(lambda group: _normalize(group, dim, next(parts), options))
    return _normalize(_labelled("x", x), dim, counted, options)


def _normalize(
    x: xr.DataArray, dim: Dims, counted: dict[str, Any], options: dict[str, Any]
) -> xr.DataArray:
    """Normalize one array."""
    own = {name: _against(name, value, x) for name, value in counted.items()}
    axes = _axes(x, _names(x, dim))
    y = _functions(x).normalized_over(x.data, axes, **own, **options)
    result = x.copy(deep=False, data=y)
    result.encoding = {}  # x's says how x is stored
    return result


# NumPy and Dask


class _InMemory:
    """The functions for NumPy arrays, with the names of those in `bncore.dask.statistics`."""

    mean_var = staticmethod(bncore.mean_var)

    @staticmethod
    def normalized_over(
        x: Any, axis: Any, *, eps: float, fill: float | None, **counted: Any
    ) -> Any:
        """Normalize by the moments over some axes."""
        array = np.asanyarray(x, order="C")  # one copy for both steps
        moments, _ = reduced_moments(array, axis, **counted)
        return normalize_over(array, moments, axis, eps=eps, fill=fill, **counted)


def _functions(x: xr.DataArray) -> Any:
    """Return the functions for the array that x holds."""
    if x.chunks is None:
        return _InMemory
    from bncore.dask import statistics

    return statistics


# Labels


# What to pass in place of xarray's other objects, by their classes.
INSTEAD = {
    "DataArrayResample": "group it: .groupby(time=xarray.groupers.TimeResampler('MS'))",
    "DataArrayCoarsen": "make blocks a dimension: "
    ".coarsen(time=7).construct(time=('week', 'day')), and reduce 'day'",
    "DataArrayRolling": "make windows a dimension: "
    ".rolling(time=7).construct('window'), and reduce 'window'",
    "DataArrayWeighted": "pass weights=",
    "Dataset": "pass one of its variables, or use its map()",
    "DatasetGroupBy": "group one of its variables",
}


def _labelled(name: str, value: object) -> xr.DataArray:
    """Return a DataArray; refuse anything else."""
    if not isinstance(value, xr.DataArray):
        instead = INSTEAD.get(type(value).__name__)
        how = f" ({instead})" if instead else ""
        raise TypeError(f"{name}: expected a DataArray, got {scalars.shown(value)}{how}")
    return value


def _names(x: xr.DataArray, dim: Dims) -> list[Hashable]:
    """Return the names of the dimensions to reduce."""
    if dim is None or dim is ...:
        return list(x.dims)
    names = [dim] if isinstance(dim, str) or not isinstance(dim, Iterable) else list(dim)
    for name in names:
        if name not in x.dims:
            raise ValueError(f"dim: expected some of {x.dims}, got {name!r}")
    return names


def _axes(x: xr.DataArray, names: list[Hashable]) -> tuple[int, ...]:
    """Return the axes with these names."""
    return tuple(map(int, x.get_axis_num(names)))


def _against(name: str, value: object, x: xr.DataArray) -> Any:
    """Return the array of `where` or `weights` as it broadcasts against x's, without a copy."""
    if value is None:
        return None
    given = _labelled(name, value)
    if not set(given.dims) <= set(x.dims):
        raise ValueError(f"{name}: expected some of the dimensions {x.dims}, got {given.dims}")
    try:
        xr.align(x, given, join="exact", copy=False)
    except ValueError as error:
        raise ValueError(f"{name}: expected x's coordinates, got others ({error})") from error
    ordered = given.variable.transpose(*(d for d in x.dims if d in given.dims))
    index = tuple(slice(None) if d in given.dims else None for d in x.dims)
    return ordered.data[index]


def _order_of_groups(
    found: Iterable[Hashable], dims: tuple[Hashable, ...], x: DataArrayGroupBy
) -> list[Hashable]:
    """Put the dimension of the groups where the grouped one was, as xarray's reductions do."""
    places = {each.name: each.group.dims[0] for each in x.groupers if each.group.ndim == 1}

    def place(name: Hashable) -> int:
        old = places.get(name, name)
        return dims.index(old) if old in dims else len(dims)

    return sorted(found, key=place)


def _of_groups(x: DataArrayGroupBy, counted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Divide masks and weights as x is divided; yield those of one group after the other.

    xarray stacks the dimensions of a grouping that has several.
    """
    whole: xr.DataArray = x._original_obj
    given = {}
    for name, value in counted.items():
        if value is None:
            continue
        _against(name, value, whole)
        bare = value.drop_vars(value.coords)  # they are x's, of which a group has some
        if x._stacked_dim is not None:
            dims = x.groupers[0].group.dims
            missing = {d: whole.sizes[d] for d in dims if d not in bare.dims}
            bare = bare.expand_dims(missing).stack({x._stacked_dim: dims}, create_index=False)
        given[name] = bare
    for indices in filter(None, x.encoded.group_indices):  # xarray leaves out empty groups, too
        yield {
            name: bare.isel({x._group_dim: indices}) if x._group_dim in bare.dims else bare
            for name, bare in given.items()
        }
