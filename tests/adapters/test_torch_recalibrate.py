"""`bncore.torch.recalibrate`: against float64 statistics by hand, and what depends on what."""

from __future__ import annotations

import copy
import itertools
import runpy

import numpy as np
import pytest
import torch
from torch import nn

import bncore
import bncore.torch
import tolerances
from bncore.torch import recalibrate
from checkout import ROOT

pytestmark = pytest.mark.needs_torch

SIZES = (5, 1, 7, 3)


class Counted:
    """Batches, and how many times they were asked for."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


class Branches(nn.Module):
    """A stem, two branches side by side that are added, and an end: three levels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.b = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.5)
        self.end = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.a(x) + self.b(x))
        return self.end(self.drop(x.mean((2, 3))))


def network(seed=0):
    torch.manual_seed(seed)
    return Branches()


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator).to(dtype) * 2 + 1 for n in SIZES]


def by_hand(model, batches):
    """Mean and variance (of n - 1) of what each layer sees in evaluation, all in float64."""
    wide = copy.deepcopy(model).double().eval()
    seen = {}
    for name, layer in wide.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    with torch.no_grad():
        wide(torch.cat(batches).double())
    others = {n: [i for i in range(x.dim()) if i != 1] for n, x in seen.items()}
    return {n: (x.mean(others[n]), x.var(others[n])) for n, x in seen.items()}


def check(model, batches, bound):
    for name, (mean, var) in by_hand(model, batches).items():
        layer = model.get_submodule(name)
        assert ((layer.running_mean - mean).abs() <= bound * var.sqrt()).all(), name
        assert ((layer.running_var / var - 1).abs() <= bound).all(), name


@pytest.mark.parametrize("converted", [False, True], ids=["torch.nn", "bncore.torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_statistics_are_those_by_hand(converted, dtype):
    model, batches = network().to(dtype), images(dtype)
    if converted:
        bncore.torch.convert(model)
    loader = Counted(batches)
    found = recalibrate(model, loader)
    assert loader.passes == 3 and set(found) == {"stem.1", "a.1", "b.1", "end"}
    check(model, batches, tolerances.RECALIBRATED[dtype == torch.float64])
    assert found["end"].count.tolist() == [sum(SIZES)] * 8
    np.testing.assert_allclose(found["end"].mean, model.end.running_mean.double(), rtol=1e-6)
    assert model.stem[1].num_batches_tracked == len(SIZES)
    assert model.training and model.drop.training and model.end.momentum == 0.1


def test_it_does_better_than_update_bn():
    batches = [b for b in images() if len(b) > 1]  # PyTorch's refuses one value per channel
    ours, theirs = network(), network()
    recalibrate(ours, batches)
    theirs.drop.p = 0.0
    torch.optim.swa_utils.update_bn(batches, theirs)
    for name, (_, var) in by_hand(ours, batches).items():
        error, other = (
            float((m.get_submodule(name).running_var / var - 1).abs().max()) for m in (ours, theirs)
        )
        assert error <= tolerances.RECALIBRATED[False] < other / 1e4


def test_one_pass_normalizes_by_batches():
    model, batches = network().double(), images(torch.float64)
    batches.pop(1)  # one value per channel at the end cannot be normalized
    loader = Counted(batches)
    found = recalibrate(model, iter(loader), one_pass=True, correction=0)
    assert loader.passes == 1 and list(found) == ["stem.1", "a.1", "b.1", "end"]
    x = torch.cat([model.stem[0](b) for b in batches])
    np.testing.assert_allclose(model.stem[1].running_var, x.var((0, 2, 3), correction=0).detach())
    reference = network().double()
    reference.drop.p = 0.0
    seen = []
    reference.a[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for batch in batches:
        reference(batch)
    np.testing.assert_allclose(found["a.1"].mean, torch.cat(seen).mean((0, 2, 3)), rtol=1e-9)


def flows():
    """Ways from the first layer's result to the second one's input."""
    return {
        "values": lambda y, x: y,
        "memory": lambda y, x: x.clone().add_(y),
        "a view": lambda y, x: written(x.clone(), y),
        "an index": lambda y, x: x[y.argsort(0)[:, 0]],
        "a number": lambda y, x: x * y.max().item(),
        "a branch": lambda y, x: x + 1 if y.sum() > 1e9 else x + 2,
        "NumPy": lambda y, x: torch.from_numpy(y.numpy() * 2),
        "a list": lambda y, x: x + torch.tensor(y.tolist()),
        "out=": lambda y, x: torch.mul(y, 2, out=torch.empty_like(x)),
        "sparse": lambda y, x: y.to_sparse().to_dense(),
        "foreach": lambda y, x: torch._foreach_mul([x, y], 2.0)[1],
    }


def written(whole, y):
    whole[:, :1].copy_(y[:, :1])
    return whole


class Two(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.first, self.second, self.flow = nn.BatchNorm1d(4), nn.BatchNorm1d(4), flow

    def forward(self, x):
        return self.second(self.flow(self.first(x), x))


@pytest.mark.parametrize("converted", [False, True], ids=["torch.nn", "bncore.torch"])
@pytest.mark.parametrize("flow", flows())
def test_a_layer_waits_for_the_one_before_it(flow, converted):
    model = Two(flows()[flow])
    if converted:
        bncore.torch.convert(model)
    loader = Counted([torch.randn(6, 4), torch.randn(3, 4)])
    recalibrate(model, loader)
    assert loader.passes == 2
    check(model, loader.batches, tolerances.RECALIBRATED[False]) if flow == "values" else None


@pytest.mark.parametrize("converted", [False, True], ids=["torch.nn", "bncore.torch"])
def test_layers_apart_share_a_pass(converted):
    model = Two(lambda y, x: x + 0.0 * x.max().item())
    if converted:
        bncore.torch.convert(model)
    loader = Counted([torch.randn(6, 4) for _ in range(5)])
    assert set(recalibrate(model, loader)) == {"first", "second"}
    assert loader.passes == 1


class Again(nn.Module):
    """A layer that is called twice, the second time on its own result, or on x again."""

    def __init__(self, itself):
        super().__init__()
        self.norm, self.itself = nn.BatchNorm1d(2), itself

    def forward(self, x):
        y = self.norm(x)
        return self.norm(y if self.itself else 2 * x)


def test_all_calls_of_a_layer_count():
    x = torch.randn(9, 2, dtype=torch.float64)
    model = Again(itself=False).double()
    recalibrate(model, [x])
    both = torch.cat([x, 2 * x])
    torch.testing.assert_close(model.norm.running_mean, both.mean(0))
    torch.testing.assert_close(model.norm.running_var, both.var(0))


def test_a_layer_behind_itself_has_no_exact_statistics():
    model, batches = Again(itself=True), [torch.randn(9, 2)]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="do not depend on their own output, got 'norm'; one_pass"):
        recalibrate(model, batches)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    recalibrate(model, batches, one_pass=True)
    assert not torch.equal(model.norm.running_var, before["norm.running_var"])


class Fails:
    """Batches of which the last is an error, from a given pass on."""

    def __init__(self, batches, good):
        self.batches, self.good = batches, good

    def __iter__(self):
        self.good -= 1
        yield from self.batches
        if self.good < 0:
            raise OSError("no more")


@pytest.mark.parametrize(
    ("one_pass", "good"), [(False, 0), (False, 1), (False, 2), (True, 0)], ids=str
)
def test_after_an_error_everything_is_as_before(good, one_pass):
    model, batches = network(), [images()[0]]
    model.end.eval()
    model.end.momentum = None
    model.stem[1].running_mean.fill_(3.0)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with pytest.raises(OSError, match="no more"):
        recalibrate(model, Fails(batches, good), one_pass=one_pass)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes and model.end.momentum is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_channels_and_layers_without_values_stay():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "other": nn.BatchNorm1d(2)})
    model["none"] = nn.BatchNorm1d(2, track_running_stats=False)
    model["other"].running_mean.fill_(5.0)
    found = recalibrate(
        model, [torch.randn(4, 2), torch.empty(0, 2)], forward=lambda b: model["used"](b)
    )
    assert list(found) == ["used"]
    assert model["other"].running_mean.tolist() == [5.0, 5.0]
    assert model["other"].num_batches_tracked == 0


def test_batches_of_every_kind():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x, scale=1.0):
            return self.norm(input=x * scale)

    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    for batch in (x, (x, "label"), [x], {"x": x / 2, "scale": 2.0}):
        model = Named()
        recalibrate(model, [batch])
        assert model.norm.running_mean.tolist() == [1.0, 3.0]
        assert model.norm.running_var.tolist() == [2.0, 8.0]


def test_lazy_layers_and_16_bits():
    model = nn.Sequential(nn.LazyBatchNorm1d(dtype=torch.bfloat16))
    x = torch.randn(50, 3).bfloat16()
    with pytest.raises(OSError, match="no more"):
        recalibrate(model, Fails([x], 0))
    assert (model[0].running_mean == 0).all()
    recalibrate(model, [x])
    assert type(model[0]) is nn.BatchNorm1d
    torch.testing.assert_close(model[0].running_var, x.double().var(0).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("by_name", [False, True])
def test_masks_of_a_layer_are_those_of_its_calls(by_name):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = bncore.torch.BatchNormAddReLU(2)

        def forward(self, x):
            where = ~x[:, :1].isnan()
            if by_name:
                return self.norm(x, where=where, residual=torch.zeros_like(x), fill=0.0)
            return self.norm(x, torch.zeros_like(x), where, fill=0.0)

    x = torch.tensor([[[1.0, 3.0], [2.0, 8.0]], [[5.0, torch.nan], [2.0, 99.0]]])
    model = Padded()
    found = recalibrate(model, [x], correction=0)["norm"]
    assert found == bncore.Moments([3, 3], [3.0, 4.0], [8.0, 24.0])
    assert model.norm.running_mean.tolist() == [3.0, 4.0]


def test_a_compiled_model_is_followed():
    model = network()
    expected = copy.deepcopy(model)
    recalibrate(torch.compile(model, backend="eager"), images())
    recalibrate(expected, images())
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"model": nn.Linear(2, 2)}, ValueError, "batch norm that has running statistics, got none"),
    ({"model": nn.BatchNorm1d(2, track_running_stats=False)}, ValueError, "got 1 without"),
    ({"model": 3}, TypeError, "model: expected a torch.nn.Module, got int"),
    ({"loader": 3}, TypeError, "loader: expected an iterable, got 3"),
    ({"loader": []}, ValueError, "loader: expected at least one batch, got none"),
    ({"loader": iter([])}, TypeError, "starts anew every time, such as a list, for 2 layers"),
    ({"loader": [torch.ones(1, 4)]}, ValueError, "> correction = 1, got 1 for channel 0 of 'fir"),
    ({"forward": 3}, TypeError, "forward: expected a callable, got 3"),
    ({"one_pass": 1}, TypeError, "one_pass: expected a bool, got 1"),
    ({"correction": -1}, ValueError, "correction: expected a finite number >= 0, got -1"),
])  # fmt: skip
def test_bad_arguments(given, error, text):
    arguments = {"model": Two(lambda y, x: y), "loader": [torch.ones(2, 4)], **given}
    with pytest.raises(error, match=text):
        recalibrate(**arguments)


def test_a_generator_is_enough_for_one_layer():
    model = nn.Sequential(nn.BatchNorm1d(4))
    recalibrate(model, itertools.chain([torch.zeros(1, 4)], [torch.full((3, 4), 4.0)]))
    assert model[0].running_mean.tolist() == [3.0] * 4


def test_the_example_of_a_new_domain_runs():
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "recalibrate_domain.py"))
    shares = example["main"]()
    assert shares["old domain"] > 0.9 > shares["new domain"] + 0.5
    assert shares["new domain, recalibrated"] > 0.9
