"""The choice of a backend by name, environment, default and thread, and a missing backend."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import bncore
import variants
from bncore import backends
from bncore.backends.contract import Backend
from bncore.extras import pip_install

PRESENT = sorted(variants.FOUND.names())
X = np.array([[1.0, 2.0], [3.0, 6.0]])


@pytest.fixture
def registry(monkeypatch):
    """The registry as after import: nothing loaded, nothing chosen."""
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setattr(backends, "_missing", {})
    monkeypatch.setattr(backends, "_default", None)
    monkeypatch.setattr(backends, "is_checkout", lambda: False)
    for name in ("BNCORE_BACKEND", "BNCORE_ISA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def without(monkeypatch, **errors):
    """Let the import of some backends fail."""
    real = importlib.import_module

    def failing(module, *rest):
        for name, error in errors.items():
            if module == backends.MODULES[name]:
                raise error
        return real(module, *rest)

    monkeypatch.setattr(backends.importlib, "import_module", failing)


ABSENT = ModuleNotFoundError("No module named 'x'", name=backends.MODULES["native"])
NO_NUMBA = ModuleNotFoundError("No module named 'numba'", name="numba")


@pytest.mark.parametrize("name", PRESENT)
def test_every_backend_keeps_the_contract(name):
    with bncore.use_backend(name) as active:
        assert active == name == backends.current().name == backends.current().kernels.name
    kernels = backends.load(name).kernels
    for function, model in inspect.getmembers(Backend, inspect.isfunction):
        if function.startswith("_"):
            continue
        wanted = list(inspect.signature(model).parameters)[1:]
        assert list(inspect.signature(getattr(kernels, function)).parameters) == wanted


def test_blocks_nest_and_end_with_an_error():
    before = backends.current().name
    with bncore.use_backend(PRESENT[0]):
        with pytest.raises(RuntimeError), bncore.use_backend("numpy"):
            assert backends.current().name == "numpy"
            raise RuntimeError
        assert backends.current().name == PRESENT[0]
    assert backends.current().name == before


def test_a_block_counts_for_its_own_thread():
    before = backends.current().name
    seen = []
    with bncore.use_backend("numpy"):
        thread = threading.Thread(target=lambda: seen.append(backends.current().name))
        thread.start()
        thread.join()
    assert seen == [before]


def test_an_unknown_name_is_refused_at_once():
    with pytest.raises(ValueError, match=r"^backend: expected one of native, numba, numpy, got"):
        bncore.use_backend("cuda")


@pytest.mark.parametrize("name", [["native"], None, 3, {}], ids=repr)
def test_what_is_no_name_is_refused_like_an_unknown_one(name):
    with pytest.raises(ValueError) as raised:
        bncore.use_backend(name)
    assert str(raised.value) == f"backend: expected one of native, numba, numpy, got {name!r}"


def test_the_best_that_is_there_is_the_default(registry):
    without(registry, native=ABSENT)
    registry.setitem(backends.MODULES, "numba", backends.MODULES["numpy"])  # quick to import
    assert backends.current().name == "numba"
    assert backends.current().kernels.name == "numpy"
    assert bncore.moments(X).mean.tolist() == [2.0, 4.0]


def test_numpy_is_always_there(registry):
    without(registry, native=ABSENT, numba=NO_NUMBA)
    assert backends.current().name == "numpy"
    assert backends.native_module() is None
    with pytest.raises(ImportError, match=r"^backend: native is not available here: the compiled"):
        bncore.use_backend("native")
    with pytest.raises(ImportError, match=r"^backend: numba is not available here: Numba is not"):
        bncore.use_backend("numba")


def test_a_broken_backend_is_passed_over_with_a_warning(registry):
    without(registry, native=ImportError("libgomp.so.1: cannot open"), numba=NO_NUMBA)
    with pytest.warns(RuntimeWarning, match=r"native is installed but cannot be used: libgomp"):
        assert backends.current().name == "numpy"
    assert backends.current().name == "numpy"  # once is enough


def test_whatever_an_import_raises_makes_a_backend_missing(registry):
    without(registry, native=ValueError("numpy.dtype size changed"), numba=RuntimeError("no cache"))
    with pytest.warns(RuntimeWarning) as warned:
        assert backends.current().name == "numpy"
    assert [str(warning.message) for warning in warned] == [
        "bncore: backend native is installed but cannot be used: ValueError: numpy.dtype size "
        "changed",
        "bncore: backend numba is installed but cannot be used: RuntimeError: no cache",
    ]
    assert backends.why_missing("numba") == "RuntimeError: no cache"
    with pytest.raises(ImportError, match=r"^backend: numba is not available here: RuntimeError"):
        bncore.use_backend("numba")


TOLD = r"^bncore: the native extension is not installed; using {} \(.*set BNCORE_BACKEND={} to"


def test_an_absent_native_module_is_told_once(registry):
    without(registry, native=ABSENT, numba=NO_NUMBA)
    with pytest.warns(RuntimeWarning, match=TOLD.format("numpy", "numpy")) as warned:
        bncore.moments(X)
    assert f"{pip_install('numba')} installs a faster backend" in str(warned[0].message)
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bncore.moments(X)


def test_the_configuration_warns_of_nothing(registry, capsys):
    without(registry, native=ABSENT, numba=NO_NUMBA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bncore.show_config()
    assert "backend   numpy" in capsys.readouterr().out
    with pytest.warns(RuntimeWarning, match=TOLD.format("numpy", "numpy")):
        bncore.moments(X)  # the first call that computes still does


def test_the_warning_names_the_backend_in_use(registry):
    without(registry, native=ABSENT)
    registry.setitem(backends.MODULES, "numba", backends.MODULES["numpy"])  # quick to import
    with pytest.warns(RuntimeWarning, match=TOLD.format("numba", "numba")) as warned:
        bncore.moments(X)
    assert "installs a faster backend" not in str(warned[0].message)


def test_who_imported_the_checkout_is_told_so(registry):
    without(registry, native=ABSENT, numba=NO_NUMBA)
    registry.setattr(backends, "is_checkout", lambda: True)
    with pytest.warns(RuntimeWarning) as warned:
        bncore.moments(X)
    assert [str(warning.message) for warning in warned] == [
        "bncore: you imported the checkout itself, which has no compiled part; using numpy (run "
        f"from another directory, or run `make build`; {pip_install('numba')} installs a "
        "faster backend; set BNCORE_BACKEND=numpy to silence this)"
    ]
    assert backends.why_missing("native") == (
        "you imported the checkout itself, which has no compiled part: run from another directory, "
        "or run `make build`"
    )


def test_a_checkout_has_the_sources_beside_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "ROOT", tmp_path)
    assert not backends.is_checkout()
    (tmp_path / "setup.py").touch()
    assert not backends.is_checkout()
    (tmp_path / "src_c").mkdir()
    assert backends.is_checkout()


def test_whoever_names_a_backend_is_told_nothing(registry):
    without(registry, native=ABSENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bncore.use_backend("numpy"):
            bncore.moments(X)
        registry.setenv("BNCORE_BACKEND", "numpy")
        bncore.moments(X)


@pytest.mark.parametrize("named", ["", "native"])
def test_a_wrong_instruction_set_is_one_plain_error(registry, named):
    without(registry, native=ImportError("BNCORE_ISA: expected avx2, got 'mmx'"))
    registry.setenv("BNCORE_ISA", "mmx")
    registry.setenv("BNCORE_BACKEND", named)
    with pytest.raises(ValueError, match=r"^BNCORE_ISA: expected avx2, got 'mmx'$") as raised:
        bncore.moments(X)
    assert raised.value.__suppress_context__ and raised.value.__cause__ is None


def test_a_forced_instruction_set_is_not_passed_over(registry):
    without(registry, native=ImportError("libgomp.so.1: cannot open"))
    registry.setenv("BNCORE_ISA", "avx2")
    with pytest.raises(ImportError, match=r"native is not available here: libgomp"):
        bncore.moments(X)


@pytest.mark.skipif("native" not in PRESENT, reason="the native module is missing")
def test_the_native_module_refuses_an_unknown_instruction_set():
    done = subprocess.run(
        [sys.executable, "-c", "import numpy, bncore; bncore.moments(numpy.ones((3, 2)))"],
        env={**os.environ, "BNCORE_ISA": "mmx", "BNCORE_BACKEND": ""},
        capture_output=True,
        text=True,
    )
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.splitlines()[-1].startswith("ValueError: BNCORE_ISA: expected one of ")


def test_the_environment_chooses(registry):
    registry.setenv("BNCORE_BACKEND", "numpy")
    assert backends.current().name == "numpy"


def test_a_wrong_environment_is_named(registry):
    registry.setenv("BNCORE_BACKEND", "cuda")
    with pytest.raises(ValueError) as raised:
        bncore.moments(X)
    assert str(raised.value) == "BNCORE_BACKEND: expected one of native, numba, numpy, got 'cuda'"


def test_a_missing_backend_that_was_asked_for_is_an_error(registry):
    without(registry, native=ABSENT)
    registry.setenv("BNCORE_BACKEND", "native")
    with pytest.raises(ImportError, match=r"^backend: native is not available here") as raised:
        bncore.moments(X)
    assert raised.value.__suppress_context__ and raised.value.__cause__ is None  # one traceback


@pytest.fixture
def copied(tmp_path):
    """Run code on a copy of the package without the extension; return what it prints."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(Path(bncore.__file__).parent, tmp_path / "bncore", ignore=ignored)

    def run(code: str, **environment: str) -> str:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BNCORE_", "NUMBA_"))}
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", f"import bncore; {code}"],
            env={**inherited, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
            | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert str(tmp_path) in run("print(bncore.__file__)")
    return run


CALL = (  # of a kernel that is compiled in no time
    "import numpy; y = bncore.batch_norm_infer(numpy.full((1, 40), 3.0), [0.0] * 40, [1.0] * 40, "
    "eps=0.0); print(y[0, :1], bncore.show_config('dicts')['backend'])"
)


@pytest.mark.skipif("numba" not in PRESENT, reason="Numba is not installed")
def test_numba_works_where_it_can_keep_no_code(copied, tmp_path):
    """Numba can write neither beside the package nor in the user's directory, not even as root."""
    (tmp_path / "bncore" / "backends" / "numba" / "__pycache__").write_text(
        "a file where a directory goes"
    )
    nowhere = str(tmp_path / "bncore" / "py.typed")
    printed = copied(
        CALL + "; from bncore.backends.numba import elementwise, jit"
        "; print(type(jit.compiled(elementwise.rows_normalize)._cache))",
        HOME=nowhere,
        XDG_CACHE_HOME=nowhere,
        BNCORE_BACKEND="numba",
    )
    assert printed == "[3.] numba\n<class 'numba.core.caching.NullCache'>\n"


@pytest.mark.skipif("numba" not in PRESENT, reason="Numba is not installed")
def test_numba_that_compiles_nothing_is_refused(copied):
    printed = copied(CALL, NUMBA_DISABLE_JIT="1")
    assert printed.startswith("[3.] numpy\n")
    assert "backend numba is installed but cannot be used: NUMBA_DISABLE_JIT is set" in printed
    printed = copied(
        "\ntry: bncore.use_backend('numba')\nexcept ImportError as e: print(e)",
        NUMBA_DISABLE_JIT="1",
    )
    assert printed.startswith("backend: numba is not available here: NUMBA_DISABLE_JIT is set")


def test_numba_is_not_imported_unasked():
    code = (
        "import sys, numpy, bncore; bncore.moments(numpy.ones((3, 2)));"
        "bncore.show_config(); print('numba' in sys.modules)"
    )
    environment = {**os.environ, "BNCORE_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
