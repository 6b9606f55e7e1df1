"""Runs DGL's METIS in a separate process, where it returns the same parts every time.

As DGL calls it, METIS reads uninitialised memory to drop edges, and takes random numbers from the C library's `rand`,
which all threads of a process share. The parts would depend on what the process did before: of 300 calls in one process
179 agreed; over fresh processes hardly two. In this process no other thread draws random numbers, and glibc fills new
memory with one byte. Memory, output and working directory are separate too, and the caller does not import torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from partition.errors import InputError, ResourceError, one_line
from partition.files import DISK_ERRORS, naming

PR_SET_PDEATHSIG = 1  # Linux: signal to send when the parent ends
# glibc sets every byte of new memory; tcache is off because its blocks would not be set.
FILLED = "glibc.malloc.perturb=85:glibc.malloc.tcache_count=0"
_REMEDY = "; use --method stream, which holds less"


def metis_parts(
    user: np.ndarray, item: np.ndarray, users: int, items: int, parts: int, scratch: Path | None = None
) -> np.ndarray:
    """[users + items] int32 part of every node of the graph with edges in both directions, users first.

    Args:
        user, item: [E] int64 ends of the interactions, unique pairs; every node has one.
        users, items: number of users and items.
        parts: P.
        scratch: folder for temporary files; by default that of the system.

    Raises:
        InputError: METIS failed.
        ResourceError: its process ended, most likely for lack of memory.
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="metis.", dir=scratch) as name:
        folder = Path(name).resolve()  # the other process works in it
        np.save(folder / "user.npy", user)
        np.save(folder / "item.npy", item)
        _ask({"folder": str(folder), "users": users, "items": items, "parts": parts})
        part: np.ndarray = np.load(folder / "parts.npy", allow_pickle=False)
        return part


@cache
def _server(asking: int) -> subprocess.Popen[str]:
    """The METIS process, which serves until this one ends: importing DGL takes longer than cutting a small graph.

    Args:
        asking: id of this process; a forked child gets a server of its own.
    """
    tunables, paths = os.environ.get("GLIBC_TUNABLES", ""), os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ,
        "GLIBC_TUNABLES": ":".join(filter(None, [tunables, FILLED])),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), paths])),
        "OMP_NUM_THREADS": "1",  # more threads would order the edges of the graph at random
        "DGLBACKEND": "pytorch",  # otherwise the import of dgl writes a file into the home folder
    }
    command = [sys.executable, "-m", "partition.cut.metis", str(asking)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)


def _ask(task: dict[str, object]) -> None:
    """Has a graph cut by the METIS process; raises what `metis_parts` does."""
    if _server(os.getpid()).poll() is not None:  # killed while it was idle
        _server.cache_clear()
    server = _server(os.getpid())
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps(task) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    except BaseException as error:  # including Ctrl-C: a late answer must not be taken for the next one
        server.kill()
        _server.cache_clear()
        if not isinstance(error, BrokenPipeError):
            raise
        answer = ""
    if answer:
        failure, number = json.loads(answer)
        if number in DISK_ERRORS:
            raise OSError(number, os.strerror(number), task["folder"])
        if failure:
            raise InputError(f"--method metis: METIS failed: {failure}{_REMEDY}", "parts.metis")
        return
    _server.cache_clear()
    code = server.wait()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise ResourceError(f"--method metis: METIS {how}{_REMEDY}", "parts.metis")


def main() -> None:
    """Runs in the METIS process: cuts the graphs named on standard input until it closes."""
    if sys.platform == "linux":  # when the asking process is killed, this one ends too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):
            return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # METIS and DGL print
    for line in sys.stdin:
        task = json.loads(line)
        failure, number = "", None
        folder = Path(task["folder"])
        try:
            with naming(folder, folder):
                _cut(folder, task["users"], task["items"], task["parts"])
        except Exception as error:  # reported by the asking process
            failure, number = one_line(error)[:300], getattr(error, "errno", None)
        os.chdir("/")
        answers.write(json.dumps([failure, number]) + "\n")
        answers.flush()


def _cut(folder: Path, users: int, items: int, parts: int) -> None:
    import dgl
    import torch

    os.chdir(folder)  # METIS writes the coarser levels of a large graph into the working directory
    user, item = (torch.from_numpy(np.load(f"{name}.npy", allow_pickle=False)) for name in ("user", "item"))
    item += users
    graph = dgl.graph((torch.cat([user, item]), torch.cat([item, user])), num_nodes=users + items)
    del user, item
    kinds = torch.cat([torch.zeros(users, dtype=torch.int64), torch.ones(items, dtype=torch.int64)])
    part = dgl.metis_partition_assignment(graph, parts, balance_ntypes=kinds, balance_edges=True, mode="recursive")
    np.save("parts.npy", part.numpy().astype(np.int32))


if __name__ == "__main__":
    main()
