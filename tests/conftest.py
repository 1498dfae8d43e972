"""Every test sees eight virtual CPU devices, and no silent broadcasting between ranks."""

import gc
import os
from importlib.metadata import version

# eight devices; and compilation without costly optimisation, which takes 2/5 off the time of a first run
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # its older emitters compile random numbers in half the time; 0.12 has none
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# A process keeps millions of objects, every program that it compiled: walking through them took a tenth of its time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish():
    gc.freeze()  # modules and tests live until the end
