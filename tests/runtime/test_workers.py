"""The library's own executor: alone in a C program, and as the library's users meet it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import bncore
from bncore.backends import native_module
from checkout import COMPILER, ROOT
from variants import FOUND

SOURCES = ROOT / "src_c"
PROGRAM = Path(__file__).with_name("stress_workers.c")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs Linux and a C compiler"
)
needs_native = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="the executor is part of the native extension"
)
# How threads sleep on Linux, how they do elsewhere, and under the tool that finds data races.
VARIANTS = {
    "futex": ["-O2"],
    "condition variables": ["-O2", "-DBNCORE_WITHOUT_FUTEX"],
    "thread sanitizer": ["-O1", "-g", "-fsanitize=thread"],
}


@pytest.fixture(scope="module", params=VARIANTS)
def program(request, tmp_path_factory):
    """The C program over workers.c, and whether a sanitizer watches it."""
    made = tmp_path_factory.mktemp("workers") / "stress"
    done = subprocess.run(
        [COMPILER, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion",
         "-Werror", *VARIANTS[request.param], "-Wl,--wrap=pthread_create", f"-I{SOURCES}",
         SOURCES / "workers.c", PROGRAM, "-pthread", "-o", made],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "sanitize" in " ".join(VARIANTS[request.param]):
        pytest.skip("this compiler has no thread sanitizer")
    assert done.returncode == 0, done.stderr
    return made, "sanitizer" in request.param


@needs_compiler
@pytest.mark.parametrize(
    "mode",
    [
        "hosts",  # 64 threads of the host call 1,000 times each, some from within a task
        "forks",  # while they call, the process is forked; each child creates its own workers
        "callers",  # 10,000 threads call once and end
        "refused",  # the system creates no threads: the caller does everything
        "late",  # workers that are called and do not come are not waited for
        "shares",  # each thread begins with its share, which is the other one for mirrored jobs
        "full",  # with all slots taken a job runs on its caller; a forked child has them all again
        "creating",  # the process is forked while another thread creates a worker
        "asleep",  # workers that sleep are woken, and take part
        "claims",  # a worker of an earlier job takes nothing
        "names",  # workers have names and block signals; the caller's signals stay as they were
    ],
)
def test_every_task_runs_once(program, mode):
    path, sanitized = program
    if sanitized and mode in ("forks", "full", "creating"):
        pytest.skip("the thread sanitizer ends a forked child that creates threads")
    done = subprocess.run([path, mode], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


UNLOAD = textwrap.dedent("""
    #include <dlfcn.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <unistd.h>
    #include <sys/wait.h>

    typedef void run(int64_t, int32_t, int, void (*)(void *, int64_t), void *);

    static void task(void *arg, int64_t i) { ((int *)arg)[i]++; }

    int main(int argc, char **argv)
    {
        for (int i = 0; i < 50 && argc == 2; i++) {
            void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
            if (!library) return 2;
            run *workers_run = (run *)dlsym(library, "bncore_workers_run");
            int times[100] = {0};
            workers_run(100, 3, 0, task, times);
            for (int k = 0; k < 100; k++) if (times[k] != 1) return 3;
            if (dlclose(library) != 0 || dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD)) return 4;
            const pid_t child = fork();
            if (child == 0) _exit(0);
            int status;
            if (waitpid(child, &status, 0) != child || status != 0) return 5;
        }
        return 0;
    }
""")


@needs_compiler
def test_a_library_that_holds_the_executor_can_be_unloaded(tmp_path):
    """As a plug-in that links the archive is: its workers are gone when it is."""
    library, program = tmp_path / "plugin.so", tmp_path / "host"
    (tmp_path / "host.c").write_text(UNLOAD)
    flags = [COMPILER, "-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread"]
    sources = [SOURCES / "workers.c", SOURCES / "learning.c"]
    subprocess.run([*flags, "-shared", "-fPIC", *sources, "-o", library], check=True)
    subprocess.run([*flags, tmp_path / "host.c", "-ldl", "-o", program], check=True)
    assert subprocess.run([program, library], timeout=120, check=False).returncode == 0


# ---- through the library

SHAPES = [(64, 64, 28, 28), (4096, 64), (3, 5, 150, 150)]


def everything(x: np.ndarray, n_threads: int) -> bytes:
    y, moments = bncore.batch_norm_train(x, n_threads=n_threads)
    dx, dweight, dbias = bncore.batch_norm_train_backward(y, x, moments, n_threads=n_threads)
    return b"".join(a.tobytes() for a in (y, moments.mean, moments.m2, dx, dweight, dbias))


@pytest.fixture
def executors():
    native = native_module()
    before = native.executor()
    yield native
    native.set_executor(before)


@needs_native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits_on_every_executor(shape, executors, rng):
    x = rng.standard_normal(shape, dtype=np.float32)
    with bncore.use_backend("native"):
        expected = everything(x, 1)
        for name in executors.available_executors():
            executors.set_executor(name)
            assert executors.executor() == name
            for n_threads in (2, 3, 8):
                for _ in range(10):
                    assert everything(x, n_threads) == expected, (name, n_threads)


@needs_native
def test_many_threads_call_at_once(executors, rng):
    executors.set_executor("own")
    x = rng.standard_normal((32, 16, 28, 28), dtype=np.float32)
    with bncore.use_backend("native"):
        expected, wrong = everything(x, 1), []

        def call() -> None:
            for _ in range(50):
                if everything(x, 4) != expected:
                    wrong.append(1)

        callers = [threading.Thread(target=call) for _ in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


@needs_native
def test_an_unknown_executor_is_refused(executors):
    before = executors.executor()
    with pytest.raises(ValueError, match=r"executor: expected one of own, .*serial, got 'pool'"):
        executors.set_executor("pool")
    assert executors.executor() == before
    executors.set_executor("")
    assert executors.executor() == executors.available_executors()[0]


@needs_native
def test_threads_can_be_limited(executors, rng):
    with pytest.raises(ValueError, match="threads: expected an integer >= 0, got -1"):
        executors.set_max_threads(-1)
    code = """
        import time
        import numpy as np
        import bncore
        native = bncore.backends.native_module()
        x = np.zeros((64, 64, 28, 28), np.float32)
        for most, expected in ((2, 1), (0, 4)):
            native.set_max_threads(most)
            assert native.max_threads() == most
            end = time.monotonic() + 30  # a busy machine may do without workers for a while
            while native.workers() < expected and time.monotonic() < end:
                bncore.batch_norm_train(x, n_threads=5)
            assert native.workers() == expected
    """
    run(textwrap.dedent(code), BNCORE_EXECUTOR="own")


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done


@needs_native
@pytest.mark.parametrize("name", ["own", "openmp", "serial"])
def test_the_environment_chooses(name):
    if name not in native_module().available_executors():
        pytest.skip(f"{name} is not built in")
    code = "import bncore; print(bncore.backends.native_module().executor())"
    assert run(code, BNCORE_EXECUTOR=name).stdout == f"{name}\n"


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="limits the processes of a Linux user")
@pytest.mark.parametrize("name", ["own", "openmp"])
def test_threads_that_cannot_be_created(name):
    """The limit on address space leaves no room for a stack: fewer threads, and the same bits."""
    if name not in native_module().available_executors():
        pytest.skip(f"{name} is not built in")
    code = """
        import resource
        import numpy as np
        import bncore
        x = np.random.default_rng(0).standard_normal((64, 64, 28, 28), dtype=np.float32)
        out = np.empty_like(x)
        bncore.batch_norm_train(x, n_threads=1, out=out)
        expected = out.tobytes()
        pages = int(open("/proc/self/statm").read().split()[0])
        room = pages * resource.getpagesize() + 200 * 1024
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
        for _ in range(3):
            bncore.batch_norm_train(x, n_threads=16, out=out)
        resource.setrlimit(resource.RLIMIT_AS, before)
        assert bncore.backends.native_module().workers() < 15
        assert out.tobytes() == expected
    """
    run(textwrap.dedent(code), BNCORE_EXECUTOR=name, OMP_STACKSIZE="8M")


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="the library is found where Linux has it")
@pytest.mark.parametrize("name", ["own", "openmp"])
def test_the_library_can_be_closed(name):
    """Opened, called on two threads and closed, again and again, in a process that forks."""
    libraries = list((ROOT / "bncore" / "lib").glob("libbncore.so.*"))
    if not libraries or shutil.which("true") is None:
        pytest.skip("the C library is not beside the package")
    code = f"""
        import ctypes, os, _ctypes
        import numpy as np
        x = np.zeros((64, 64, 256), np.float32)
        a, b = np.zeros(64), np.zeros(64)
        for _ in range(50):
            library = ctypes.CDLL({str(libraries[0])!r}, mode=os.RTLD_LOCAL)
            p = (ctypes.c_char * 1024)()
            sizes = [ctypes.c_int64(n) for n in x.shape]
            assert library.bncore_problem_init(p, ctypes.c_size_t(SIZE), 0, *sizes) == 0
            call = ctypes.c_int32.from_buffer(p, N_THREADS)
            call.value = 2
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, x)]
            assert library.bncore_moments(p, *pointers) == 0
            _ctypes.dlclose(library._handle)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    """
    import host

    code = textwrap.dedent(code).replace("N_THREADS", str(host.Problem.n_threads.offset))
    code = code.replace("SIZE", str(ctypes.sizeof(host.Problem)))
    run(code, BNCORE_EXECUTOR=name)


@needs_native
def test_the_interpreter_ends_while_threads_call():
    """Daemon threads are in the midst of calls; the workers are joined, and nothing hangs."""
    code = """
        import threading
        import time
        import numpy as np
        import bncore
        x = np.zeros((32, 64, 28, 28), np.float32)
        begun = threading.Barrier(4)

        def call():
            begun.wait()
            while True:
                bncore.batch_norm_train(x, n_threads=3)

        for _ in range(3):
            threading.Thread(target=call, daemon=True).start()
        begun.wait()
        time.sleep(0.05)
    """
    for _ in range(3):
        run(textwrap.dedent(code), BNCORE_EXECUTOR="own")
