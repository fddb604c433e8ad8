"""A batch in pieces gives what the whole batch gives."""

from __future__ import annotations

import numpy as np
import pytest

import arrays
import bncore
from bncore import MicroBatches
from tolerances import PIECES_FLOAT64

CUTS = [7, 8, 22]


def largest_error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "affine"])
def test_four_pieces_are_one_batch(backend, rng, axis, weighted):
    x, dy = rng.standard_normal((2, 30, 4, 25)) + 3.0
    if axis == -1:
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    weight, bias = arrays.parameters(rng, 4) if weighted else (None, None)
    y, moments = bncore.batch_norm_train(x, weight, bias, axis=axis, eps=0.1)
    whole = bncore.batch_norm_train_backward(dy, x, moments, weight, axis=axis, eps=0.1)

    batch = MicroBatches(weight, bias, axis=axis, eps=0.1)
    xs, dys = np.split(x, CUTS), np.split(dy, CUTS)
    assert largest_error(np.concatenate([*batch.forward(xs)]), y) <= PIECES_FLOAT64
    np.testing.assert_array_equal(batch.moments.count, moments.count)
    dx = np.concatenate([*batch.backward(dys, xs)])
    for got, want in zip((dx, batch.dweight, batch.dbias), whole, strict=True):
        assert got.dtype == want.dtype
        assert largest_error(got, want) <= PIECES_FLOAT64


def test_the_steps_write_in_place(rng):
    x, dy = rng.standard_normal((2, 12, 3, 5)).astype(np.float32)
    first, second = MicroBatches(), MicroBatches()
    xs, dys = np.split(x, 3), np.split(dy, 3)
    expected = [*first.forward(xs)]
    gradients = [*first.backward(dys, xs)]
    for piece in xs:
        second.add(piece)
    for want, piece in zip(expected, xs, strict=True):
        out = piece.copy()
        assert second.normalize(out, out=out) is out
        assert arrays.same_bits(out, want)
    for g, piece in zip(dys, xs, strict=True):
        second.add_gradient(g, piece)
    for want, g, piece in zip(gradients, dys, xs, strict=True):
        out = g.copy()
        assert second.grad_input(out, piece, out=out) is out
        assert arrays.same_bits(out, want)
    assert second.sums == first.sums
    assert second.dweight.dtype == second.dbias.dtype == np.float32
    assert arrays.same_bits(second.dweight, second.sums.sum_dy_xhat.astype(np.float32))


def test_pieces_are_asked_for_twice_and_held_never():
    class Source:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for k in range(4):
                yield np.full((2, 1), float(k))

    source = Source()
    y = MicroBatches(eps=0.0).forward(source)
    assert source.passes == 1
    next(y)
    assert source.passes == 2


def test_a_single_value_per_piece_will_do():
    batch = MicroBatches(eps=0.0)
    y = [*batch.forward([np.array([[0.0]]), np.array([[2.0]])])]
    assert np.concatenate(y).tolist() == [[-1.0], [1.0]]


ONE = np.ones((2, 3))


def started(*pieces):
    batch = MicroBatches()
    for piece in pieces:
        batch.add(piece)
    return batch


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: MicroBatches().forward(iter([ONE])), TypeError,
     r"^pieces: expected an iterable that starts anew every time, such as a list, got "),
    (lambda: MicroBatches().forward(3), TypeError, r"^pieces: expected an iterable .*, got 3$"),
    (lambda: MicroBatches().forward([]), RuntimeError, r"^pieces: expected at least one piece"),
    (lambda: MicroBatches().forward([ONE[:1]]), ValueError, r"^Expected more than 1 value"),
    (lambda: started(ONE).forward([ONE]), RuntimeError, r"^forward: expected a new MicroBatches"),
    (lambda: started(ONE, ONE[:, :2]), ValueError,
     r"^x: expected 3 channels, as in the first piece, got 2$"),
    (lambda: started(ONE, ONE.astype("f")), TypeError, r"^x: expected float64 .*, got float32$"),
    (lambda: MicroBatches([1.0]).add(ONE), ValueError, r"^x: expected 1 channels, as weight, got"),
    (lambda: MicroBatches(None, [1.0]).add(ONE), ValueError, r"^x: expected 1 channels, as bias"),
    (lambda: MicroBatches([1.0], [1.0, 2.0]), ValueError, r"^bias: expected shape \(1,\), got"),
    (lambda: MicroBatches(eps=-1), ValueError, r"^eps: expected a finite number >= 0, got -1$"),
    (lambda: started(ONE, ONE).backward([ONE], [ONE]), RuntimeError,
     r"^add_gradient: expected pieces of 4 values per channel in all, .*, got 2$"),
    (lambda: started(ONE).backward([ONE, ONE], [ONE]), ValueError, r"^zip"),
    (lambda: started(ONE).dweight, RuntimeError, r"^sums: expected add_gradient of a piece"),
    (lambda: started(ONE).grad_input(ONE, ONE), RuntimeError, r"^sums: expected add_gradient"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("pieces", "error"), [
    ([ONE, ONE[:, :2]], ValueError),
    ([ONE, ONE.astype(np.float32)], TypeError),
    ([ONE.astype(np.float32), ONE], TypeError),
    ([ONE[:1]], ValueError),
], ids=["channels", "dtype", "other dtype", "one value"])  # fmt: skip
def test_forward_can_be_called_again_after_an_error(rng, pieces, error):
    batch = MicroBatches()
    with pytest.raises(error):
        batch.forward(pieces)
    with pytest.raises(RuntimeError, match=r"^moments: expected add of a piece before"):
        batch.moments  # noqa: B018
    x = rng.standard_normal((6, 2))
    y = [*batch.forward([x[:2], x[2:]])]
    assert arrays.same_bits(np.concatenate(y), np.concatenate([*MicroBatches().forward(
        [x[:2], x[2:]]
    )]))  # fmt: skip


def test_a_refused_forward_leaves_pieces_that_were_added():
    batch = started(ONE)
    with pytest.raises(RuntimeError, match=r"^forward: expected a new MicroBatches"):
        batch.forward([ONE])
    assert batch.moments.count.tolist() == [2.0] * 3


def test_no_piece_comes_late(rng):
    x = rng.standard_normal((6, 3))
    batch = started(x[:3])
    with pytest.raises(ValueError, match=r"^x: "):
        batch.normalize(x[0])
    batch.add(x[3:])  # no y was given away
    batch.normalize(x[:3])
    with pytest.raises(RuntimeError, match=r"^add: expected no piece after normalize, got one$"):
        batch.add(x[3:])
    assert batch.moments.count.tolist() == [6.0] * 3
    batch = MicroBatches()
    next(batch.forward([x[:3], x[3:]]))
    with pytest.raises(RuntimeError, match=r"^add: expected no piece after normalize, got one$"):
        batch.add(x[:3])


@pytest.mark.parametrize("step", ["normalize", "add_gradient", "grad_input"])
def test_every_step_wants_the_dtype_of_the_first_piece(step):
    batch, wrong = started(ONE), ONE.astype(np.float32)
    if step == "grad_input":
        batch.add_gradient(ONE, ONE)
    given = (wrong,) if step == "normalize" else (wrong, wrong)
    with pytest.raises(TypeError, match=r"^x: expected float64 as in the first piece, got float32"):
        getattr(batch, step)(*given)
    batch.add_gradient(ONE, ONE) if step != "grad_input" else batch.grad_input(ONE, ONE)


def test_a_forgotten_piece_is_noticed_and_can_be_made_good(rng):
    x = rng.standard_normal((6, 2))
    batch = started(x[:3], x[3:])
    with pytest.raises(RuntimeError, match=r"got 3$"):
        batch.backward([x[:3]], [x[:3]])
    batch.add_gradient(x[:3], x[:3])
    with pytest.raises(RuntimeError, match=r"got 3$"):
        batch.dweight  # noqa: B018
    with pytest.raises(RuntimeError, match=r"^add: expected no piece after add_gradient"):
        batch.add(x)
    batch.add_gradient(x[3:], x[3:])
    assert batch.dbias.shape == (2,)


def test_running_statistics_take_the_whole_batch(rng):
    x = rng.standard_normal((40, 3)) + 2.0
    batch = started(*np.split(x, 4))
    mean, var = np.zeros(3), np.ones(3)
    bncore.update_running_stats(mean, var, batch.moments, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=PIECES_FLOAT64)
    np.testing.assert_allclose(var, x.var(axis=0, ddof=1), rtol=PIECES_FLOAT64)
