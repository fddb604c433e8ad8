"""
Digits that other formulas lose
===============================

The further the mean of the data is from 0, the fewer digits of the variance are left in float32,
for a reason that has nothing to do with the data: numbers that are nearly equal are subtracted.
"""

import matplotlib.pyplot as plt
import numpy as np

import bncore
from bncore.programs import look

noise = np.random.default_rng(0).standard_normal(100_000)
ratios = 10.0 ** np.arange(0, 6)
errors = {"bncore": [], "NumPy": [], "E[x²] − E[x]²": []}
for ratio in ratios:
    x = (noise + ratio).astype(np.float32)
    true = np.var(x.astype(np.longdouble))  # 64 bits of precision
    estimates = (
        bncore.var(x),
        np.var(x),
        np.mean(x * x) - np.mean(x) ** 2,
    )
    for name, estimate in zip(errors, estimates):
        errors[name].append(float(abs(estimate - true) / true))

# %%
# An error of 1 means that no digit is right.

figure, axes = plt.subplots(figsize=(6, 3.8))
lines = []
for (name, values), colour in zip(errors.items(), (look.OWN, look.PLAIN, look.OTHER)):
    values = np.maximum(values, 1e-17)
    axes.plot(ratios, values, "o-", color=colour)
    lines.append((name, colour, ratios, values))
axes.set(xscale="log", yscale="log", xlabel="mean of the data, in standard deviations")
axes.set_title("relative error of the variance")
look.names_at_ends(axes, lines)
