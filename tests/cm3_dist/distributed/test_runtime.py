"""Which device a rank gets, and who prints an error that only one rank has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import choose_device, distributed, refuse_shared_gpu
from cm3_dist.errors import BAD_INPUT, AgreedError, InputError
from tests.support.ranks import run_ranks

PATIENCE = 300  # seconds; only a guard against hanging


@pytest.mark.parametrize(
    ("gpus", "asked", "local_rank", "local_world", "expected"),
    [
        (0, "auto", 1, 2, "cpu"),
        (2, "cpu", 1, 2, "cpu"),
        (2, "auto", 1, 2, "cuda:1"),
        (1, "auto", 0, 1, "cuda:0"),
        (1, "cuda", 3, 8, "cuda:0"),  # each process sees its own GPU only
        (0, "cuda", 0, 1, "device.no-gpu"),
        (2, "auto", 0, 3, "device.too-few-gpus"),
    ],
)
def test_device_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, gpus: int, asked: str, local_rank: int, local_world: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    machine = Machine.model_validate({"device": asked})
    try:
        found = str(choose_device(machine, local_rank, local_world))
    except InputError as error:
        found = error.code
    assert found == expected


def _share_a_gpu() -> str:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        refuse_shared_gpu(runtime.control, f"GPU-{runtime.rank}")
        with pytest.raises(AgreedError) as caught:
            refuse_shared_gpu(runtime.control, "GPU-0")
        return caught.value.code


def test_two_ranks_cannot_share_a_gpu() -> None:
    assert run_ranks(_share_a_gpu, 2) == ["device.too-few-gpus"] * 2


FAILS = """
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

def fail():
    raise InputError("wrong here", "test.wrong")

def main():
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        ACTION

entry_point(main)()
"""
AGREED = "agree_on_error(runtime, fail if runtime.rank == 1 else lambda: None)"
ALONE = "fail() if runtime.rank == 1 else None"


@pytest.mark.parametrize(("action", "printing"), [(AGREED, 0), (ALONE, 1)], ids=["agreed", "alone"])
def test_who_prints_an_error_of_rank_1(action: str, printing: int) -> None:
    """The ranks are started one by one: torchrun would end the others."""
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", FAILS.replace("ACTION", action)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert ranks[1].returncode == BAD_INPUT
    assert "error[test.wrong]: wrong here" in errors[printing]
    assert "error[test.wrong]" not in errors[1 - printing]


def test_a_rank_that_fails_before_it_joins_says_so() -> None:
    variables = {"WORLD_SIZE": "2", "RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "cm3_dist.train", "data.path=absent", "machine.device=cuda"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == BAD_INPUT
    assert done.stderr.startswith("error[device.no-gpu]: ")
