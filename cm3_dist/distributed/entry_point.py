"""Wraps a command: what it prints and the exit code it ends with."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from cm3_dist.errors import BAD_INPUT, INTERRUPTED, LOST, AgreedError, InputError, Interrupted, LostRankError

# torchrun ends all ranks of a machine as soon as one of them ends: the rank that prints has to come first.
_GRACE = 1.0  # seconds


def entry_point(main: Callable[[], Any]) -> Callable[[], None]:
    """Wraps `main`: one line on stderr and exit code 2 for InputError, 69 for a lost rank, 75 if interrupted.

    Rank 0 prints an error that all ranks agreed on; any other InputError is printed by each rank that raised it, a lost
    rank by the first surviving one. Other exceptions are recorded for torchrun, which ends all ranks and shows the
    traceback of the first that failed.
    """

    @record
    def run() -> None:
        rank_0 = os.environ.get("RANK", "0") == "0"
        try:
            main()
        except InputError as error:
            if not rank_0:
                time.sleep(_GRACE)  # if rank 0 failed too, most likely of the same, it is the one that prints
            if rank_0 or not isinstance(error, AgreedError):
                print(error.line, file=sys.stderr, flush=True)
            sys.exit(BAD_INPUT)
        except LostRankError as error:
            if error.is_reporter:
                print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(_GRACE)  # rank 0 may also hold the store that the others are still reading
            _leave_without_cleanup(LOST)
        except Interrupted as end:
            if rank_0:
                print(end, file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    return run


def _leave_without_cleanup(code: int) -> None:
    """Exits; with a GPU by `os._exit`, because NCCL's destructors would wait for kernels that the lost rank hangs."""
    if torch.cuda.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
