"""
Do initial weights still matter?
================================

Without batch norm the scale of the initial weights decides whether a network learns at all.  If
they are too small, the signal has vanished before it reaches the last layer, and if they are too
large, it explodes.  He's rule gives the scale for which neither happens.

Batch norm divides by the standard deviation of what a layer computes, so the scale of the weights
before it drops out.  It does not drop out of the last layer, which no batch norm follows, and the
scale still decides how far one step changes the direction of the weights.
"""

import matplotlib.pyplot as plt
import numpy as np
from bncore_figures import verdict

from bncore.programs import look
from bncore.programs.study.training import Setting, train

scales = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
accuracy = {
    side: [
        train(Setting(batch_norm=side, scale=scale, epochs=8, points=1)).final("test")
        for scale in scales
    ]
    for side in (False, True)
}

figure, axes = plt.subplots(figsize=(6, 3.6))
lines = []
for side, name, colour in ((False, "without", look.PLAIN), (True, "with batch norm", look.OWN)):
    axes.plot(scales, accuracy[side], "o-", color=colour)
    lines.append((name, colour, scales, accuracy[side]))
axes.set(xscale="log", ylim=(0, 1.02), xlabel="initial weights, in times of He's scale")
axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
axes.minorticks_off()
axes.set_title("share of the test images that are right")
look.names_at_ends(axes, lines)

# %%
# This is one seed.  The study took ten, two networks, and the best learning rate of each side:

print(verdict("Batch norm makes training less sensitive to the initial weights"))
print()
print(verdict("Batch norm keeps gradients from vanishing and exploding"))
