"""What the commands do, from Python: prepare data, train, and use a finished run. docs/python.md shows it at work.

In a notebook everything runs in this one process. In a script under torchrun the same calls are collective: all ranks
make them, and each gets the rows and lists of its own parts.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, Union

import numpy as np
import pyarrow as pa

from cm3_dist.config.command_options import run_settings
from cm3_dist.config.loading import load_settings
from cm3_dist.config.run_files import METRICS
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

Ids: TypeAlias = Union[Sequence[str], Sequence[int], np.ndarray, "pa.Array"]
Folder: TypeAlias = str | Path


def prepare(
    data: Folder | Sequence[Folder], output: Folder, *, parts: int = 4, quiet: bool = False, **options: Any
) -> Path:
    """Makes a prepared folder, as `python -m partition build` does.

    Args:
        data: a folder or files: interactions, items, features (docs/data.md).
        output: the folder to write.
        parts: P; the ranks that train are a divisor of it.
        quiet: print nothing.
        **options: as on the command line, with underscores: split="cold-items", kcore=5, overwrite=True, ...

    Raises:
        InputError: a wrong option, or anything wrong with the data.
    """
    from pydantic import ValidationError

    from partition.build import build
    from partition.options import BuildOptions
    from partition.stages import Stages

    places = [data] if isinstance(data, (str, Path)) else list(data)
    try:
        wanted = BuildOptions(input=[Path(p) for p in places], output=Path(output), parts=parts, **options)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"prepare: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return build(wanted, Stages(quiet=quiet))


def fit(
    data: Folder | None = None,
    run: Folder | None = None,
    *,
    config: Folder | None = None,
    resume: bool = False,
    **sections: Any,
) -> Run:
    """Trains, as `python -m cm3_dist.train` does, and opens the finished run.

    Args:
        data: prepared folder (data.path).
        run: run folder (run.dir).
        config: YAML file of settings.
        resume: go on from the run's newest checkpoint.
        **sections: settings over the file's, by section: train={"epochs": 5}, loss={"gamma": 0.5}, negatives="uniform".

    Raises:
        InputError: a wrong setting, or data or a run folder that do not fit.
    """
    from cm3_dist.training.loop import run as train

    overrides = _overrides(sections)
    if data is not None:
        overrides.append(f"data.path={_text(data)}")
    if run is not None:
        overrides.append(f"run.dir={_text(run)}")
    settings = load_settings(None if config is None else Path(config), overrides)
    with distributed(settings.machine) as runtime:
        train(settings, runtime, resume)
        return load_run(settings.run.dir, machine=settings.machine.model_dump(mode="json"))


def load_run(folder: Folder, *, data: Folder | None = None, checkpoint: str = "best", **sections: Any) -> Run:
    """Opens a finished run.

    Args:
        folder: run folder.
        data: its prepared folder, where that has moved.
        checkpoint: "best", "latest" or a name.
        **sections: settings of this machine, as in `fit`.

    Raises:
        InputError: no run, no such checkpoint, or data that the run was not trained on.
    """
    overrides = _overrides(sections)
    if data is not None:
        overrides.append(f"data.path={_text(data)}")
    return Run(Path(folder), overrides, checkpoint)


class Run:
    """A finished run. Use it in a `with` block, or `close` it: until then it keeps its memory and process group."""

    def __init__(self, folder: Path, overrides: list[str], checkpoint: str) -> None:
        from cm3_dist.inference.trained_model import FinishedRun

        settings = run_settings(folder, overrides)
        with ExitStack() as stack:
            runtime = stack.enter_context(distributed(settings.machine))
            self._finished: FinishedRun | None = FinishedRun(settings, runtime, checkpoint)
            self._stack = stack.pop_all()
        self.folder, self.settings, self.channels = folder, settings, self._finished.channels
        atexit.register(self.close)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json.

        Raises:
            InputError: the run has not ended.
        """
        path = self.folder / METRICS
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, so the run has not ended; resume it, or use evaluate()") from None
        return content

    def recommend(
        self,
        users: Ids | None = None,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        exclude_held_out: bool = False,
        items: Ids | None = None,
        new_items: Folder | None = None,
        new_users: Folder | None = None,
    ) -> pa.Table:
        """Top-k lists: columns user, rank, item, score; `.to_pandas()` makes a frame of it.

        Args:
            users: own ids; None for every trained user, whose lists must fit in memory (else `cm3_dist.recommend`).
            k: length of a list.
            exclude_seen: leave out training items, as evaluation does.
            exclude_held_out: leave out validation and test items as well.
            items: own ids of the items of the catalogue that may be recommended; None for all.
            new_items: table or folder of items without interactions, by their features: recommended as well.
            new_users: table of user and item ids of users whom training never saw: lists for them, instead of `users`.

        Raises:
            InputError: an unknown id, a user without a training interaction, or new items or users that do not fit.
        """
        from cm3_dist.inference.cold_start_inputs import read_new_users
        from cm3_dist.inference.top_k_lists import Catalogue, chosen_items, new_user_lists, trained_users, user_lists
        from cm3_dist.recommend import candidates

        run = self._open()
        new = candidates(run, None, Path(new_items)).new if new_items is not None else None
        catalogue = Catalogue(chosen_items(run, self._rows("item", items)), new)
        if new_users is not None:
            if users is not None:
                raise InputError("users and new_users: ask for one of them at a time")
            strangers = read_new_users(Path(new_users), run, None if new is None else new.ids)
            blocks = new_user_lists(run, strangers, catalogue, k, seen=exclude_seen)
        else:
            known, untrained = trained_users(run, self._rows("user", users))
            if users is not None and len(untrained):
                name = self._ids("user").take(untrained[:1] + run.shard.first_user)[0].as_py()
                raise InputError(f"user {name!r} has no training interaction, so its row means nothing")
            blocks = user_lists(run, known, catalogue, k, seen=exclude_seen, held_out=exclude_held_out)
        tables = [block.table() for block in blocks]
        types = {"user": self._ids("user").type, "rank": pa.int32(), "item": self._ids("item").type}
        return pa.concat_tables(tables) if tables else pa.schema({**types, "score": pa.float32()}).empty_table()

    def similar(self, item: str | int, k: int = 10, by: str = "all") -> list[dict[str, Any]]:
        """The nearest items and why, as `cm3_dist.inference.similar_items.nearest_items` describes it."""
        from cm3_dist.similar import similar

        return similar(self._open(), item, k, by)

    def embeddings(self, kind: Literal["user", "item"]) -> tuple[pa.Array, np.ndarray]:
        """Own ids [n] and final rows [n, width] float32; the inner product of a user's and an item's is the score."""
        run = self._open()
        rows = run.rows[0 if kind == "user" else 1].cpu().numpy()
        ids = [self._ids(kind).part(part)["id"].combine_chunks() for part in run.shard.parts]
        stride = len(rows) // len(ids)
        own = [rows[index * stride : index * stride + len(part)] for index, part in enumerate(ids)]
        return pa.concat_arrays([_one_chunk(part) for part in ids]), np.concatenate(own)

    def evaluate(self, split: str = "test", **options: Any) -> dict[str, Any]:
        """All figures of `cm3_dist.evaluate.evaluate`; `against` takes another open run."""
        from cm3_dist.evaluate import evaluate

        other = options.pop("against", None)
        return evaluate(self._open(), split, against=other._open() if other is not None else None, **options)

    def export(self, out: Folder, **options: Any) -> dict[str, Any]:
        """Writes rows as Parquet, as `cm3_dist.export.export` describes it; returns the manifest."""
        from cm3_dist.export import export

        return export(self._open(), Path(out), **options)

    def close(self) -> None:
        """Lets go of the model; the last run to be closed also leaves the process group."""
        if self._finished is not None:
            self._finished = None
            self._stack.close()
            atexit.unregister(self.close)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}{'' if self._finished is not None else ', closed'})"

    def _open(self) -> Any:
        if self._finished is None:
            raise InputError(f"{self.folder}: this run has been closed; open it with load_run")
        return self._finished

    def _ids(self, kind: Literal["user", "item"]) -> Any:
        from cm3_dist.inference.id_map import OwnIds

        run = self._open()
        return OwnIds(run.shard.root, run.manifest, kind)

    def _rows(self, kind: Any, ids: Ids | None) -> np.ndarray | None:
        rows: np.ndarray | None = None if ids is None else self._ids(kind).rows(ids)
        return rows


def _overrides(sections: dict[str, Any], prefix: str = "") -> list[str]:
    """{"train": {"epochs": 5}} -> ["train.epochs=5"]."""

    def walk(tree: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}={_text(value)}"

    return list(walk(sections, prefix))


def _text(value: Any) -> str:
    """As YAML, which JSON is."""
    return json.dumps(value, default=str)


def _one_chunk(values: Any) -> pa.Array:
    return pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
