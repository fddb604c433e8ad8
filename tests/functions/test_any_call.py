"""Random calls of every public function, with right and with wrong arguments.

A call with right arguments gives the same bits as the NumPy backend, and the oracle's result within
the gates. A call with a wrong argument raises TypeError or ValueError with a message that names an
argument, and writes nothing. `python -m pytest` draws the same calls of each function every time;
`make fuzz SECONDS=600` draws other calls for that long.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import arrays
import bncore
import oracle
import tolerances

Arguments = dict[str, Any]

# What takes an array `x`, or the arrays of a layer to fold, and gives numbers. Functions without
# either have tests of their own.
WITHOUT_ARRAYS = {
    "BatchNorm", "MicroBatches", "GradSums", "Moments", "batch_norms", "get_address",
    "get_capsules", "get_include", "get_library_dir", "get_num_threads", "recalibrate",
    "set_buffer_pool", "set_num_threads", "show_config", "use_backend", "fold_into_conv",
    "fold_into_linear", "as_scale_shift", "update_running_stats",
}  # fmt: skip
FUNCTIONS = [name for name in bncore.__all__ if name not in WITHOUT_ARRAYS]
PARAMETERS = {name: inspect.signature(getattr(bncore, name)).parameters for name in FUNCTIONS}

REDUCING = {"mean_var", "var", "std"}

# ---------------------------------------------------------------------------------- right arguments

VALUES = ["normal", "shifted", "subnormal", "tiny_spread", "special", "constant"]


def draw_values(draw: Callable, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    kind = draw(st.sampled_from(VALUES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "constant":
        return np.full(shape, draw(st.sampled_from([0.0, 0.1, -3.0])), dtype)
    if kind != "special":
        return arrays.VALUES[kind](rng, shape, dtype)
    values = arrays.VALUES["normal"](rng, shape, dtype)
    odd = np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).max, -0.0], dtype)
    return np.where(rng.random(shape) < 0.1, rng.choice(odd, shape), values).astype(dtype)


def draw_view(draw: Callable, values: np.ndarray, writable: bool = False) -> np.ndarray:
    """The same values in any memory order, with any steps, byte order and alignment."""
    order = draw(st.permutations(range(values.ndim)))
    steps = [draw(st.sampled_from([1, 1, 1, -1, 2, -3])) for _ in values.shape]
    sizes = [n * abs(step) for n, step in zip(values.shape, steps, strict=True)]
    dtype = values.dtype.newbyteorder(draw(st.sampled_from("==<>")))
    start = draw(st.sampled_from([0, 0, 1, 4, 8]))
    memory = np.zeros(int(np.prod(sizes)) * dtype.itemsize + start, np.uint8)
    whole = memory[start:].view(dtype).reshape([sizes[axis] for axis in order])
    whole = whole.transpose(np.argsort(order))
    view = whole[tuple(slice(None, None, step) for step in steps)]
    view[...] = values
    if not writable and draw(st.booleans()):
        view.flags.writeable = False
    return view


@st.composite
def right_arguments(draw: Callable, name: str) -> Arguments:
    """Draw the function's arguments by name; optional ones are sometimes missing."""
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(0, 5)) for _ in range(rank))
    if draw(st.booleans()):  # large enough for vectors, and for rows that are read together
        shape = (draw(st.integers(1, 70)), *shape[1:-1], draw(st.integers(1, 40)))
    axis = draw(st.integers(-rank, rank - 1))
    channels = shape[axis]
    dtype = draw(st.sampled_from(arrays.FLOATS))
    groups = draw(st.sampled_from([g for g in range(1, 7) if channels % g == 0]))

    def array() -> np.ndarray:
        return draw_view(draw, draw_values(draw, shape, dtype))

    def vector(low: float = -2.0, writable: bool = False) -> np.ndarray:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        of_type = draw(st.sampled_from([np.float64, np.float64, np.float32, np.float16]))
        values = rng.uniform(low, 2.0, channels).astype(of_type)
        return draw_view(draw, values, writable)

    def broadcasting(values: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
        """An array that broadcasts against x: some axes have size 1, some may be missing."""
        sizes = [draw(st.sampled_from([1, n])) for n in shape]
        return draw_view(draw, values(tuple(sizes[draw(st.sampled_from([0, 0, 1])) :])))

    def counted() -> Arguments:
        """What counts; the extremes are NaN of x, everything and nothing."""
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        share = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
        of_type = draw(st.sampled_from([np.float64, np.float32, np.int64, np.bool_]))
        return {
            "where": broadcasting(lambda sizes: rng.random(sizes) < share),
            "weights": broadcasting(lambda sizes: rng.uniform(0.0, 3.0, sizes).astype(of_type)),
            "nan_policy": draw(st.sampled_from(["propagate", "omit", "raise"])),
            "fill": draw(st.sampled_from([0.0, -1, np.nan])),
        }

    x = array()
    possible: Arguments = {
        **(counted() if draw(st.booleans()) else {}),
        "x": x,
        "dy": array(),
        "weight": vector(),
        "bias": vector(),
        "mean": vector(),
        "var": vector(0.25),
        "running_mean": vector(),
        "running_var": vector(0.25),
        "renorm": (vector(0.25), vector()),
        "axis": axis,
        "eps": draw(st.sampled_from([1e-5, 0.0, 1.0])),
        "n_threads": draw(st.sampled_from([None, 1, 2, 3])),
        "out": draw_view(draw, np.full(shape, 7.0, dtype), writable=True),
        "residual": array(),
        "dresidual": draw_view(draw, np.full(shape, 7.0, dtype), writable=True),
        "activation": draw(st.sampled_from([None, "relu", "leaky_relu"])),
        "negative_slope": draw(st.sampled_from([0.01, -1.5, 0.0])),
        "groups": groups,
        "size": draw(st.integers(1, 80)),
        "block_bytes": draw(st.integers(1, 4096)),
        "correction": draw(st.sampled_from([0, 1])),
        "ddof": draw(st.sampled_from([0, 1])),
        "keepdims": draw(st.booleans()),
        "r_max": draw(st.sampled_from([1.0, 3.0])),
        "d_max": draw(st.sampled_from([0.0, 5.0])),
        "pieces": [x, array()],
    }
    chosen = {}
    for key, parameter in PARAMETERS[name].items():
        if key == "out" and name in REDUCING:
            continue  # arrays of the result's shape
        if key == "moments":
            chosen[key] = saved_moments(name, possible)
        elif key == "sums":
            chosen[key] = bncore.GradSums(np.arange(channels) / 4, np.arange(channels) / 8)
        elif key in possible and (parameter.default is parameter.empty or draw(st.booleans())):
            chosen[key] = possible[key]
    if "axis" in PARAMETERS[name]:
        chosen["axis"] = axis
    return chosen


def saved_moments(name: str, a: Arguments) -> object:
    """Return the results of the forward function that belongs to this backward function."""
    x, axis = a["x"], a["axis"]
    try:
        if name.startswith("ghost"):
            return bncore.ghost_batch_norm(x, a["size"], axis=axis)[1]
        if name.startswith("group"):
            return bncore.group_norm(x, a["groups"], axis=axis)[1]
        if name.startswith(("instance", "layer")):
            return getattr(bncore, name.removesuffix("_backward"))(x, axis=axis)[1]
    except ValueError:  # forward refuses what backward is going to refuse
        pass
    return bncore.moments(x, axis=axis)


# ---------------------------------------------------------------------------------- running a call


def plain(value: object) -> object:
    """A copy of an argument that is aligned, of this machine's byte order, and without steps."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="), order="K", copy=True)
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    return value


def parts(value: object) -> list[np.ndarray]:
    """The numbers of a result, as arrays."""
    if isinstance(value, (bncore.Moments, bncore.GradSums)):
        return [np.asarray(getattr(value, key)) for key in vars_of(value)]
    if isinstance(value, (tuple, list)):
        return [part for one in value for part in parts(one)]
    return [] if value is None else [np.asarray(value)]


def vars_of(value: object) -> tuple[str, ...]:
    return (
        ("count", "mean", "m2") if isinstance(value, bncore.Moments) else ("sum_dy", "sum_dy_xhat")
    )


def call(name: str, arguments: Arguments) -> object:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return getattr(bncore, name)(**arguments)


def is_refusal(error: Exception) -> bool:
    """Tell whether an error has a documented type, and its message begins with an argument."""
    if not isinstance(error, (TypeError, ValueError)):
        return False
    single = "Expected more than 1 value per "  # channel or group; PyTorch's own words
    return str(error).startswith(single) or bool(re.match(r"[a-z_0-9]+[^:]*: ", str(error)))


def run_both(name: str, arguments: Arguments) -> tuple[object, object]:
    """The result, and that of the NumPy backend; either may be an error."""
    outcomes = []
    copies = dict(arguments)  # inputs are not written, outputs are apart
    for key in {"out", "dresidual"} & arguments.keys():
        copies[key] = plain(arguments[key])
    for backend, given_arguments in (("numpy", copies | {"n_threads": 1}), (None, arguments)):
        try:
            if backend is None:
                outcomes.append(call(name, given_arguments))
            else:
                with bncore.use_backend(backend):
                    outcomes.append(call(name, given_arguments))
        except (TypeError, ValueError) as error:
            outcomes.append(error)
    expected, got = outcomes
    for key in ("out", "dresidual"):
        if key in arguments and not isinstance(got, Exception):
            written = arrays.one_nan(plain(arguments[key]))
            assert arrays.same_bits(written, arrays.one_nan(copies[key])), key
    return got, expected


# A failure is shown as it was found: to shrink a call of twenty arguments takes minutes.
quiet = settings(
    suppress_health_check=list(HealthCheck),
    max_examples=int(os.environ.get("BNCORE_FUZZ_EXAMPLES", "10")),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@pytest.mark.parametrize("name", FUNCTIONS)
@quiet
@given(data=st.data())
def test_right_arguments_give_the_bits_of_the_numpy_backend(name, data):
    arguments = data.draw(right_arguments(name))
    inputs = {k: plain(v) for k, v in arguments.items() if k not in ("out", "dresidual")}
    got, expected = run_both(name, arguments)
    if isinstance(got, Exception):  # an activation without its partner, a residual of layer_norm
        assert is_refusal(got) and str(got) == str(expected), (got, expected)
        return
    assert not isinstance(expected, Exception), expected
    for one, other in zip(parts(got), parts(expected), strict=True):
        assert one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        assert arrays.same_bits(arrays.one_nan(plain(one)), arrays.one_nan(plain(other)))
    for key, before in inputs.items():
        assert_same(plain(arguments[key]), before)


def assert_same(now: object, before: object) -> None:
    for one, other in zip(parts(now), parts(before), strict=True):
        assert one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------ the oracle


@quiet
@given(data=st.data())
def test_training_gives_the_oracles_result(data):
    """In any layout, all results are within the gates of docs/numerics.md."""
    shape = (
        data.draw(st.integers(2, 40)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 40)),
    )
    dtype = data.draw(st.sampled_from(arrays.FLOATS))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values, gradient = arrays.normal(rng, shape, dtype), arrays.normal(rng, shape, dtype, 0.0)
    weight, bias = arrays.parameters(rng, shape[1])
    axis = data.draw(st.integers(-3, 2))

    def laid_out(array: np.ndarray) -> np.ndarray:
        return draw_view(data.draw, np.moveaxis(array, 1, axis))

    x, dy = laid_out(values), laid_out(gradient)
    exact = oracle.channel_moments(values)
    y, moments = bncore.batch_norm_train(x, weight, bias, axis=axis)
    expected = oracle.forward(values, exact, weight, bias)
    plain_y = np.moveaxis(y, axis, 1).astype(dtype)
    assert oracle.forward_error(plain_y, expected) <= tolerances.forward(dtype)
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, moments, weight, axis=axis)
    wanted = oracle.backward(gradient, values, exact, weight)
    plain_dx = np.moveaxis(dx, axis, 1).astype(dtype)
    assert oracle.gradient_error(plain_dx, wanted) <= tolerances.gradient(dtype)
    assert oracle.sums_error(dweight, dbias, wanted) <= tolerances.GRADIENT_FLOAT64


# --------------------------------------------------------------------------------- wrong arguments

NEVER_RIGHT: list[object] = [
    "text", b"bytes", object(), {}, {1, 2}, 1j, float("nan"), np.zeros(3, "M8[s]"), len, Ellipsis,
    np.zeros((2, 2), complex), np.array([None, 1.0]), [[1.0], [2.0, 3.0]],
    np.ma.masked_array([1.0]), np.zeros((3, 3), np.int32), np.zeros((1,) * 9, "U2"),
]  # fmt: skip


@st.composite
def wrong_value(draw: Callable, value: object) -> object:
    """Draw a wrong value in place of this one: another type, shape, dtype or memory."""
    if not isinstance(value, np.ndarray) or draw(st.booleans()):
        return draw(st.sampled_from(NEVER_RIGHT))
    how = draw(st.sampled_from(["longer", "rank", "integers", "mask"]))
    if how == "longer":
        return np.resize(value, (*value.shape[:-1], value.shape[-1] + 1))
    if how == "rank":
        return value[np.newaxis]
    if how == "integers":
        return np.zeros(value.shape, np.int64)
    return np.ma.masked_array(value, mask=np.zeros(value.shape, bool))


@pytest.mark.parametrize("name", FUNCTIONS)
@quiet
@given(data=st.data())
def test_wrong_arguments_are_refused_by_name_before_anything_is_written(name, data):
    arguments = data.draw(right_arguments(name))
    key = data.draw(st.sampled_from(sorted(arguments)))
    wrong = arguments | {key: data.draw(wrong_value(arguments[key]))}
    given_arrays = [v for v in wrong.values() if isinstance(v, np.ndarray) and v.dtype != object]
    before = [plain(array) for array in given_arrays]
    try:
        call(name, wrong)
    except Exception as error:
        assert is_refusal(error), f"{type(error).__name__}: {error}"
        assert_same([plain(array) for array in given_arrays], before)
