"""bncore for xarray: statistics and normalization of labelled arrays, by the names of dimensions.

Only this package imports xarray.  Arrays may hold Dask arrays; then nothing is computed before you
ask for it.  `docs/xarray.md` shows how to use it.
"""

from bncore.extras import pip_install

try:
    import xarray  # noqa: F401  # the message below names what installs it
except ImportError as error:
    raise ImportError(
        f"bncore.xarray: expected xarray, got none: {pip_install('xarray')} installs it"
    ) from error

from bncore.xarray.labelled import mean_var, normalize

__all__ = ["mean_var", "normalize"]
