"""How XLA compiles in the tests: fast. Only values matter in them, and compiling takes longest."""

import contextlib
import os
import threading
from typing import Any

from jaxlib.version import __version_info__

# Small programs are not cut into parts for threads of their own: a twelfth of the tests' time.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
if __version_info__ < (0, 11):  # later ones have no others
    FAST += f" {OLD_EMITTERS}"


def flags(devices: int) -> str:
    """For XLA_FLAGS: with so many CPU devices."""
    return f"{FAST} --xla_force_host_platform_device_count={devices}"


def platforms(asked: str) -> str:
    """For JAX_PLATFORMS: callbacks on the host need a CPU device beside those of an accelerator."""
    return asked if "cpu" in asked.split(",") else f"{asked},cpu"


def reuse_contexts() -> None:
    """As later versions of jax do: ten programs of a thread are lowered in one context of MLIR.

    Making one loads all dialects, two milliseconds: an eighth of the time of these tests. What is
    lowered while another program is has one of its own.
    """
    from jax._src.interpreters import mlir

    if hasattr(mlir, "_thread_local_context"):
        return
    made, last = mlir.make_ir_context, threading.local()

    def context() -> Any:
        with contextlib.suppress(ValueError):
            if mlir.ir.Context.current is not None:
                return made()
        last.count = getattr(last, "count", 0) + 1
        if last.count % 10 == 1:
            last.context = made()
        return last.context

    mlir.make_ir_context = context


def exact() -> None:
    """On accelerators products of all digits, and every rounding to half precision."""
    import jax

    if os.environ.get("JAX_PLATFORMS") != "cpu":
        os.environ["XLA_FLAGS"] += " --xla_allow_excess_precision=false"
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # of processes that tests start
        jax.config.update("jax_default_matmul_precision", "highest")
