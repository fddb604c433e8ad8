"""The layer's state: dictionaries, copies, averages, assignments, what it prints."""

from __future__ import annotations

import copy
import io
import pickle
from fractions import Fraction

import numpy as np
import pytest

import bncore
from bncore import BatchNorm, Moments
from bncore.layer.averages import weight_of_new

C = 3


def trained(rng, **settings) -> BatchNorm:
    layer = BatchNorm(**settings)
    for _ in range(3):
        x = rng.normal(2.0, 3.0, (5, C)).astype(np.float32)
        layer(x)
        layer.backward(x)
        for value, gradient in zip(layer.parameters(), layer.gradients(), strict=True):
            value -= np.float32(0.1) * gradient
    return layer


def assert_same_state(one: BatchNorm, other: BatchNorm) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        np.testing.assert_array_equal(states[0][name], states[1][name])
        assert states[0][name].dtype == states[1][name].dtype


def test_names_are_pytorchs(rng):
    layer = trained(rng)
    assert list(layer.state_dict()) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    assert list(trained(rng, affine="bias", track_running_stats=False).state_dict()) == ["bias"]
    assert BatchNorm(affine=False, track_running_stats=False).state_dict() == {}


@pytest.mark.parametrize("affine", [True, "weight", "bias", False])
def test_a_state_makes_another_layer_the_same(rng, affine):
    layer = trained(rng, affine=affine)
    state = layer.state_dict()
    for value in state.values():  # copies
        assert not any(np.shares_memory(value, own) for own in layer.parameters())
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    for other in (BatchNorm(affine=affine), BatchNorm(C, affine=affine, dtype=np.float32)):
        other.load_state_dict(dict(np.load(file)))
        file.seek(0)
        assert_same_state(layer, other)
        x = rng.normal(size=(4, C))
        np.testing.assert_array_equal(layer(x), other(x))
        assert_same_state(layer, other)
        layer.load_state_dict(state)


def test_loading_keeps_arrays_and_dtypes(rng):
    layer = BatchNorm(C, dtype=np.float64)
    arrays = [layer.weight, layer.bias, layer.running_mean, layer.running_var]
    layer.load_state_dict(trained(rng).state_dict())
    for before, name in zip(arrays, ("weight", "bias", "running_mean", "running_var"), strict=True):
        assert getattr(layer, name) is before
        assert before.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": None}, ValueError, "state: expected the names weight, bias, running_mean"),
        ({"gamma": np.ones(C)}, ValueError, "state: expected the names weight, .* got .*gamma"),
        ({"bias": np.ones(C + 1)}, ValueError, r"bias: expected shape \(3,\), got \(4,\)"),
        ({"running_var": np.ones(C, int)}, TypeError, "running_var: expected a real floating"),
        ({"num_batches_tracked": -1}, ValueError, "num_batches_tracked: expected an integer >= 0"),
        ({"num_batches_tracked": 1.5}, TypeError, "num_batches_tracked: expected an integer >= 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_state_changes_nothing(rng, known, change, error, message):
    state = {**trained(rng).state_dict(), **change}
    state = {name: value for name, value in state.items() if value is not None}
    layer = BatchNorm(C, dtype=np.float32) if known else BatchNorm()
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert layer.channels == (C if known else None)
    if known:
        assert_same_state(layer, BatchNorm(C, dtype=np.float32))
    with pytest.raises(TypeError, match="state: expected a dictionary, got list"):
        layer.load_state_dict([1, 2])


def test_a_state_may_be_the_layers_own_arrays(rng):
    layer = trained(rng)
    state = layer.state_dict()
    weight, bias = state["weight"].copy(), state["bias"].copy()
    layer.load_state_dict({**state, "weight": layer.bias, "bias": layer.weight})
    np.testing.assert_array_equal(layer.weight, bias)
    np.testing.assert_array_equal(layer.bias, weight)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_a_read_only_array_is_refused_before_anything_is_written(rng, name):
    layer = trained(rng)
    state = {key: value + 1 for key, value in layer.state_dict().items()}
    before = layer.state_dict()
    moments = layer.moments
    getattr(layer, name).flags.writeable = False
    calls = [lambda: layer.load_state_dict(state), layer.reset]
    if name in ("running_mean", "running_var"):
        calls.append(layer.reset_running_stats)
    for call in calls:
        with pytest.raises(ValueError, match=f"{name}: expected a writable array, got a read-only"):
            call()
        for key, value in before.items():
            np.testing.assert_array_equal(getattr(layer, key), value, err_msg=key)
        assert layer.moments is moments


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_apart_and_goes_on_the_same(rng, copied):
    layer = trained(rng, momentum=None, activation="relu", on_nonfinite="skip", n_threads=1)
    layer.freeze()
    x = rng.normal(size=(4, C))
    layer(x)
    other = copied(layer)
    assert repr(other) == repr(layer)
    assert_same_state(layer, other)
    assert other.moments == layer.moments
    assert not any(
        np.shares_memory(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True)
    )
    layer.freeze(False), other.freeze(False)
    np.testing.assert_array_equal(layer(x), other(x))
    np.testing.assert_array_equal(layer.backward(x), other.backward(x))
    np.testing.assert_array_equal(layer.dweight, other.dweight)
    assert_same_state(layer, other)


def test_a_copy_does_not_carry_a_batch(rng):
    layer = BatchNorm()
    size = len(pickle.dumps(trained(rng)))
    layer(rng.normal(size=(10000, C)))
    assert len(pickle.dumps(layer)) < size + 1000


def test_reset_makes_it_new_in_place(rng):
    layer = trained(rng)
    parameters = layer.parameters()
    layer.reset_running_stats()
    assert layer.num_batches_tracked == 0
    assert (layer.running_mean == 0.0).all() and (layer.running_var == 1.0).all()
    assert (layer.weight != 1.0).any()
    layer.reset()
    assert_same_state(layer, BatchNorm(C, dtype=np.float32))
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert layer.dweight is None and layer.dbias is None and layer.moments is None
    BatchNorm().reset()


def test_assigned_parameters_are_the_arrays_and_running_ones_copies(rng):
    layer = trained(rng)
    weight, mean = rng.normal(size=C), rng.normal(size=C)
    layer.weight, layer.running_mean = weight, mean
    assert layer.weight is weight
    assert layer.running_mean is not mean and (layer.running_mean == mean).all()
    x = rng.normal(size=(6, C))
    np.testing.assert_array_equal(layer(x), bncore.batch_norm_train(x, weight, layer.bias)[0])
    for name, value, error, message in [
        ("weight", np.ones(C + 1), ValueError, "weight: expected shape"),
        ("weight", np.broadcast_to(1.0, C), ValueError, "weight: expected a writable array"),
        ("bias", np.ones(C, int), TypeError, "bias: expected a real floating dtype"),
        ("running_var", np.ones((C, 1)), ValueError, "running_var: expected 1 dimension"),
    ]:
        with pytest.raises(error, match=message):
            setattr(layer, name, value)
    with pytest.raises(ValueError, match="bias: expected no assignment"):
        trained(rng, affine="weight").bias = np.ones(C)


# ------------------------------------------------------------------------------------- averages


def exact_average(values: list[float], momentum: float | None, debias: bool) -> Fraction:
    """The running value after these batches, from 0, by its definition."""
    if momentum is None:
        return sum(map(Fraction, values)) / len(values)
    share, total = Fraction(momentum), Fraction(0)
    for value in values:
        total = (1 - share) * total + share * Fraction(value)
    return total / (1 - (1 - share) ** len(values)) if debias else total


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.1, 0.75, 1.0, 1e-9])
def test_averages_are_what_they_are_defined_to_be(rng, momentum, debias):
    layer = BatchNorm(momentum=momentum, debias=debias, correction=0)
    means, variances = [], []
    for step in range(1, 12):
        x = rng.normal(rng.uniform(-5.0, 5.0), rng.uniform(0.5, 2.0), (6, 2))
        layer(x)
        means.append(layer.moments.mean[0])
        variances.append(layer.moments.var()[0])
        left = 0 if momentum is None or debias else (1 - Fraction(momentum)) ** step  # of the 1
        mean = exact_average(means, momentum, debias)
        var = exact_average(variances, momentum, debias) + left
        size = max(1.0, np.abs(means).max())
        assert abs(float(Fraction(layer.running_mean[0]) - mean)) <= 1e-14 * size
        assert layer.running_var[0] == pytest.approx(float(var), rel=1e-14)


def test_early_evaluation_is_right_without_bias(rng):
    x = rng.normal(50.0, 4.0, (4000, 2))
    layer, biased = BatchNorm(debias=True), BatchNorm()
    layer(x), biased(x)
    y = layer.eval()(x)
    assert np.abs(y.mean(axis=0)).max() < 1e-12
    np.testing.assert_allclose(y.std(axis=0), 1.0, rtol=1e-3)
    assert np.abs(biased.eval()(x).mean(axis=0)).min() > 10.0


def test_momentum_0_moves_nothing(rng):
    for debias in (False, True):
        layer = BatchNorm(momentum=0.0, debias=debias)
        layer(rng.normal(size=(4, C)))
        assert (layer.running_mean == 0.0).all() and (layer.running_var == 1.0).all()


def test_the_weight_of_a_new_batch():
    assert [weight_of_new(None, False, t) for t in range(3)] == [1.0, 1 / 2, 1 / 3]
    assert weight_of_new(0.3, True, 0) == pytest.approx(1.0, rel=1e-15)
    assert weight_of_new(0.3, True, 10**6) == 0.3
    assert weight_of_new(1e-12, True, 4) == pytest.approx(0.2, rel=1e-11)
    assert all(0.0 <= weight_of_new(m, True, 0) <= 1.0 for m in np.linspace(1e-9, 1.0, 1000))


def test_correction_is_that_of_the_running_variance(rng):
    x = rng.normal(size=(5, C))
    for correction in (0, 1, 0.5):
        layer = BatchNorm(momentum=1.0, correction=correction)
        y = layer(x)
        np.testing.assert_allclose(layer.running_var, x.var(axis=0) * 5 / (5 - correction))
        np.testing.assert_array_equal(y, BatchNorm()(x))


# ------------------------------------------------------------------------------------------ repr


def test_repr_says_what_is_not_the_default(rng):
    assert repr(BatchNorm()) == "BatchNorm(): training, 0 batches tracked"
    layer = trained(rng, momentum=None, affine="weight", on_single="running").freeze().eval()
    assert repr(layer) == (
        "BatchNorm(3, momentum=None, affine='weight', dtype=float32, on_single='running'): "
        "evaluation, frozen, 3 batches tracked"
    )
    assert repr(BatchNorm(2, track_running_stats=False)) == (
        "BatchNorm(2, track_running_stats=False): training"
    )


def test_moments_of_a_subclass_of_moments_are_taken():
    class Named(Moments):
        pass

    mean, var = np.zeros(1), np.ones(1)
    bncore.update_running_stats(mean, var, Named(3, [4.0], [6.0]), momentum=0.5)
    assert (mean, var) == (2.0, 2.0)
