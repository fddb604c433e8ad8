"""Time mean and standard deviation of uint8 images, channels last, against NumPy's.

Run as ``python benchmarks/integers.py [images]``.  NumPy converts the images to float32 between 0
and 1 first, as most programs do; bncore reads them as they are.  Both results are compared with the
exact ones, and the peak of what NumPy allocates in bncore's call is shown.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

import bncore

SCALE = 1 / 255
Result = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def numpys(images: npt.NDArray[np.uint8]) -> Result:
    """Compute the two as NumPy's users do."""
    x = images.astype(np.float32) / 255
    return x.mean((0, 1, 2)), x.std((0, 1, 2))


def bncores(images: npt.NDArray[np.uint8], n_threads: int) -> Result:
    """Compute the two in one pass over the integers."""
    moments = bncore.moments(images, axis=-1, scale=SCALE, n_threads=n_threads)
    return moments.mean, moments.std()


def exact(images: npt.NDArray[np.uint8]) -> Result:
    """Compute them from how often each value occurs, in Python's integers."""
    means, stds = [], []
    for channel in np.moveaxis(images, -1, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256).tolist()
        n = sum(counts)
        total = sum(k * v for v, k in enumerate(counts))
        squares = sum(k * v * v for v, k in enumerate(counts))
        means.append(total / (255 * n))
        stds.append(((n * squares - total * total) / (255 * n) ** 2) ** 0.5)
    return np.array(means), np.array(stds)


def timed(call: Callable[[], Result], rounds: int) -> tuple[Result, float]:
    """Return the result, and the shortest time of some calls in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, min(times)


def error(got: Result, expected: Result) -> float:
    """Return the largest relative error."""
    return max(float(abs(g / e - 1).max()) for g, e in zip(got, expected, strict=True))


def main() -> None:
    """Print times, errors and memory."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    print(f"({count}, 64, 64, 3), {images.nbytes / 2**20:.0f} MiB of uint8", flush=True)
    wanted = exact(images)
    result, theirs = timed(lambda: numpys(images), 2)
    print(f"NumPy: {1e3 * theirs:.0f} ms, error {error(result, wanted):.1e}", flush=True)
    for threads in (1, 2):
        result, ours = timed(partial(bncores, images, threads), 7)
        found = error(result, wanted)
        assert found <= 1e-15, found
        print(
            f"bncore, threads {threads}: {1e3 * ours:.2f} ms ({theirs / ours:.0f} times), "
            f"error {found:.1e}"
        )
    tracemalloc.start()
    bncores(images, 2)
    print(f"bncore allocates at most {tracemalloc.get_traced_memory()[1]} bytes through Python")


if __name__ == "__main__":
    main()
