"""The tensors of a checkpoint, in the files of torch.distributed.checkpoint (DCP); the only file that imports it.

Reading trusts nothing: a checkpoint may not name code to run, or a file outside of it.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from cm3_dist.checkpoint.integrity import METADATA
from cm3_dist.errors import InputError

# The only names that DCP's pickled metadata may refer to, besides torch's dtypes. Listed one by one: a module that is
# allowed as a whole gives away everything that it imports ("os.system" is an attribute of DCP's metadata module).
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


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Saves this rank's tensors; those that several ranks have under one key are written once. Collective.

    Raises:
        OSError: the disk's reason, if a rank could not write; the same on all ranks.
    """
    try:
        dcp.save(tensors, storage_writer=FileSystemWriter(folder, sync_files=True), process_group=group)
    except CheckpointException as failure:
        cause = next(iter(failure.failures.values()))[0]
        raise (cause if isinstance(cause, OSError) else failure) from failure


def read_tensors(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup) -> None:
    """Fills the given tensors in place. Collective."""
    dcp.load(tensors, storage_reader=CheckpointReader(folder), process_group=group)


def check_metadata(folder: Path) -> None:
    """Raises InputError when DCP's metadata is damaged."""
    CheckpointReader(folder).read_metadata()


def check_fit(folder: Path, wanted: dict[str, Tensor]) -> None:
    """Looks whether the checkpoint has all tensors, in their shape and type.

    Raises:
        InputError: it has not, or its metadata is damaged.
    """
    metadata = CheckpointReader(folder).read_metadata()
    for name, tensor in wanted.items():
        stored = metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise InputError(f"{folder}: has no tensor {name!r}; the run was made with other model settings or parts")
        if stored.size != tensor.shape:
            raise InputError(f"{folder}: {name} has shape {tuple(stored.size)}, the model needs {tuple(tensor.shape)}")
        if stored.properties.dtype != tensor.dtype:
            raise InputError(f"{folder}: {name} is {stored.properties.dtype}, the model needs {tensor.dtype}")


class CheckpointReader(FileSystemReader):
    """DCP's reader, which unpickles the metadata as it is; here only what DCP itself writes may appear in it.

    The tensors need no such care: DCP reads them with `torch.load(weights_only=True)`.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds and where.

        Raises:
            InputError: the file is missing or damaged, or names what no checkpoint of this program contains.
        """
        file = Path(self.path) / METADATA
        try:
            metadata = _Unpickler(io.BytesIO(file.read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
            paths = [info.relative_path for info in metadata.storage_data.values()]
        except Exception as error:  # a damaged pickle can raise anything
            raise InputError(f"{file}: is not the metadata of a checkpoint: {error}") from None
        if bad := [path for path in paths if path != Path(path).name]:
            raise InputError(f"{file}: names {bad[0]!r}, which is outside the checkpoint")
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _METADATA_NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint contains")
        return super().find_class(module, name)
