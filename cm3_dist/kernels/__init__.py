"""The inner loops that take most of a step's time, one file per loop and kind of device."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cm3_dist.errors import AgreedError

Kernels: TypeAlias = Literal["torch", "triton"]


def check_kernels(kernels: Kernels, device: str) -> Kernels:
    """Returns `kernels` if they run on `device` ("cpu" or "cuda").

    Raises:
        InputError: Triton without a GPU.
    """
    if kernels == "triton" and device != "cuda":
        raise AgreedError(
            "machine.kernels = 'triton': its kernels need an NVIDIA GPU; use machine.kernels=torch",
            "device.no-gpu",
        )
    return kernels
