"""
Statistics of data with gaps
============================

178 wines have 13 properties each.  A fifth of the numbers is lost.  The statistics of what is left
are near those of the whole table; filling the gaps with 0 ruins them.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine

import bncore
from bncore.programs import look

wine = load_wine()
whole = wine.data
gaps = np.where(np.random.default_rng(0).random(whole.shape) < 0.2, np.nan, whole)

mean, var = bncore.mean_var(gaps, axis=0, nan_policy="omit")
np.testing.assert_allclose(mean, np.nanmean(gaps, axis=0))

# %%
# How far is each mean from that of the whole table, in its standard deviations?

true_mean, true_std = whole.mean(axis=0), whole.std(axis=0)
left = (mean - true_mean) / true_std
filled = (np.nan_to_num(gaps).mean(axis=0) - true_mean) / true_std

figure, axes = plt.subplots(figsize=(6, 4.2))
places = np.arange(len(left))
axes.plot(left, places, "o", color=look.OWN)
axes.plot(filled, places, "o", color=look.PLAIN)
axes.axvline(0, color=look.INK, linewidth=1)
axes.set_yticks(places, wine.feature_names)
axes.set_xlabel("error of the mean, in standard deviations")
axes.text(-0.08, places[-1] + 0.5, "gaps left out", color=look.OWN, ha="right")
axes.text(filled[0], places[0] + 0.4, "gaps are 0", color=look.PLAIN, ha="center")
axes.set_ylim(-0.7, len(left) + 0.6)

# %%
# `standardize` gives a table without gaps: 0 stands for the mean.

scores, moments = bncore.standardize(gaps, nan_policy="omit", fill=0.0)
print(np.isfinite(scores).all(), moments.count.astype(int))
