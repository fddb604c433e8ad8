"""Arrays of a subclass whose attributes are wrong: functions must look at the memory instead.

The attributes and methods that a subclass of ndarray has in Python (dtype, shape, strides, flags)
may not match its memory.  Every function must treat such an array as the plain array of the same
memory: it gives the same result or the same error, and writes no byte outside the memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bncore
import calls

GUARD = 512  # values before and after an array whose memory is smaller than it says


class Flags:
    """Flags that claim the array is good for any kernel."""

    c_contiguous = f_contiguous = aligned = writeable = owndata = behaved = carray = contiguous = (
        True
    )

    def __getitem__(self, name: str) -> bool:
        return True


class Liar(np.ndarray):
    """An array that has the attributes of another array, `said`, whatever its memory is."""

    said: np.ndarray | None = None

    @classmethod
    def of(cls, memory: np.ndarray, said: np.ndarray) -> Liar:
        made = np.ndarray.view(memory, cls)
        made.said = said
        return made

    flags = property(lambda self: Flags())


def _lie(name: str) -> Any:
    honest = getattr(np.ndarray, name)

    def get(self: Liar) -> Any:
        return honest.__get__(self) if self.said is None else getattr(self.said, name)

    return property(get, lambda self, value: None)


def _method(name: str) -> Any:
    def call(self: Liar, *arguments: Any, **keywords: Any) -> Any:
        made = getattr(self.said, name)(*arguments, **keywords)
        return made if type(made) is not np.ndarray else Liar.of(made, made)

    return call


for _name in ("shape", "strides", "dtype", "ndim", "size", "nbytes", "itemsize", "ctypes", "T",
              "base", "__array_interface__", "__array_struct__"):  # fmt: skip
    setattr(Liar, _name, _lie(_name))
for _name in ("transpose", "reshape", "view", "copy", "astype", "ravel", "swapaxes", "__getitem__",
              "__dlpack__", "__dlpack_device__"):  # fmt: skip
    setattr(Liar, _name, _method(_name))
Liar.__array_function__ = lambda self, function, types, arguments, keywords: False
Liar.__array_ufunc__ = lambda self, function, method, *inputs, **keywords: np.float64(0)
Liar.__array__ = lambda self, *arguments, **keywords: self.said
Liar.__setitem__ = lambda self, where, value: None


def inside(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy values into the middle of memory that nobody may change; return both."""
    whole = np.full(2 * GUARD + values.size, 77.0, values.dtype)
    middle = whole[GUARD : GUARD + values.size]
    middle[...] = values.ravel()
    return middle.reshape(values.shape), whole


def smaller(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory of one value."""
    return inside(values.reshape(-1)[:1])


def narrower(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory of values of half the size."""
    return inside(values.astype(np.float32))


def reversed_(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory with negative strides: the first value is at its end."""
    memory, whole = inside(values)
    return memory[(slice(None, None, -1),) * memory.ndim], whole


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every second value of a memory twice as large."""
    memory, whole = inside(np.repeat(values, 2, axis=-1))
    return memory[..., ::2], whole


def read_only(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory that must not be written to."""
    memory, whole = inside(values)
    memory.flags.writeable = False
    return memory, whole


def foreign(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory in the other byte order."""
    return inside(values.astype(values.dtype.newbyteorder()))


def integers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory of integers."""
    return inside(values.astype(np.int64))


MEMORIES = (smaller, narrower, reversed_, spread, read_only, foreign, integers)


def outcome(call: calls.Call, arguments: calls.Arguments) -> tuple[str, list[np.ndarray]]:
    """The outcome of a call: the error or "", and every array that it returned."""
    try:
        returned = call(arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}", []
    return "", list(arrays_in(returned))


def arrays_in(value: Any):
    if isinstance(value, np.ndarray):
        yield np.array(np.ndarray.view(value, np.ndarray))
    elif isinstance(value, bncore.Moments):
        yield from (value.mean, value.m2)
    elif isinstance(value, bncore.GradSums):
        yield from (value.sum_dy, value.sum_dy_xhat)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)
    elif isinstance(value, np.generic):
        yield np.asarray(value)


def given(call: calls.Call, argument: str) -> tuple[calls.Arguments, np.ndarray]:
    """Return good arguments of a call, and a good value of the argument that will lie."""
    arguments = call.arguments()
    if argument in ("out", "dresidual"):
        return arguments, np.zeros(calls.SHAPE)
    return arguments, arguments[argument]


CASES = list(calls.pairs(calls.DATA, calls.PARAMETERS, calls.WRITTEN))


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_the_memory_counts(backend, name, argument):
    call = calls.CALLS[name]
    arguments, good = given(call, argument)
    for memory in MEMORIES:
        plain, plain_whole = memory(good)
        liar, whole = memory(good)
        expected = outcome(call, arguments | {argument: plain})
        error, arrays = outcome(call, arguments | {argument: Liar.of(liar, good)})
        assert error.replace("Liar", "ndarray") == expected[0], memory
        for got, want in zip(arrays, expected[1], strict=True):
            assert got.dtype == want.dtype, memory
            assert np.array_equal(got, want, equal_nan=True), memory
        assert whole.tobytes() == plain_whole.tobytes(), memory


@pytest.mark.parametrize("name", calls.NORMALIZING)
def test_an_output_of_a_subclass_is_returned_itself(backend, name):
    call = calls.CALLS[name]
    out = np.zeros(calls.SHAPE).view(Liar)
    expected = call.output(call(call.arguments()))
    assert call.output(call(call.arguments() | {"out": out})) is out
    assert np.array_equal(np.ndarray.view(out, np.ndarray), expected)


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda make: make.__name__)
def test_a_layer_believes_the_memory_as_well(backend, memory):
    x = calls.good_arguments(calls.SHAPE, np.float64)["x"]

    def run(wrap: Any) -> tuple[Any, ...]:
        layer = bncore.BatchNorm(calls.SHAPE[1], dtype=np.float64)
        residual, out, dresidual = (memory(x) for _ in range(3))
        steps = (
            lambda: layer(wrap(memory(x)[0])),
            lambda: layer(x, wrap(residual[0])),
            lambda: layer(x, out=wrap(out[0])),
            lambda: layer.backward(wrap(memory(x)[0])),
            lambda: layer(x) is layer.backward(x, dresidual=wrap(dresidual[0])),
            lambda: setattr(layer, "weight", wrap(memory(np.ones(calls.SHAPE[1]))[0])),
            lambda: setattr(layer, "running_var", wrap(memory(np.ones(calls.SHAPE[1]))[0])),
            lambda: layer.load_state_dict(
                layer.state_dict() | {"bias": wrap(memory(np.ones(calls.SHAPE[1]))[0])}
            ),
            lambda: layer(x),
        )
        return [outcome(lambda _, step=step: step(), {}) for step in steps], out[1], dresidual[1]

    lied, honest = (
        run(lambda array: Liar.of(array, x if array.ndim > 1 else x[0, :, 0])),
        run(np.asarray),
    )
    for (error, arrays), (expected, others) in zip(lied[0], honest[0], strict=True):
        assert error.replace("Liar", "ndarray") == expected
        assert [a.tobytes() for a in arrays] == [b.tobytes() for b in others]
    assert lied[1].tobytes() == honest[1].tobytes()
    assert lied[2].tobytes() == honest[2].tobytes()


# Objects that run code of the caller while the arguments are read


class Meddler:
    """A parameter that changes another argument's shape and dtype in place when it is read."""

    def __init__(self, values: np.ndarray, victim: np.ndarray) -> None:
        self._values, self._victim = values, victim

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._victim.dtype = np.float32
        return self._values


MEDDLERS = [
    (name, meddler, victim)
    for name, meddler in calls.pairs(calls.DATA, calls.PARAMETERS)
    for victim in ("x", "dy", "out")
    if victim in calls.CALLS[name].parameters and victim != meddler
]


@pytest.mark.parametrize(("name", "meddler", "victim"), MEDDLERS)
def test_an_argument_that_is_changed_by_another_one_is_not_read_anew(name, meddler, victim):
    """The error is about the changed array, or the result is that of the array as it was given."""
    call = calls.CALLS[name]
    arguments = call.arguments()
    if victim == "out":
        arguments["out"], whole = inside(np.zeros(calls.SHAPE))
    else:
        arguments[victim], whole = inside(arguments[victim])
    before, expected = whole.copy(), outcome(call, call.arguments())
    changed = arguments | {meddler: Meddler(arguments[meddler], arguments[victim])}
    error, arrays = outcome(call, changed)
    assert not error or error.partition(": ")[2].startswith(f"{victim}: expected ")
    if not error and victim != "out":
        assert [a.tobytes() for a in arrays] == [b.tobytes() for b in expected[1]]
    assert (whole[:GUARD] == 77.0).all() and (whole[-GUARD:] == 77.0).all()
    assert victim == "out" or np.array_equal(whole, before)


class LyingMoments(bncore.Moments):
    """Moments that return arrays that are far too small."""

    count = mean = m2 = property(lambda self: np.broadcast_to(np.ones(1), (calls.SHAPE[1],)))


class LyingSums(bncore.GradSums):
    """Sums that return arrays that are far too small."""

    sum_dy = sum_dy_xhat = property(lambda self: np.broadcast_to(np.ones(1), (calls.SHAPE[1],)))


STATISTICS = [
    (name, argument)
    for name, call in calls.CALLS.items()
    for argument in ("moments", "sums")
    if argument in call.parameters
]


def _lying(value: Any) -> Any:
    if isinstance(value, list):
        return [_lying(one) for one in value]
    if isinstance(value, bncore.Moments):
        return LyingMoments(value.count, value.mean, value.m2)
    return LyingSums(value.sum_dy, value.sum_dy_xhat)


@pytest.mark.parametrize(("name", "argument"), STATISTICS)
def test_statistics_of_a_subclass_are_what_they_hold(backend, name, argument):
    call = calls.CALLS[name]
    expected = outcome(call, call.arguments())
    arguments = call.arguments()
    got = outcome(call, arguments | {argument: _lying(arguments[argument])})
    assert got[0] == expected[0] == ""
    assert [a.tobytes() for a in got[1]] == [b.tobytes() for b in expected[1]]


def test_an_interface_may_not_claim_more_than_its_buffer():
    class Claim:
        def __init__(self, values: int, **more: Any) -> None:
            self._given = {"version": 3, "shape": calls.SHAPE, "typestr": "<f8", **more}
            self._given["data"] = np.zeros(values)

        __array_interface__ = property(lambda self: self._given)

    size = int(np.prod(calls.SHAPE))
    assert bncore.moments(Claim(size)).m2.tolist() == [0.0] * calls.SHAPE[1]
    with pytest.raises(TypeError, match=r"x: expected an array, got Claim \(.*buffer"):
        bncore.batch_norm_train(Claim(size - 1))
    with pytest.raises(TypeError, match="buffer"):
        bncore.moments(Claim(size, strides=(120, 40, -8)))
