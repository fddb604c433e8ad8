"""bncore for scikit-learn: `StandardScaler`, with float64 moments that merge without losing digits.

scikit-learn is an extra: ``pip install 'bncore[sklearn]'`` installs it.  `docs/scikit-learn.md`
shows how to use it.
"""

from bncore.extras import missing

try:
    import sklearn  # noqa: F401  # the error below says how to get it
except ModuleNotFoundError as error:
    raise missing("sklearn", "scikit-learn", {"sklearn"}, error) from None

from bncore.sklearn.scaler import StandardScaler

__all__ = ["StandardScaler"]
