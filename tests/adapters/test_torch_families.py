"""Models of torchvision and timm: every batch norm is converted, and everything else stays."""

from __future__ import annotations

import copy

import pytest
import torch

import bncore.torch
from torch_vision import feature_extraction, norm_act, timm, torchvision

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]

C = 4
X = torch.randn(2, C, 5, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(module):
    """Give a module statistics and parameters that are not those of a new one."""
    for name, values in [*module.named_buffers(), *module.named_parameters()]:
        if values.is_floating_point():
            torch.nn.init.uniform_(values, 0.5 if "var" in name or "weight" in name else -0.5, 1.5)
    return module


class Subclass(norm_act.BatchNormAct2d):
    """Somebody's own class with timm's forward."""


def dropped():
    return norm_act.BatchNormAct2d(C, drop_layer=torch.nn.Dropout)


LAYERS = {
    "ReLU": lambda: norm_act.BatchNormAct2d(C),
    "SiLU": lambda: norm_act.BatchNormAct2d(C, act_layer=torch.nn.SiLU),
    "no activation": lambda: norm_act.BatchNormAct2d(C, apply_act=False),
    "no running statistics": lambda: norm_act.BatchNormAct2d(C, track_running_stats=False),
    "cumulative": lambda: norm_act.BatchNormAct2d(C, momentum=None),
    "subclass": lambda: Subclass(C),
    "sync": lambda: norm_act.convert_sync_batchnorm(norm_act.BatchNormAct2d(C)),
    "frozen": lambda: torchvision.ops.FrozenBatchNorm2d(C),
    "frozen, ReLU": lambda: norm_act.FrozenBatchNormAct2d(C),
    "frozen, SiLU": lambda: norm_act.FrozenBatchNormAct2d(C, act_layer=torch.nn.SiLU),
    "dropout": dropped,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_did(name, training):
    if name == "sync" and training:
        pytest.skip("PyTorch's own synchronized layer cannot train on the CPU")
    plain = trained(LAYERS[name]()).train(training)
    own = bncore.torch.convert(copy.deepcopy(plain))
    results = []
    for module in (plain, own):
        x = X.clone().requires_grad_()
        torch.manual_seed(0)
        y = module(x)
        torch.manual_seed(1)
        (y * torch.rand_like(y)).sum().backward()
        results.append((y, x.grad, *module.state_dict().values()))
    torch.testing.assert_close(*results)
    assert "bncore.torch." in repr(own)
    bncore.torch.revert(own)
    assert type(own) is type(plain) and repr(own) == repr(plain)


@pytest.mark.parametrize("name", ["ReLU", "SiLU", "frozen", "frozen, ReLU"])
def test_scripted_layers_and_pickles(name, tmp_path):
    plain = trained(LAYERS[name]()).eval()
    own = bncore.torch.convert(copy.deepcopy(plain))
    torch.testing.assert_close(torch.jit.script(own)(X), plain(X))
    torch.save(own, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    assert type(loaded) is type(own)
    torch.testing.assert_close(loaded(X), plain(X))


def test_hooks_of_the_activation_are_called():
    layer = bncore.torch.convert(norm_act.BatchNormAct2d(C))
    seen = []
    layer.act.register_forward_hook(lambda module, given, y: seen.append(y))
    assert layer(X) is seen[0]


def test_frozen_layers_give_the_dtype_that_they_gave():
    plain = trained(torchvision.ops.FrozenBatchNorm2d(C))
    own = bncore.torch.convert(copy.deepcopy(plain))
    x = X.to(torch.bfloat16)
    assert own(x).dtype is plain(x).dtype is torch.float32
    torch.testing.assert_close(own(x), plain(x))


def test_synchronized_layers_of_timm():
    layer = norm_act.BatchNormAct2d(C, act_layer=torch.nn.SiLU)
    expected = copy.deepcopy(layer)(X)
    assert isinstance(bncore.torch.convert(layer, sync=True), bncore.torch.SyncBatchNorm)
    torch.testing.assert_close(layer(X), expected)  # alone here
    assert type(bncore.torch.revert(layer)) is norm_act.BatchNormAct2d
    assert not hasattr(layer, "process_group")


COUNTS = {"efficientnet_b0": 49, "mobilenetv3_small_100": 34, "regnety_002": 44, "resnet18": 20}


@pytest.mark.parametrize("name", COUNTS)
def test_models_of_timm(name):
    plain = timm.create_model(name).eval()
    own = bncore.torch.convert(copy.deepcopy(plain))
    found = bncore.torch.report(own)
    assert (len(found.converted), found.left) == (COUNTS[name], ())
    with torch.no_grad():
        torch.testing.assert_close(own(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_feature_extractor_of_torchvision():
    plain = torchvision.models.resnet18().eval()
    own = bncore.torch.convert(copy.deepcopy(plain))
    names = feature_extraction.get_graph_node_names(plain)
    assert feature_extraction.get_graph_node_names(own) == names
    with torch.no_grad():
        results = [
            feature_extraction.create_feature_extractor(model, ["bn1", "layer2"])(IMAGES)
            for model in (plain, own)
        ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# Batch norms of which something is made besides, of all of the model's: what else follows them
# (ReLU6, SiLU) bncore does not have, or they are part of the addition of another one.
FUSED = {
    "torchvision resnet18": (17, 20),
    "timm regnety_002": (13, 44),
    "timm efficientnet_b0": (9, 49),
}


@pytest.mark.parametrize("name", FUSED)
def test_models_are_fused(name):
    library, kind = name.split()
    plain = torchvision.models.get_model(kind) if library == "torchvision" else None
    plain = bncore.torch.convert((plain or timm.create_model(kind)).train())
    images = IMAGES[:, :, :32, :32]
    own = bncore.torch.convert(copy.deepcopy(plain), fuse=True, example=images)
    found = bncore.torch.report(own)
    assert (len(found.fused), len(found.converted)) == FUSED[name] and not found.unfused
    results = []
    for model in (plain, own):
        torch.manual_seed(0)
        y = model(images)
        gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
        results.append([y, *gradients, *model.buffers()])
    torch.testing.assert_close(*results, rtol=0, atol=0)  # the same bits
    bncore.torch.revert(own)
    assert [type(one) for one in own.modules()] == [
        type(one) for one in bncore.torch.revert(plain).modules()
    ]


def test_leaky_relu_in_a_layer_of_timm_is_part_of_batch_norm():
    layer = norm_act.BatchNormAct2d(C, act_layer=torch.nn.LeakyReLU)
    plain, own = layer(X), bncore.torch.convert(layer)(X)
    torch.testing.assert_close(own, plain)
    assert own.grad_fn.name() != plain.grad_fn.name()  # no operation of its own
