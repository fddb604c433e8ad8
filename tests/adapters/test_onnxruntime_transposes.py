"""bncore.onnxruntime.convert moves Transposes behind batch norm, where nobody else reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bncore.onnxruntime
import onnxruntime_sessions as sessions
import tolerances
from bncore.onnxruntime.transposes import everywhere
from onnxruntime_sessions import forward_inputs

pytestmark = pytest.mark.needs_onnxruntime

MODEL = """
<ir_version: 8, opset_import: ["" : 15]>
net (float[4,6,7,3] x, float[3] w, float[3] b, float[3] m, float[3] v, bool which)
    => (OUTPUTS) <float[4,3,6,7] t> {
    BODY
}"""
TO_FIRST, TO_LAST = "Transpose<perm = [0, 3, 1, 2]>", "Transpose<perm = [0, 2, 3, 1]>"
NORM = "BatchNormalization"
LAST = "float[4,6,7,3] y"
# Outputs and nodes; how many Transposes ONNX Runtime is left with.
MOVED = {
    "inverse": (LAST, f"t = {TO_FIRST}(x) u = {NORM}(t, w, b, m, v) y = {TO_LAST}(u)", 0),
    "a chain": (
        LAST,
        f"""t = {TO_FIRST}(x)
        u = {NORM}(t, w, b, m, v)
        z = {NORM}<epsilon = 0.5>(u, w, b, m, v)
        y = {TO_LAST}(z)""",
        0,
    ),
    "two transposes": (
        "float[4,3,7,6] y",
        f"""s = {TO_FIRST}(x)
        t = Transpose<perm = [0, 1, 3, 2]>(s)
        y = {NORM}(t, w, b, m, v)""",
        1,
    ),
    "parameters made in between": (
        LAST,
        f"""t = {TO_FIRST}(x)
        scale = Abs(w)
        u = {NORM}(t, scale, b, m, v)
        y = {TO_LAST}(u)""",
        0,
    ),
    "training": (
        f"{LAST}, float[3] m2, float[3] v2",
        f"""t = {TO_FIRST}(x)
        u, m2, v2 = {NORM}<training_mode = 1>(t, w, b, m, v)
        y = {TO_LAST}(u)""",
        0,
    ),
    "inside": (
        LAST,
        f"""y = If(which) <
            then_branch = one () => (float[4,6,7,3] p) {{
                t = {TO_FIRST}(x) u = {NORM}(t, w, b, m, v) p = {TO_LAST}(u)
            }},
            else_branch = two () => (float[4,6,7,3] q) {{ q = Identity(x) }}
        >""",
        0,
    ),
}
KEPT = {
    "another reader": (
        f"{LAST}, float[4,3,6,7] z",
        f"t = {TO_FIRST}(x) u = {NORM}(t, w, b, m, v) y = {TO_LAST}(u) z = Abs(t)",
    ),
    "an output": (
        f"{LAST}, float[4,3,6,7] t",
        f"t = {TO_FIRST}(x) u = {NORM}(t, w, b, m, v) y = {TO_LAST}(u)",
    ),
    "a reader inside": (
        f"{LAST}, float[4,3,6,7] z",
        f"""t = {TO_FIRST}(x)
        u = {NORM}(t, w, b, m, v)
        y = {TO_LAST}(u)
        z = If(which) <
            then_branch = one () => (float[4,3,6,7] p) {{ p = Abs(t) }},
            else_branch = two () => (float[4,3,6,7] q) {{ q = Neg(t) }}
        >""",
    ),
    "an output inside": (
        f"{LAST}, float[4,3,6,7] z",
        f"""t = {TO_FIRST}(x)
        u = {NORM}(t, w, b, m, v)
        y = {TO_LAST}(u)
        z = If(which) <
            then_branch = one () => (float[4,3,6,7] t) {{ }},
            else_branch = two () => (float[4,3,6,7] q) {{ q = Neg(u) }}
        >""",
    ),
    "no order stated": (
        "float[3,7,6,4] y",
        f"t = Transpose(x) y = {NORM}(t, w, b, m, v)",
    ),
    "no transpose": ("float[4,6,7,3] y", f"t = Abs(x) y = {NORM}(t, b2, b2, b2, b2)"),
}


def parsed(outputs, body):
    text = MODEL.replace("OUTPUTS", outputs).replace("BODY", body)
    if "b2" in text:
        text = text.replace("    t = Abs", "    b2 = Concat<axis = 0>(b, b) t = Abs")
    if "Transpose(x)" in text:
        text = text.replace("<float[4,3,6,7] t>", "<float[3,7,6,4] t>")
    return onnx.parser.parse_model(text)


@pytest.fixture
def given(rng):
    values = forward_inputs(rng, (4, 6, 7, 3), -1).values()
    return dict(zip("xwbmv", values, strict=True)) | {"which": np.array(True)}


@pytest.mark.parametrize(("outputs", "body", "left"), MOVED.values(), ids=MOVED)
def test_a_transpose_for_batch_norm_alone_moves(given, tmp_path, outputs, body, left):
    model = bncore.onnxruntime.convert(parsed(outputs, body), inference=True)
    onnx.checker.check_model(model)
    norms = [node for node in everywhere(model.graph.node) if node.op_type == NORM]
    assert {a.i for node in norms for a in node.attribute if a.name == "axis"} == {3}
    if not any(node.op_type == "If" for node in model.graph.node):
        assert not model.graph.value_info  # of t, whose shape is another now
    optimized = tmp_path / "optimized.onnx"
    one = sessions.session(model, optimized=optimized)
    for a, b in zip(
        one.run(None, given), sessions.session(parsed(outputs, body)).run(None, given), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tolerances.ONNX_RTOL, atol=1e-5)
    kinds = [node.op_type for node in everywhere(onnx.load(optimized).graph.node)]
    assert kinds.count("Transpose") == left
    assert NORM in kinds


@pytest.mark.parametrize(("outputs", "body"), KEPT.values(), ids=KEPT)
def test_others_stay(outputs, body):
    model = bncore.onnxruntime.convert(parsed(outputs, body), inference=True)
    for node in everywhere(model.graph.node):
        if node.domain == "bncore":
            node.domain = ""
    model.opset_import.pop()
    assert model == parsed(outputs, body)


def test_what_was_channels_last_has_the_bits_of_numpy(given):
    outputs, body, _ = MOVED["inverse"]
    model = bncore.onnxruntime.convert(parsed(outputs, body), inference=True)
    (y,) = sessions.session(model).run(None, given)
    x, w, b, m, v = (given[name] for name in "xwbmv")
    assert np.array_equal(y, bncore.batch_norm_infer(x, m, v, w, b, axis=-1, eps=sessions.EPS))
