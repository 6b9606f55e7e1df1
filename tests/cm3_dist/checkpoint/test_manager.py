from __future__ import annotations

import errno
import os
import pickle
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from partition.errors import InputError
from partition.files import sha256
from tests.support.nfs import nfs
from tests.support.ranks import run_ranks

PARTS, STRIDE = 4, 10
MACHINE = Machine(device="cpu", threads=1, timeout=60)


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    with distributed(MACHINE) as runtime:
        yield runtime


def sharded(runtime: Runtime, seed: int | None = None) -> dict[str, Tensor]:
    """Rows of the parts that this rank has, keyed by part; views of one table, as the trainer's are. No seed: zeros."""
    count = PARTS // runtime.world_size
    parts = range(runtime.rank * count, (runtime.rank + 1) * count)
    table, momentum = torch.zeros(count * STRIDE, 8), torch.zeros(count * STRIDE)
    if seed is not None:
        for index, part in enumerate(parts):
            random = torch.Generator().manual_seed(seed * PARTS + part)
            table[index * STRIDE : (index + 1) * STRIDE] = torch.randn(STRIDE, 8, generator=random)
            momentum[index * STRIDE : (index + 1) * STRIDE] = torch.rand(STRIDE, generator=random)
    both = zip(parts, table.chunk(count), momentum.chunk(count), strict=True)
    return {f"part-{p:05d}/{name}": rows for p, t, m in both for name, rows in (("table", t), ("momentum", m))}


def replicated(seed: int | None = None) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed or 0)
    values = {
        "weight": torch.randn(3, 5, generator=random),
        "step": torch.rand((), generator=random),
        "half": torch.randn(6, generator=random).bfloat16(),
        "count": torch.randint(100, (4,), generator=random),
        "nothing": torch.empty(0, 4),
    }
    return {name: torch.zeros_like(value) if seed is None else value for name, value in values.items()}


def save(checkpoints: CheckpointManager, runtime: Runtime, step: int, best: bool = False) -> Path:
    return checkpoints.save(sharded(runtime, step), replicated(step), {"step": step}, step=step, best=best)


def holds(checkpoints: CheckpointManager, runtime: Runtime, path: Path, seed: int) -> bool:
    """Whether the content of `path` is bit for bit what was saved with `seed`."""
    rows, rest = sharded(runtime), replicated()
    checkpoints.load(path, rows, rest)
    expected = {**sharded(runtime, seed), **replicated(seed)}
    return all(torch.equal(value, expected[name]) for name, value in {**rows, **rest}.items())


def smaller(runtime: Runtime, world_size: int) -> Runtime:
    """This process as one of fewer ranks. Every rank of `runtime` creates the groups; the first ones use them."""
    ranks = list(range(world_size))
    groups = [dist.new_group(ranks, backend="gloo") for _ in range(4)]
    return Runtime(runtime.rank, world_size, runtime.device, *groups)


def change_ranks(folder: Path) -> None:
    """Four processes act as 1, 2, 4 and 1 ranks: each loads what others saved and saves other values."""
    with distributed(MACHINE) as four:
        for step, runtime in enumerate([smaller(four, 1), smaller(four, 2), four, smaller(four, 1)], 1):
            if four.rank < runtime.world_size:
                checkpoints = CheckpointManager(folder, 9, runtime)
                if step > 1:
                    newest = checkpoints.newest()
                    assert newest is not None
                    assert checkpoints.peek(newest) == {"step": step - 1}
                    assert holds(checkpoints, runtime, newest, step - 1)
                save(checkpoints, runtime, step)
            dist.barrier()
        checkpoints = CheckpointManager(folder, 9, four)
        with pytest.raises(ValueError, match="two tensors of a checkpoint have the key 'same'"):
            checkpoints.save({"same": torch.zeros(1)}, {}, {}, step=9, best=False)
        if four.rank == 0:  # damage that is in one rank's share of the files
            (folder / "step-00000003" / "__1_0.distcp").write_bytes(b"x")
        dist.barrier()
        with refused("checkpoint.torn", "__1_0.distcp"):
            checkpoints.load(folder / "step-00000003", sharded(four), replicated())
        path = checkpoints.save(sharded(four, 5), {"wide": torch.ones(1_000_000)}, {}, step=5, best=False)
        assert sum(file.stat().st_size for file in path.iterdir()) < 4_100_000  # replicated: written once


def test_every_number_of_ranks_loads_what_another_saved(tmp_path: Path) -> None:
    run_ranks(change_ranks, 4, tmp_path)
    assert [len(list(path.glob("*.distcp"))) for path in sorted(tmp_path.glob("step-*"))] == [1, 2, 4, 1, 4]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    for step in range(1, 7):
        save(checkpoints, alone, step, best=step in (1, 3))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["best", "latest", "step-00000003", "step-00000005", "step-00000006"]
    assert (tmp_path / "best").read_text() == "step-00000003\n"
    assert (tmp_path / "latest").read_text() == "step-00000006\n"
    assert checkpoints.best() == tmp_path / "step-00000003"
    assert holds(checkpoints, alone, tmp_path / "step-00000003", 3)


def test_open_files_on_nfs_are_no_failure(tmp_path: Path, alone: Runtime) -> None:
    """A checkpoint that is pruned, or saved again, while a process reads it."""
    checkpoints = CheckpointManager(tmp_path, 1, alone)
    with nfs(lambda name: name.endswith(".distcp")):
        for step in (1, 2, 2, 3):
            save(checkpoints, alone, step)
    assert [path.name for path in tmp_path.glob("step-*") if not path.suffix] == ["step-00000003"]
    assert holds(checkpoints, alone, tmp_path / "step-00000003", 3)
    save(checkpoints, alone, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000004"]


def test_a_run_that_resumed_from_an_earlier_step_deletes_later_ones(tmp_path: Path, alone: Runtime) -> None:
    for step in (2, 4, 6, 8):
        save(CheckpointManager(tmp_path, 4, alone), alone, step, best=step != 8)
    (tmp_path / "latest").write_text("step-00000002\n")  # as a user might
    checkpoints = CheckpointManager(tmp_path, 1, alone)
    assert checkpoints.newest() == tmp_path / "step-00000002"
    save(checkpoints, alone, 5)
    assert checkpoints.newest() == tmp_path / "step-00000005"
    assert checkpoints.best() == tmp_path / "step-00000002"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["best", "latest", "step-00000002", "step-00000005"]


@contextmanager
def refused(code: str, named: str) -> Iterator[None]:
    """Expects an InputError with this code whose message contains `named`."""
    with pytest.raises(InputError) as error:
        yield
    assert error.value.code == code
    assert named in str(error.value)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


@pytest.mark.parametrize("moment", ["tensors", ".metadata", "progress.json", "step-00000002", "latest", "best"])
def test_an_interrupted_save_changes_nothing(
    tmp_path: Path, alone: Runtime, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    first = save(checkpoints, alone, 1, best=True)
    rename = Path.rename

    def killed(*_: object) -> None:
        raise Killed

    def kill_before(self: Path, target: Path) -> Path:
        if target.name == moment:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill_before)
        if moment == "tensors":
            patch.setattr(FileSystemWriter, "write_data", killed)
        with pytest.raises((Killed, CheckpointException)):
            save(checkpoints, alone, 2, best=True)
    assert any("step-00000002" in path.name for path in tmp_path.iterdir())
    last, seed = (tmp_path / "step-00000002", 2) if moment == "best" else (first, 1)
    assert checkpoints.newest() == checkpoints.best() == last
    assert holds(checkpoints, alone, last, seed)
    save(checkpoints, alone, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step-00000001", "step-00000002"]
    assert checkpoints.newest() == tmp_path / "step-00000002"
    assert checkpoints.best() == last
    assert (tmp_path / "best").read_text() == last.name + "\n"
    assert holds(checkpoints, alone, tmp_path / "step-00000002", 2)


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_step_saved_again_exists_at_all_times(
    tmp_path: Path, alone: Runtime, monkeypatch: pytest.MonkeyPatch, exchanging: bool
) -> None:
    """With keep=1 there is no other checkpoint to resume from."""
    checkpoints = CheckpointManager(tmp_path, 1, alone)
    path = save(checkpoints, alone, 1)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("partition.files.shutil.rmtree", killed)
        if not exchanging:
            patch.setattr("partition.files._exchange", lambda *_: False)
        with pytest.raises(Killed):
            checkpoints.save(sharded(alone, 7), replicated(7), {"step": 1}, step=1, best=True)
    assert checkpoints.newest() == path
    assert holds(checkpoints, alone, path, 7)
    save(checkpoints, alone, 2)
    assert sorted(file.name for file in tmp_path.glob("*.tmp")) == []


def test_a_full_disk_is_named_in_one_line(tmp_path: Path, alone: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    first = save(checkpoints, alone, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", full)
        with pytest.raises(InputError, match=r"step-00000002\.tmp: .* cannot be written: No space left"):
            save(checkpoints, alone, 2)
    with monkeypatch.context() as patch:
        patch.setattr("cm3_dist.checkpoint.integrity.write_text", full)
        with refused("checkpoint.write", ""):
            save(checkpoints, alone, 2)
    assert checkpoints.newest() == first
    (tmp_path / "file").touch()
    with refused("checkpoint.write", "file"):
        save(CheckpointManager(tmp_path / "file" / "checkpoints", 2, alone), alone, 1)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_altered_and_missing_files_are_named(tmp_path: Path, alone: Runtime, name: str) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    file = save(checkpoints, alone, 1) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with refused("checkpoint.torn", name):
        checkpoints.load(file.parent, sharded(alone), replicated())
    file.unlink()
    with refused("checkpoint.torn", name):
        checkpoints.load(file.parent, sharded(alone), replicated())


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"\xff",
        b"x\n",
        b"0" * 64 + b"  ../x\n",
        b"0" * 64 + b"  ..\n",
        b"0" * 64 + b"  .metadata",
        b"0" * 64 + b"  .metadata\n",
        (b"0" * 64 + b"  .metadata\n") * 2 + b"0" * 64 + b"  progress.json\n",
    ],
)
def test_damaged_digests_are_named(tmp_path: Path, alone: Runtime, text: bytes | None) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    file = save(checkpoints, alone, 1) / "SHA256SUMS"
    file.unlink()
    if text is not None:
        file.write_bytes(text)
    for read in (checkpoints.peek, lambda path: checkpoints.load(path, sharded(alone), replicated())):
        with refused("checkpoint.torn", "SHA256SUMS"):
            read(file.parent)
    assert "SHA256SUMS" in (checkpoints.damage(file.parent) or "")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "checkpoint.torn"),
        ("[" * 100_000, "checkpoint.torn"),
        ("[]", "checkpoint.format"),
        ('{"progress": {}, "best": null}', "checkpoint.format"),
        ('{"format": 2, "best": null}', "checkpoint.torn"),
        ('{"format": 2, "progress": {}, "best": 3}', "checkpoint.torn"),
    ],
)
def test_damaged_progress_is_named(tmp_path: Path, alone: Runtime, text: str, code: str) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    path = save(checkpoints, alone, 1)
    (path / "progress.json").write_text(text)
    with refused("checkpoint.torn", "progress.json"):
        checkpoints.peek(path)
    update_digest(path, "progress.json")
    with refused(code, "progress.json"):
        checkpoints.peek(path)


def update_digest(path: Path, name: str) -> None:
    """Replaces the digest of a changed file, as an attacker with write access could."""
    lines = [line for line in (path / "SHA256SUMS").read_text().splitlines(True) if not line.endswith(f"  {name}\n")]
    (path / "SHA256SUMS").write_text("".join([*lines, f"{sha256(path / name)}  {name}\n"]))


def test_digests_are_in_the_form_of_sha256sum(tmp_path: Path, alone: Runtime) -> None:
    path = save(CheckpointManager(tmp_path, 2, alone), alone, 1)
    shown = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=path, capture_output=True, text=True, check=True)
    assert shown.stdout == ".metadata: OK\n__0_0.distcp: OK\nprogress.json: OK\n"


def test_a_background_save_has_the_values_of_its_start(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone, background=True)
    rows, rest = sharded(alone, 1), replicated(1)
    path = checkpoints.save(rows, rest, {"step": 1}, step=1, best=True)
    for value in (*rows.values(), *rest.values()):
        value.zero_()  # as the next step would, in place
    checkpoints.wait()
    assert checkpoints.newest() == path
    assert holds(checkpoints, alone, path, 1)
    assert not checkpoints.failed()
    for step in (2, 3, 4):  # each waits for the one before
        save(checkpoints, alone, step)
    checkpoints.wait()
    assert [path.name[-1] for path in sorted(tmp_path.glob("step-*"))] == ["1", "3", "4"]


def test_a_failed_background_save_is_raised_later(
    tmp_path: Path, alone: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone, background=True)
    save(checkpoints, alone, 1)
    checkpoints.wait()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    save(checkpoints, alone, 2)
    while not checkpoints.failed():
        time.sleep(0.01)
    with refused("checkpoint.write", "step-00000002.tmp"):
        checkpoints.wait()
    assert not checkpoints.failed()
    assert checkpoints.newest() == tmp_path / "step-00000001"


def test_the_best_of_every_kept_checkpoint_is_kept(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    for step in range(1, 5):
        save(checkpoints, alone, step, best=step in (1, 4))
    assert sorted(path.name[-1] for path in tmp_path.glob("step-*")) == ["1", "3", "4"]
    assert checkpoints.best_of(tmp_path / "step-00000003") == tmp_path / "step-00000001"
    assert checkpoints.best_of(tmp_path / "step-00000004") == tmp_path / "step-00000004"


def test_the_order_in_which_checkpoints_are_tried(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 9, alone)
    for step in (1, 2, 3, 4):
        save(checkpoints, alone, step)

    def order() -> list[int]:
        return [int(path.name[5:]) for path in checkpoints.newest_first()]

    assert order() == [4, 3, 2, 1]
    (tmp_path / "latest").write_text("step-00000002\n")
    assert order() == [2, 1, 4, 3]
    for damaged in (b"", b"step-00000009", b"\xff\x00", b"a\0b"):
        (tmp_path / "latest").write_bytes(damaged)
        assert order() == [4, 3, 2, 1]
    (tmp_path / "latest").unlink()
    assert order() == [4, 3, 2, 1]


def test_pointers_stay_inside_the_folder(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path / "checkpoints", 2, alone)
    save(checkpoints, alone, 1)
    for name in ("../checkpoints", "..", ".", "step-00000007", "latest"):
        (tmp_path / "checkpoints" / "latest").write_text(name + "\n")
        with refused("checkpoint.torn", f"latest: names the checkpoint '{name}'"):
            checkpoints.newest()


def test_tensors_that_do_not_fit_are_named(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    path = save(checkpoints, alone, 1)
    wrong = {
        "part-00004/table": {"part-00004/table": torch.zeros(STRIDE, 8)},
        "weight has shape (3, 5), the model needs (5, 3)": {"weight": torch.zeros(5, 3)},
        "weight is torch.float32, the model needs torch.float64": {"weight": torch.zeros(3, 5, dtype=torch.float64)},
    }
    for message, tensors in wrong.items():
        with refused("checkpoint.misfit", message):
            checkpoints.load(path, {}, tensors)


class Bait:
    """Unpickles to a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def dotted(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls `module.name(argument)`, where `name` may be a path of attributes."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R."


def test_metadata_runs_no_code(tmp_path: Path, alone: Runtime) -> None:
    checkpoints = CheckpointManager(tmp_path, 2, alone)
    path = save(checkpoints, alone, 1)
    proof = tmp_path / "proof"
    attacks = [
        pickle.dumps(Bait(os.mkdir, str(proof))),
        # DCP's metadata module imports os, so allowing the whole module would allow os.system.
        dotted("torch.distributed.checkpoint.metadata", "os.mkdir", str(proof)),
        dotted("torch", "os.mkdir", str(proof)),
        pickle.dumps({"not": "metadata"}),
        b"",
    ]
    for attack in attacks:
        (path / ".metadata").write_bytes(attack)
        update_digest(path, ".metadata")
        with refused("checkpoint.torn", ".metadata"):
            checkpoints.load(path, sharded(alone), replicated())
        assert not proof.exists()
