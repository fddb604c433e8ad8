"""The benchmark that anyone can run: ``python -m bncore bench`` (needs ``bncore[bench]``).

``cases`` defines the operations and shapes, ``peers`` the libraries that are measured.  ``check``
tests whether a result is right; ``streams`` and ``limit`` compute the speed that the memory allows.
``plan`` lists the cases of a run, ``worker`` times one peer in its own process, ``host`` commands
the workers in turn, and ``run`` goes through the plan.  ``results`` has the rows; ``promises``,
``tables`` and ``pictures`` show them.
"""

from __future__ import annotations
