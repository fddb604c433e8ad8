"""ONNX's own node tests for the norms, as the onnx package builds them."""

from __future__ import annotations

import warnings


def _collected():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other operators' cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases

        # With a filter it would collect the cases of the first filter alone.
        return [case for case in collect_testcases() if "_expanded" not in case.name]


EVERY = _collected()


def cases(operator):
    """The cases of one operator."""
    return [case for case in EVERY if case.model.graph.node[0].op_type == operator]


CASES = cases("BatchNormalization")
