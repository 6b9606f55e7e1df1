"""Runs a function on several ranks that have torchrun's environment."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

Result = TypeVar("Result")
TIMEOUT = 600  # seconds; a rank still running then prints its threads' tracebacks, and all ranks end
# Imported once per test process: ranks are forked from a server that has these, and start in a moment.
PRELOADED = ["cm3_dist.train", "cm3_dist.training.trainer", "cm3_dist.training.trainer_state", "tests.support.small"]


def run_ranks(function: Callable[..., Result], world_size: int, *args: Any) -> list[Result]:
    """Calls a module-level function in `world_size` new processes with torchrun's environment.

    The function joins its process group itself (`init_process_group("gloo")`, or `distributed`).
    Returns each rank's result. If one rank fails, all end and its traceback is part of the error raised here; a rank
    that hangs is ended after TIMEOUT, with its threads' tracebacks on stderr.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(),
    )
    results = elastic_launch(config, _recorded)(dict(os.environ), function, *args)
    return [results[rank] for rank in range(world_size)]


@record
def _recorded(environment: dict[str, str], function: Callable[..., Result], *args: Any) -> Result:
    for name in environment.keys() - os.environ.keys():  # set since the server started
        os.environ[name] = environment[name]
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    try:
        return function(*args)
    finally:
        faulthandler.cancel_dump_traceback_later()
