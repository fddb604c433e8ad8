"""`convert` and `revert`: modules change in place, by their class alone, and back exactly."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
from torch.nn.utils import parametrize

import bncore.torch
from bncore.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d

pytestmark = pytest.mark.needs_torch

C = 3
X = torch.randn(4, C, 5, 5, generator=torch.Generator().manual_seed(0))


class Kept(torch.nn.BatchNorm2d):
    """Somebody's own module, with names that bncore uses elsewhere, and PyTorch's forward."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.activation = "relu"
        self.process_group = "mine"

    def _check_input_dim(self, input):
        if input.dim() not in (2, 4):
            raise ValueError("two or four")


class Doubled(torch.nn.BatchNorm2d):
    """Somebody's own module, which computes something else."""

    def forward(self, input):
        return 2 * super().forward(input)


class KeptLazy(torch.nn.LazyBatchNorm2d):
    """A lazy module that becomes somebody's own."""

    cls_to_become = Kept


class Slotted(torch.nn.BatchNorm2d):
    """A class that takes no subclass."""

    def __init_subclass__(cls):
        raise RuntimeError("final")


def computed_by_bncore(module, x=X):
    """Whether bncore computes the module's y, and not PyTorch."""
    node = module.train()(x.clone().requires_grad_()).grad_fn
    while not any(word in node.name() for word in ("BatchNorm", "batch_norm", "Train")):
        node = node.next_functions[0][0]
    return not node.name().startswith("NativeBatchNorm")


def model():
    shared = torch.nn.BatchNorm2d(C)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, C, 3),
        shared,
        torch.nn.ReLU(),
        torch.nn.Sequential(shared, Doubled(C), torch.nn.Flatten(), torch.nn.BatchNorm1d(48)),
    )


def test_convert_and_revert():
    net = model().eval()
    net[1].register_forward_hook(lambda module, args, y: y * 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    state, parameters = net.state_dict(), list(net.parameters())
    x = torch.randn(5, 2, 6, 6)
    expected = net(x)
    assert bncore.torch.convert(net) is net
    assert [type(net[1]), type(net[3][3])] == [BatchNorm2d, BatchNorm1d]
    assert net[3][0] is net[1] and type(net[3][1]) is Doubled and not net[1].training
    torch.testing.assert_close(net(x), expected)
    assert list(net.state_dict()) == list(state)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net.train()(x).square().sum().backward()
    before = net[3][3].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net[3][3].weight, before)
    assert bncore.torch.convert(net) is net
    assert bncore.torch.revert(net) is net
    assert [type(net[1]), type(net[3][3])] == [torch.nn.BatchNorm2d, torch.nn.BatchNorm1d]
    assert net[3][0] is net[1] and net[1].num_batches_tracked == 2  # it stands there twice


@pytest.mark.parametrize("sync", [False, True], ids=["plain", "sync"])
@pytest.mark.parametrize(
    "kind",
    [
        torch.nn.BatchNorm1d,
        torch.nn.BatchNorm3d,
        torch.nn.LazyBatchNorm2d,
        torch.nn.SyncBatchNorm,
        Kept,
        KeptLazy,
    ],
    ids=lambda kind: kind.__name__,
)
def test_everything_is_the_very_same_afterwards(kind, sync):
    module = kind() if issubclass(kind, torch.nn.modules.lazy.LazyModuleMixin) else kind(C)
    hook = module.register_forward_hook(lambda *_: None)
    module.extra = [module]
    before = dict(module.__dict__)
    everything = {name: {**value} for name, value in before.items() if isinstance(value, dict)}
    assert bncore.torch.convert(module, sync=sync) is module
    assert type(module) is not kind and "bncore.torch." in repr(module)
    assert isinstance(module, bncore.torch.SyncBatchNorm) == (
        sync or kind is torch.nn.SyncBatchNorm
    )
    assert bncore.torch.revert(module) is module
    assert type(module) is kind and "bncore" not in repr(module)
    assert list(module.__dict__) == list(before)
    for name, value in before.items():
        assert module.__dict__[name] is value
        if name in everything:
            assert list(value.items()) == list(everything[name].items())
    hook.remove()


def test_what_refers_to_a_layer_refers_to_it_still():
    """A list, a bound method and a closure, and the training flag of all of them."""
    layer = torch.nn.BatchNorm2d(C)
    net = torch.nn.Sequential(layer)
    kept, method = [layer], layer.forward
    plain = copy.deepcopy(net).eval()
    bncore.torch.convert(net).eval()
    assert kept[0] is net[0] is layer
    assert not kept[0].training
    torch.testing.assert_close(kept[0](X), plain(X))
    torch.testing.assert_close(method(X), plain(X))
    assert torch.equal(layer.running_mean, torch.zeros(C))


class Timed:
    """A callable object around a forward."""

    def __init__(self, forward):
        self.wrapped = forward

    def __call__(self, *args):
        return 2 * self.wrapped(*args)

    def method(self, *args):
        return self(*args)


def by_closure(forward):
    @functools.wraps(forward)
    def wrapper(x):
        return 2 * forward(x)

    return wrapper


def by_default(forward):
    return lambda x, forward=forward: 2 * forward(x)


def by_keyword(forward):
    return functools.partial(lambda x, *, forward: 2 * forward(x), forward=forward)


def by_argument(forward):
    return functools.partial(lambda f, x: 2 * f(x), forward)


def by_keyword_default(forward):
    return lambda x, *, forward=forward: 2 * forward(x)


WRAPPERS = [
    by_closure,
    by_default,
    by_keyword,
    by_argument,
    by_keyword_default,
    Timed,
    lambda forward: Timed(forward).method,
    lambda forward: by_closure(by_closure(lambda x: forward(x) / 2)),
]


@pytest.mark.parametrize("sync", [False, True], ids=["plain", "sync"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_forward_wraps_that_of_bncore(wrapper, sync):
    module = torch.nn.BatchNorm2d(C)
    plain = torch.nn.BatchNorm2d(C)(X)
    original = module.forward
    module.forward = wrapped = wrapper(original)
    bncore.torch.convert(module, sync=sync)
    assert module.forward is wrapped
    torch.testing.assert_close(module(X), 2 * plain)
    assert computed_by_bncore(module)
    bncore.torch.convert(module, sync=True)
    assert isinstance(module, bncore.torch.SyncBatchNorm)
    bncore.torch.revert(module)
    assert module.forward is wrapped and type(module) is torch.nn.BatchNorm2d
    assert not computed_by_bncore(module)
    assert set(module.__dict__) == {*torch.nn.BatchNorm2d(C).__dict__, "forward"}


def test_the_very_same_method_comes_back():
    module = torch.nn.BatchNorm2d(C)
    original = module.forward
    module.forward = by_closure(original)
    module.kept = original
    bncore.torch.revert(bncore.torch.convert(module))
    assert module.kept is original
    assert module.forward.__closure__[0].cell_contents is original
    assert module.forward.__wrapped__ is original


def test_a_forward_that_leads_elsewhere_is_left_alone():
    module = torch.nn.BatchNorm2d(C)
    module.forward = lambda x: x + 1
    net = torch.nn.Sequential(module, torch.nn.BatchNorm2d(C))
    bncore.torch.convert(net)
    assert type(module) is torch.nn.BatchNorm2d and torch.equal(module(X), X + 1)
    (left,) = bncore.torch.report(net).left
    assert left[:2] == ("0", "BatchNorm2d") and "a forward of its own" in left.reason


def test_a_converted_model_with_a_wrapped_forward_is_freed():
    module = torch.nn.BatchNorm2d(C)
    module.forward = by_closure(module.forward)
    bncore.torch.convert(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def test_copies_of_a_wrapped_module_can_be_reverted():
    """As of a model whose hooks keep the old forward as an attribute."""
    module = torch.nn.BatchNorm2d(C)
    module.old = module.forward
    copied = copy.deepcopy(bncore.torch.convert(module))
    assert copied.old.__self__ is copied
    bncore.torch.revert(copied)
    assert copied.old.__func__ is torch.nn.BatchNorm2d.forward
    assert module.old.__func__ is BatchNorm2d.forward


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_a_compiled_call_is_compiled_again():
    torch._dynamo.reset()
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(C))
    net[0].compile(backend="eager")
    call = net[0]._compiled_call_impl
    assert not computed_by_bncore(net[0])
    bncore.torch.convert(net)
    assert net[0]._compiled_call_impl is call and computed_by_bncore(net[0])
    bncore.torch.revert(net)
    assert net[0]._compiled_call_impl is call and not computed_by_bncore(net[0])


def test_a_subclass_keeps_what_it_has():
    module = Kept(C)
    bncore.torch.convert(module)
    assert isinstance(module, Kept) and type(module).__module__.startswith("bncore.")
    assert repr(module).startswith("bncore.torch.Kept(3, eps=")
    y = module(X)
    assert computed_by_bncore(module) and y.min() < 0  # its `activation` is its own business
    with pytest.raises(ValueError, match="two or four"):
        module(X[0])
    assert type(bncore.torch.convert(Kept(2))) is type(module)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is type(module) and again.weight is not module.weight
        torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
        assert type(bncore.torch.revert(again)) is Kept
    bncore.torch.convert(module, sync=True)
    assert isinstance(module, Kept) and isinstance(module, bncore.torch.SyncBatchNorm)
    assert module.process_group is None
    assert pickle.loads(pickle.dumps(module)).num_features == C
    bncore.torch.revert(module)
    assert type(module) is Kept and module.process_group == "mine"


@pytest.mark.parametrize("sync", [False, True], ids=["plain", "sync"])
def test_lazy_modules_become_those_of_bncore(sync):
    net = torch.nn.Sequential(torch.nn.LazyConv2d(C, 2), torch.nn.LazyBatchNorm2d(), KeptLazy())
    bncore.torch.convert(net, sync=sync)
    net(X)
    assert type(net[1]) is (bncore.torch.SyncBatchNorm if sync else BatchNorm2d)
    assert isinstance(net[2], Kept) and computed_by_bncore(net[2])
    expected = torch.nn.BatchNorm2d(C)(net[0](X))
    torch.testing.assert_close(net[1](net[0](X)), expected)
    bncore.torch.revert(net)
    assert [type(net[1]), type(net[2])] == [torch.nn.BatchNorm2d, Kept]
    assert not hasattr(net[1], "process_group")


def test_parametrized_modules():
    """PyTorch finds the class of before as the first base, when a parametrization is removed."""
    module = torch.nn.BatchNorm2d(C)
    parametrize.register_parametrization(module, "weight", torch.nn.Softplus())
    kind = type(module)
    bncore.torch.convert(module)
    assert parametrize.is_parametrized(module) and computed_by_bncore(module)
    assert module.weight.grad_fn is not None
    assert isinstance(copy.deepcopy(module), BatchNorm2d)
    bncore.torch.revert(module)
    assert type(module) is kind
    bncore.torch.convert(module)
    parametrize.register_parametrization(module, "bias", torch.nn.Softplus())
    bncore.torch.revert(module)
    assert not computed_by_bncore(module) and module.bias.grad_fn is not None
    bncore.torch.convert(module)
    for name in ("weight", "bias"):
        parametrize.remove_parametrizations(module, name)
    assert type(module) is BatchNorm2d
    parametrize.register_parametrization(module, "weight", torch.nn.Softplus())
    bncore.torch.revert(module)
    assert type(module).__mro__[1] is torch.nn.BatchNorm2d and not computed_by_bncore(module)
    assert bncore.torch.revert(module) is module and not computed_by_bncore(module)


def test_the_report():
    net = torch.nn.Sequential(
        model(), torch.nn.LayerNorm(2), Slotted(2), torch.nn.InstanceNorm1d(2), Kept(2)
    )
    found = bncore.torch.report(net)
    assert not found.converted and len(found.left) == 7
    assert {"convert has not seen it"} == {
        layer.reason for layer in found.left if layer.name in ("0.1", "0.3.3", "4")
    }
    found = bncore.torch.report(bncore.torch.convert(net))
    assert [layer.name for layer in found.converted] == ["0.1", "0.3.3", "4"]
    assert [layer[1:] for layer in found.left] == [
        ("Doubled", "Doubled has a forward of its own"),
        ("LayerNorm", "LayerNorm is converted with norms=True alone"),
        ("Slotted", "Slotted cannot have a subclass: final"),
        ("InstanceNorm1d", "InstanceNorm1d is converted with norms=True alone"),
    ]
    text = str(found)
    assert text.startswith("bncore.torch computes 3 of 7 normalizing layers\n  0.1: bncore.torch.")
    assert "\n  2: left alone, because Slotted cannot have a subclass: final" in text


def test_convert_prints_what_it_did(capsys):
    net = model()
    bncore.torch.convert(net)
    assert capsys.readouterr().out == ""
    bncore.torch.convert(net, verbose=True)
    assert capsys.readouterr().out == f"{bncore.torch.report(net)}\n"


def test_fused_modules_are_not_synchronized_and_the_report_says_so():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(C), bncore.torch.BatchNormReLU(C))
    bncore.torch.convert(net, sync=True)
    assert type(net[1]) is bncore.torch.BatchNormReLU
    bncore.torch.revert(net)
    assert [type(m) for m in net] == [torch.nn.BatchNorm2d, bncore.torch.BatchNormReLU]


def test_a_model_in_which_nothing_was_converted_warns():
    for net in (torch.nn.Linear(2, 2), torch.nn.Sequential(Doubled(C)), torch.nn.GroupNorm(1, 2)):
        with pytest.warns(UserWarning, match="nothing was converted: bncore.torch computes 0 of"):
            bncore.torch.convert(net)
    with pytest.warns(UserWarning, match="Doubled has a forward of its own"):
        bncore.torch.convert(Doubled(C))


def test_convert_a_batch_norm_itself():
    layer = torch.nn.BatchNorm3d(C)
    assert bncore.torch.convert(layer) is layer and type(layer) is BatchNorm3d
    assert bncore.torch.revert(layer) is layer and type(layer) is torch.nn.BatchNorm3d


@pytest.mark.parametrize(
    "function", [bncore.torch.convert, bncore.torch.revert, bncore.torch.report]
)
def test_convert_takes_modules_alone(function):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        function({})
