"""Right arguments of the functions that take arrays, and every byte of them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import bncore

C = 3
SHAPE = (4, C, 5)
Arguments = dict[str, Any]


def good_arguments() -> Arguments:
    """Return right arguments by name, for every function that has a parameter of that name."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(SHAPE)
    dy = rng.standard_normal(SHAPE)
    moments = bncore.moments(x)
    return {
        "x": x,
        "dy": dy,
        "weight": rng.standard_normal(C),
        "bias": rng.standard_normal(C),
        "mean": rng.standard_normal(C),
        "var": rng.uniform(0.5, 2.0, C),
        "moments": moments,
        "sums": bncore.grad_sums(dy, x, moments),
        "out": np.full(SHAPE, 7.0),
        "axis": 1,
        "eps": 1e-5,
        "n_threads": 1,
        "running_mean": rng.standard_normal(C),
        "running_var": rng.uniform(0.5, 2.0, C),
        "momentum": 0.1,
        "correction": 1,
        "keepdims": False,
        "activation": "leaky_relu",
        "negative_slope": 0.1,
        "residual": rng.standard_normal(SHAPE),
        "dresidual": np.full(SHAPE, 7.0),
    }


FUSION = ("activation", "negative_slope", "residual", "dresidual")


FUNCTIONS = {
    function.__name__: function
    for function in (
        bncore.batch_norm_train,
        bncore.batch_norm_train_backward,
        bncore.batch_norm_infer,
        bncore.batch_norm_infer_backward,
        bncore.moments,
        bncore.normalize,
        bncore.grad_sums,
        bncore.grad_input,
        bncore.mean_var,
        bncore.update_running_stats,
    )
}


def arguments_of(name: str, *, fused: bool = True) -> Arguments:
    good = good_arguments()
    return {
        parameter: good[parameter]
        for parameter in inspect.signature(FUNCTIONS[name]).parameters
        if parameter in good
        and (fused or parameter not in FUSION)
        and (name, parameter) != ("mean_var", "out")  # a pair; test_var_std.py has its errors
    }


def contents(arguments: Arguments) -> dict[str, bytes]:
    """Return every byte of every array among the arguments."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, bncore.Moments):
            found[name] = value.mean.tobytes() + value.m2.tobytes()
        elif isinstance(value, bncore.GradSums):
            found[name] = value.sum_dy.tobytes() + value.sum_dy_xhat.tobytes()
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[name] = value.tobytes()
    return found
