"""Moments of data that do not fit in memory: arrays that come one by one, or a mapped file.

Both functions read every value once and keep nothing of x's size.  Several processes can each
compute the moments of a part of the data; `Moments` can be pickled and merged.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import data_array, integer_scale
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
) -> Moments:
    """Compute the moments of all pieces together, reading one piece after the other.

    Parameters
    ----------
    pieces : iterable of array_like or Moments
        Micro-batches, chunks of a file, or moments that other processes computed.  Arrays are as
        `moments` takes them, and all have the same number of channels.  It may be a generator: the
        function asks for every piece once, and drops it before the next.
    axis, dtype, n_threads, scale
        As in `moments`.

    Returns
    -------
    Moments
        The moments of all pieces, merged in their order.  They differ from those of one whole array
        only by rounding.

    Raises
    ------
    TypeError, ValueError
        As `moments`; and if there is no piece, or a piece has another number of channels than the
        first.

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
    if not isinstance(pieces, Iterable):
        raise TypeError(f"pieces: expected an iterable, got {scalars.shown(pieces)}")
    scalars.float64_sums("dtype", dtype)  # even if all pieces are moments already
    options: dict[str, Any] = {
        "axis": axis, "dtype": dtype, "n_threads": n_threads, "scale": scale
    }  # fmt: skip
    total: Moments | None = None
    for piece in pieces:
        found = piece if isinstance(piece, Moments) else moments(piece, **options)
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

    __slots__ = ("_run", "_split", "_view", "axis")

    def __init__(self, x: Array, channel_axis: int, block_bytes: int) -> None:
        order = layout.memory_order(x)
        self._view = x.transpose(order)
        self.axis = order.index(channel_axis)
        sizes = self._view.shape
        slabs = [layout.canonical(sizes, k, k + 1).inner * x.itemsize for k in range(x.ndim)]
        self._split = next(k for k, slab in enumerate(slabs) if slab <= block_bytes)
        self._run = max(block_bytes // max(slabs[self._split], 1), 1)

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        """Yield the channels of each block, and the block."""
        sizes = self._view.shape
        for index in np.ndindex(sizes[: self._split]):
            steps = [slice(i, i + 1) for i in index]
            for start in range(0, sizes[self._split], self._run):
                run = slice(start, min(start + self._run, sizes[self._split]))
                where = (*steps, run)
                channels = (
                    where[self.axis] if self.axis <= self._split else slice(0, sizes[self.axis])
                )
                yield channels, self._view[where]


# Pages of a mapped file


class Pages:
    """The pages of the mapped file that holds an array; without a mapped file it does nothing.

    A page that was read counts as this process's memory until the process gives it back.  The
    system keeps it in its cache in either case.
    """

    __slots__ = ("_map", "_start")

    def __init__(self, x: npt.NDArray[Any]) -> None:
        self._map = _file_map(x)
        if self._map is not None:
            self._start = np.frombuffer(self._map, np.uint8).ctypes.data

    def _advise(self, name: str, block: npt.NDArray[Any]) -> None:
        advice = getattr(mmap, name, None)  # not on every system
        if self._map is None or advice is None or block.size == 0:
            return
        low, high = np.lib.array_utils.byte_bounds(block)
        first = (low - self._start) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(advice, first, high - self._start - first)

    def expect(self, block: npt.NDArray[Any]) -> None:
        """Ask the system to read the block ahead."""
        self._advise("MADV_WILLNEED", block)

    def drop(self, block: npt.NDArray[Any]) -> None:
        """Give the block's pages back."""
        self._advise("MADV_DONTNEED", block)


def _file_map(x: npt.NDArray[Any]) -> mmap.mmap | None:
    """Return the map that x lies in, if its pages can be given back without loss.

    A private map that was written to would lose the written values.  The map must therefore be
    read-only, or a shared map of NumPy.
    """
    base: object = x
    shared = False
    while isinstance(base, (np.ndarray, memoryview)):
        shared |= isinstance(base, np.memmap) and base.mode in ("r", "r+", "w+")
        base = base.obj if isinstance(base, memoryview) else base.base
    if not isinstance(base, mmap.mmap) or not (shared or memoryview(base).readonly):
        return None
    return base


# Progress


def _bar(total: int) -> AbstractContextManager[Advance]:
    """Return rich's progress bar for this number of bytes."""
    try:
        from rich import progress
    except ImportError as error:
        raise ImportError(
            "progress: True needs rich: pip install 'bncore[progress]', or give a function"
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
) -> Moments:
    """Compute the moments of an array that may be larger than memory, block by block.

    For a mapped file (`numpy.memmap`, ``numpy.load(..., mmap_mode="r")``) the function asks the
    system to read the next block ahead, and gives the pages of each finished block back.  So the
    process holds about two blocks of the file; the system's cache may hold more.

    Parameters
    ----------
    x : array_like of 2 or more dimensions
        An array of a dtype that `moments` takes, in any memory order.  It is copied block by block
        if it is not contiguous, is unaligned or has a foreign byte order.
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

    Returns
    -------
    Moments
        They differ from those of `moments` only by rounding.  Blocks are merged in memory order, so
        the last bits depend on `block_bytes` as well as on the layout.

    Raises
    ------
    TypeError, ValueError
        As `moments`; and if `block_bytes` or `progress` is not as described above.
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
    array = data_array("x", x, integers=True)
    if array.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {array.ndim}")
    scalars.float64_sums("dtype", dtype)
    integer_scale(scale, array)
    channel_axis = scalars.one_axis(axis, array.ndim)
    size = scalars.integer_at_least("block_bytes", block_bytes, LEAST_BLOCK_BYTES)
    advancing = _advancing(progress, array.nbytes)
    options: dict[str, Any] = {"dtype": dtype, "n_threads": n_threads, "scale": scale}
    if array.size == 0:
        return moments(array, axis=channel_axis, **options)
    blocks, pages = Blocks(array, channel_axis, size), Pages(array)
    found: dict[int, Moments] = {}  # by the first channel of a range of channels
    with advancing as advance:
        waiting = iter(blocks)
        after = next(waiting, None)
        while after is not None:
            (channels, block), after = after, next(waiting, None)
            if after is not None:
                pages.expect(after[1])
            part = moments(block, axis=blocks.axis, **options)
            pages.drop(block)
            before = found.get(channels.start)
            found[channels.start] = part if before is None else before.merge(part)
            advance(block.nbytes)
    return concatenated([found[first] for first in sorted(found)])
