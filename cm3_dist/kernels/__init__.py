"""The inner loops that the program's speed hangs on, one file a loop and kind of device."""

from __future__ import annotations

from typing import Literal

from cm3_dist.errors import InputError

Kernels = Literal["torch", "triton"]
_chosen: Kernels = "torch"


def choose_kernels(kernels: Kernels, device: str) -> None:
    """Sets, for this process, whether torch's operators or the Triton kernels do the inner loops.

    Raises:
        InputError: Triton without a GPU.
    """
    global _chosen
    if kernels == "triton" and device != "cuda":
        raise InputError("machine.kernels = 'triton': its kernels need an NVIDIA GPU; use machine.kernels=torch")
    _chosen = kernels


def chosen_kernels() -> Kernels:
    """What `choose_kernels` set last."""
    return _chosen
