"""The frozen item features of a rank's parts, memory-mapped in their stored precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partition.errors import InputError, reading
from partition.folder import layout
from partition.folder.arrays import open_missing
from partition.folder.manifest import Manifest


class ItemFeatures:
    """Features of this rank's items by local row; padding rows are zero.

    Raises:
        InputError: a file is missing or damaged, or has another shape or dtype than the manifest says.
    """

    def __init__(self, root: Path, manifest: Manifest, parts: range) -> None:
        self.dims = {modality.name: modality.dim for modality in manifest.modalities}
        self._stride = manifest.item_stride
        self._rows = len(parts) * manifest.item_stride
        self._maps: dict[str, list[np.ndarray]] = {}
        self._missing: dict[str, np.ndarray] = {}  # modality -> [parts, stride] bool
        for modality in manifest.modalities:
            if modality.masked:
                self._missing[modality.name] = _masks(root, manifest, parts, modality.name)
            maps = []
            for part in parts:
                path = layout.part_dir(root, part) / layout.features_file(modality.name)
                with reading(path, ".npy"):
                    values = np.load(path, mmap_mode="r", allow_pickle=False)
                shape = (manifest.parts[part].items, modality.dim)
                if values.shape != shape or values.dtype != modality.dtype:
                    raise InputError(
                        f"{path}: {values.dtype} {values.shape}, but the manifest says {modality.dtype} {shape}",
                        "features.shape",
                    )
                maps.append(values)
            self._maps[modality.name] = maps

    @property
    def rows(self) -> int:
        """Number of local item rows, including padding."""
        return self._rows

    def missing(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Which of the local rows `rows` [n] have no features: modality -> [n] bool on the CPU, masked modalities only.

        Padding rows count as having all.
        """
        part, offset = np.divmod(rows, self._stride)
        return {name: torch.from_numpy(masks[part, offset]) for name, masks in self._missing.items()}

    def gather(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Features of the local rows `rows` [n], in that order: modality -> [n, d_m] on the CPU, stored dtype."""
        part, offset = np.divmod(rows, self._stride)
        groups = [np.flatnonzero(part == index) for index in range(self._rows // self._stride)]
        gathered = {}
        for name, maps in self._maps.items():
            out = np.zeros((len(rows), maps[0].shape[1]), maps[0].dtype)
            for values, group in zip(maps, groups, strict=True):
                inside = group[offset[group] < len(values)]
                out[inside] = values[offset[inside]]
            gathered[name] = torch.from_numpy(out)
        return gathered


def _masks(root: Path, manifest: Manifest, parts: range, modality: str) -> np.ndarray:
    masks = np.zeros((len(parts), manifest.item_stride), bool)
    for index, part in enumerate(parts):
        items = manifest.parts[part].items
        masks[index, :items] = open_missing(layout.part_dir(root, part) / layout.missing_file(modality), items)
    return masks
