"""Compiled autograd, numbers that are tensors, and AOTInductor."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import compiled_autograd

import bncore.torch

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning"),
]

C = 3
X = torch.randn(4, C, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step(layer, **options):
    """The gradients of a step, and the running mean."""
    x = X.clone().requires_grad_()
    (layer(x.sin(), **options) ** 3).sum().backward()
    return x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"where": X[:, :1] > -1.0, "fill": 0.5}], ids=["", "mask"])
@pytest.mark.parametrize("kind", [bncore.torch.BatchNorm1d, bncore.torch.BatchNormReLU])
def test_backward_is_traced(kind, options, training):
    """The graph of a forward that nothing traced, without a break; twice, with other tensors."""
    graphs = []

    def count(graph, inputs):
        graphs.append(sum("batch_norm" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    for scale in (1.0, 2.0):
        layers = [kind(C, dtype=torch.float64).train(training) for _ in range(2)]
        for layer in layers:
            torch.nn.init.constant_(layer.weight, scale)
        want = step(layers[0], **options)
        with compiled_autograd._enable(torch.compile(backend=count, fullgraph=True)):
            got = step(layers[1], **options)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert set(graphs) == {1}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_tensors_as_numbers(kind, training):
    """As in PyTorch `eps` and `momentum` may be tensors without dimensions; `eps` compiled, too."""
    eps, momentum = torch.tensor(0.5, dtype=kind), torch.tensor(0.25, dtype=kind)
    want = torch.nn.BatchNorm1d(C, 0.5, 0.25, dtype=torch.float64).train(training)
    own = bncore.torch.BatchNorm1d(C, eps, momentum, dtype=torch.float64).train(training)
    torch.testing.assert_close(own(X), want(X))
    torch.testing.assert_close(own.running_var, want.running_var)
    compiled = bncore.torch.BatchNorm1d(C, eps, dtype=torch.float64).train(training)
    expected = torch.nn.BatchNorm1d(C, 0.5, dtype=torch.float64).train(training)(X)
    torch.testing.assert_close(torch.compile(compiled, backend="eager")(X), expected)
    with pytest.raises(TypeError, match=r"argument 'eps' .* must be float, not Tensor"):
        bncore.torch.batch_norm(X, None, None, training=True, eps=torch.tensor([0.5]))


def test_aot_inductor(tmp_path):
    """A converted model is compiled into a package, which runs without its Python code."""
    layers = torch.nn.Conv1d(C, 4, 3), torch.nn.BatchNorm1d(4), torch.nn.ReLU()
    model = torch.nn.Sequential(*layers).double()
    model(X)
    bncore.torch.convert(model.eval())
    with torch.no_grad():
        exported = torch.export.export(model, (X,))
        assert any("bncore.batch_norm_infer" in str(n.target) for n in exported.graph.nodes)
        file = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(exported, package_path=file)
        found = torch._inductor.aoti_load_package(file)(X)
        torch.testing.assert_close(found, model(X), rtol=1e-12, atol=1e-12)
