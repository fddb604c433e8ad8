"""How much each value of x counts: the record that the backends take."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Weights(NamedTuple):
    """The weights of a call; the fields that `bncore.backends.contract.Weights` describes."""

    values: npt.NDArray[Any] | None
    omit_nan: bool
    fill: float | None
    count: npt.NDArray[np.float64]  # type: ignore[assignment]  # tuples have a method count
