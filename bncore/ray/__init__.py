"""bncore for Ray: moments of a Ray data set, as one of its aggregations.

Ray is an extra: ``pip install 'bncore[ray]'`` installs it.  `docs/ray.md` shows how to use it.
"""

try:
    import ray.data  # noqa: F401  # the message below names what installs it
except ImportError as error:
    raise ImportError(
        "bncore.ray: expected Ray with its data sets, got none: pip install 'bncore[ray]'"
    ) from error

from bncore.ray.aggregation import MomentsOf

__all__ = ["MomentsOf"]
