"""Moments of data that do not fit in memory: many arrays, or one that is read block by block.

Both functions read every value once and keep nothing of x's size.  Several processes can each
compute the moments of a part of the data; `Moments` can be pickled and merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array, integer_scale, plain_array
from bncore.arguments.weights import NanPolicy, weights_of
from bncore.data.pages import Pages
from bncore.data.stored import Stored, is_stored, stand_in
from bncore.extras import pip_install
from bncore.functions.steps import moments
from bncore.statistics import Moments, concatenated

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Advance: TypeAlias = Callable[[int], object]

BLOCK_BYTES = 1 << 24  # large against the fixed cost of a call, small against the memory
LEAST_BLOCK_BYTES = 1 << 12


def merged_moments(
    pieces: Iterable[npt.ArrayLike | Moments],
    *,
    axis: SupportsIndex = 1,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
    where: Iterable[npt.ArrayLike | None] | None = None,
    weights: Iterable[npt.ArrayLike | None] | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Moments:
    """Compute the moments of all pieces together, reading one piece after the other.

    Parameters
    ----------
    pieces : iterable of array_like or Moments
        Micro-batches, chunks of a file, or moments that other processes computed.  Arrays are as
        `moments` takes them, and all have the same number of channels.  It may be a generator: the
        function asks for every piece once, and drops it before the next.
    axis, dtype, n_threads, scale, nan_policy
        As in `moments`.
    where, weights : iterable of array_like or None, optional
        What counts in each piece, as in `moments`: one item for each piece, None if everything
        counts.  Moments have been counted already, so their items must be None.

    Returns
    -------
    Moments
        The moments of all pieces, merged in their order.  They differ from those of one whole array
        only by rounding.

    Raises
    ------
    TypeError, ValueError
        As `moments`; and if there is no piece, a piece has another number of channels than the
        first, or `where` or `weights` has another number of items than there are pieces.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance:
    Analysis and Recommendations", The American Statistician 37 (1983) 242-247, equation 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> bncore.merged_moments(np.array([[start], [start + 2]]) for start in (0.0, 4.0))
    Moments(count=array([4.]), mean=array([3.]), m2=array([20.]))
    """
    optional = {"where": where, "weights": weights}
    given: dict[str, Iterable[Any]] = {k: v for k, v in optional.items() if v is not None}
    for name, value in {"pieces": pieces, **given}.items():
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
            raise TypeError(f"{name}: expected an iterable of arrays, got {scalars.shown(value)}")
    scalars.float64_sums("dtype", dtype)  # even if all pieces are moments already
    options: dict[str, Any] = {
        "axis": axis, "dtype": dtype, "n_threads": n_threads, "scale": scale,
        "nan_policy": nan_policy,
    }  # fmt: skip
    total: Moments | None = None
    nothing = object()
    every = zip_longest(pieces, *given.values(), fillvalue=nothing)
    for number, (piece, *items) in enumerate(every):
        counted = dict(zip(given, items, strict=True))
        for name, item in counted.items():
            if (item is nothing) != (piece is nothing):
                got = number if item is nothing else f"more than {number}"
                raise ValueError(f"{name}: expected one item for each piece, got {got}")
        if isinstance(piece, Moments):
            for name, item in counted.items():
                if item is not None:
                    raise ValueError(f"{name}: expected None for Moments, got an array")
            found = piece
        else:
            found = moments(piece, **options, **counted)
        if total is not None and found.mean.shape != total.mean.shape:
            raise ValueError(
                f"pieces: expected {total.mean.shape[0]} channels as in the first piece, "
                f"got {found.mean.shape[0]}"
            )
        total = found if total is None else total.merge(found)
    if total is None:
        raise ValueError("pieces: expected at least one piece, got none")
    return total


# Blocks of an array


class Blocks:
    """An array divided into blocks that follow one another in memory.

    The axes are taken in memory order.  One axis is divided into ranges.  The slower axes are
    divided into single steps, and the faster axes stay whole.

    Attributes
    ----------
    axis : the position of the channel axis in memory order
    """

    __slots__ = ("_order", "_run", "_shape", "_split", "_view", "axis")

    def __init__(self, x: Array, channel_axis: int, block_bytes: int) -> None:
        self._shape = x.shape
        self._order = order = layout.memory_order(x)
        self._view = x.transpose(order)
        self.axis = order.index(channel_axis)
        sizes = self._view.shape
        slabs = [layout.canonical(sizes, k, k + 1).inner * x.itemsize for k in range(x.ndim)]
        self._split = next(k for k, slab in enumerate(slabs) if slab <= block_bytes)
        self._run = max(block_bytes // max(slabs[self._split], 1), 1)

    def __iter__(self) -> Iterator[tuple[slice, Array, tuple[slice, ...]]]:
        """Yield the channels of each block, the block, and its place, the axes in memory order.

        The next block of a mapped file is read ahead, and the pages of the last one given back.
        """
        pages, places = Pages(self._view), self._places()
        after = next(places, None)
        while after is not None:
            place, after = after, next(places, None)
            block = self._view[place]
            if after is not None:
                pages.expect(self._view[after])
            whole = slice(0, self._view.shape[self.axis])
            yield place[self.axis] if self.axis < len(place) else whole, block, place
            pages.drop(block)

    def _places(self) -> Iterator[tuple[slice, ...]]:
        sizes = self._view.shape
        for index in np.ndindex(sizes[: self._split]):
            steps = [slice(i, i + 1) for i in index]
            for start in range(0, sizes[self._split], self._run):
                yield (*steps, slice(start, min(start + self._run, sizes[self._split])))

    def of(self, whole: npt.NDArray[Any], place: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Return the part at a block's place of an array that broadcasts against x."""
        return np.broadcast_to(whole, self._shape).transpose(self._order)[place]


# Progress


def _bar(total: int) -> AbstractContextManager[Advance]:
    """Return rich's progress bar for this number of bytes."""
    try:
        from rich import progress
    except ImportError as error:
        raise ImportError(
            f"progress: True needs rich: {pip_install('progress')} installs it; or give a function"
        ) from error

    @contextmanager
    def shown() -> Iterator[Advance]:
        columns = (
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns) as bar:
            task = bar.add_task("", total=total)
            yield lambda step: bar.advance(task, step)

    return shown()


def _advancing(progress: object, total: int) -> AbstractContextManager[Advance]:
    """Return the function to call with the number of bytes of each finished block."""
    if callable(progress):
        return nullcontext(progress)
    if not isinstance(progress, bool):
        raise TypeError(
            f"progress: expected a bool or a function of a number of bytes, "
            f"got {scalars.shown(progress)}"
        )
    return _bar(total) if progress else nullcontext(lambda step: None)


def stream_moments(
    x: npt.ArrayLike,
    *,
    axis: SupportsIndex = 1,
    block_bytes: int = BLOCK_BYTES,
    progress: bool | Advance = False,
    dtype: npt.DTypeLike | None = None,
    n_threads: int | None = None,
    scale: float | None = None,
    where: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Moments:
    """Compute the moments of an array that may be larger than memory, block by block.

    For a mapped file (`numpy.memmap`, ``numpy.load(..., mmap_mode="r")``) the function asks the
    system to read the next block ahead, and gives the pages of each finished block back.  So the
    process holds about two blocks of the file; the system's cache may hold more.  Arrays of Zarr,
    HDF5 and Dask, and others whose parts are read when they are asked for, are read by their
    chunks: as many at once as fit into a block, and at least one; those of Dask one by one.  What
    lies in a file as it lies in memory is mapped: HDF5 data sets without filters, if their file was
    opened with mode "r", and Zarr arrays without compression in a local folder.  This needs chunks
    of more than half a block, or none.

    Parameters
    ----------
    x : array_like or stored array of 2 or more dimensions
        Of a dtype that `moments` takes.  An array in memory may have any memory order; it is copied
        block by block if it is not contiguous, is unaligned or has a foreign byte order.  A stored
        array has ``shape``, ``dtype`` and slices, and says in ``chunks`` how it is stored: by the
        sizes of a chunk, as those of Zarr and HDF5 do, or of every chunk, as Dask's.
    axis : int, default 1
        The channel axis.
    block_bytes : int, default 16 MiB
        The largest number of bytes to read at a time; >= 4096.
    progress : bool or callable, default False
        True shows a progress bar of rich.  A function, such as the ``update`` of a tqdm bar, is
        called with the number of bytes of every finished block.
    dtype : None or numpy.float64, default None
        What the values are summed in, as in `moments`.
    n_threads : int, optional
        The largest number of threads to use; `get_num_threads()` by default.
    scale : float, optional
        What integers are multiplied with, as in `moments`.
    where, weights, nan_policy
        As in `batch_norm_train`.  They are checked before x is read; a NaN that is not allowed is
        found in its block.  If x is a stored array, the two may be stored as well, and are read
        block by block; a negative weight is then found in its block.

    Returns
    -------
    Moments
        They differ from those of `moments` only by rounding.  Blocks are merged in memory order, so
        the last bits depend on `block_bytes` as well as on the layout and the chunks.

    Raises
    ------
    TypeError, ValueError
        As `moments`, also for a path, an open file or a group of arrays; and if `block_bytes` or
        `progress` is not as described above, or a chunk has more than 16 times `block_bytes`, since
        it can only be read as a whole.
    ImportError
        If `progress` is True and rich is not installed.

    Notes
    -----
    The pages of a private map that can be written to (``numpy.memmap(..., mode="c")``) are not
    given back, since that would undo what was written.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, The American Statistician 37 (1983) 242-247, equation
    2.1, for the merging.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x = np.arange(8192.0).reshape(4096, 2)
    >>> bncore.stream_moments(x, block_bytes=4096) == bncore.moments(x)
    True
    """
    stored = is_stored(x)
    array = data_array("x", stand_in("x", x) if stored else x, integers=True)
    if array.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
    scalars.float64_sums("dtype", dtype)
    integer_scale(scale, array)
    channel_axis = scalars.one_axis(axis, array.ndim)
    size = scalars.integer_at_least("block_bytes", block_bytes, LEAST_BLOCK_BYTES)
    advancing = _advancing(progress, array.nbytes)
    options: dict[str, Any] = {
        "dtype": dtype, "n_threads": n_threads, "scale": scale, "nan_policy": nan_policy
    }  # fmt: skip
    counted = _counted(array.shape, where, weights, nan_policy, stored)
    if array.size == 0:
        return moments(np.empty(array.shape, array.dtype), axis=channel_axis, **options)
    source = Stored(x, channel_axis, size) if stored else Blocks(array, channel_axis, size)
    found: dict[int, Moments] = {}  # by the first channel of a range of channels
    with advancing as advance:
        for channels, block, place in source:
            own: dict[str, Any] = {name: source.of(whole, place) for name, whole in counted.items()}
            part = moments(block, axis=source.axis, **options, **own)
            before = found.get(channels.start)
            found[channels.start] = part if before is None else before.merge(part)
            advance(block.nbytes)
            del block, own  # before the next ones are read
    return concatenated([found[first] for first in sorted(found)])


def _counted(
    shape: tuple[int, ...], where: Any, weights: Any, nan_policy: NanPolicy, stored: bool
) -> dict[str, Any]:
    """Check the arguments that say what counts, and return those that are given, by name.

    If x is stored, they may be stored as well, and stay so.
    """
    given = {name: v for name, v in (("where", where), ("weights", weights)) if v is not None}
    seen: dict[str, Any] = {}
    for name, value in given.items():
        lazy = stored and is_stored(value)
        given[name] = value if lazy else plain_array(name, value)
        seen[name] = stand_in(name, value) if lazy else value
    weights_of(shape, seen.get("where"), seen.get("weights"), nan_policy, None)
    return given
