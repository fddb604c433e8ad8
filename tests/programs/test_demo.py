"""The demo: its formulas and its network against central differences, and a quick run of it all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bncore.extras import pip_install
from bncore.programs.demo import __main__ as demo
from bncore.programs.demo import data, formula, network, table
from differences import central_difference

AXES = (0, 2)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_the_formula_is_its_own_derivative(rng, mode):
    x, dy = rng.normal(size=(2, 4, 3, 5))
    weight, bias, mean, var = rng.uniform(0.5, 2.0, (4, 1, 3, 1))

    def loss() -> float:
        if mode == "train":
            return float((dy * formula.train(x, weight, bias, AXES, 1e-5)).sum())
        return float((dy * formula.infer(x, mean, var, weight, bias, 1e-5)).sum())

    statistics = formula.statistics(x, AXES) if mode == "train" else (mean, var)
    backward = formula.backward if mode == "train" else formula.infer_backward
    gradients = backward(dy, x, *statistics, weight, AXES, 1e-5)
    for value, gradient in zip((x, weight, bias), gradients, strict=True):
        for index in np.ndindex(value.shape):
            assert gradient[index] == pytest.approx(
                central_difference(loss, value, index), rel=1e-6, abs=1e-7
            )


def test_evaluation_uses_the_running_statistics(rng):
    net = network.Network(hidden=6, batch_norm=True).layers
    x = rng.random((50, 64)).astype(np.float32)
    net.eval()
    alone = net.forward(x[:1])
    np.testing.assert_allclose(alone, net.forward(x)[:1], rtol=1e-5)
    before = alone.copy()
    net.train()
    net.forward(x)
    net.eval()
    assert np.abs(net.forward(x[:1]) - before).max() > 1e-3


def test_accuracy_is_that_of_evaluation_and_changes_nothing(rng):
    net = network.Network(hidden=6, batch_norm=True)
    x, label = rng.random((50, 64)).astype(np.float32), rng.integers(0, 10, 50)
    before = net.layers.norms[0].state_dict()
    accuracy = net.accuracy(x, label)
    after = net.layers.norms[0].state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert net.layers.norms[0].training
    net.layers.eval()
    assert accuracy == np.mean(net.layers.forward(x).argmax(axis=1) == label)


def test_both_networks_start_equal_and_learn():
    digits = data.split_digits()
    plain, normed = (network.Network(32, batch_norm) for batch_norm in (False, True))
    for part in (0, -1):
        first, second = (net.layers.layers[part].weight for net in (plain, normed))
        np.testing.assert_array_equal(first, second)
    for net in (plain, normed):
        epochs = list(network.train(net, digits, epochs=3, batch=64, rate=0.1))
        losses = [epoch.loss for epoch in epochs]
        assert losses == sorted(losses, reverse=True)
        assert epochs[-1].accuracy > 0.7


def test_the_digits_are_whole():
    digits = data.split_digits()
    assert len(digits.train_x) + len(digits.test_x) == 1797
    assert digits.train_x.dtype == np.float32
    assert 0 <= digits.train_x.min() < digits.train_x.max() == 1
    assert set(digits.test_label) == set(range(10))


def test_feature_maps_are_filtered_images():
    maps = data.feature_maps(20)
    assert maps.shape == (20, 16, 8, 8)
    assert maps.flags.c_contiguous
    images = data.load_digits().images[:20]
    inner = sum(images[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(maps[:, 0, 1:-1, 1:-1], inner, rtol=1e-6)


def test_the_table_covers_both_layouts_and_is_right(backend):
    rows, shape = table.measure_all(repeats=1, limit=60)
    assert shape == (60, 16, 8, 8)
    assert [(row.layout, row.operation) for row in rows] == [
        (layout, operation)
        for layout in ("NCHW", "NHWC")
        for operation in ("train", "infer", "backward")
    ]
    for row in rows:
        assert row.errors[0] <= (8 if row.operation == "backward" else 3)


def test_the_demo_runs_from_end_to_end(capsys):
    demo.main(["--quick"])
    printed = " ".join(capsys.readouterr().out.split())
    for expected in ("NCHW", "NHWC", "backward", "times faster", "test accuracy, batch norm"):
        assert expected.split()[0] in printed
    for said in ("digits of 8 x 8 pixels", "ulp of the summed terms", "faster than the NumPy"):
        assert said in printed


def test_a_missing_dependency_is_explained():
    code = (
        "import sys; sys.modules['rich'] = None; sys.argv = ['demo']; "
        "import runpy; runpy.run_module('bncore.programs.demo', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{pip_install('demo')} installs them" in done.stderr
