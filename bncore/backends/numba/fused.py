"""Both passes of an operation on a group of channels, while the group is in cache.

Planes only.  `parts` is (segments, 4 or 2, channels), the coefficients are (channels,); a task, one
group, touches the columns of its own channels.  Images are walked backwards in the second pass:
what was read last is still in cache.
"""

from __future__ import annotations

from bncore.backends.numba.compile import (
    gradient_coefficients,
    inverse_std,
    jit,
    normalize_coefficients,
)
from bncore.backends.numba.elementwise import planes_grad_input, planes_normalize
from bncore.backends.numba.state import add_parts, merge_parts
from bncore.backends.numba.sums_planes import planes_moments_segment, planes_sums_segment
from bncore.backends.partition import Data, Stat


@jit
def planes_train(
    first: int,
    last: int,
    y: Data,
    mean: Stat,
    m2: Stat,
    x: Data,
    weight: Stat,
    bias: Stat,
    eps: float,
    parts: Stat,
    hi: Data,
    scale: Data,
    shift: Data,
    inner: int,
    segment_len: int,
    group: int,
    line: int,
) -> None:
    """Moments of groups first to last, and y from them."""
    channels = len(mean)
    count = len(x) // channels
    for c0 in range(first * group, min(last * group, channels), group):
        c1 = min(c0 + group, channels)
        for k in range(len(parts)):
            end = min((k + 1) * segment_len, count)
            planes_moments_segment(parts[k], x, channels, inner, c0, c1, k * segment_len, end)
        merge_parts(mean, m2, parts, 1, c0, c1)
        invstd = inverse_std(m2[c0:c1] / count, eps)
        normalize_coefficients(
            hi[c0:c1], scale[c0:c1], shift[c0:c1], mean[c0:c1], invstd, weight[c0:c1], bias[c0:c1]
        )
        for image in range(count // inner - 1, -1, -1):
            begin, end = (image * channels + c0) * inner, (image * channels + c1) * inner
            planes_normalize(begin, end, y, x, hi, scale, shift, inner, line)


@jit
def planes_train_backward(
    first: int,
    last: int,
    dx: Data,
    sum_dy: Stat,
    sum_dy_xhat: Stat,
    dy: Data,
    x: Data,
    mean: Stat,
    invstd: Stat,
    weight: Stat,
    parts: Stat,
    hi: Data,
    of_dy: Data,
    of_x: Data,
    shift: Data,
    inner: int,
    segment_len: int,
    group: int,
    line: int,
) -> None:
    """Gradient sums of groups first to last, and dx from them."""
    channels = len(mean)
    count = len(x) // channels
    for c0 in range(first * group, min(last * group, channels), group):
        c1 = min(c0 + group, channels)
        for k in range(len(parts)):
            end = min((k + 1) * segment_len, count)
            planes_sums_segment(
                parts[k], dy, x, mean, channels, inner, c0, c1, k * segment_len, end
            )
        add_parts(sum_dy, sum_dy_xhat, parts, 1, c0, c1)
        sum_dy_xhat[c0:c1] *= invstd[c0:c1]
        gradient_coefficients(
            hi[c0:c1],
            of_dy[c0:c1],
            of_x[c0:c1],
            shift[c0:c1],
            mean[c0:c1],
            invstd[c0:c1],
            weight[c0:c1],
            sum_dy[c0:c1],
            sum_dy_xhat[c0:c1],
            float(count),
        )
        for image in range(count // inner - 1, -1, -1):
            begin, end = (image * channels + c0) * inner, (image * channels + c1) * inner
            planes_grad_input(begin, end, dx, dy, x, hi, of_dy, of_x, shift, inner, line)
