"""XLA's flags in tests: most of their time is compiling, so the compiler is told to hurry.

The step of a small nano compiles in 6 s of CPU time instead of 35. The default flags are left to
`cotir verify`, the first command and the benchmarks.
"""

from importlib.metadata import version

HURRY = "--xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the program
    HURRY += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int, level: int = 0) -> str:
    """The flags for this many simulated CPU devices.

    At level 1 the step takes 16 s to compile, and texts a third of the time to embed: for processes
    that find their programs in the cache.
    """
    return (
        f"{HURRY} --xla_backend_optimization_level={level} "
        f"--xla_force_host_platform_device_count={devices}"
    )
