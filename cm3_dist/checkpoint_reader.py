"""Reads DCP's files without trusting them: nothing in a checkpoint may name code to run, or a file outside of it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from cm3_dist.light_imports import light_imports
from partition.errors import InputError

with light_imports():
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

METADATA = ".metadata"
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
