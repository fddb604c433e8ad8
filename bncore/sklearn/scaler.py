"""`StandardScaler`: scikit-learn's estimator, computed by bncore."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.sparsefuncs import inplace_column_scale
from sklearn.utils.validation import FLOAT_DTYPES, check_array, check_is_fitted, validate_data

import bncore
from bncore.arguments import scalars
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.parameters import Stat
from bncore.runtime.threads import resolve
from bncore.sklearn import sparse, tables
from bncore.statistics import Moments, given_moments

LARGEST = float(np.finfo(np.float32).max)  # of the arithmetic on float32 and float16 data
READ: dict[str, Any] = {"dtype": FLOAT_DTYPES, "ensure_all_finite": "allow-nan"}


class StandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Subtract the mean of every feature, and divide by its standard deviation.

    It takes the place of `sklearn.preprocessing.StandardScaler`: the same parameters, attributes
    and results up to rounding.  Moments are float64 for every dtype, are computed in one pass, and
    keep their digits when batches merge.

    Parameters
    ----------
    copy : bool, default True
        Whether `transform` and `inverse_transform` return a new array.  If False, they write to X
        where it is a writable array of a floating dtype.
    with_mean : bool, default True
        Whether to subtract the mean.  Sparse input needs False.
    with_std : bool, default True
        Whether to divide by the standard deviation.
    n_threads : int, optional
        How many threads a call may use, as in `bncore.moments`.

    Attributes
    ----------
    moments_ : Moments
        Count, mean and sum of squared deviations of every feature.
    mean_ : (n_features,) ndarray of float64, or None
        The mean of every feature; NaN where there is no value.  None if both flags are False.
    var_ : (n_features,) ndarray of float64, or None
        The population variance, in the feature's unit squared.  None if `with_std` is False.
    scale_ : (n_features,) ndarray of float64, or None
        What `transform` divides by: the square root of `var_`, and 1 for a feature whose values are
        all the same.  None if `with_std` is False.
    n_samples_seen_ : int, float or (n_features,) ndarray
        The samples without gaps, or the sum of their weights: one number if it is the same for all
        features.
    n_features_in_ : int
        The number of features.
    feature_names_in_ : (n_features,) ndarray of str
        The names of the features, if X had names.

    Notes
    -----
    NaN are gaps: `fit` leaves them out, and `transform` keeps them.  float32 and float16 stay what
    they are.  scikit-learn divides a feature by 1 as soon as its own rounding error could explain
    the variance; here only a feature of equal values gets 1, because the digits of the others are
    right.  A call of `fit` or `partial_fit` that raises an error changes nothing.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for Computing the Sample Variance:
    Analysis and Recommendations", The American Statistician 37 (1983) 242-247, equation 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from bncore.sklearn import StandardScaler
    >>> scaler = StandardScaler().fit(np.array([[0.0, 7.0], [2.0, 7.0], [np.nan, 7.0]]))
    >>> scaler.transform(np.array([[3.0, 7.0]]))
    array([[2., 0.]])
    >>> scaler.n_samples_seen_
    array([2, 3])
    """

    def __init__(
        self,
        *,
        copy: bool = True,
        with_mean: bool = True,
        with_std: bool = True,
        n_threads: int | None = None,
    ) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std
        self.n_threads = n_threads

    # Statistics

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Compute the statistics of X, and forget earlier ones.

        Parameters
        ----------
        X : (n_samples, n_features) array_like or sparse matrix
            Real numbers; NaN are gaps.
        y : ignored
        sample_weight : (n_samples,) array_like of float, optional
            How much each sample counts, finite and >= 0.

        Returns
        -------
        StandardScaler
            The scaler itself.

        Raises
        ------
        TypeError, ValueError
            If scikit-learn refuses X, a flag is not a bool, or a weight is negative.
        """
        return self._learn(X, sample_weight, None)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Add the statistics of X to those of earlier calls; parameters are those of `fit`."""
        return self._learn(X, sample_weight, getattr(self, "moments_", None))

    def fit_moments(self, moments: Moments) -> StandardScaler:
        """Take moments that were computed elsewhere, such as those of several processes merged.

        Parameters
        ----------
        moments : Moments
            The moments of every feature.  Names of features that `fit` has seen stay if their
            number is the same.

        Returns
        -------
        StandardScaler
            The scaler itself.

        Raises
        ------
        TypeError
            If `moments` is not a Moments.

        Examples
        --------
        >>> import numpy as np
        >>> import bncore
        >>> from bncore.sklearn import StandardScaler
        >>> parts = np.array([[0.0], [2.0]]), np.array([[4.0], [6.0]])
        >>> StandardScaler().fit_moments(bncore.merged_moments(parts)).mean_
        array([3.])
        """
        moments = given_moments("moments", moments)
        features = moments.mean.shape[0]
        self._check_parameters()
        if getattr(self, "n_features_in_", features) != features:
            self.__dict__.pop("feature_names_in_", None)
        self.n_features_in_ = features
        self._store(moments)
        return self

    def _learn(self, X: Any, sample_weight: Any, before: Moments | None) -> StandardScaler:
        self._check_parameters()
        state = dict(self.__dict__)
        try:
            X = validate_data(self, X, reset=before is None, accept_sparse=("csr", "csc"), **READ)
            weights = None if sample_weight is None else _checked_weights(sample_weight, X.shape[0])
            if issparse(X):
                self._refuse_center("center")
                found = sparse.moments(X, weights)
            else:
                found = tables.moments(X, weights, self.n_threads)
            self._store(found if before is None else before.merge(found))
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(state)
            raise
        return self

    def _store(self, moments: Moments) -> None:
        """Set the attributes that follow from the moments."""
        self.moments_ = moments
        count = moments.count if (moments.count % 1.0).any() else moments.count.astype(np.int64)
        same = count.size > 0 and bool((count == count[0]).all())
        self.n_samples_seen_ = count[0] if same else count.copy()
        self.mean_ = moments.mean.copy() if self.with_mean or self.with_std else None
        self.var_ = self.scale_ = None
        if self.with_std:
            self.var_ = moments.var()
            self.scale_ = np.where(moments.m2 == 0.0, 1.0, np.sqrt(self.var_))

    # Data

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Standardize X.

        Parameters
        ----------
        X : (n_samples, n_features) array_like or sparse matrix
            NaN stay NaN.
        copy : bool, optional
            Instead of the parameter `copy`.

        Returns
        -------
        (n_samples, n_features) ndarray or CSR matrix
            In X's dtype if that is float16, float32 or float64, otherwise in float64; or what
            `set_output` asks for.

        Raises
        ------
        NotFittedError
            If there are no statistics yet.
        TypeError, ValueError
            If scikit-learn refuses X, or X has other features than `fit` has seen.
        """
        check_is_fitted(self)
        X, out = self._read(X, copy, "center", True)
        if issparse(X):
            return X if self.scale_ is None else _scaled(X, 1.0 / self.scale_, out)
        zeros = np.zeros(X.shape[1])
        mean = zeros if self.mean_ is None or not self.with_mean else self.mean_
        with silent_arithmetic():
            factor = None if self.scale_ is None else 1.0 / self.scale_
        given: Any = mean, zeros + 1.0, factor
        how: dict[str, Any] = {"eps": 0.0, "n_threads": self.n_threads}
        if factor is None or X.dtype == np.float64 or not (factor > LARGEST).any():
            return bncore.batch_norm_infer(X, *given, out=out, **how)
        y = bncore.batch_norm_infer(X.astype(np.float64), *given, **how)
        result = np.empty_like(X) if out is None else out
        result[...] = y  # float32 arithmetic has no such factor
        return result

    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo `transform`: multiply by the standard deviation, and add the mean.

        Parameters
        ----------
        X : (n_samples, n_features) array_like or sparse matrix
            What `transform` returned, or other numbers in that scale.
        copy : bool, optional
            Instead of the parameter `copy`.

        Returns
        -------
        (n_samples, n_features) ndarray or CSR matrix
            As in `transform`, without `set_output`.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As in `transform`.
        """
        check_is_fitted(self)
        X, out = self._read(X, copy, "uncenter", False)
        if issparse(X):
            return X if self.scale_ is None else _scaled(X, self.scale_, out)
        zeros = np.zeros(X.shape[1])
        mean = self.mean_ if self.with_mean else None
        return bncore.batch_norm_infer(
            X, zeros, zeros + 1.0, self.scale_, mean, eps=0.0, out=out, n_threads=self.n_threads
        )

    def _read(self, X: Any, copy: Any, verb: str, named: bool) -> tuple[Any, Any]:
        """Return X as an array or CSR matrix, and the memory of the result or None for new one."""
        self._check_parameters()
        copied = scalars.boolean("copy", self.copy if copy is None else copy)
        how: dict[str, Any] = {"accept_sparse": "csr", "force_writeable": not copied, **READ}
        if named:
            X = validate_data(self, X, reset=False, **how)
        else:
            X = check_array(X, estimator=self, input_name="X", **how)
            if X.shape[1] != self.n_features_in_:
                raise ValueError(f"X: expected {self.n_features_in_} features, got {X.shape[1]}")
        if issparse(X):
            self._refuse_center(verb)
        return X, None if copied else X

    # Rules

    def _check_parameters(self) -> None:
        for name in ("copy", "with_mean", "with_std"):
            scalars.boolean(name, getattr(self, name))
        resolve(self.n_threads)

    def _refuse_center(self, verb: str) -> None:
        if self.with_mean:
            raise ValueError(
                f"Cannot {verb} sparse matrices: with_mean: expected False for a sparse X, got True"
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = not self.with_mean
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags


def _scaled(X: Any, factor: Stat, out: Any) -> Any:
    """Multiply the columns of a sparse matrix, in place if it may be written to."""
    X = X.copy() if out is None else X
    inplace_column_scale(X, factor)
    return X


def _checked_weights(given: Any, samples: int) -> Stat:
    """Return one weight for every sample, as float64."""
    weights = check_array(
        given, dtype=np.float64, ensure_2d=False, input_name="sample_weight", order="C"
    )
    if weights.ndim == 0:
        weights = np.full(samples, float(weights))
    if weights.shape != (samples,):
        raise ValueError(f"sample_weight: expected shape ({samples},), got {weights.shape}")
    if weights.min() < 0.0:
        raise ValueError(f"sample_weight: expected numbers >= 0, got {float(weights.min())}")
    if not weights.any():
        raise ValueError("sample_weight: expected at least one number above 0, got zeros alone")
    checked: Stat = weights
    return checked
