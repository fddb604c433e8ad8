"""The benchmark that anyone can run: ``python -m bncore bench`` (needs ``bncore[bench]``).

``cases`` says what is measured, ``peers`` who is, ``check`` whether a result is right, ``streams``
and ``limit`` what the memory allows.  ``plan`` lists the groups of a run, ``worker`` times one
peer in a process of its own, ``host`` commands the workers in turn, ``run`` goes through the plan.
``results`` holds the rows; ``promises``, ``tables`` and ``pictures`` say what they show.
"""

from __future__ import annotations
