"""activation=, residual= and dresidual= give the same bits as separate calls and NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import arrays
import bncore
import operations
import tolerances
import variants
from arrays import FLOATS, LAYOUTS
from operations import FUSED, WRITING, Case, Fusion

# By what differs in the code: the activation, whether there is a residual, and slopes at the ends.
KINDS = [
    ("relu", 0.01, False),
    ("relu", 0.01, True),
    ("leaky_relu", 0.2, False),
    ("leaky_relu", 0.2, True),
    ("leaky_relu", 0, True),
    (None, 0.01, True),
]
# Planes and rows, whole vectors and ends of runs, short runs, one channel, folded and short rows.
SHAPES = [
    (5, 3, 33), (2, 3, 7, 7), (3, 2, 4100), (2, 1, 70001), (9, 33, 14, 14), (3, 5, 16),
    (300, 3), (43, 16), (9, 300), (601, 40), (70000, 2), (86, 5, 3), (2, 1), (4, 2, 3),
]  # fmt: skip


def make_case(rng, shape, dtype, kind) -> Case:
    """A case in which z has values of both signs and zeros, and a third of z is the residual."""
    activation, slope, added = kind
    case = operations.make_case(rng, shape, dtype)
    residual = rng.standard_normal(shape).astype(dtype) if added else None
    return replace(case, fusion=Fusion(activation, slope, residual))


def backward(name: str) -> bool:
    return name.endswith("_backward")


def fused(case: Case, name: str, **options) -> operations.Results:
    if backward(name):
        options.setdefault("dresidual", np.full_like(case.x, 7.0, subok=False))
    return WRITING[name](case, **options)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_fused_is_composed(backend, rng, dtype, kind):
    for shape in SHAPES:
        case = make_case(rng, shape, dtype, kind)
        for name in FUSED:
            expected = operations.composed(case, name)
            for n_threads in (1, 3):
                got = fused(case, name, n_threads=n_threads)
                assert operations.differences(got, expected) == [], (shape, name, n_threads)
            if backward(name):  # with no dresidual the second pass masks dy itself
                del expected["dresidual"]
                got = WRITING[name](case, n_threads=2)
                assert operations.differences(got, expected) == [], (shape, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(8, 64, 60, 17), (5, 3, 77, 300), (16000, 19)], ids=str)
def test_threads(backend, rng, shape, dtype):
    """Arrays large enough that seven threads all get work."""
    case = make_case(rng, shape, dtype, ("relu", 0.01, True))
    with bncore.use_backend("numpy"):
        expected = {name: operations.composed(case, name) for name in FUSED}
    for n_threads in (1, 2, 7):
        for name in FUSED:
            got = fused(case, name, n_threads=n_threads)
            assert operations.differences(got, expected[name]) == [], (name, n_threads)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS[1::2], ids=str)
def test_layouts(backend, rng, layout, kind):
    for shape in [(4, 3, 9, 7), (40, 8)]:
        case = make_case(rng, shape, np.float32, kind).laid_out(layout)
        for name in FUSED:
            got = fused(case, name)
            assert operations.differences(got, operations.composed(case, name)) == [], name
            result = got["dx" if backward(name) else "y"]
            assert arrays.memory_order(result) == arrays.memory_order(case.x)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_residual_of_another_order_is_as_good(backend, rng, layout):
    plain = make_case(rng, (4, 3, 9, 7), np.float64, ("relu", 0.01, True))
    values = plain.fusion.residual
    other = np.moveaxis(layout.build(values), layout.axis(4), 1)
    mixed = replace(plain, fusion=replace(plain.fusion, residual=other))
    for name in FUSED:
        assert operations.differences(fused(mixed, name), fused(plain, name)) == [], name


PLACES = ("new", "x", "dy", "residual")
IN_PLACE = ("contiguous", "channels_last_view", "unaligned", "window")


@variants.taking_turns(
    shape=[(4, 3, 9, 7), (600, 300), (2, 2, 40001)],
    kind=KINDS,
    layout=[layout for layout in LAYOUTS if str(layout) in IN_PLACE],
)
def test_in_place(backend, rng, shape, kind, layout):
    """Give out and dresidual every memory that they may have, one at a time and together."""
    plain = make_case(rng, shape, np.float32, kind)
    for name in FUSED:
        expected = operations.composed(plain.laid_out(layout), name)
        for out, dresidual in places(name, kind[2]):
            case = plain.laid_out(layout).with_statistics()
            memory = vars(case) | {"residual": case.fusion.residual}
            memory["new"] = np.full_like(case.x, 7.0)
            options = {"out": memory[out]}
            if dresidual is not None:
                options["dresidual"] = memory[dresidual]
            got = WRITING[name](case, n_threads=4, **options)
            assert got["dx" if backward(name) else "y"] is options["out"]
            wanted = {key: expected[key] for key in got}
            assert operations.differences(got, wanted) == [], (name, out, dresidual)


def places(name: str, added: bool) -> list[tuple[str, str | None]]:
    outs = [place for place in PLACES if place != "residual" or added]
    if not backward(name):
        return [(out, None) for out in outs if out != "dy"]
    targets = [None, "new", "dy", "residual"] if added else [None, "new", "dy"]
    return [(out, target) for out in outs for target in targets if out != target]


# --------------------------------------------------------------------------------- edges of values

Z = [-np.inf, -2.0, -1e-45, -0.0, 0.0, 1e-45, 3.0, np.inf, np.nan]
DY = [1.0, -1.0, np.inf, -np.inf, np.nan, 0.0, -0.0]


def at_the_edges(dtype, repeat: int = 3) -> Case:
    """z is x itself (mean 0, variance 1, eps 0), and every z meets every dy in every lane."""
    z, dy = np.meshgrid(np.array(Z * repeat, dtype), np.array(DY, dtype))
    x = np.concatenate([z.reshape(1, 1, -1)] * 2, axis=1)
    dy = np.concatenate([dy.reshape(1, 1, -1)] * 2, axis=1)
    return Case(x, dy, None, None, np.zeros(2), np.ones(2), eps=0.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_relu_at_the_edges(backend, dtype):
    case = replace(at_the_edges(dtype), fusion=Fusion("relu"))
    y = operations.infer(case)["y"]
    # What is not above zero is +0 to the bit, for minus infinity and minus zero as well.
    negative = case.x <= 0
    assert arrays.same_bits(y[negative], np.zeros(negative.sum(), dtype))
    assert arrays.same_bits(arrays.one_nan(y[~negative]), arrays.one_nan(case.x[~negative]))
    got = operations.infer_backward(case, dresidual=np.full_like(case.x, 7.0))
    for result in (got["dresidual"], got["dx"]):  # invstd is 1
        assert arrays.same_bits(result[negative], np.zeros(negative.sum(), dtype))
        passed = arrays.one_nan(result[~negative]), arrays.one_nan(case.dy[~negative])
        assert arrays.same_bits(*passed)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
def test_every_kind_at_the_edges(backend, dtype, kind, rows):
    activation, slope, added = kind
    case = at_the_edges(dtype)
    if rows:
        case = case.rebuilt(lambda a: np.ascontiguousarray(a.reshape(2, -1).T))
    residual = np.full_like(case.x, -0.0) if added else None
    case = replace(case, fusion=Fusion(activation, slope, residual))
    for name in ("infer", "infer_backward"):
        got, expected = fused(case, name), operations.composed(case, name)
        for key, value in got.items():
            same = arrays.same_bits(arrays.one_nan(value), arrays.one_nan(expected[key]))
            assert same, (name, key)


@pytest.mark.parametrize("shape", [(9, 4, 40), (2100, 4)], ids=str)
@pytest.mark.parametrize("spoiled", ["x", "dy", "residual"])
def test_what_is_not_finite_stays_in_its_channel(backend, rng, shape, spoiled):
    clean = make_case(rng, shape, np.float32, ("relu", 0.01, True))
    others = np.arange(4) != 2
    for spoiler in (np.nan, np.inf, -np.inf):
        case = clean.rebuilt(np.copy)
        array = case.fusion.residual if spoiled == "residual" else getattr(case, spoiled)
        array[5, 2] = spoiler
        for name in FUSED:
            got, expected = fused(case, name), fused(clean, name)
            for key, value in got.items():
                keep = (slice(None), others) if value.ndim > 1 else others
                assert arrays.same_bits(value[keep], expected[key][keep]), (name, key)


@pytest.mark.parametrize("shape", arrays.EMPTY_SHAPES, ids=str)
def test_empty_batches(backend, rng, shape):
    case = make_case(rng, shape, np.float32, ("relu", 0.01, True))
    for name in FUSED:
        for key, value in fused(case, name).items():
            of_nothing = np.isnan(value) if key == "mean" else value == 0
            assert of_nothing.all(), (name, key)


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(6, 3, 5), (4, 2, 17)], ids=str)
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "infer"])
def test_central_differences(backend, rng, shape, kind, frozen):
    """Differentiate sum(dy * y) along a direction of all inputs; no z changes its sign."""
    case = make_case(rng, shape, np.float64, kind)
    name = "infer" if frozen else "train"
    way = {key: rng.standard_normal(getattr(case, key).shape) for key in ("x", "weight", "bias")}
    added = rng.standard_normal(shape) if kind[2] else 0.0

    def moved(t: float) -> Case:
        residual = case.fusion.residual + t * added if kind[2] else None
        values = {key: getattr(case, key) + t * step for key, step in way.items()}
        return replace(case, **values, fusion=replace(case.fusion, residual=residual))

    def loss(t: float) -> float:
        return float((case.dy * WRITING[name](moved(t))["y"]).sum())

    step = 1e-4
    before, after = (z_of(moved(t), name) for t in (-3 * step, 3 * step))
    kept = np.sign(before) == np.sign(after)
    case = replace(case, dy=np.where(kept, case.dy, 0.0))  # a kink has no derivative
    weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    numeric = sum(w * (loss(k * step) - loss(-k * step)) for k, w in weights.items()) / step
    got = fused(case, f"{name}_backward")
    terms = [
        (got["dx"] * way["x"]).sum(),
        (got["dweight"] * way["weight"]).sum(),
        (got["dbias"] * way["bias"]).sum(),
        (got["dresidual"] * added).sum(),
    ]
    scale = sum(map(abs, terms)) + 1.0
    assert abs(sum(terms) - numeric) <= tolerances.KINKED_DIFFERENCES * scale


def z_of(case: Case, name: str) -> np.ndarray:
    return WRITING[name](replace(case, fusion=replace(case.fusion, activation=None)))["y"]


# ------------------------------------------------------------------------------- what is not there


def test_without_activation_bias_and_residual_change_no_gradient(backend, rng):
    case = operations.make_case(rng, (5, 3, 40))
    residual, bias = rng.standard_normal((5, 3, 40)).astype(np.float32), np.ones(3)
    for name in ("train_backward", "infer_backward"):
        expected = WRITING[name](case)
        got = WRITING[name](case, bias=bias, residual=residual)
        assert operations.differences(got, expected) == []
        dresidual = np.zeros_like(case.x)
        got = WRITING[name](case, dresidual=dresidual)
        assert arrays.same_bits(got.pop("dresidual"), case.dy)
        assert operations.differences(got, expected) == []


def test_a_slope_counts_for_leaky_relu_alone(backend, rng):
    case = make_case(rng, (5, 3, 40), np.float32, ("relu", 0.01, True))
    steep = replace(case, fusion=replace(case.fusion, negative_slope=3.0))
    for name in FUSED:
        assert operations.differences(fused(steep, name), fused(case, name)) == []


def test_inputs_are_never_written(backend, rng):
    case = make_case(rng, (4, 3, 5, 6), np.float32, ("leaky_relu", 0.2, True))
    held = case.rebuilt(np.copy)
    for name in FUSED:
        fused(case, name)
    assert arrays.same_bits(case.x, held.x) and arrays.same_bits(case.dy, held.dy)
    assert arrays.same_bits(case.fusion.residual, held.fusion.residual)
