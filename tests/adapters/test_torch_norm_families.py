"""Group and layer norms of timm and torchvision are converted on request."""

from __future__ import annotations

import copy

import pytest
import torch

import bncore.torch
from torch_vision import norm_act, timm, torchvision

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]

C = 6
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
norms = timm.layers.norm


class Subclass(norms.LayerNorm2d):
    """Somebody's own class with timm's forward."""


def dropped():
    return norm_act.GroupNormAct(C, 2, drop_layer=torch.nn.Dropout)


CHANNELS_FIRST = {
    "GroupNorm": lambda: norms.GroupNorm(C, 3),
    "GroupNorm, plain": lambda: norms.GroupNorm(C, 2, affine=False),
    "GroupNorm1": lambda: norms.GroupNorm1(C),
    "GroupNormAct": lambda: norm_act.GroupNormAct(C, 3, act_layer=torch.nn.SiLU),
    "GroupNormAct, dropout": dropped,
    "GroupNorm1Act": lambda: norm_act.GroupNorm1Act(C),
    "LayerNorm2d": lambda: norms.LayerNorm2d(C),
    "LayerNorm2d, plain": lambda: norms.LayerNorm2d(C, affine=False),
    "LayerNorm2d of torchvision": lambda: torchvision.models.convnext.LayerNorm2d(C, eps=1e-6),
    "LayerNorm2dFp32": lambda: norms.LayerNorm2dFp32(C),
    "LayerNormExp2d": lambda: norms.LayerNormExp2d(C),
    "LayerNormAct2d": lambda: norm_act.LayerNormAct2d(C),
    "LayerNormAct2dFp32": lambda: norm_act.LayerNormAct2dFp32(C, act_layer=torch.nn.SiLU),
    "a subclass": lambda: Subclass(C),
}
CHANNELS_LAST = {
    "LayerNorm": lambda: norms.LayerNorm(C),
    "LayerNormFp32": lambda: norms.LayerNormFp32(C),
    "LayerNormAct": lambda: norm_act.LayerNormAct(C, act_layer=torch.nn.SiLU),
    "LayerNormActFp32": lambda: norm_act.LayerNormActFp32(C),
}
LAYERS = CHANNELS_FIRST | CHANNELS_LAST


def trained(module):
    """Give a module parameters that are not those of a new one."""
    for values in module.parameters():
        torch.nn.init.uniform_(values, -0.5, 1.5)
    return module


def converted(module):
    return bncore.torch.convert(copy.deepcopy(module), norms=True)


def given(name, dtype=torch.float32):
    shape = (2, C, 5, 4) if name in CHANNELS_FIRST else (2, 5, C)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def results(module, x):
    """y and the gradients."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(0)
    y = module(x)
    torch.manual_seed(1)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], torch.rand_like(y))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_did(name, last):
    plain = trained(LAYERS[name]())
    own = converted(plain)
    x = given(name)
    if last and name in CHANNELS_FIRST:
        x = x.contiguous(memory_format=torch.channels_last)
    pairs = list(zip(results(own, x), results(plain, x), strict=True))
    torch.testing.assert_close(*zip(*pairs, strict=True))
    if "GroupNorm" not in name:  # bncore's group norm keeps the memory order of x
        assert pairs[0][0].stride() == pairs[0][1].stride()
    assert "bncore.torch." in repr(own)
    bncore.torch.revert(own)
    assert type(own) is type(plain) and repr(own) == repr(plain)


def test_the_kernels_are_bncores():
    for name in LAYERS:
        y = converted(LAYERS[name]())(given(name).requires_grad_())
        names, nodes = set(), [y.grad_fn]
        while nodes:
            node = nodes.pop()
            names.add(node.name())
            nodes += [one for one, _ in node.next_functions if one is not None]
        assert not names & {"NativeLayerNormBackward0", "NativeGroupNormBackward0"}, name


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["LayerNorm2dFp32", "LayerNormFp32", "LayerNormActFp32"])
def test_layers_of_float32_round_as_they_did(name, kind):
    """Also float64 data, which they compute in float32."""
    plain = trained(LAYERS[name]())
    x = given(name, kind)
    y, want = converted(plain)(x), plain(x)
    assert y.dtype is want.dtype is kind
    torch.testing.assert_close(y, want, rtol=8e-3 if kind is torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm2d", "LayerNormAct"])
def test_autocast_gives_the_dtype_that_it_gave(name):
    plain = trained(LAYERS[name]())
    with torch.autocast("cpu", torch.bfloat16):
        for kind in (torch.float32, torch.bfloat16):
            x = given(name, kind)
            y, want = converted(plain)(x), plain(x)
            assert y.dtype is want.dtype
            torch.testing.assert_close(y, want)


@pytest.mark.parametrize("name", ["GroupNorm1Act", "LayerNorm2d", "LayerNormFp32"])
def test_scripted_layers_and_pickles(name, tmp_path):
    plain = trained(LAYERS[name]()).eval()
    own, x = converted(plain), given(name)
    torch.testing.assert_close(torch.jit.script(own)(x), plain(x))
    torch.save(own, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    assert type(loaded) is type(own)
    torch.testing.assert_close(loaded(x), plain(x))


def test_what_is_left_alone_and_why():
    model = torch.nn.ModuleList([norms.LayerNorm2d(C), norms.RmsNorm(C), norms.LayerNorm(C)])
    model[0]._fast_norm = True
    found = bncore.torch.report(bncore.torch.convert(model, norms=True))
    assert [one.name for one in found.converted] == ["2"]
    assert [one.reason for one in found.left] == [
        "timm's fast norm is set, which computes in the dtype of autocast",
        "RmsNorm is no batch, group, instance or layer norm",
    ]
    (left,) = bncore.torch.report(norms.LayerNorm2d(C)).left
    assert left.reason == "LayerNorm2d is converted with norms=True alone"


# How many norms a model has.
MODELS = {
    "timm convnext_atto": 17,
    "timm test_vit": 13,
    "timm resnetv2_50d_gn": 51,
    "torchvision convnext_tiny": 23,
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    library, kind = name.split()
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    plain = make(kind).eval()
    own = converted(plain)
    found = bncore.torch.report(own)
    assert (len(found.converted), found.left) == (MODELS[name], ())
    with torch.no_grad():
        size = plain.default_cfg["input_size"][1:] if kind == "test_vit" else (64, 64)
        images = torch.nn.functional.interpolate(IMAGES, size)
        torch.testing.assert_close(own(images), plain(images), rtol=1e-4, atol=1e-5)
