"""ONNX's own node tests for the norms, as the onnx package builds them."""

from __future__ import annotations

import warnings


def cases(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(name)
    return [case for case in found if "_expanded" not in case.name]


CASES = cases("BatchNormalization")
