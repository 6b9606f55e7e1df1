"""Small real tasks, each in a process of its own, because a broken library may end its process.

`python -m cm3_dist.doctor.probes NAME FOLDER DEVICE PARTS` prints one line: what was done, after DONE, or what failed,
after FAILED. `collective` and `lookup` run on several ranks, under torchrun.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from cm3_dist.doctor.probe_runner import DONE, FAILED

USERS, ITEMS, INTERACTIONS = 120, 80, 1_600


def gpu(folder: Path, device: str, parts: int) -> str:
    """Names the GPUs as torch sees them."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return f"torch {torch.__version__} sees no GPU"
    facts = []
    for index in range(count):
        seen = torch.cuda.get_device_properties(index)
        facts.append(f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, capability {seen.major}.{seen.minor}")
    x = torch.ones(256, 256, device="cuda")
    assert float((x @ x).sum()) == 256**3, "a matrix product on the GPU is wrong"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    kinds = "; ".join(f"{facts.count(fact)} x {fact}" for fact in dict.fromkeys(facts))
    return f"{count} GPU(s): {kinds}; CUDA {torch.version.cuda}, NCCL {nccl}"


def partition(folder: Path, device: str, parts: int) -> str:
    """Generates data, prepares it with METIS and verifies the result."""
    from partition.build import build
    from partition.folder.verify import verify
    from partition.options import BuildOptions
    from partition.synthetic.options import SyntheticOptions, Width
    from partition.synthetic.planted import synthesise

    options = SyntheticOptions(
        output=folder / "data",
        users=USERS,
        items=ITEMS,
        interactions=INTERACTIONS,
        clusters=4,
        modalities={"image": Width(8), "text": Width(4)},
    )
    synthesise(options)
    build(BuildOptions(input=[str(folder / "data")], output=folder / "prepared", parts=parts))
    manifest = verify(folder / "prepared")
    return f"{manifest.train:,} interactions cut into {manifest.num_parts} parts by METIS, and verified"


def neighbours(folder: Path, device: str, parts: int) -> str:
    """Samples neighbours with DGL; fails if its random stream is not the one from which runs are repeated."""
    import numpy as np

    from cm3_dist.graph.part_graph import SIMILAR, PartGraph
    from partition.folder.manifest import read_manifest

    manifest = read_manifest(folder / "prepared")
    graph = PartGraph(folder / "prepared", manifest, 0)
    offsets = np.arange(manifest.parts[0].items)
    edges = graph.sample(SIMILAR, offsets, 3, seed=1)
    return f"DGL sampled {len(edges.source)} neighbours of {len(offsets)} items, reproducibly"


def collective(folder: Path, device: str, parts: int) -> str:
    """Sums a tensor over the ranks and exchanges rows, with the backend of a run on `device`."""
    import torch
    import torch.distributed as dist

    from cm3_dist.config.settings import Machine
    from cm3_dist.distributed.runtime import distributed

    with distributed(Machine(device=device, timeout=60)) as runtime:  # type: ignore[arg-type]
        total = torch.ones(1, device=runtime.device)
        dist.all_reduce(total, group=runtime.group)
        assert int(total) == runtime.world_size, f"all_reduce over {runtime.world_size} ranks gave {float(total)}"
        sent = torch.full((runtime.world_size,), runtime.rank, device=runtime.device)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=runtime.group)
        assert received.tolist() == list(range(runtime.world_size)), f"all_to_all_single gave {received.tolist()}"
        return f"all_reduce and all_to_all_single over {runtime.world_size} rank(s), {dist.get_backend(runtime.group)}"


def lookup(folder: Path, device: str, parts: int) -> str:
    """Looks up rows of all ranks in a sharded TorchRec table and checks FBGEMM's fused update of them."""
    import torch

    from cm3_dist.config.settings import Machine, Settings
    from cm3_dist.distributed.runtime import distributed
    from cm3_dist.graph.shard import own_parts
    from cm3_dist.model.dimensions import CHANNELS
    from cm3_dist.model.embedding_tables import EmbeddingTables
    from partition.folder.manifest import read_manifest

    machine, root = Machine(device=device, timeout=60), folder / "prepared"  # type: ignore[arg-type]
    manifest = read_manifest(root)
    with distributed(machine) as runtime:
        own = own_parts(manifest, root, runtime.rank, runtime.world_size)
        settings = Settings.model_validate({"model": {"dim": 8}, "tables": {"name": "sgd", "lr": 0.5}})
        tables = EmbeddingTables(manifest, own, settings, runtime)
        # Every value of row r is r. All ranks look up every third row of the whole table, and each rank's gradient is 1
        # everywhere, so the update has to subtract 0.5 per rank.
        number = torch.arange(own.start * manifest.user_stride, own.stop * manifest.user_stride, device=runtime.device)
        local = tables.local_state()[CHANNELS]
        local.copy_(number.unsqueeze(1).expand_as(local))
        wanted = torch.arange(0, manifest.user_rows, 3, device=runtime.device)
        rows = tables.model({CHANNELS: wanted})[CHANNELS]
        expected = wanted.unsqueeze(1).expand_as(rows).to(rows)
        assert torch.equal(rows.detach(), expected), "TorchRec's lookup returns other rows than the table's"
        rows.sum().backward()
        step = torch.where(number % 3 == 0, 0.5 * runtime.world_size, 0.0)
        updated = (number - step).unsqueeze(1).expand_as(local).to(local)
        torch.testing.assert_close(local, updated, msg="FBGEMM's fused update of the table is wrong")
        return f"{len(wanted)} rows x {rows.shape[1]} of {runtime.world_size} rank(s), looked up and updated"


PROBES: dict[str, Callable[[Path, str, int], str]] = {
    probe.__name__: probe for probe in (gpu, partition, neighbours, collective, lookup)
}


def main() -> None:
    """Runs the probe that is named by the first argument."""
    name, folder, device, parts = sys.argv[1:]
    try:
        done = PROBES[name](Path(folder), device, int(parts))
    except Exception as error:
        text = " ".join(str(error).split())
        print(f"{FAILED}{type(error).__name__}: {text[:400]}", file=sys.stderr, flush=True)
        sys.exit(1)
    if os.environ.get("RANK", "0") == "0":
        print(DONE + done, flush=True)


if __name__ == "__main__":
    main()
