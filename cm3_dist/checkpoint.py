"""Checkpoints: saved whole or not at all, checked before they are loaded, and independent of the number of ranks.

Tensors travel through torch.distributed.checkpoint (DCP) under keys that name the part they belong to, never the rank,
so that any W that divides P loads what any other W saved. A checkpoint is a folder::

    step-00000580/
      progress.json         what the caller wants back, and the sha256 of every other file
      .metadata, *.distcp   DCP's files
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from cm3_dist.runtime import Runtime, agree_on_error
from partition.errors import InputError
from partition.layout import sha256

PROGRESS = "progress.json"


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them, and the best one."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder, self._keep, self._runtime = folder, keep, runtime

    def save(self, sharded: dict[str, Tensor], replicated: dict[str, Tensor], progress: dict[str, Any], *, step: int, best: bool) -> Path:
        """Writes a checkpoint under a temporary name and renames it when every rank is done. Collective.

        Args:
            sharded: tensors that only this rank has, under keys that no other rank uses.
            replicated: tensors that are equal on all ranks, under the same keys; written once.
            progress: JSON that `load` gives back.
            step: names the checkpoint.
            best: whether it is the best so far, which is kept whatever comes later.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = final.with_suffix(".tmp")
        alone = self._runtime.world_size == 1
        if self._runtime.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier(self._runtime.planning)
        group = None if alone else self._runtime.planning
        writer = FileSystemWriter(temporary, sync_files=True)
        dcp.save({**sharded, **replicated}, storage_writer=writer, process_group=group, no_dist=alone)
        own = sorted(temporary.glob(f"__{self._runtime.rank}_*"))
        digests: list[dict[str, str]] = [{} for _ in range(self._runtime.world_size)]
        dist.all_gather_object(digests, {path.name: sha256(path) for path in own}, group=self._runtime.planning)
        if self._runtime.rank == 0:
            files = {name: digest for found in digests for name, digest in found.items()}
            files[".metadata"] = sha256(temporary / ".metadata")
            _write(temporary / PROGRESS, json.dumps({"progress": progress, "files": files}, indent=1) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            _write(self.folder / "latest", final.name + "\n")
            if best:
                _write(self.folder / "best", final.name + "\n")
            self._prune()
        dist.barrier(self._runtime.planning)
        return final

    def newest(self) -> Path | None:
        """The last whole checkpoint."""
        return self._pointed("latest")

    def best(self) -> Path | None:
        """The checkpoint of the best evaluation."""
        return self._pointed("best")

    def peek(self, path: Path) -> dict[str, Any]:
        """The progress of a checkpoint, without its tensors. Collective."""
        content: dict[str, Any] = agree_on_error(self._runtime, lambda: _read_json(path / PROGRESS))
        progress: dict[str, Any] = content["progress"]
        return progress

    def load(self, path: Path, sharded: dict[str, Tensor], replicated: dict[str, Tensor]) -> None:
        """Fills the given tensors in place. Collective.

        Raises:
            InputError: a missing or altered file, or a tensor that the checkpoint lacks or has in another shape.
        """
        agree_on_error(self._runtime, lambda: self._check(path))
        wanted = {**sharded, **replicated}
        reader = _Reader(path)
        agree_on_error(self._runtime, lambda: _fits(path, reader.read_metadata(), wanted))
        alone = self._runtime.world_size == 1
        dcp.load(wanted, storage_reader=reader, process_group=None if alone else self._runtime.planning, no_dist=alone)

    def _check(self, path: Path) -> None:
        """Compares the digests; the ranks share the files."""
        content = _read_json(path / PROGRESS)
        for number, (name, digest) in enumerate(sorted(content["files"].items())):
            if number % self._runtime.world_size != self._runtime.rank:
                continue
            file = path / name
            if not file.is_file():
                raise InputError(f"{file}: missing from the checkpoint; resume from another one")
            if sha256(file) != digest:
                raise InputError(f"{file}: differs from what was saved (sha256); resume from another checkpoint")

    def _pointed(self, name: str) -> Path | None:
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8").strip()
        if path.parent != self.folder or not path.is_dir():
            raise InputError(f"{pointer}: names {path.name!r}, which is no checkpoint beside it")
        return path

    def _prune(self) -> None:
        best = self._pointed("best")
        steps = sorted(path for path in self.folder.glob("step-*") if path.suffix == "")
        for path in steps[: -self._keep]:
            if path != best:
                shutil.rmtree(path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so {path.parent} is no whole checkpoint") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict) or "progress" not in content:
        raise InputError(f"{path}: lacks 'progress' or 'files'")
    if bad := [name for name in content["files"] if name != Path(name).name]:
        raise InputError(f"{path}: names a file outside the checkpoint: {bad[0]!r}")
    return content


def _fits(path: Path, metadata: Metadata, wanted: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        stored = metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise InputError(f"{path}: has no tensor {name!r}; the run was made with other model settings or parts")
        if stored.size != tensor.shape:
            raise InputError(f"{path}: {name} has shape {tuple(stored.size)}, the model needs {tuple(tensor.shape)}")


class _Reader(FileSystemReader):
    """DCP's reader, whose metadata is a pickle: here only the types that DCP itself writes may appear in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata: Metadata = _Unpickler(io.BytesIO(content)).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = (
            module == "torch.distributed.checkpoint.metadata"
            or (module, name) in {
                ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
                ("torch", "Size"),
                ("torch.serialization", "_get_layout"),
                ("pathlib", "PosixPath"),
                ("pathlib", "PurePosixPath"),
            }
            or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype))
        )
        if not allowed:
            raise InputError(f"checkpoint metadata asks for {module}.{name}, which no checkpoint contains; not loaded")
        return super().find_class(module, name)
