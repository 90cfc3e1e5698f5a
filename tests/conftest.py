"""What the whole suite runs on: eight simulated CPU devices, and a folder of compiled programs of its own.

A computation without a mesh runs on the first device alone. Child processes that tests start have one device, as a
user's process has.

Nearly all of the suite's time goes into compiling programs that run for milliseconds, so they are compiled with little
optimisation, in one piece, without notes of where each operation was called, and loops by the older of XLA's two
emitters, which needs less than half the time. Tests of what the compiler makes (memory, collectives) are marked
`optimised`: they see all optimisations, if not the newer emitter. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the
environment all tests run what a user's process runs, and take longer.

With JAXALIGN_TEST_PLATFORM=cuda tests run on the GPU at hand, with exact float32 products: the contract suite and the
tests of losses, gradients, models and decoding are made for it. Tests marked `devices(n)` skip where there are fewer,
and what needs a GPU skips without one.
"""

import contextlib
import ctypes
import gc
import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXALIGN_TEST_PLATFORM", "cpu")  # read when jax is imported
if os.environ["JAX_PLATFORMS"] != "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # for the processes beside this one
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0":
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import jax
import pytest

# A loaded machine is slow now and then, which is no failure.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    # Half of the suite's time is compilation. `pytest --cache-clear` empties the folder.
    if getattr(config, "cache", None) is None:
        os.environ["JAXALIGN_CACHE"] = "off"
        return
    folder = str(config.cache.mkdir("jax"))
    os.environ["JAXALIGN_CACHE"] = folder  # never the user's own, in child processes either
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # some containers set it, and then every child parses all again
        os.environ["PYTHONPYCACHEPREFIX"] = str(config.cache.mkdir("bytecode"))
    # Several workers share the folder, and a killed run may leave half an entry: it is compiled again.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning")


def pytest_runtest_setup(item):
    needed = max((marker.args[0] for marker in item.iter_markers("devices")), default=1)
    if jax.device_count() < needed:
        pytest.skip(f"needs {needed} devices")


@pytest.fixture(autouse=True)
def optimisation(request, monkeypatch):
    """Full for tests marked `optimised`, here and in child processes."""
    if request.node.get_closest_marker("optimised") is None:
        yield
        return
    usual = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", usual != "0")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_do_not_pile_up():
    """Thousands of tests compile thousands of programs, which live as long as the process."""
    yield
    if _resident_bytes() > 3e9:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or all later modules would clear again


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
