"""The tensors of a checkpoint, as files of torch.distributed.checkpoint (DCP). The only file that imports DCP.

Checkpoints are read as untrusted input: one that refers to code or to a file outside its folder is refused.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from cm3_dist.checkpoint.integrity import FILE_NAME, METADATA, TORN
from cm3_dist.errors import InputError

# The only names that DCP's pickled metadata may refer to, besides torch's dtypes. They are listed one by one, because
# allowing a whole module would also allow everything it imports (DCP's metadata module imports `os`).
_METADATA_NAMES = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}


MISFIT = "checkpoint.misfit"  # code of the errors about a checkpoint of another model


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Saves this rank's tensors; a key that several ranks have is written once. Collective.

    Raises:
        OSError: a rank could not write; the same error on all ranks.
    """
    writer = FileSystemWriter(folder, sync_files=True)
    writer.fs = _ExistingFolders()
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as failure:
        cause = next(iter(failure.failures.values()))[0]
        raise (cause if isinstance(cause, OSError) else failure) from failure


class _ExistingFolders(FileSystem):
    """DCP's file system without new folders: DCP would make a run folder again that was deleted under way."""

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Does nothing: `CheckpointDirectory.begin` has made the folder."""


def read_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Fills the given tensors in place. Collective."""
    dcp.load(tensors, storage_reader=CheckpointReader(folder), process_group=group)


def check_metadata(folder: Path) -> None:
    """Raises InputError when DCP's metadata is damaged."""
    CheckpointReader(folder).read_metadata()


def check_fit(folder: Path, wanted: dict[str, Tensor]) -> None:
    """Checks that the checkpoint has all tensors, with the same shapes and dtypes.

    Raises:
        InputError: it does not, or its metadata is damaged.
    """
    metadata = CheckpointReader(folder).read_metadata()
    for name, tensor in wanted.items():
        stored = metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise InputError(
                f"{folder}: has no tensor {name!r}; the run was made with other model settings or parts", MISFIT
            )
        if stored.size != tensor.shape:
            raise InputError(
                f"{folder}: {name} has shape {tuple(stored.size)}, the model needs {tuple(tensor.shape)}", MISFIT
            )
        if stored.properties.dtype != tensor.dtype:
            raise InputError(f"{folder}: {name} is {stored.properties.dtype}, the model needs {tensor.dtype}", MISFIT)


class CheckpointReader(FileSystemReader):
    """DCP's reader, which unpickles any metadata, restricted to the classes that DCP itself writes.

    Tensors need no restriction: DCP reads them with `torch.load(weights_only=True)`.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads which tensors the checkpoint has and in which files.

        Raises:
            InputError: the file is missing or damaged, or refers to something that no checkpoint contains.
        """
        file = Path(self.path) / METADATA
        try:
            metadata = _Unpickler(io.BytesIO(file.read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
            paths = [info.relative_path for info in metadata.storage_data.values()]
        except Exception as error:  # a damaged pickle can raise anything
            raise InputError(f"{file}: is not the metadata of a checkpoint: {error}", TORN) from None
        if bad := [path for path in paths if not FILE_NAME.fullmatch(path)]:
            raise InputError(f"{file}: names {bad[0]!r}, which is outside the checkpoint", TORN)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _METADATA_NAMES:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no checkpoint contains")
        return super().find_class(module, name)
