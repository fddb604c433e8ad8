r"""
Why is the formula what it is?
==============================

.. math:: y_i = \gamma \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta

Every part has a job.

- **The mean is subtracted**, so that a shift that the layer before has learned does not reach the
  layer behind.
- **The deviation is divided out**, so that the scale of the weights before does not matter: with
  weights twice as large, y is the same.
- **ε** keeps a channel that is constant from being divided by 0.  It stands inside the root, next
  to the variance, so it acts where the variance is not much larger than itself.
- **γ and β** give the network back what was taken: if a unit needs another mean and spread, it can
  learn them, directly and not by way of all weights before it.
- **The statistics are those of the batch**, and the gradient flows through them.  This is the part
  that is easily left out, and the figure shows what happens then.

If the mean and the variance are treated as constants in the backward pass, the gradient step pushes
the weights in a direction that the next forward pass takes back, because it subtracts the new mean
and divides by the new deviation.
"""

import matplotlib.pyplot as plt
import numpy as np
from bncore_figures import verdict

import bncore
from bncore.programs import look
from bncore.programs.demo.layers import softmax_loss, step
from bncore.programs.study import data
from bncore.programs.study.networks import build
from bncore.programs.study.training import Setting, batches


class Constant(bncore.BatchNorm):
    """Batch norm whose backward pass takes mean and variance for constants, which is wrong."""

    def forward(self, x, *args, **options):
        self.x, self.moments = x, bncore.moments(x, axis=-1)
        return super().forward(x, *args, **options)

    __call__ = forward

    def backward(self, dy, **options):
        super().backward(dy, **options)  # the gradients of weight and bias are right
        return bncore.batch_norm_infer_backward(
            dy, self.x, self.moments.mean, self.moments.var(), self.weight, bias=self.bias,
            axis=-1, activation="relu",
        )[0]  # fmt: skip


# %%
# The same network, weights and batches three times: with the gradient, with the wrong one, and
# without batch norm.

setting = Setting(epochs=6, rate=0.3)
cut = data.split(0)
losses = {}
for name in ("right gradient", "constants", "no batch norm"):
    network = build("mlp", batch_norm=name != "no batch norm", seed=0)
    if name == "constants":
        for layer in network.norms:
            layer.__class__ = Constant
    losses[name] = []
    for x, label in batches(setting, cut):
        loss, dscore = softmax_loss(network.forward(x), label)
        losses[name].append(loss)
        network.backward(dscore)
        step(network, setting.rate)

figure, axes = plt.subplots(figsize=(6, 3.6))
lines = []
for (name, values), colour in zip(losses.items(), (look.OWN, look.PYTORCH, look.PLAIN)):
    smooth = np.convolve(values, np.ones(5) / 5, "valid")
    axes.plot(smooth, color=colour)
    lines.append((name, colour, np.arange(len(smooth)), smooth))
axes.set(yscale="log", xlabel="steps", title="loss of the batch, learning rate 0.3")
look.names_at_ends(axes, lines)

# %%
# The scale of the weights does not matter: the same input through weights twice as large.

x = cut.standardized(cut.train.images[:64]).reshape(64, -1)
weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
once, _ = bncore.batch_norm_train(x @ weights, axis=-1, eps=0)
twice, _ = bncore.batch_norm_train(x @ (2 * weights), axis=-1, eps=0)
print("largest difference", np.abs(once - twice).max())

# %%
# That is one reason why larger learning rates are allowed:

print(verdict("Batch norm makes training stable: it allows more and larger learning rates"))

# %%
# :doc:`/batch-norm` derives the gradient step by step.
