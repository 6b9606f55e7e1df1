"""The stand-ins during TorchRec's import behave like what they stand for, and leave no trace."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import cm3_dist.checkpoint, cm3_dist.monitor, cm3_dist.report, cm3_dist.state, cm3_dist.trainer  # as a run does
heavy = {"dgl", "tensordict", "torch._dynamo", "sympy", "matplotlib", "pandas", "faiss"} & set(sys.modules)
assert not heavy, heavy
import torch
from torchrec.distributed import embedding
assert not isinstance(torch.zeros(1), embedding.TensorDict)
import tensordict
assert isinstance(tensordict.TensorDict({}, []), embedding.TensorDict)
assert not isinstance(torch.zeros(1), embedding.TensorDict)
from fbgemm_gpu import sparse_ops
assert sparse_ops.guard_or_true(False) is False
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_true
assert guard_or_true is not sparse_ops.guard_or_true
print("whole")
"""


def test_trainer_imports_nothing_it_does_not_use() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "whole", result.stderr


def test_settings_and_help_import_no_torch() -> None:
    program = "import sys, cm3_dist.config, partition.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
