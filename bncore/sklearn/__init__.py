"""bncore for scikit-learn: `StandardScaler`, with float64 moments that merge without losing digits.

scikit-learn is an extra: ``pip install 'bncore[sklearn]'`` installs it.  `docs/scikit-learn.md`
shows how to use it.
"""

try:
    import sklearn  # noqa: F401  # the error below says how to get it
except ModuleNotFoundError as error:
    if error.name != "sklearn":  # scikit-learn is installed, but broken
        raise
    raise ModuleNotFoundError(
        "bncore.sklearn: scikit-learn is not installed; `pip install 'bncore[sklearn]'` "
        "installs it",
        name="sklearn",
    ) from None

from bncore.sklearn.scaler import StandardScaler

__all__ = ["StandardScaler"]
