"""A finished run, opened to be used: its best checkpoint on any number of ranks, and its final rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.checkpoint.manager import Checkpoints
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import InputError
from cm3_dist.training.trainer import Trainer
from cm3_dist.training.trainer_state import restore


@dataclass(frozen=True)
class Layers:
    """What lies between ego and final rows, for those who join later (`cm3_dist.inference.cold_start`)."""

    # [items, C * d] E + A E + ... + A^(L-1) E: what the last layer gives to users; None if L = 0.
    items: Tensor | None
    similar: list[Tensor]  # R, S R, ..., one for each item-item layer: what that layer gives to items
    mixing: Tensor  # [C] the trained users' mean logits


class FinishedRun:
    """The model of a run. Every method is collective.

    Raises:
        InputError: no such checkpoint, or it does not fit the data, the settings or the number of ranks.
    """

    def __init__(self, settings: Settings, runtime: Runtime, checkpoint: str = "best") -> None:
        self.settings, self.runtime, self.folder = settings, runtime, settings.run.dir
        self.trainer = Trainer(settings, runtime)
        self.shard, self.manifest = self.trainer.shard, self.trainer.manifest
        checkpoints = Checkpoints(self.folder / "checkpoints", settings.run.keep, runtime)
        self.checkpoint = _checkpoint(checkpoints, checkpoint, runtime)
        self.progress = restore(self.trainer, checkpoints, self.checkpoint)

    @property
    def channels(self) -> list[str]:
        """Names of the C blocks of a row, in order."""
        return [*(modality.name for modality in self.manifest.modalities), "fused"]

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Final rows of this rank's users and items, [., C * d] float32: their inner product is the score."""
        return self.trainer.final_rows()

    @cached_property
    def layers(self) -> Layers:
        """This rank's rows of the layers before the last."""
        with torch.no_grad():
            users, items, mixing = self.trainer.ego_rows()
            operator = self.trainer.planner.inference()
            u, i, before = users, items, None
            for hop in reversed(operator.hops):
                before = i
                u, i = (
                    hop.user_from_item.forward(i).add_(users),
                    hop.item_from_user.forward(u).add_(items),
                )
            similar: list[Tensor] = []
            for _, relation in operator.similar:
                similar.append(i if not similar else relation.forward(similar[-1]))
        trained = torch.from_numpy(self.shard.user_degree > 0).to(mixing.device)
        total = torch.cat([mixing[trained].sum(0), trained.sum().reshape(1).to(mixing)])
        if self.runtime.rows_group is not None:
            dist.all_reduce(total, group=self.runtime.rows_group)
        return Layers(before, similar, total[:-1] / total[-1])

    @cached_property
    def item_ego(self) -> Tensor:
        """This rank's item rows before propagation, [items, C * d]: unit rows of each of the `channels`."""
        return self.trainer.ego_rows()[1]


def _checkpoint(checkpoints: Checkpoints, name: str, runtime: Runtime) -> Path:
    path = checkpoints.best() if name == "best" else checkpoints.newest()
    if path is None:
        raise InputError(f"{checkpoints.folder}: no checkpoint here; train until the first evaluation")
    if name in ("best", "latest"):
        return path
    named = checkpoints.folder / name

    def check() -> None:
        if named.parent != checkpoints.folder or not named.is_dir():
            there = ", ".join(sorted(found.name for found in checkpoints.folder.glob("step-????????")))
            raise InputError(f"{named}: no such checkpoint; there are {there}")

    agree_on_error(runtime, check)
    return named
