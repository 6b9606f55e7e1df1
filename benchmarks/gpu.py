"""Everything that only an NVIDIA GPU can show, in one command::

    python -m pytest -m gpu tests/cm3_dist/training/test_gpu.py tests/cm3_dist/kernels/test_triton.py
    python -m benchmarks.gpu --data ../shared/data/baby --json gpu.json

Both Triton kernels against the bandwidth and the matrix rate that this GPU reaches, a step and its phases, and an epoch
against the plain implementation on the same GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import reference
from benchmarks.against_plain import PLAIN_STEPS, plain_model, run_epoch, settings_for
from benchmarks.timing import Result, prepare_if_missing, report, run_command
from cm3_dist.distributed.runtime import distributed
from cm3_dist.kernels.pair_sum import Rows, pair_sum
from cm3_dist.kernels.pair_sum_triton import triton_pair_sum
from cm3_dist.kernels.spmm_triton import triton_spmm
from cm3_dist.monitoring.phase_timer import PhaseTimer
from cm3_dist.pipeline.step_plan import StepPlan
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError

REPEATS = 20
WARM_EPOCHS, EPOCHS = 2, 3


def device_seconds(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds of device time a call, over `repeats` calls after three that do not count."""
    for _ in range(3):
        action()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def copy_rate() -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / device_seconds(lambda: target.copy_(source))


def matrix_rate() -> float:
    """Multiply-adds a second, times two, of a large bfloat16 product on tensor cores."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / device_seconds(lambda: a @ a)


def spmm(bandwidth: float) -> Result:
    """The sparse product on a graph too large for the cache: bytes a second over those of a copy."""
    nodes, edges, width = 1_000_000, 16_000_000, 192
    indptr = torch.arange(0, edges + 1, edges // nodes, device="cuda")
    indices = torch.randint(nodes, (edges,), device="cuda")
    values, x = torch.rand(edges, device="cuda"), torch.randn(nodes, width, device="cuda")
    mine = device_seconds(lambda: triton_spmm(indptr, indices, values, x))
    bag = device_seconds(
        lambda: torch.nn.functional.embedding_bag(
            indices, x, indptr, mode="sum", per_sample_weights=values, include_last_offset=True
        )
    )
    moved = edges * (width * 4 + 12) + nodes * width * 4
    share = moved / mine / bandwidth
    detail = (
        f"{mine * 1e3:.2f} ms, {moved / mine / 1e9:.0f} of {bandwidth / 1e9:.0f} GB/s; embedding_bag {bag * 1e3:.2f} ms"
    )
    return Result("SpMM, share of copy bandwidth", share, 0.6, detail)


def pairs(rate: float) -> Result:
    """The pair sum of 65,536 calibrated rows: multiply-adds a second over those of a product."""
    count, width, dim = 65_536, 192, 64
    x = torch.nn.functional.normalize(torch.randn(count, width, device="cuda"), dim=1)
    s = torch.nn.functional.normalize(torch.randn(count, dim, device="cuda"), dim=1)
    rows = Rows(x, s, torch.ones(count, device="cuda"))
    mine = device_seconds(lambda: triton_pair_sum(rows, rows, 0, 2.0, (0.0, 1.0)), 5)
    blocked = device_seconds(lambda: pair_sum(rows, rows, 0, 2.0, (0.0, 1.0)), 2)
    # One product for exponents and one for gradients, each of three bfloat16 ones to be as exact as float32.
    share = 3 * 2 * 2 * count**2 * (width + dim) / mine / rate
    detail = f"{mine * 1e3:.1f} ms of {rate / 1e12:.0f} TFLOP/s; blocked torch {blocked * 1e3:.1f} ms"
    return Result("pair sums, share of matrix rate", share, 0.6, detail)


def epochs(prepared: Path) -> list[Result]:
    """An epoch with either kind of kernels against the plain implementation, and the phases of a step."""
    model, optimizer = plain_model(prepared)
    model = model.to("cuda")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    reference.train_epoch(model, optimizer, steps=2)
    begin = time.perf_counter()
    reference.train_epoch(model, optimizer, steps=PLAIN_STEPS)
    a_step = (time.perf_counter() - begin) / PLAIN_STEPS
    results = []
    for kernels, record in (("torch", False), ("torch", True), ("triton", False), ("triton", True)):
        machine = ("machine.device=cuda", f"machine.kernels={kernels}", f"machine.record={record}")
        settings = settings_for(prepared, 2, *machine)
        with distributed(settings.machine) as runtime:
            trainer, timer = Trainer(settings, runtime), PhaseTimer()
            for epoch in range(WARM_EPOCHS):
                run_epoch(trainer, epoch)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for epoch in range(WARM_EPOCHS, WARM_EPOCHS + EPOCHS):
                run_epoch(trainer, epoch)
            torch.cuda.synchronize()
            mine = (time.perf_counter() - begin) / EPOCHS
            plans = list(trainer.planner.plans(0, 0, trainer.batches.steps))
            device = device_seconds(partial(_steps, trainer, plans), 2) / len(plans)
            for plan in plans:
                trainer.step(plan, timer)
            torch.cuda.synchronize()
            phases = ", ".join(f"{name} {spent / len(plans) * 1e3:.1f}" for name, spent in timer.total.items())
        name = f"epoch, {kernels} kernels, {'recorded' if record else 'launched one by one'}"
        detail = f"{mine:.2f} s; a step {device * 1e3:.1f} ms without planning; host, ms: {phases}"
        results.append(Result(name, a_step * len(plans) / mine, 10, detail))
    return results


def _steps(trainer: Trainer, plans: list[StepPlan]) -> None:
    for plan in plans:
        trainer.step(plan)


def main(
    data: Annotated[Path, typer.Option(help="raw data set")] = Path("../shared/data/baby"),
    prepared: Annotated[Path, typer.Option(help="where it is, or will be, prepared")] = Path("prepared/baby"),
    output: Annotated[Path | None, typer.Option("--json", help="write the table there as JSON too")] = None,
) -> None:
    """Measure kernels, steps and epochs on this machine's GPU."""
    if not torch.cuda.is_available():
        raise InputError("torch.cuda.is_available() is False: benchmarks.gpu needs an NVIDIA GPU and `make cuda`")
    prepare_if_missing(data, prepared)
    results = [spmm(copy_rate()), pairs(matrix_rate()), *epochs(prepared)]
    report(results, torch.cuda.get_device_name(), output)


if __name__ == "__main__":
    run_command(main)
