"""ONNX's own node tests for BatchNormalization, as the onnx package builds them."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import tolerances
from onnx_cases import CASES


def test_all_four_are_here():
    assert sorted(case.name for case in CASES) == [
        "test_batchnorm_epsilon",
        "test_batchnorm_epsilon_training_mode",
        "test_batchnorm_example",
        "test_batchnorm_example_training_mode",
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node(backend, case):
    (node,) = case.model.graph.node
    attributes = {a.name: a.i if a.name == "training_mode" else a.f for a in node.attribute}
    eps = attributes.get("epsilon", 1e-5)
    ((inputs, expected),) = case.data_sets
    x, weight, bias, mean, var = inputs
    if attributes.get("training_mode"):
        y, moments = bncore.batch_norm_train(x, weight, bias, eps=eps)
        momentum = 1.0 - attributes.get("momentum", 0.9)  # ONNX weighs the old value
        mean, var = mean.copy(), var.copy()
        bncore.update_running_stats(mean, var, moments, momentum=momentum, correction=0)
        results = [y, mean, var]
    else:
        results = [bncore.batch_norm_infer(x, mean, var, weight, bias, eps=eps)]
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=tolerances.ONNX_RTOL, atol=tolerances.ONNX_ATOL)
