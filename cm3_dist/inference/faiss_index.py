"""Builds a FAISS index over exported item embeddings, and measures its recall against exact search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cm3_dist.distributed.seeding import Stream, generator
from cm3_dist.errors import InputError

IndexType = Literal["flat", "hnsw", "ivf"]
FOLDER, INDEX, IDS = "index", "items.faiss", "ids.parquet"
K, QUERIES = 20, 1000
TARGET = 0.99  # recall at which an approximate index stops widening its search
BLOCK = 65_536
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH, HNSW_WIDEST = 32, 200, 64, 4096
IVF_TRAINING = 64  # at most this many rows per list to train the centroids on
IVF_SEARCH = 8


def build_index(folder: Path, kind: IndexType, width: int, seed: int) -> dict[str, Any]:
    """Indexes the item embeddings of an export by inner product and writes `index/` into its folder. One process.

    Vector n of the index is row n of `index/ids.parquet`: items in the order of the export's files. The index holds all
    item embeddings in float32; they are added, and searched exactly for comparison, block by block.

    Args:
        folder: the export, with users/ and items/.
        kind: flat searches all items; hnsw and ivf search some, for large catalogues.
        width: of the embeddings.
        seed: of the sample of users for the recall, and of the sample of items for the centroids.

    Returns:
        For the manifest: the kind, its parameters, and `recall@20`, the mean share of a user's exact 20 nearest items
        that the index finds, over `queries` users.

    Raises:
        InputError: there is no item or no trained user.
    """
    rng = generator(Stream.EVALUATION, seed, 1)
    ids = pa.concat_tables([pq.read_table(path, columns=["id"]) for path in _files(folder, "items")])
    queries = _queries(folder, rng)
    if not len(ids) or not len(queries):
        missing = "item" if not len(ids) else "trained user"
        raise InputError(f"{folder}: no {missing}, so there is nothing to index", "export.empty")
    index = _empty(folder, kind, width, len(ids), rng)
    with tqdm(total=len(ids), desc=f"index: {kind}", unit="row", unit_scale=True, disable=None, leave=False) as bar:
        for rows in _rows(folder, "items"):
            index.add(rows)
            bar.update(len(rows))
    k = min(K, len(ids))
    truth = _exact(folder, queries, k)
    parameters, recall = _widened(index, kind, queries, truth, k)
    (folder / FOLDER).mkdir()
    faiss.write_index(index, str(folder / FOLDER / INDEX))
    pq.write_table(ids, folder / FOLDER / IDS, compression="zstd")
    return {"kind": kind, "metric": "inner product", **parameters, f"recall@{K}": recall, "queries": len(queries)}


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("part-*.parquet"))


def _rows(folder: Path, kind: str) -> Iterator[np.ndarray]:
    """[n, width] float32 blocks."""
    for path in _files(folder, kind):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BLOCK, columns=["embedding"]):
                yield _matrix(batch.column(0))


def _matrix(lists: pa.FixedSizeListArray) -> np.ndarray:
    flat: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(lists), lists.type.list_size), np.float32)


def _queries(folder: Path, rng: np.random.Generator) -> np.ndarray:
    """Embeddings [n, width] of up to QUERIES trained users, drawn at random."""
    files = _files(folder, "users")
    degree = [pq.read_table(path, columns=["train_degree"])["train_degree"].to_numpy() for path in files]
    trained = np.flatnonzero(np.concatenate(degree) > 0)
    chosen = np.sort(rng.choice(trained, min(QUERIES, len(trained)), replace=False))
    found, first = [], 0
    for rows in _rows(folder, "users"):
        found.append(rows[chosen[(chosen >= first) & (chosen < first + len(rows))] - first])
        first += len(rows)
    return np.concatenate(found)


def _empty(folder: Path, kind: IndexType, width: int, items: int, rng: np.random.Generator) -> Any:
    if kind == "flat":
        return faiss.index_factory(width, "Flat", faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        graph: Any = faiss.index_factory(width, f"HNSW{HNSW_LINKS},Flat", faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = HNSW_BUILD
        return graph
    lists = max(1, min(int(4 * items**0.5), items // 39 or 1))  # FAISS recommends 39 rows per centroid
    wanted = np.sort(rng.choice(items, min(items, IVF_TRAINING * lists), replace=False))
    sample, first = [], 0
    for rows in _rows(folder, "items"):
        sample.append(rows[wanted[(wanted >= first) & (wanted < first + len(rows))] - first])
        first += len(rows)
    index = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.concatenate(sample))
    return index


def _exact(folder: Path, queries: np.ndarray, k: int) -> np.ndarray:
    """[n, k] positions of the exact nearest items."""
    best, place, first = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for rows in _rows(folder, "items"):
        score, found = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        best, place = np.concatenate([best, score], 1), np.concatenate([place, found + first], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, place = np.take_along_axis(best, order, 1), np.take_along_axis(place, order, 1)
        first += len(rows)
    return place


def _widened(
    index: Any, kind: IndexType, queries: np.ndarray, truth: np.ndarray, k: int
) -> tuple[dict[str, int | float], float]:
    """Widens the search until TARGET is reached; the index keeps that width."""

    def recall() -> float:
        found = index.search(queries, k)[1]
        return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))

    if kind == "flat":
        return {}, recall()
    hnsw = kind == "hnsw"
    width, widest = (HNSW_SEARCH, HNSW_WIDEST) if hnsw else (min(IVF_SEARCH, index.nlist), index.nlist)
    while True:
        if hnsw:
            index.hnsw.efSearch = width
        else:
            index.nprobe = width
        reached = recall()
        if reached >= TARGET or width >= widest:
            fixed = {"links": HNSW_LINKS, "ef_search": width} if hnsw else {"lists": index.nlist, "nprobe": width}
            return fixed, reached
        width = min(2 * width, widest)
