"""
Which values share their statistics?
====================================

Batch, layer, instance and group norm differ in the values over which mean and variance are taken.
The picture finds out by trying: one value is changed, and what changes in the result is coloured.
"""

import matplotlib.pyplot as plt
import numpy as np

import bncore
from bncore.programs import look

x = np.random.default_rng(0).standard_normal((6, 8, 5))  # 6 samples, 8 channels, 5 positions
changed = x.copy()
changed[2, 3, 1] += 1.0

norms = {
    "batch norm": lambda x: bncore.batch_norm_train(x)[0],
    "layer norm": lambda x: bncore.layer_norm(x, axis=1)[0],
    "instance norm": lambda x: bncore.instance_norm(x)[0],
    "group norm, 2 groups": lambda x: bncore.group_norm(x, 2)[0],
}

# %%
# A row is a sample, a column is a channel with its five positions.

figure, axes = plt.subplots(2, 2, figsize=(6, 4.6))
for panel, (name, norm) in zip(axes.flat, norms.items()):
    reached = np.abs(norm(changed) - norm(x)) > 0
    panel.imshow(reached.reshape(6, 40), cmap="Blues", vmax=1.6, aspect="auto")
    panel.plot(3 * 5 + 1, 2, "o", color=look.PYTORCH)
    panel.set_title(name, fontweight="normal")
    panel.set_xticks(np.arange(9) * 5 - 0.5, [])
    panel.set_yticks(np.arange(7) - 0.5, [])
    panel.grid(color="white")
    panel.set(xlabel="channels", ylabel="samples")
