"""The main job on real data: ``python -m bncore.demo`` (needs ``pip install '.[demo]'``).

``data`` makes image batches of the handwritten digits, ``formula`` holds the batch normalization
that everybody writes in NumPy, ``accuracy`` an extended-precision reference and the error measure,
``timing`` the clock, ``table`` joins them; ``network`` trains a two-layer network.
"""

from __future__ import annotations
