"""`bncore.sklearn.StandardScaler`: scikit-learn's checks and results, and digits it loses."""

from __future__ import annotations

import doctest
import pickle
from fractions import Fraction

import numpy as np
import pytest

import bncore
import oracle
import tolerances
from checkout import blocks_of

pytestmark = pytest.mark.needs_scale
sklearn = pytest.importorskip("sklearn", reason="the extra sklearn is not installed")

from scipy.sparse import coo_array, csc_array, csr_array  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler as Theirs  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import bncore.sklearn.scaler  # noqa: E402
from bncore.sklearn import StandardScaler  # noqa: E402

ATTRIBUTES = ("mean_", "var_", "scale_", "n_samples_seen_")
FLAGS = [{}, {"with_mean": False}, {"with_std": False}, {"with_mean": False, "with_std": False}]


@pytest.fixture
def table(rng):
    """(300, 6) values with means up to 1e3 std; the last feature is constant."""
    x = rng.normal([0.0, 1.0, -30.0, 1e3, 5.0, 7.0], [1.0, 0.1, 2.0, 1.0, 40.0, 0.0], (300, 6))
    return x


def agree(ours, theirs):
    for name in ATTRIBUTES:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(
                a, b, rtol=tolerances.SCALER, atol=tolerances.EPS64, err_msg=name
            )


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_scikit_learn_s_own_checks_pass(flags):
    results = check_estimator(StandardScaler(**flags), on_skip=None)
    assert sum(one["status"] == "passed" for one in results) > 50


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_it_agrees_with_scikit_learn(table, dtype, order, flags):
    x = np.asarray(table * 4, dtype, order)
    ours, theirs = (kind(**flags).fit(x) for kind in (StandardScaler, Theirs))
    agree(ours, theirs)
    y, want = ours.transform(x), theirs.transform(x)
    assert y.dtype == want.dtype and y.shape == want.shape
    step = tolerances.EPS32 if dtype == np.float32 else tolerances.EPS64
    size = np.abs(x).max(0) * 1.0  # theirs rounds the mean to x's dtype, and sums it in one chain
    scale = 1.0 if ours.scale_ is None else ours.scale_
    assert (np.abs(y - want) <= tolerances.SCALER_STEPS * step * size / scale).all()
    back = ours.inverse_transform(y)
    assert (np.abs(back - x) <= tolerances.SCALER_STEPS * step * size).all()
    assert back.dtype == y.dtype


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_batches_weights_and_gaps_agree_with_scikit_learn(table, rng, weighted, gaps):
    if gaps:
        table[rng.random(table.shape) < 0.2] = np.nan
    weights = rng.integers(0, 4, len(table)).astype(float) if weighted else None
    ours, theirs = StandardScaler(), Theirs()
    for start in range(0, 300, 75):
        part = slice(start, start + 75)
        given = {} if weights is None else {"sample_weight": weights[part]}
        ours.partial_fit(table[part], **given)
        theirs.partial_fit(table[part], **given)
    agree(ours, theirs)
    assert np.isscalar(ours.n_samples_seen_) == (not gaps)
    whole = StandardScaler().fit(table, sample_weight=weights)
    agree(ours, whole)
    y = whole.transform(table)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(table))


@pytest.mark.parametrize("kind", [csr_array, csc_array])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_agrees_with_dense(table, rng, kind, weighted):
    table[rng.random(table.shape) < 0.6] = 0.0
    table[0, 0], table[:, 4] = np.nan, 0.0
    weights = rng.random(len(table)) if weighted else None
    dense = StandardScaler(with_mean=False).fit(table, sample_weight=weights)
    x = kind(table)
    before = x.toarray()
    scaler = StandardScaler(with_mean=False).fit(x, sample_weight=weights)
    agree(scaler, dense)
    assert scaler.scale_[4] == 1.0  # a feature of zeros
    y = scaler.transform(x)
    assert y.format == "csr"
    np.testing.assert_allclose(y.toarray(), dense.transform(table), rtol=1e-14)
    np.testing.assert_allclose(scaler.inverse_transform(y).toarray(), before, rtol=1e-14)
    np.testing.assert_array_equal(x.toarray(), before)
    half = StandardScaler(with_mean=False)
    for part in (slice(0, 100), slice(100, 300)):
        given = None if weights is None else weights[part]
        half.partial_fit(x[part], sample_weight=given)
    agree(half, dense)


def test_entries_of_one_place_are_their_sum():
    twice = csr_array(coo_array(([1.0, 2.0, 5.0], ([0, 0, 1], [0, 0, 0])), shape=(2, 1)))
    twice = csr_array((np.array([1.0, 2.0, 5.0]), np.array([0, 0, 0]), np.array([0, 2, 3])))
    assert not twice.has_canonical_format
    assert StandardScaler(with_mean=False).fit(twice).mean_.tolist() == [4.0]
    assert twice.nnz == 3


def test_rows_of_weight_0_add_no_zeros_of_rounding():
    x = np.full((10, 1), 1e8)
    x[9] = 0.0  # not stored
    weights = np.array([*[0.1] * 9, 0.0])  # their sum depends on the order
    fitted = [
        StandardScaler(with_mean=False).fit(one, sample_weight=weights) for one in (csr_array(x), x)
    ]
    assert [(one.var_[0], one.scale_[0]) for one in fitted] == [(0.0, 1.0)] * 2


def test_a_feature_of_gaps_alone_has_no_scale(table):
    table[:, 2] = np.nan
    ours = StandardScaler().fit(table)
    with np.errstate(invalid="ignore"):
        agree(ours, Theirs().fit(table))
    assert np.isnan(ours.scale_).tolist() == [False, False, True, False, False, False]


def test_sparse_input_is_not_centered(table):
    for call in ("fit", "transform", "inverse_transform"):
        scaler = StandardScaler().fit(table)
        before = pickle.dumps(vars(scaler))
        with pytest.raises(ValueError, match="with_mean: expected False for a sparse X, got True"):
            getattr(scaler, call)(csr_array(table))
        assert pickle.dumps(vars(scaler)) == before


@pytest.mark.parametrize("far", [1e6, 1e9, 1e12])
@pytest.mark.parametrize("batches", [1, 50, 1000])
def test_digits_where_the_mean_is_far_from_0(rng, far, batches):
    """Against exact rational arithmetic; scikit-learn's error is there to be seen beside it."""
    x = rng.normal(far, 1.0, (4000, 2))
    ours, theirs = StandardScaler(), Theirs()
    for part in np.array_split(x, batches):
        ours.partial_fit(part)
        theirs.partial_fit(part)
    lost = []
    for channel in range(2):
        exact = oracle.exact_moments(x[:, channel])
        for scaler, errors in ((ours, []), (theirs, lost)):
            error = abs(Fraction(float(scaler.var_[channel])) / exact.var - 1)
            errors.append(float(error))
            if scaler is ours:
                assert error <= tolerances.SCALER_FAR, error
                assert abs(Fraction(float(ours.mean_[channel])) - exact.mean) <= far * 2.0**-52
    if far == 1e12 and batches > 1:
        assert max(lost) > 100 * tolerances.SCALER_FAR  # so the data do show it


def test_a_constant_feature_has_scale_1(rng):
    x = np.full((1000, 3), 0.1)
    x[:, 1] = 1e9 + rng.normal(0.0, 1e-6, 1000)  # varies by a few steps of float64
    scaler = StandardScaler()
    for part in np.array_split(x, 7):
        scaler.partial_fit(part, sample_weight=rng.random(len(part)))
    assert scaler.scale_[[0, 2]].tolist() == [1.0, 1.0] and scaler.scale_[1] < 1e-5
    assert (scaler.transform(x)[:, [0, 2]] == 0.0).all()
    with_gaps = StandardScaler().fit([[np.nan, 1.0], [np.nan, 2.0]])
    assert np.isnan(with_gaps.mean_[0]) and with_gaps.n_samples_seen_.tolist() == [0, 2]


@pytest.mark.parametrize("copy", [True, False])
def test_a_deviation_below_the_normal_numbers_of_float32(rng, copy):
    x = (rng.standard_normal((100, 2)) * [1e-41, 1.0]).astype(np.float32)
    want = (x - x.mean(0, np.float64)) / x.std(0, np.float64)
    y = StandardScaler().fit(x).transform(x, copy=copy)
    assert y.dtype == np.float32 and np.shares_memory(y, x) == (not copy)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-7)


def test_float16_stays_what_it_is(rng):
    x = rng.normal(8.0, 2.0, (500, 3)).astype(np.float16)
    scaler = StandardScaler().fit(x)
    assert scaler.transform(x).dtype == np.float16
    np.testing.assert_allclose(scaler.var_, x.astype(float).var(0), rtol=tolerances.EPS32)


def test_bits_do_not_depend_on_gaps_elsewhere_or_threads(rng):
    x = rng.normal(3.0, 2.0, (20000, 4)).astype(np.float32)
    one, two = (StandardScaler(n_threads=n).fit(x) for n in (1, 2))
    assert one.moments_ == two.moments_ == bncore.moments(x)
    np.testing.assert_array_equal(one.transform(x), two.transform(x))


def test_copy_says_who_owns_the_result(table):
    before = table.copy()
    scaler = StandardScaler().fit(table)
    y = scaler.transform(table)
    np.testing.assert_array_equal(table, before)
    here = scaler.transform(table, copy=False)
    assert here is table or here.base is table
    np.testing.assert_array_equal(table, y)
    scaler.set_params(copy=False).inverse_transform(table)
    np.testing.assert_allclose(table, before, rtol=1e-12)
    locked = before.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(scaler.transform(locked), y)
    np.testing.assert_array_equal(locked, before)
    sparse = csr_array(before)
    plain = StandardScaler(with_mean=False, copy=False).fit(sparse)
    assert plain.transform(sparse) is sparse


def test_names_and_containers(table):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(table, columns=list("abcdef"))
    scaler = StandardScaler().set_output(transform="pandas").fit(frame)
    y = scaler.transform(frame)
    assert list(y.columns) == list("abcdef") == list(scaler.get_feature_names_out())
    np.testing.assert_allclose(y.to_numpy(), StandardScaler().fit_transform(table), rtol=1e-12)
    with pytest.raises(ValueError, match="feature names"):
        scaler.transform(frame.rename(columns={"a": "z"}))
    moments = scaler.moments_
    assert list(scaler.fit_moments(moments).feature_names_in_) == list("abcdef")
    scaler.fit_moments(bncore.moments(table[:, :2]))
    assert scaler.get_feature_names_out().tolist() == ["x0", "x1"]


def test_moments_of_several_processes_make_one_scaler(table):
    parts = [StandardScaler().fit(part).moments_ for part in np.array_split(table, 4)]
    scaler = StandardScaler().fit_moments(bncore.merged_moments(parts))
    agree(scaler, StandardScaler().fit(table))
    again = pickle.loads(pickle.dumps(scaler)).partial_fit(table)
    assert again.n_samples_seen_ == 600
    with pytest.raises(TypeError, match=r"moments: expected Moments, got 1\.0"):
        scaler.fit_moments(1.0)


def test_in_a_pipeline_with_routed_weights(table):
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        pipe = make_pipeline(scaler).fit(table, sample_weight=np.arange(300.0))
    agree(pipe[0], StandardScaler().fit(table, sample_weight=np.arange(300.0)))
    assert clone(pipe[0]).get_params() == scaler.get_params()


@pytest.mark.parametrize(("given", "error", "text"), [
    ({"X": [[1.0], [np.inf]]}, ValueError, "infinity"),
    ({"sample_weight": [1.0, -1.0]}, ValueError, "sample_weight: expected numbers >= 0, got -1.0"),
    ({"sample_weight": [0.0, 0.0]}, ValueError, "sample_weight: expected at least one number"),
    ({"sample_weight": [1.0]}, ValueError, r"sample_weight: expected shape \(2,\), got \(1,\)"),
    ({"sample_weight": [1.0, np.nan]}, ValueError, "sample_weight contains NaN"),
    ({"X": [[1.0, 2.0]]}, ValueError, "2 features"),
    ({"X": [["a"], ["b"]]}, ValueError, "could not convert"),
])  # fmt: skip
def test_an_error_changes_nothing(given, error, text):
    scaler = StandardScaler().fit([[1.0], [3.0]])
    before = pickle.dumps(vars(scaler))
    with pytest.raises(error, match=text):
        scaler.partial_fit(**{"X": [[1.0], [2.0]], **given})
    assert pickle.dumps(vars(scaler)) == before


def test_parameters_are_checked(table):
    for name in ("copy", "with_mean", "with_std"):
        with pytest.raises(TypeError, match=f"{name}: expected a bool, got 'yes'"):
            StandardScaler(**{name: "yes"}).fit(table)
    with pytest.raises(TypeError, match="n_threads"):
        StandardScaler(n_threads="all").fit(table)
    with pytest.raises(NotFittedError):
        StandardScaler().transform(table)
    with pytest.raises(ValueError, match="X: expected 6 features, got 2"):
        StandardScaler().fit(table).inverse_transform(table[:, :2])


def test_the_examples_of_the_docstrings_run():
    failed, tried = doctest.testmod(bncore.sklearn.scaler)
    assert failed == 0 and tried >= 8


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batches, stored = blocks_of("docs/scikit-learn.md", "python")
    names: dict[str, object] = {}
    exec(compile(batches, "scikit-learn.md", "exec"), names)
    fitted, y = names["scaler"], names["y"][:100]
    exec(compile(stored, "scikit-learn.md", "exec"), names)
    np.testing.assert_allclose(names["scaler"].scale_, fitted.scale_, rtol=1e-12)
    np.testing.assert_allclose(names["y"], y, rtol=0, atol=1e-6)
    assert names["scaler"].n_samples_seen_.tolist() == [900, 1000, 1000]
    np.testing.assert_allclose(names["scaler"].scale_, [2.0, 1.0, 1.0], rtol=0.1)
    assert np.isnan(names["y"][::10, 0]).all() and (names["y"][:, 2] == 0.0).all()
