"""Batch normalization of real data: ``python -m bncore demo`` (needs ``pip install '.[demo]'``).

``data`` makes image batches from handwritten digits.  ``formula`` has the batch normalization that
everybody writes in NumPy, ``accuracy`` an extended-precision reference and the measure of errors,
and ``timing`` the clock.  ``table`` combines them.  ``layers`` has the layers of a network in
NumPy, and ``network`` trains a network of two layers.  :mod:`bncore.programs.study` measures what
batch norm does to training.
"""

from __future__ import annotations
