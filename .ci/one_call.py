"""Make one call of the installed bncore and check it; import the extension if it is required."""

import os
from pathlib import Path

import numpy as np

import bncore

package = Path(bncore.__file__).resolve()
assert "site-packages" in package.parts, f"{package} is not the installed package"

x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 5, 5)).astype(np.float32)
y, moments = bncore.batch_norm_train(x)
np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0.0, atol=1e-6)
np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1.0, rtol=1e-4)
if os.environ.get("BNCORE_REQUIRE_NATIVE", "") not in ("", "0"):
    import bncore.backends.native.binding
print(f"bncore {bncore.__version__} in {package.parent}: one call gave the right result")
bncore.show_config()
