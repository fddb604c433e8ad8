"""ONNX's own node tests for BatchNormalization, as the onnx package builds them."""

from __future__ import annotations

import warnings


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases("BatchNormalization")
    return [case for case in found if "_expanded" not in case.name]


CASES = cases()
