"""`convert(fuse=True)`: blocks compute what they did, in fewer operations, and go back exactly."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.nn import functional

import bncore.torch
from bncore.torch import patterns
from torch_fusing import Block, C, Chain, X, calls, fused, operations, results, trained

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]


@pytest.mark.parametrize("shortcut", [None, Chain, torch.nn.Identity])
def test_a_residual_block(shortcut):
    plain = trained(Block(shortcut and shortcut()))
    own = copy.deepcopy(plain)
    assert fused(own) is own and operations(own) == ["relu", "add, relu"]
    assert isinstance(own, Block) and type(own) is not Block and repr(own.relu) == repr(plain.relu)
    for training in (True, False):
        torch.testing.assert_close(results(own, training), results(plain, training))
    assert calls(own) == set()
    assert calls(bncore.torch.convert(plain)) == {"relu", "add"}
    channels_last = X.to(memory_format=torch.channels_last)
    torch.testing.assert_close(own(channels_last), plain(channels_last))
    assert own(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_everything_is_the_very_same_after_revert():
    model = torch.nn.Sequential(Block(Chain()), Block())
    hook = model[0].register_forward_hook(lambda *_: None)
    method, listed = model[0].forward, [model[0]]
    before = {
        name: (module, type(module), dict(module.__dict__))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    state = dict(model.state_dict(keep_vars=True))
    values = {name: value.clone() for name, value in state.items()}
    generator = torch.get_rng_state()
    fused(model)
    assert torch.equal(torch.get_rng_state(), generator)
    after = dict(model.state_dict(keep_vars=True))
    assert list(after) == list(state) and all(after[name] is state[name] for name in state)
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)
    assert listed[0] is model[0] and model[0]._forward_hooks and method.__self__ is model[0]
    bncore.torch.revert(model)
    for name, module in model.named_modules(remove_duplicate=False):
        same, kind, attributes = before[name]
        assert module is same and type(module) is kind
        assert list(module.__dict__) == list(attributes)
        assert all(module.__dict__[key] is value for key, value in attributes.items())
    hook.remove()


def changes():
    """What people do to a model later, after which a block has to run its own forward."""

    def module_hook(block):
        block.relu.register_forward_hook(lambda module, given, y: y + 1)

    def norm_hook(block):
        block.bn2.register_forward_pre_hook(lambda module, given: (given[0] * 2,))

    def other_activation(block):
        block.relu = torch.nn.SiLU()

    def other_norm(block):
        block.bn1 = torch.nn.Identity()

    def without_shortcut(block):
        block.shortcut = None

    def wrapped_forward(block):
        forward = block.bn1.forward
        block.bn1.forward = lambda x: 2 * forward(x)

    return [
        module_hook, norm_hook, other_activation, other_norm, without_shortcut,
        wrapped_forward,
    ]  # fmt: skip


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_a_block_that_was_changed_later_runs_its_own_forward(change):
    plain = bncore.torch.convert(trained(Block(Chain())))
    own = fused(copy.deepcopy(plain))
    for block in (plain, own):
        change(block)
    torch.testing.assert_close(results(own, True), results(plain, True), rtol=0, atol=0)
    assert calls(own) == calls(plain) != set()


class Flagged(torch.nn.Module):
    """A forward that looks at its own attributes."""

    def __init__(self):
        super().__init__()
        self.norm, self.scales, self.rate = torch.nn.BatchNorm2d(C), [1.0], 0.5

    def forward(self, x, doubled=False):
        y = torch.relu(self.norm(x)) * self.scales[0]
        if doubled:
            y = 2 * y
        return functional.dropout(y, self.rate, training=self.training)


def test_flags_modes_and_other_calls():
    plain = bncore.torch.convert(trained(Flagged()))
    own = fused(copy.deepcopy(plain))
    assert operations(own) == ["relu"]
    for training in (True, False):
        torch.testing.assert_close(results(own, training), results(plain, training))
    for module in (plain, own):
        module.rate = 0.1
        module.scales.append(2.0)
        module.train()
    torch.manual_seed(0)
    expected = plain(X, True)
    torch.manual_seed(0)
    assert torch.equal(own(X, doubled=True), expected)
    plain.scales[0] = own.scales[0] = 3.0
    torch.testing.assert_close(results(own, False), results(plain, False))
    assert calls(own) == {"relu"}


class Counting(Flagged):
    def forward(self, x):
        self.rate = 0.0
        return super().forward(x)


class Deciding(Flagged):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Deceptive(Flagged):
    """One whose trace is not what it does."""

    def forward(self, x):
        y = torch.relu(self.norm(x))
        return y + 1 if isinstance(x, torch.fx.Proxy) else y


class Keyword(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Flagged()

    def forward(self, x):
        return self.inner(x=x)


REASONS = {
    Counting: "its forward sets rate",
    Deciding: "its forward cannot be traced: TraceError",
    Deceptive: "its fused forward gives other results in training",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_fused_is_named(kind):
    own = fused(torch.nn.Sequential(kind(), Flagged()))
    found = bncore.torch.report(own)
    assert [one.block for one in found.fused] == ["1"]
    (layer,) = found.unfused
    assert layer[:2] == ("0", kind.__name__) and layer.reason.startswith(REASONS[kind])
    assert type(own[0]) is kind and "nothing is fused there, because" in str(found)
    assert type(own[0].rate) is float and own[0].rate == 0.5


def test_blocks_that_the_example_does_not_reach():
    model = Keyword()
    model.aside = Flagged()
    model.wrapped = Flagged()
    model.wrapped.forward = lambda x: x
    fused(model)
    reasons = {one.name: one.reason for one in bncore.torch.report(model).unfused}
    assert reasons == {
        "wrapped": "it has a forward of its own",
        "aside": "the example did not reach it",
        "inner": "the model does not call it with 1 positional arguments",
    }


def test_without_an_example_the_graph_decides():
    own = bncore.torch.convert(torch.nn.Sequential(Block(), Deceptive()), fuse=True)
    assert operations(own) == ["relu", "add, relu", "relu"]


def test_copies_pickles_and_another_convert():
    own = fused(trained(Block(Chain()))).eval()
    for again in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert type(again) is type(own) and again.bn1 is not own.bn1
        assert torch.equal(again(X), own(X)) and calls(again) == set()
        assert type(bncore.torch.revert(again)) is Block
    plan = own.__dict__["_bncore_plan"]
    bncore.torch.convert(own)
    assert own.__dict__["_bncore_plan"] is plan
    fused(own)
    assert operations(own) == ["relu", "add, relu"]
    bncore.torch.convert(own, sync=True)
    assert calls(own) == {"relu", "add"}


@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_compilers_and_tracers():
    torch._dynamo.reset()
    own = fused(trained(Block(Chain()))).eval()
    graphs = EagerAndRecordGraphs()
    assert torch.equal(torch.compile(own, backend=graphs, fullgraph=True)(X), own(X))
    assert "relu" not in str([node.target for node in graphs.graphs[0].graph.nodes])
    symbolic = torch.fx.symbolic_trace(own)
    assert [node.target for node in symbolic.graph.nodes].count("relu") == 2
    torch.testing.assert_close(symbolic(X), own(X))
    torch.testing.assert_close(torch.jit.script(own)(X), own(X))
    assert torch.equal(torch.jit.trace(own, X)(X), own(X))
    assert torch.equal(torch.export.export(own, (X,)).module()(X), own(X))


def test_everybodys_hooks_are_called():
    own = fused(Block())
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, y: seen.append(type(module))
    )
    with handle:
        own(X)
    assert seen.count(torch.nn.ReLU) == 2


def test_arguments():
    for keywords, message in (
        ({"sync": True, "fuse": True}, "fuse: expected False with sync=True, got True"),
        ({"example": X}, "example: expected None with fuse=False, got an example"),
    ):
        block = Block()
        with pytest.raises(ValueError, match=message):
            bncore.torch.convert(block, **keywords)
        assert type(block.bn1) is torch.nn.BatchNorm2d
    block.copies = (one for one in ())
    with pytest.raises(TypeError, match=r"model: expected a module that copy.deepcopy can"):
        fused(block)
    with pytest.raises(RuntimeError):  # of the convolution
        bncore.torch.convert(Block(), fuse=True, example=X[:, :2])


def test_layers_that_are_already_fused_end_in_no_batch_norm():
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())).graph
    assert patterns.find(graph, lambda node: torch.nn.ReLU(), lambda module: False) == []
    own = torch.nn.Sequential(bncore.torch.BatchNormReLU(C), torch.nn.ReLU())
    assert operations(fused(own)) == []
