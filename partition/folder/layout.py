"""The layout of a prepared folder: the names of its files, and how rows are numbered.

Everything a rank needs to train is in the folders of its own parts; the manifest alone says where any row is::

    PREPARED/
      SHA256SUMS             digest of every other file, as `sha256sum --check SHA256SUMS` reads it
      manifest.json          what the folder holds (partition.folder.manifest)
      pca-NAME.npy           [source_dim, dim] float64 basis of a modality reduced by PCA; new items are reduced by it
      order-users.npy        [users] int64 rows of the users in the order in which preparation numbered them;
      order-items.npy        the same for items; neither file is there if that is the ascending order of the ids
      parts/part-00000/
        users.arrow          id, train_degree: one record per user, in offset order
        items.arrow          id, train_degree: one record per item, in offset order
        graph.npz            in-edges of the part's users and items (training split), with the halo nodes they come from
                             and, if interactions are weighted, the edges' weights and the nodes' weighted degrees
        item_graph.npz       indptr, neighbour (item rows), weight: in-edges of the part's items in the item-item graph
        validation.arrow     user (row), item (row), sorted by both
        test.arrow           the same for the test split
        features-NAME.npy    one row per item, in offset order, in the precision of the input
        missing-NAME.npy     bool per item, in offset order; only of a modality prepared with --missing NAME=mask: true
                             where the item has no such features, and its row is zeros

**Row space.** A node's row is ``part * stride + offset``, per node type; the stride is the size of the largest part.
In a part, nodes with a training interaction come first, so that ``offset < active`` says whether a row was trained
without looking anything up. Rows between a part's size and the stride are padding and belong to no node.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
USERS, ITEMS, GRAPH, ITEM_GRAPH = "users.arrow", "items.arrow", "graph.npz", "item_graph.npz"
HELD_OUT = {"validation": "validation.arrow", "test": "test.arrow"}  # split -> file name
# Edge types of graph.npz, named as in DGL: source node type, relation, destination node type.
USER_TO_ITEM = ("user", "rates", "item")
ITEM_TO_USER = ("item", "rated_by", "user")


def part_dir(root: Path, part: int) -> Path:
    """Returns the folder of one part."""
    return root / "parts" / f"part-{part:05d}"


def part_files(modalities: Iterable[str], masked: Iterable[str] = ()) -> list[str]:
    """Returns the names of the files that every part has, sorted; `masked`: the modalities with masks."""
    names = [USERS, ITEMS, GRAPH, ITEM_GRAPH, *HELD_OUT.values()]
    return sorted([*names, *map(features_file, modalities), *map(missing_file, masked)])


def features_file(modality: str) -> str:
    """Returns the name of a modality's features in a part."""
    return f"features-{modality}.npy"


def missing_file(modality: str) -> str:
    """Returns the name of the mask of a modality's missing rows in a part."""
    return f"missing-{modality}.npy"


def basis_file(modality: str) -> str:
    """Returns the name, in the prepared folder itself, of the basis that a modality was reduced with."""
    return f"pca-{modality}.npy"


def order_file(kind: str) -> str:
    """Returns the name, in the prepared folder itself, of the rows of the users or items in their original order."""
    return f"order-{kind}s.npy"
