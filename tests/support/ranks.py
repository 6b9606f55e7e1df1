"""Runs a function on several ranks, started the way torchrun starts them."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

Result = TypeVar("Result")
TIMEOUT = 600  # seconds; a rank still running then shows where it stands, and ends all


def run_ranks(function: Callable[..., Result], world_size: int, *args: Any) -> list[Result]:
    """Calls a module-level function in `world_size` new processes with torchrun's environment.

    The function joins its process group itself (`init_process_group("gloo")`, or `distributed`).
    Returns what each rank returned. When one rank fails all end, and its traceback is in the error raised here; one
    that hangs is ended after TIMEOUT, its threads' tracebacks on stderr.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(),
    )
    results = elastic_launch(config, _recorded)(TIMEOUT, function, *args)
    return [results[rank] for rank in range(world_size)]


@record
def _recorded(timeout: float, function: Callable[..., Result], *args: Any) -> Result:
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return function(*args)
    finally:
        faulthandler.cancel_dump_traceback_later()
