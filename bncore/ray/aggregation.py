"""`MomentsOf`: an aggregation of Ray's data sets whose result is a `bncore.Moments`."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from ray.data.aggregate import AggregateFnV2
from ray.data.block import BlockAccessor

import bncore
from bncore.arguments import scalars
from bncore.arguments.weights import NAN_POLICIES, NanPolicy
from bncore.runtime.threads import resolve
from bncore.statistics import Moments
from bncore.statistics.travel import merged_pairwise, packed, unpacked

States = list[bytes]  # the packed moments of each block


class MomentsOf(AggregateFnV2):  # type: ignore[misc]
    """Count, mean and sum of squared deviations of every channel: for ``Dataset.aggregate``.

    Every task computes the moments of its rows, and these few numbers travel.  Ray combines them in
    the order in which tasks end; here they are kept apart until the end, sorted, and then merged in
    a tree.  So the order of tasks changes no bit.  Ray itself decides which blocks a task puts
    together, and another division gives other last digits.

    Parameters
    ----------
    on : str
        A column.  Ray gives an aggregation one column; its ``Concatenator`` makes one of several.
    axis : int, default 0
        The channel axis of a row's array, if the rows of the column are arrays.  Numbers make one
        channel.
    nan_policy : {"propagate", "omit", "raise"}, default "propagate"
        What a NaN means, as in `bncore.moments`; nulls of numbers are NaN.
    scale : float, optional
        What integers are multiplied with, as in `bncore.moments`.
    n_threads : int, default 1
        How many threads a task may use; Ray gives a task one processor.
    alias_name : str, optional
        The name of the result; ``moments(on)`` by default.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described above.  A task raises what `bncore.moments` raises, and
        Ray passes it on.

    Notes
    -----
    If a worker dies, Ray computes the blocks that it had again.  The state of a block is replaced
    then and not added, so nothing counts twice.  32 bytes per block and channel are kept.

    Examples
    --------
    >>> import numpy as np
    >>> import ray
    >>> from bncore.ray import MomentsOf
    >>> data = ray.data.from_numpy(np.array([[0.0, 1.0], [2.0, 5.0]]))  # doctest: +SKIP
    >>> data.aggregate(MomentsOf("data"))["moments(data)"]  # doctest: +SKIP
    Moments(count=array([2., 2.]), mean=array([1., 3.]), m2=array([2., 8.]))
    """

    def __init__(
        self,
        on: str,
        *,
        axis: SupportsIndex = 0,
        nan_policy: NanPolicy = "propagate",
        scale: float | None = None,
        n_threads: int | None = 1,
        alias_name: str | None = None,
    ) -> None:
        if not isinstance(on, str) or not on:
            raise TypeError(f"on: expected the name of a column, got {scalars.shown(on)}")
        self._on = on
        self._axis = scalars.integer("axis", axis, "an integer")
        resolve(n_threads)
        self._options: dict[str, Any] = {
            "nan_policy": scalars.option("nan_policy", nan_policy, NAN_POLICIES) or "propagate",
            "scale": None if scale is None else scalars.real("scale", scale),
            "n_threads": n_threads,
        }
        super().__init__(
            alias_name or f"moments({on})",
            list,
            on=on,
            ignore_nulls=False,
        )

    def aggregate_block(self, block: Any) -> States:
        """Compute the moments of a block; Ray calls this in a task."""
        accessor = BlockAccessor.for_block(block)
        if accessor.num_rows() == 0:
            return []
        x = accessor.to_numpy(self._on)
        if x.ndim == 1 and x.dtype != object:
            x = x[:, np.newaxis]
        axis = self._axis + 1 if self._axis >= 0 else self._axis
        return [packed(bncore.moments(x, axis=axis, **self._options)).tobytes()]

    def combine(self, current_accumulator: States, new: States) -> States:
        """Keep the moments of all blocks side by side."""
        return [*current_accumulator, *new]

    def finalize(self, accumulator: States) -> Moments | None:
        """Merge the moments of all blocks, in an order that does not depend on when they came."""
        if not len(accumulator):
            return None
        states = [np.frombuffer(state).reshape(4, -1) for state in sorted(map(bytes, accumulator))]
        sizes = {state.shape for state in states}
        if len(sizes) > 1:
            raise ValueError(
                f"on: expected the same number of channels in every block, got "
                f"{sorted(shape[1] for shape in sizes)}"
            )
        moments: Moments = unpacked(merged_pairwise(np.stack(states), Moments), Moments)
        return moments
