"""The Python API: prepare data, train, and use a finished run, as the commands do. docs/python.md has examples.

In a notebook everything runs in one process. In a script under torchrun the same calls are collective: all ranks make
them, and each gets the embeddings and lists of its own parts.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from cm3_dist.config.command_options import run_settings
from cm3_dist.config.loading import load_settings
from cm3_dist.config.run_files import METRICS
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from cm3_dist.inference.id_map import Ids
    from cm3_dist.inference.trained_model import TrainedModel

Folder: TypeAlias = str | Path


def prepare(
    data: Folder | Sequence[Folder], output: Folder, *, parts: int = 4, quiet: bool = False, **options: Any
) -> Path:
    """Writes a prepared folder, as `python -m partition build` does.

    Args:
        data: a folder or files: interactions, items, features (docs/data.md).
        output: the folder to write.
        parts: P; the number of ranks that train must divide it.
        quiet: print nothing.
        **options: as on the command line, with underscores: split="cold-items", kcore=5, overwrite=True, ...

    Raises:
        InputError: an option or the data is wrong.
    """
    from pydantic import ValidationError

    from partition.build import build
    from partition.options import BuildOptions
    from partition.stages import Stages

    places = [data] if isinstance(data, (str, Path)) else list(data)
    try:
        wanted = BuildOptions(input=[str(place) for place in places], output=Path(output), parts=parts, **options)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"prepare: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(message, "prepare.option") from None
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
        resume: continue from the run's newest checkpoint.
        **sections: settings over the file's, by section: train={"epochs": 5}, loss={"gamma": 0.5}, negatives="uniform".

    Raises:
        InputError: a setting is wrong, or the data or the run folder do not fit.
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
        data: its prepared folder, if that has moved.
        checkpoint: "best", "latest" or a name.
        **sections: settings of this machine, as in `fit`.

    Raises:
        InputError: there is no run or no such checkpoint, or the run was not trained on these data.
    """
    overrides = _overrides(sections)
    if data is not None:
        overrides.append(f"data.path={_text(data)}")
    return Run(Path(folder), overrides, checkpoint)


class Run:
    """A finished run. Use it in a `with` block, or `close` it: until then it keeps its memory and process group."""

    def __init__(self, folder: Path, overrides: list[str], checkpoint: str) -> None:
        from cm3_dist.inference.trained_model import open_model

        settings = run_settings(folder, overrides)
        with ExitStack() as stack:
            self._model: TrainedModel | None = stack.enter_context(open_model(settings, checkpoint))
            self._stack = stack.pop_all()
        self.folder, self.settings, self.channels = folder, settings, self._model.channels
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
            message = f"{path}: no such file, so the run has not ended; resume it, or use evaluate()"
            raise InputError(message, "run.unfinished") from None
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
        """Top-k lists: columns user, rank, item, score; `.to_pandas()` turns it into a data frame.

        Args:
            users: external ids; None for all trained users, whose lists must fit in memory (else `cm3_dist.recommend`).
            k: length of a list.
            exclude_seen: leave out training items, as evaluation does.
            exclude_held_out: leave out validation and test items as well.
            items: external ids of the items of the catalogue that may be recommended; None for all.
            new_items: table or folder of items without interactions, by their features: recommended as well.
            new_users: table of user and item ids of users that training never saw: lists for them, instead of `users`.

        Raises:
            InputError: an id is unknown, a user has no training interaction, or new items or users do not fit.
        """
        from cm3_dist.inference.recommend_lists import recommend_table

        if k < 1:
            raise InputError(f"k={k}: a list has at least one item", "lists.k")
        exclude = {"exclude_seen": exclude_seen, "exclude_held_out": exclude_held_out}
        new = [None if path is None else Path(path) for path in (new_items, new_users)]
        return recommend_table(self._open(), users, k, items=items, new_items=new[0], new_users=new[1], **exclude)

    def similar(self, item: str | int, k: int = 10, by: str = "all") -> list[dict[str, Any]]:
        """The nearest items and why: see `cm3_dist.inference.similar_items.similar_items`."""
        from cm3_dist.inference.similar_items import similar_items

        return similar_items(self._open(), item, k, by)

    def embeddings(self, kind: Literal["user", "item"]) -> tuple[pa.Array, np.ndarray]:
        """External ids [n] and final embeddings [n, width] float32 of this rank's users or items.

        The inner product of a user's and an item's is the score. Text ids are of type large_string.
        """
        model = self._open()
        if kind not in ("user", "item"):
            raise InputError(f"embeddings of {kind!r}: there are 'user' and 'item'", "embeddings.kind")
        ids, rows = (model.user_ids, model.rows[0]) if kind == "user" else (model.item_ids, model.rows[1])
        parts = model.shard.parts
        own = [block[: ids.part(part).num_rows] for part, block in zip(parts, rows.chunk(len(parts)), strict=True)]
        return ids.part_ids(parts), np.concatenate([block.cpu().numpy() for block in own])

    def evaluate(self, split: str = "test", **options: Any) -> dict[str, Any]:
        """All figures of `cm3_dist.evaluation.report.evaluate_model`; `against` takes another open run."""
        from cm3_dist.evaluation.report import evaluate_model

        other: Run | None = options.pop("against", None)
        return evaluate_model(self._open(), split, against=None if other is None else other._open(), **options)

    def export(self, out: Folder, **options: Any) -> dict[str, Any]:
        """Writes embeddings as Parquet, with the options of `cm3_dist.inference.export_rows.write_rows`.

        Returns:
            The manifest. On several ranks rank 0 builds an index after the others have returned.
        """
        from cm3_dist.inference.export_rows import write_rows

        return write_rows(self._open(), Path(out), **options).finish()

    def close(self) -> None:
        """Frees the model; closing the last open run also leaves the process group."""
        if self._model is not None:
            self._model = None
            self._stack.close()
            atexit.unregister(self.close)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}{'' if self._model is not None else ', closed'})"

    def _open(self) -> TrainedModel:
        if self._model is None:
            raise InputError(f"{self.folder}: this run has been closed; open it with load_run", "run.closed")
        return self._model


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
