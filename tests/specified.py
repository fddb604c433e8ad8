"""The specification as a backend, and the comparison of all others with it."""

from __future__ import annotations

from functools import partial

import arrays
import operations
import untraced
import variants
from bncore import backends
from bncore.backends.numba.group_operations import GroupOperations
from bncore.backends.numba.operations import in_order


def plainly(n_threads, n_tasks, kernel, /, *args):
    """Run a kernel as the Python function that it is, and let coverage not follow it."""
    in_order(n_threads, n_tasks, partial(untraced.call, kernel), *args)


PLAIN = GroupOperations(plainly)


def specification(plain=PLAIN):
    """Let the functions of the package run on the plain text."""
    return backends._using(backends.Active("specification", plain))


def assert_every_backend_gives(expected, run):
    """Compare all bits, but those of a NaN, which no backend promises."""
    expected = {name: arrays.one_nan(values) for name, values in expected.items()}
    for variant in variants.FOUND.present:
        with variant.active():
            got = {name: arrays.one_nan(values) for name, values in run().items()}
        assert operations.differences(got, expected) == [], variant
