"""Group norm by its formula in extended precision, and how results compare with it."""

from __future__ import annotations

import numpy as np

import oracle
import tolerances


def formula(dy, x, weight, bias, groups, eps):
    """y, dx, dweight, dbias in extended precision, each with its scale and with how far an ulp of a
    float64 mean moves it; channels on axis 1.

    dx is the derivative of sum(dy * y), term by term, with no sum per channel on the way.
    """
    n, c = x.shape[:2]
    wide = x.astype(np.longdouble).reshape(n, groups, -1)
    shape = (1, c, *[1] * (x.ndim - 2))
    gamma = np.ones(c) if weight is None else weight
    beta = np.zeros(c) if bias is None else bias
    gamma, beta = (np.asarray(v, np.longdouble).reshape(shape) for v in (gamma, beta))
    center = wide - wide.mean(axis=2, keepdims=True)
    invstd = 1 / np.sqrt((center**2).mean(axis=2, keepdims=True) + np.longdouble(eps))
    xhat = (center * invstd).reshape(x.shape)
    g = dy.astype(np.longdouble)
    slope = (g * gamma).reshape(wide.shape)
    hat = xhat.reshape(wide.shape)
    terms = [
        slope * invstd,
        -invstd * slope.mean(axis=2, keepdims=True) + np.zeros_like(slope),
        -invstd * hat * (slope * hat).mean(axis=2, keepdims=True),
    ]
    # Where weight * dy is rounded before it is summed, a mean is as exact as that of sizes.
    sizes = [np.abs(terms[0])]
    sizes += [invstd * np.abs(slope).mean(axis=2, keepdims=True) + np.zeros_like(slope)]
    sizes += [invstd * np.abs(hat) * np.abs(slope * hat).mean(axis=2, keepdims=True)]
    axes = (0, *range(2, x.ndim))
    ulp = np.spacing(np.maximum(np.abs(wide.mean(axis=2, keepdims=True)), 1 / invstd).astype(float))
    moved = (invstd * ulp + np.zeros_like(wide)).reshape(x.shape)
    zero = np.zeros(())
    return {
        "y": (xhat * gamma + beta, np.abs(xhat * gamma) + np.abs(beta), np.abs(gamma) * moved),
        "dx": (sum(terms).reshape(x.shape), np.abs(terms).max(axis=0).reshape(x.shape), zero),
        "rounded dx": (sum(terms).reshape(x.shape), np.max(sizes, axis=0).reshape(x.shape), zero),
        "dweight": (
            (g * xhat).sum(axis=axes),
            np.abs(g * xhat).sum(axis=axes),
            np.abs(g * moved).sum(axis=axes),
        ),
        "dbias": (g.sum(axis=axes), np.abs(g).sum(axis=axes), zero),
    }


def assert_as(name, got, expected, dtype, ulps):
    """float32 within so many ulp, by name, of the scale; float64 as `oracle.forward_error` does."""
    want, scale, mean_ulp = expected[name]
    assert got.dtype == dtype and got.shape == want.shape
    if dtype == np.float32:
        assert oracle.max_ulp(got, want, scale) <= ulps[name], name
    else:
        error = np.maximum(np.abs(got - want) - tolerances.MEAN_ULP * mean_ulp, 0)
        assert oracle.max_relative(error, 0, scale) <= tolerances.GRADIENT_FLOAT64, name
