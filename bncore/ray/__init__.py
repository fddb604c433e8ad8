"""bncore for Ray: moments of a Ray data set, as one of its aggregations.

Ray is an extra: ``pip install 'bncore[ray]'`` installs it.  `docs/ray.md` shows how to use it.
"""

from bncore.extras import pip_install

try:
    import ray.data  # noqa: F401  # the message below names what installs it
except ImportError as error:
    raise ImportError(
        f"bncore.ray: expected Ray with its data sets, got none: {pip_install('ray')} installs it"
    ) from error

from bncore.ray.aggregation import MomentsOf

__all__ = ["MomentsOf"]
