"""The peak of a process's own memory, seen by a process of its own: `python memory_watch.py PID`.

Anonymous memory only: pages of mapped files (features, libraries) are the machine's to take back. A thread of the
watched process would miss what happens while others hold Python's lock.
"""

from __future__ import annotations

import sys
import time


def anonymous_mib(pid: int) -> float | None:
    """MiB of a process's anonymous memory now; None when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024
    except (OSError, StopIteration):
        return None


def main() -> None:
    """Prints the peak since the last line on stdin, for each line; ends with the process."""
    import select

    pid, peak = int(sys.argv[1]), 0.0
    while (now := anonymous_mib(pid)) is not None:
        peak = max(peak, now)
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                return
            print(peak, flush=True)
            peak = anonymous_mib(pid) or 0.0
        time.sleep(0.002)


if __name__ == "__main__":
    main()
