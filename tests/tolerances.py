"""Every tolerance of the suite, each with the reason for its size.

Nothing else in the tests states a tolerance, and a test that needs none compares bits.
"""

from __future__ import annotations

import numpy as np

EPS32 = 2.0**-24  # half an ulp of 1 in float32: the relative error of one rounding
EPS64 = 2.0**-53  # the same in float64

# The gates of docs/numerics.md.
FORWARD_ULP = 3.0  # float32 forward, in ulp of |weight*xhat| + |bias|
GRADIENT_ULP = 8.0  # float32 dx, in ulp of the largest of its three terms
VARIANCE_FLOAT32 = 2.0**-22  # relative, float32 input
VARIANCE_FLOAT64 = 1e-14  # relative, float64 input, NIST's sets
GRADIENT_FLOAT64 = 1e-12  # relative to the largest term

# The gates of 16-bit data, in steps of the type: one rounding of the result, where it lies, and
# what the arithmetic adds, where the contract for float32 measures it. The bound of float32
# gradients comes on top of the second one.
FORWARD_SIXTEEN = 0.51
GRADIENT_SIXTEEN = 0.52

# Variance of 16-bit data, in roundings of float32: 6 in a square and its chain, times 16, which the
# distance of a pivot from the mean of a block may weigh. The worst data found measure 17.7.
VARIANCE_BAD_SIXTEEN = 96.0

# Gradient sums of 16-bit data, relative to the sum of |terms|: four roundings to float32 in a
# product and its mean, three in a chain, and one where the result is stored.
SUMS_SIXTEEN = 8 * EPS32

# Statistics are float64 whatever the input is, so float32 input deserves far better than its gate:
# this one fails as soon as one accumulator is float32. Summing 1e6 values in blocks measures below
# 1e-15.
VARIANCE_ACCUMULATED = 1e-13

# An outlier of 1e6 std as first value: the first pivot is the mean of 16 values, so one block is
# summed 6e4 std away from its mean. That costs up to three digits of a channel that ends with it,
# and the sum of float32 values about a float64 pivot rounds to one side: up to half an ulp a value.
VARIANCE_OUTLIER = 1e-12

# The mean, relative to the larger of |mean| and std. Up to 64 segments merge, each with a rounding.
MEAN = 16 * EPS64
MEAN_OUTLIER = 256 * EPS64  # half an ulp for each of the 256 values of a lane, and what merges add

# What the oracle allows a float64 result for its mean, in ulp of the larger of |mean| and std. Sums
# in sequence measure up to 1.5, and 2.7 where both are just below a power of two.
MEAN_ULP = 4.0

# float64 forward, relative to the same scale: a handful of roundings (the mean's own is allowed for
# by `oracle.forward_error`).
FORWARD_FLOAT64 = 1e-15

# Weighted moments of float32 and float64 data against exact ones, relative: sums of products in
# float64, of some thousand values.
WEIGHTED = 1e-12

# Moments of pieces, merged, against the moments of the whole: one rounding of the mean per piece.
MERGED = 1e-13

# Central differences of sixth order, step 1e-2 std: truncation and rounding both near 1e-12 of the
# gradient's size.
CENTRAL_DIFFERENCES = 1e-10

# The same of sums over all values, with a step of 1e-4, small enough that few z change their sign:
# rounding of the loss, divided by the step.
KINKED_DIFFERENCES = 1e-8

# Sums that are zero in exact arithmetic, relative to the sum of absolute values.
IDENTITY_FLOAT64 = 1e-13
IDENTITY_FLOAT32 = 4 * EPS32

# Two orders of the same float64 additions, results rounded to float32: at most neighbouring
# floats, counted as ulp of the same scale as FORWARD_ULP and GRADIENT_ULP.
REORDERED_ULP = 1.0

# The ONNX node cases carry their own tolerance (rtol 1e-3); their reference is float32 NumPy.
ONNX_RTOL = 1e-5
ONNX_ATOL = 1e-6

# ONNX's reference in float32 for a model of float16, in ulp of float16: half an ulp for the
# rounding of y, and float32's roundings in the reference.
ONNX_FLOAT16_ULP = 0.51

# PyTorch in float64 as second oracle.
TORCH_FLOAT64 = 1e-11

# jax.numpy's formula in float64, and JAX's gradients of it, relative to the largest value.
JAX_FLOAT64 = 1e-12

# The same in float32, mean/std about 1: sums of a few hundred rounded products.
JAX_FLOAT32 = 2e-5

# The same in 16 bits, in ulp of the type at the largest value: float32's results, rounded once, are
# the same number or neighbours.
JAX_SIXTEEN_ULP = 1.0

# Gradients of gradients pass on gradients that are rounded to 16 bits, up to a half ulp of each of
# the terms that one more order multiplies by its number of uses.
JAX_SIXTEEN_AGAIN_ULP = 4.0

# Layers of other frameworks in float64, after ten steps: Flax takes E[x^2] - E[x]^2.
FRAMEWORKS = 1e-12
FRAMEWORKS_FLOAT32 = 1e-6

# Synchronized batch norm of several processes against one with the whole batch, float64.
SYNCHRONIZED = 1e-12

# Heap growth of a call on an array of 64 MiB and more: lane sums, partial sums and thread stacks,
# never x's size.
HEAP_GROWTH_BYTES = 2 * 2**20


def forward(dtype: type) -> float:
    """Bound for `oracle.forward_error`."""
    return FORWARD_ULP if dtype == np.float32 else FORWARD_FLOAT64


def gradient(dtype: type) -> float:
    """Bound for `oracle.gradient_error`."""
    return GRADIENT_ULP if dtype == np.float32 else GRADIENT_FLOAT64


# One batch in pieces against the whole: float64 gradients and outputs, relative to their largest.
PIECES_FLOAT64 = 1e-12

# A folded layer against the two layers: float64 relative to the largest term, float32 in ulp of it.
FOLDED_FLOAT64 = 1e-12
FOLDED_ULP = 4.0

# float32 layer norm weighs a y that is rounded already: a rounding more than batch norm.
LAYER_NORM_ULP = 4.0

# Its dweight sums products with xhat as float32, which is within FORWARD_ULP; and one rounding.
LAYER_NORM_SUMS_ULP = FORWARD_ULP + 1.0

# Second gradients, tangents and two layers in a row of 16 bits, in ulp of the largest value: what
# the first result lost when it was stored enters the second one.
CHAINED_ULP = 4.0

# Gradients of a network under autocast, relative to the errors of PyTorch's: both have the errors
# of its convolutions, by far the most.
AUTOCAST = 1.1

# Statistics of scikit-learn's scaler, which are float64 sums of some hundred values, mean/std up to
# 1e3: its variance loses twice the digits of that ratio.
SCALER = 1e-9

# Its results, in roundings of the value before the mean is subtracted.
SCALER_STEPS = 32

# Variance of float64 values in up to 1000 merged batches, whatever the mean: a rounding of each
# merge, which average out. Such batches measure up to 4e-15.
SCALER_FAR = 2e-14

# Statistics of a network of three levels against float64 arithmetic, whether the network computes
# in float64: float32 activations, and one rounding of the result.
RECALIBRATED = {False: 1e-6, True: 1e-12}
