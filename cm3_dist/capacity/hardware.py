"""The hardware that a run is planned for. Rates are what programs reach, not what data sheets promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB, GIGA, TERA = 2**30, 1e9, 1e12
# CPU: a rank of two cores, measured (docs/performance.md); gloo over loopback. GPU: one H100 or H200 of a machine of
# eight, a 200 Gb/s port each: 4.2 TB/s of copies measured, matrix products in float32 at half of 67 TFLOP/s.
DEFAULTS: dict[str, dict[str, float]] = {
    "cpu": {"memory": 12, "host_memory": 12, "link": 1, "compute": 0.12, "copy": 25},
    "cuda": {"memory": 80, "host_memory": 128, "link": 20, "compute": 30, "copy": 3000},
}
UNITS = {"memory": GIB, "host_memory": GIB, "link": GIGA, "compute": TERA, "copy": GIGA}


@dataclass(frozen=True)
class Hardware:
    """One rank's share of a cluster: sizes in bytes, rates per second."""

    ranks: int
    device: Literal["cpu", "cuda"]
    memory: float  # of the device; on a CPU the same as `host_memory`
    host_memory: float
    link: float  # bytes sent to other ranks
    compute: float  # float32 operations
    copy: float  # bytes of memory read and written
    disk: float  # bytes of disk for prepared data and checkpoints, over all ranks

    @staticmethod
    def of(ranks: int, device: Literal["cpu", "cuda"], disk: float, given: Mapping[str, float]) -> Hardware:
        """Sizes in GiB, rates in GB/s and TFLOP/s, as on the command line; defaults for what is not given."""
        rates = DEFAULTS[device] | dict(given)
        if device == "cpu":
            rates["host_memory"] = rates["memory"] = rates["memory" if "memory" in given else "host_memory"]
        return Hardware(ranks, device, disk=disk * GIB, **{name: rates[name] * unit for name, unit in UNITS.items()})
