"""The main job on real data: ``python -m bncore demo`` (needs ``pip install '.[demo]'``).

``data`` makes image batches of the handwritten digits, ``formula`` holds the batch normalization
that everybody writes in NumPy, ``accuracy`` an extended-precision reference and the error measure,
``timing`` the clock, ``table`` joins them; ``layers`` are the pieces of a network in NumPy, and
``network`` trains one of two layers.  :mod:`bncore.programs.study` measures what batch norm does to
training.
"""

from __future__ import annotations
