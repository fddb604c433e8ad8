"""Measure what batch normalization does to training: ``python -m bncore study``.

It needs ``pip install '.[study]'``.  In the order in which to read:

- ``data``: splits of the handwritten digits, and shifts and rotations of them;
- ``networks``: a multilayer perceptron and a convolutional network, with and without batch norm,
  made of :mod:`bncore.programs.demo.layers`;
- ``training``: a `Setting` describes one training, `train` runs it, an `Outcome` has its results;
- ``execute``: many settings, in several processes;
- ``plan``: the settings to train, and the choice of a rate;
- ``judge``: paired differences over seeds, and the rule that turns them into a verdict;
- ``convergence``, ``rates``, ``scales``, ``depth``, ``batches``, ``generalization``: one experiment
  each, with the settings that it needs, the claims that it judges, its tables and its picture;
- ``page``: the report, `docs/study/README.md`.
"""

from __future__ import annotations
