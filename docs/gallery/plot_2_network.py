"""
Train a network in NumPy
========================

A network of three convolutions learns handwritten digits, once without and once with batch norm
before each ReLU.  Both start from the same weights and see the same batches.
"""

import matplotlib.pyplot as plt
import numpy as np

from bncore.programs import look
from bncore.programs.study.training import Setting, train

outcomes = {
    side: train(Setting(network="cnn", batch_norm=side, rate=0.1, epochs=6))
    for side in (False, True)
}
for side, outcome in outcomes.items():
    print("with" if side else "without", f"batch norm: {outcome.final('test'):.1%} of the test")

# %%
# The loss of the training batches, averaged over ten.

figure, axes = plt.subplots(figsize=(6, 3.6))
lines = []
for side, colour in ((False, look.PLAIN), (True, look.OWN)):
    loss = outcomes[side].step_loss
    loss = loss[: len(loss) // 10 * 10].reshape(-1, 10).mean(axis=1)
    steps = 10 * np.arange(1, len(loss) + 1)
    axes.plot(steps, loss, color=colour)
    lines.append(("with batch norm" if side else "without", colour, steps, loss))
axes.set(yscale="log", xlabel="steps", title="loss of the batch")
look.names_at_ends(axes, lines)
