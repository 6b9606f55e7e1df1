"""The machine that a run is planned for. Rates are what programs reach, not what data sheets promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB, GIGA, TERA = 2**30, 1e9, 1e12


@dataclass(frozen=True)
class Machine:
    """One rank's share of a cluster: sizes in bytes, rates a second."""

    ranks: int
    device: Literal["cpu", "cuda"]
    memory: float  # of the device; for a CPU the same as `host_memory`
    host_memory: float
    link: float  # bytes between ranks, each way
    compute: float  # float32 operations
    copy: float  # bytes of memory read and written
    disk: float  # bytes of local or shared disk for prepared data and checkpoints, over all ranks


@dataclass(frozen=True)
class Rates:
    """What stands in where the command line says nothing."""

    memory: float
    host_memory: float
    link: float
    compute: float
    copy: float


# CPU: a rank of two cores, measured (docs/performance.md); gloo over loopback. GPU: one H100 or H200 of a machine of
# eight, a 200 Gb/s port each: 4.2 TB/s of copies measured, matrix products in float32 at half of 67 TFLOP/s.
DEFAULTS = {
    "cpu": Rates(12 * GIB, 12 * GIB, 1 * GIGA, 0.12 * TERA, 25 * GIGA),
    "cuda": Rates(80 * GIB, 128 * GIB, 20 * GIGA, 30 * TERA, 3000 * GIGA),
}
# Seconds that one thread takes to plan: a drawn edge of a sampled step, an item of an exact one, any step. Measured.
PLAN_EDGE, PLAN_ITEM, PLAN_STEP = 0.35e-6, 0.1e-6, 3e-3
LATENCY = 30e-6  # of a collective, seconds
KERNELS, LAUNCH = 370, 10e-6  # launched by the host in a step on a GPU, seconds each


def machine(ranks: int, device: Literal["cpu", "cuda"], disk: float, given: Mapping[str, float]) -> Machine:
    """Sizes in GiB, rates in GB/s and TFLOP/s, as on the command line; defaults for what is not given."""
    units = {"memory": GIB, "host_memory": GIB, "link": GIGA, "compute": TERA, "copy": GIGA}
    rates = vars(DEFAULTS[device]) | {name: value * units[name] for name, value in given.items()}
    if device == "cpu":
        rates["host_memory"] = rates["memory"] = rates["memory" if "memory" in given else "host_memory"]
    return Machine(ranks, device, disk=disk, **rates)
