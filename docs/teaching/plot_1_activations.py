"""
What does it do to activations?
===============================

A hidden unit of a network sees a different distribution after every step, because the layers before
it learn, too.  Batch norm shifts and scales each unit's values over the batch to mean 0 and
standard deviation 1, before the ReLU.  Whatever the layers before have learned, about half of the
units then stay active, and no layer gets values that are much larger or smaller than another's.

The network has six hidden layers of 100 units.  The figure shows what the first and the sixth hand
on, for images that it does not train on: without batch norm, and before and after batch norm.
"""

import matplotlib.pyplot as plt
import numpy as np
from bncore_figures import verdict

import bncore
from bncore.programs import look
from bncore.programs.demo.layers import Linear, softmax_loss, step
from bncore.programs.study import data
from bncore.programs.study.networks import build
from bncore.programs.study.training import Setting, batches

cut = data.split(0)
probe = cut.standardized(cut.test.images)


def activations(network):
    """Return what each hidden layer computes, and what batch norm makes of it."""
    before, after, x = [], [], probe
    for layer in network.layers[:-1]:
        if isinstance(layer, Linear):
            x = layer.forward(x)
            before.append(x)
        elif isinstance(layer, bncore.BatchNorm):  # it has the ReLU, which the figure leaves out
            moments = bncore.moments(x, axis=-1)
            after.append(bncore.normalize(x, moments, layer.weight, layer.bias, axis=-1))
            x = np.maximum(after[-1], 0)
        else:
            x = layer.forward(x)
    return before, after


# %%
# Both networks start from the same weights, at half of He's scale, and see the same batches.

setting = Setting(depth=6, epochs=10, rate=0.1, scale=0.5)
seen = {}
for batch_norm in (False, True):
    network = build("mlp", batch_norm=batch_norm, seed=0, scale=setting.scale, depth=setting.depth)
    seen[batch_norm] = [activations(network)]
    for number, (x, label) in enumerate(batches(setting, cut), start=1):
        loss, dscore = softmax_loss(network.forward(x), label)
        network.backward(dscore)
        step(network, setting.rate)
        if number in (20, 160):
            seen[batch_norm].append(activations(network))
    print("with" if batch_norm else "without", f"batch norm: loss {loss:.3f}")

# %%
# Without batch norm the signal has nearly vanished in the sixth layer at the start, and the spread
# changes all the time.  With batch norm the layers compute values of any spread, too, but what they
# hand on has the same one everywhere and all the time.

columns = {
    "without": (look.PLAIN, [before for before, _ in seen[False]]),
    "before batch norm": (look.OTHER, [before for before, _ in seen[True]]),
    "after batch norm": (look.OWN, [after for _, after in seen[True]]),
}
figure, axes = plt.subplots(2, 3, figsize=(6, 3.9), sharex=True, sharey=True)
for column, (name, (colour, moments_in_time)) in zip(axes.T, columns.items()):
    for panel, layer in zip(column, (0, 5)):
        for values, style in zip(moments_in_time, (":", "--", "-")):
            heights, edges = np.histogram(values[layer], bins=120, range=(-4, 4), density=True)
            panel.plot((edges[1:] + edges[:-1]) / 2, heights, style, color=colour, linewidth=1.5)
        panel.set(yscale="log", ylim=(1e-3, 60), yticks=[])
        panel.minorticks_off()
        panel.set_title(f"{name},\nlayer {layer + 1}", fontsize=9.5, fontweight="normal")
axes[0, 0].text(-3.9, 25, "··· start\n- - 20 steps\n— 160 steps", va="top", fontsize=8.5)
for panel in axes[-1]:
    panel.set_xlabel("value")

# %%
# Does it matter?  The study asked for what one hopes from it, on ten seeds:

print(verdict("Batch norm makes training converge faster"))
print()
print(verdict("Batch norm makes deep networks trainable"))
