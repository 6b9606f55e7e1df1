"""Wraps a command: what it prints and the exit code it ends with."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from cm3_dist.errors import BAD_INPUT, INTERRUPTED, LOST, InputError, Interrupted, LostRankError, OutOfMemoryError


def entry_point(main: Callable[[], Any]) -> Callable[[], None]:
    """Wraps a command's `main`: one line on stderr, exit code 2 for InputError, 69 for a lost rank, 75 for Interrupted.

    Rank 0 speaks for all, except where a rank's own memory ran out; of a lost rank speaks the first that is left.

    Any other exception is recorded for torchrun, which ends all ranks and shows the message of the first to fail.
    """

    @record
    def run() -> None:
        try:
            main()
        except InputError as error:
            if os.environ.get("RANK", "0") == "0" or isinstance(error, OutOfMemoryError):
                print(error.line, file=sys.stderr, flush=True)
            else:
                time.sleep(1)  # torchrun ends the other ranks as soon as one ends: rank 0 speaks first
            sys.exit(BAD_INPUT)
        except LostRankError as error:
            if error.speaks:
                print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(1)  # as above; and rank 0 may keep the store that the others are looking into
            sys.exit(LOST)
        except Interrupted as end:
            if os.environ.get("RANK", "0") == "0":
                print(end, file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    return run
