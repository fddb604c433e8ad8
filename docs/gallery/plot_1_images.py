"""
Normalize a photograph
======================

Two photographs of NumPy's neighbour scikit-learn are a batch of 8-bit integers, with the colours in
the last axis.  Batch norm with the statistics of each colour removes the colour cast: every colour
then has mean 0 and standard deviation 1.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

import bncore

images = np.stack(load_sample_images().images)  # (2, 427, 640, 3), uint8
moments = bncore.moments(images, axis=-1)
print("mean", moments.mean.round(1), "std", moments.std().round(1))

# %%
# The integers are read as they are; no float array of their size is made before the result.

y = bncore.batch_norm_infer(images, moments.mean, moments.var(), axis=-1, eps=0.0)
print(y.dtype, "mean", y.mean((0, 1, 2)).round(3), "std", y.std((0, 1, 2)).round(3))

# %%
# To look at the result, ±2.5 standard deviations become black to white.

figure, axes = plt.subplots(2, 2, figsize=(6, 5))
shown = np.clip(y / 5 + 0.5, 0, 1)
for row, (title, pictures) in zip(axes, [("as it is", images), ("normalized", shown)]):
    for panel, picture in zip(row, pictures):
        panel.imshow(picture)
        panel.set_title(title, fontweight="normal")
        panel.axis("off")
