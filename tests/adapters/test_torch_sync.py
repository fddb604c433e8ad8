"""`SyncBatchNorm` over gloo: two and four processes against one with the whole batch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bncore.torch
import tolerances
import torch_ranks

pytestmark = pytest.mark.needs_torch

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the processes of all groups left what they found."""
    made = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, torch_ranks.__file__, str(made)],
        capture_output=True,
        cwd=Path(torch_ranks.__file__).parent.parent,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module", params=torch_ranks.WORLDS, ids="{} processes".format)
def ranks(request, folder):
    """What each process of a group found."""
    world = request.param
    return [dict(np.load(folder / f"{world}-{rank}.npz")) for rank in range(world)]


@pytest.fixture(scope="module")
def whole():
    """The same by PyTorch's own module, in one process with the whole batch."""
    x, dy, (weight, bias) = torch_ranks.data()
    layer = torch.nn.BatchNorm2d(
        torch_ranks.SHAPE[1], torch_ranks.EPS, torch_ranks.MOMENTUM, dtype=torch.float64
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    found = {}
    for step in range(torch_ranks.STEPS):
        leaf = torch.from_numpy(x[step]).requires_grad_()
        layer.zero_grad()
        y = layer(leaf)
        y.backward(torch.from_numpy(dy[step]))
        found |= {f"y{step}": y.detach().numpy(), f"dx{step}": leaf.grad.numpy()}
        found |= {f"dweight{step}": layer.weight.grad.numpy().copy()}
        found |= {f"dbias{step}": layer.bias.grad.numpy().copy()}
    layer.eval()
    found["evaluated"] = layer(torch.from_numpy(x[0])).detach().numpy()
    return found | {name: value.numpy() for name, value in layer.state_dict().items()}


def close(got, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerances.SYNCHRONIZED * scale)


@pytest.mark.parametrize("name", ["y0", "dx0", "y1", "dx1", "evaluated"])
def test_parts_are_those_of_the_whole(ranks, whole, name):
    close(np.concatenate([rank[name] for rank in ranks]), whole[name])


@pytest.mark.parametrize("name", ["dweight0", "dbias0", "dweight1", "dbias1"])
def test_gradients_of_parameters_add_up(ranks, whole, name):
    close(sum(rank[name] for rank in ranks), whole[name])


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_the_same_bits_in_every_process(ranks, whole, name):
    close(ranks[0][name], whole[name])
    for rank in ranks[1:]:
        assert np.array_equal(rank[name], ranks[0][name])


def test_every_process_has_its_own_mask(ranks):
    """Together they are one process with the whole mask."""
    x, dy, (weight, bias) = torch_ranks.data()
    layer = bncore.torch.BatchNorm2d(
        torch_ranks.SHAPE[1], torch_ranks.EPS, torch_ranks.MOMENTUM, dtype=torch.float64
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    leaf = torch.from_numpy(x[0]).requires_grad_()
    y = layer(leaf, torch.from_numpy(torch_ranks.mask()), fill=0.5)
    y.backward(torch.from_numpy(dy[0]))
    for name, expected in (("y", y), ("dx", leaf.grad)):
        found = np.concatenate([rank[f"counted {name}"] for rank in ranks])
        close(found, expected.detach().numpy())
    for name, expected in (("dweight", layer.weight.grad), ("dbias", layer.bias.grad)):
        close(sum(rank[f"counted {name}"] for rank in ranks), expected.numpy())
    for name, expected in (("mean", layer.running_mean), ("var", layer.running_var)):
        close(ranks[0][f"counted {name}"], expected.numpy())
        for rank in ranks[1:]:
            np.testing.assert_array_equal(rank[f"counted {name}"], ranks[0][f"counted {name}"])


def test_16_bits(ranks):
    """Those of PyTorch's float64 arithmetic on the same stored values, and the dtypes given."""
    x, dy, _ = torch_ranks.data()
    leaf = torch.from_numpy(x[0]).bfloat16().double().requires_grad_()
    mean, var = torch.zeros(torch_ranks.SHAPE[1]), torch.ones(torch_ranks.SHAPE[1])
    weight = torch.ones_like(mean).double().requires_grad_()
    expected = torch.nn.functional.batch_norm(
        leaf, mean.double(), var.double(), weight, None, True, eps=torch_ranks.EPS
    )
    dx, dweight = torch.autograd.grad(
        expected, (leaf, weight), torch.from_numpy(dy[0]).bfloat16().double()
    )
    for name, exact in (("y", expected), ("dx", dx)):
        exact = exact.detach()
        got = torch.from_numpy(np.concatenate([rank[f"short {name}"] for rank in ranks]))
        torch.testing.assert_close(got.bfloat16(), exact.bfloat16())
    total = sum(rank["short dweight"] for rank in ranks)
    torch.testing.assert_close(torch.from_numpy(total).half(), dweight.half())
    for rank in ranks:
        assert list(rank["short dtypes"]) == ["torch.bfloat16"] * 2 + ["torch.float16"] * 2
        assert np.array_equal(rank["short mean"], ranks[0]["short mean"])
    assert np.abs(ranks[0]["short mean"] - 10.0).max() <= 0.1


def test_every_channel_merges_by_its_own_counts(ranks):
    values = [np.concatenate(parts) for parts in zip(*torch_ranks.ragged(len(ranks)), strict=True)]
    count, mean, m2 = (ranks[0][f"ragged {name}"] for name in ("count", "mean", "m2"))
    assert count.tolist() == list(map(len, values)) and count[0] == 0.0 < count[1]
    assert np.isnan(mean[0]) and m2[0] == 0.0
    for c in np.flatnonzero(count):
        assert mean[c] == pytest.approx(values[c].mean(), rel=1e-14)
        want = ((values[c] - values[c].mean()) ** 2).sum()
        assert m2[c] == pytest.approx(want, rel=tolerances.SYNCHRONIZED, abs=1e-20)
    for rank in ranks[1:]:
        for name in ("count", "mean", "m2"):
            np.testing.assert_array_equal(rank[f"ragged {name}"], ranks[0][f"ragged {name}"])


@pytest.mark.parametrize("case", ["plain", "masked"])
def test_gradients_of_gradients_are_those_of_one_process(ranks, case):
    x, dy, _ = torch_ranks.data()
    layer = bncore.torch.BatchNorm2d(torch_ranks.SHAPE[1], 0.1, dtype=torch.float64)
    where = [] if case == "plain" else [torch.from_numpy(torch_ranks.mask())]
    given = torch.from_numpy(x[0]), torch.from_numpy(dy[0])
    for name, want in torch_ranks.orders(layer, *given, *where).items():
        parts = [rank[f"{case} {name}"] for rank in ranks]
        got = sum(parts) if "weight" in name else np.concatenate(parts)
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.TORCH_FLOAT64 * scale)


@pytest.mark.parametrize("case", ["plain", "masked"])
def test_gradients_of_gradients_in_a_compiled_function(folder, case):
    """The graph has no break; its results are those of one process that compiles nothing."""
    ranks = [dict(np.load(folder / f"2-{rank}.npz")) for rank in range(2)]
    x, dy, _ = torch_ranks.data()
    layer = bncore.torch.BatchNorm2d(torch_ranks.SHAPE[1], 0.1, dtype=torch.float64)
    where = [] if case == "plain" else [torch.from_numpy(torch_ranks.mask())]
    leaf = torch.from_numpy(x[0]).requires_grad_()
    y = layer(leaf.sin(), *where, fill=0.5).cos()
    (gradient,) = torch.autograd.grad((y * torch.from_numpy(dy[0])).sum(), leaf, create_graph=True)
    (gradient**2).sum().backward()
    close(np.concatenate([rank[f"compiled {case} y"] for rank in ranks]), y.detach().numpy())
    got, want = np.concatenate([rank[f"compiled {case} second"] for rank in ranks]), leaf.grad
    scale = float(want.abs().max())
    np.testing.assert_allclose(got, want.numpy(), atol=tolerances.TORCH_FLOAT64 * scale)


def test_a_compiled_step_has_the_bits_of_an_eager_one(folder):
    for at in range(2):
        rank = dict(np.load(folder / f"2-{at}.npz"))
        names = [name for name in rank if name.startswith("aot_eager ")]
        assert len(names) == 8
        for name in names:
            np.testing.assert_array_equal(rank[name], rank[name.removeprefix("aot_")])


def test_recalibration_is_that_of_one_process(ranks):
    x, _, _ = torch_ranks.data()
    splits = torch_ranks.SPLITS[len(ranks)]
    second = [x[1, a:b][:2] for a, b in itertools.pairwise(splits)]
    seen = np.concatenate([x[0], *second]).transpose(1, 0, 2, 3).reshape(x.shape[2], -1)
    for layer in ("0", "2"):
        mean, var = seen.mean(1), seen.var(1, ddof=1)
        close(ranks[0][f"recalibrated {layer}.running_mean"], mean)
        close(ranks[0][f"recalibrated {layer}.running_var"], var)
        seen = np.maximum((seen - mean[:, None]) / np.sqrt(var + 1e-5)[:, None], 0.0)
        name = f"recalibrated {layer}.num_batches_tracked"
        assert ranks[0][name] == 2 * sum(b > a for a, b in itertools.pairwise(splits))
    for rank in ranks[1:]:
        for name in (n for n in rank if n.startswith("recalibrated") and "failure" not in n):
            np.testing.assert_array_equal(rank[name], ranks[0][name])


def test_every_process_hears_of_a_failure(ranks):
    last = len(ranks) - 1
    for at, rank in enumerate(ranks):
        text = "OSError: the disk is gone"
        if at < last:
            text = (
                f"RuntimeError: process_group: expected no failure, got one of rank {last}: {text}"
            )
        assert str(rank["recalibrated failure"]) == text


REFUSED = {
    "nan": "ValueError: rank {}: x: expected no NaN with nan_policy='raise', got NaN in channel 2",
    "weights": "ValueError: rank {}: weights: expected finite numbers >= 0, got -1.0 at (0, 0",
    "mask": "ValueError: rank {}: where: expected a shape that broadcasts against x's",
    "dtype": "NotImplementedError: rank {}: \"batch_norm\" not implemented for 'Int'",
    "dimensions": "ValueError: rank {}: expected at least 2D input (got 1D input)",
    "channels": "ValueError: rank {}: input: expected 5 channels, got (3, 2, ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_that_is_refused_in_one_process_is_refused_in_all(ranks, name):
    texts = {str(rank[f"refused {name}"]) for rank in ranks}
    assert len(texts) == 1 and texts.pop().startswith(REFUSED[name].format(len(ranks) - 1))


def test_processes_go_on_after_a_refusal(ranks):
    x = torch.from_numpy(torch_ranks.data()[0][0, :3])
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    for rank in ranks:
        close(rank["refused after"], expected.numpy())


def test_one_value_in_all_is_refused_by_every_process(ranks):
    for rank in ranks:
        assert str(rank["one value"]).startswith("Expected more than 1 value per channel")
        assert rank["kind"] == "SyncBatchNorm"


def test_alone_it_is_batch_norm():
    x = torch.randn(4, 3, 5)
    ours, theirs = bncore.torch.SyncBatchNorm(3), torch.nn.BatchNorm1d(3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        ours(x[0, 0])


@pytest.mark.parametrize(
    "kind", [torch.nn.BatchNorm1d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm], ids=str
)
def test_there_and_back(kind):
    model = torch.nn.Sequential(kind(3))
    before = model[0].weight
    assert type(bncore.torch.convert(model, sync=True)[0]) is bncore.torch.SyncBatchNorm
    assert model[0].process_group is None
    assert type(bncore.torch.revert(model)[0]) is kind
    assert model[0].weight is before
