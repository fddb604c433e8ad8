"""
Which statistics does evaluation use?
=====================================

In training a sample is normalized together with its batch.  In evaluation that would be wrong: the
answer for one image must not depend on the images beside it.  So training keeps running averages of
mean and variance, and evaluation uses those.

The usual average moves by a tenth towards each new batch, and starts at mean 0 and variance 1.
After n steps these initial values still have the weight 0.9ⁿ.  That is a third after ten steps, so
early evaluation is wrong.  ``debias=True`` divides this weight out, as Adam does, and
``momentum=None`` averages all batches.  ``bncore.recalibrate`` computes the exact statistics of the
whole training set.
"""

import matplotlib.pyplot as plt
import numpy as np
from bncore_figures import verdict

from bncore.programs import look
from bncore.programs.study.training import Setting, train

AVERAGES = {"moving": "usual average", "debiased": "debiased", "cumulative": "of all batches"}
outcomes = {
    average: [
        train(Setting(average=average, seed=seed, epochs=6, points=15, every_statistic=True))
        for seed in range(3)
    ]
    for average in AVERAGES
}

# %%
# The test loss by average, in times of the loss with exact statistics, in the first steps; the mean
# of three seeds.

figure, axes = plt.subplots(figsize=(6, 3.6))
lines = []
for (average, name), colour in zip(AVERAGES.items(), (look.PLAIN, look.OWN, look.OTHER)):
    at = outcomes[average][0].at
    ratio = np.mean(
        [np.divide(o.loss["test"], o.loss["population"]) for o in outcomes[average]], axis=0
    )
    axes.plot(at, ratio, color=colour)
    lines.append((name, colour, at, ratio))
axes.axhline(1.0, color=look.INK, linewidth=1)
axes.set(xscale="log", xlabel="steps", title="test loss, in times of that with exact statistics")
look.names_at_ends(axes, lines)

# %%
# The study compared them after ten steps and at the end, for several sizes of batches:

print(verdict("Keeping the initial values out of the moving average helps early in training"))
print()
print(verdict("Exact population statistics evaluate better than the moving average"))
