"""What leaves Python computes what the model does: TorchScript, `torch.export`, ONNX."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch

import bncore.torch

pytestmark = [
    pytest.mark.needs_torch,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(torch.nn.Module):
    """A layer of each kind; convolutions after some, so that no optimizer folds all of them."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.BatchNorm2d(3)
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.norm = bncore.torch.BatchNormReLU(3)
        self.last = bncore.torch.BatchNormAddReLU(3)

    def forward(self, x):
        return self.last(self.norm(self.conv(self.first(x))), x)


def model():
    net = bncore.torch.convert(Residual())
    for _ in range(3):
        net(X)
    return net.eval()


def written(save, *arguments, **options):
    file = io.BytesIO()
    save(*arguments, file, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("training", [False, True])
def test_torch_jit_script(training):
    net = model().train(training)
    classes = [type(module) for module in net.modules()]
    loaded = torch.jit.load(written(torch.jit.save, torch.jit.script(net)))
    assert [type(module) for module in net.modules()] == classes
    torch.testing.assert_close(loaded(X), net(X))
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, msg=name)


def test_a_scripted_synchronized_layer_refuses_to_train():
    layer = torch.jit.script(bncore.torch.SyncBatchNorm(3).eval())
    torch.testing.assert_close(layer(X), X / (1 + 1e-5) ** 0.5)
    with pytest.raises(torch.jit.Error, match="it can only evaluate"):
        layer.train()(X)


@pytest.mark.parametrize("training", [False, True])
def test_torch_jit_trace(training):
    net = model().train(training)
    traced = torch.jit.load(written(torch.jit.save, torch.jit.trace(net, X, check_trace=False)))
    assert "bncore::" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(X), net(X), rtol=0, atol=0)


def test_a_saved_program_runs_in_another_process(tmp_path):
    net = model()
    program = torch.export.export(net, (X,), dynamic_shapes=[{0: torch.export.Dim("n", min=2)}])
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((X[:1].repeat(5, 1, 1, 1), net(X[:1]).detach()), tmp_path / "values.pt")
    script = (
        "import torch, bncore.torch\n"
        f"x, y = torch.load({str(tmp_path / 'values.pt')!r})\n"
        f"program = torch.export.load({str(tmp_path / 'program.pt2')!r})\n"
        "assert 'bncore.batch_norm_infer' in str(program.graph)\n"
        "torch.testing.assert_close(program.module()(x), y.expand(5, -1, -1, -1))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def run_in_onnxruntime(file):
    """Return the kinds of a model's operators and what ONNX Runtime computes."""
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
    nodes = onnx.load_from_string(file.getvalue()).graph.node
    session = onnxruntime.InferenceSession(file.getvalue())
    (result,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    return [node.op_type for node in nodes if node.op_type != "Identity"], torch.from_numpy(result)


ONNX = ["BatchNormalization", "Conv", "Relu", "BatchNormalization", "Add", "Relu"]


@pytest.mark.filterwarnings("ignore")  # exporters and what they import warn about themselves
@pytest.mark.parametrize("way", ["jit.trace", "model", "program"])
def test_onnx(way):
    pytest.importorskip("onnx")
    net = model()
    if way == "jit.trace":
        file = written(torch.onnx.export, net, (X,), dynamo=False)
    else:
        pytest.importorskip("onnxscript")
        exported, given = net, (X,)
        if way == "program":
            program = torch.export.export(net, (X,))
            exported, given = program.run_decompositions(bncore.torch.decompositions()), ()
        file = written(torch.onnx.export, exported, given, dynamo=True, verbose=False)
    kinds, result = run_in_onnxruntime(file)
    assert kinds == ONNX  # the second layer is part of the convolution
    torch.testing.assert_close(result, net(X).detach())


@pytest.mark.filterwarnings("ignore")
def test_onnx_in_training():
    onnx = pytest.importorskip("onnx")
    mode = torch.onnx.TrainingMode.TRAINING
    net = bncore.torch.convert(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    file = written(torch.onnx.export, net, (X,), dynamo=False, training=mode)
    (node,) = onnx.load_from_string(file.getvalue()).graph.node
    assert node.op_type == "BatchNormalization"
    assert [a.i for a in node.attribute if a.name == "training_mode"] == [1]


@pytest.mark.filterwarnings("ignore")
def test_masks_cannot_be_exported_to_onnx():
    pytest.importorskip("onnx")

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = bncore.torch.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x, x > 0, fill=0.0)

    with pytest.raises(NotImplementedError, match="only PyTorch's own function can take"):
        written(torch.onnx.export, Masked().eval(), (X,), dynamo=False)
