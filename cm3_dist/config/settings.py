"""Typed settings with their defaults and what they may be; `settings_file` puts a YAML file and overrides over them.

Adding a setting means adding a field here; nothing else validates settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=-1, le=1)]
Fanout = Annotated[int, Field(ge=-1)]  # neighbours drawn per node and layer; -1 keeps them all


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Data(_Section):
    """Where the prepared folder lies."""

    path: Path = Field(default=Path("prepared"), description="folder written by `python -m partition build`")
    check: Literal["full", "sizes", "none"] = Field(
        default="full",
        description="compare what a rank reads with the manifest: every byte, only that files are there and as long as "
        "they were, or nothing",
    )


class Run(_Section):
    """Where the run is written."""

    dir: Path = Field(
        default=Path("runs/cm3"), description="settings, TensorBoard, metrics.json, steps.jsonl, checkpoints"
    )
    keep: Positive = Field(default=2, description="checkpoints kept besides the best one")
    save_steps: Positive | None = Field(
        default=None, description="save every so many steps, besides after evaluations; null: only then"
    )
    save_in_background: bool = Field(
        default=True,
        description="train on while a checkpoint is written; takes a copy of a rank's tables in memory",
    )
    save_minutes: Rate | None = Field(default=None, description="save after so many minutes without a checkpoint")
    log_every: Positive = Field(default=1, description="steps between two points in TensorBoard")


class Train(_Section):
    """How long, and in which steps."""

    epochs: Positive = Field(default=1000, description="at most this many epochs")
    batch_size: Positive = Field(default=2048, description="positives a step, over all ranks")
    max_steps: Positive | None = Field(default=None, description="stop after this many steps, whatever the epoch")
    patience: Positive = Field(default=10, description="evaluations without a better validation result before stopping")
    seed: Annotated[int, Field(ge=0)] = Field(default=2025, description="keys every random choice")
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="a loss or gradient that is not finite: end the run, or leave out what is not finite and count the "
        "step",
    )
    max_skipped: Positive = Field(
        default=10, description="steps that on_nan=skip may count before the run ends after all"
    )


class Model(_Section):
    """CM3's forward pass."""

    dim: Positive = Field(default=64, description="d, width of a channel; a multiple of 4")
    item_ids: bool = Field(default=False, description="add a trainable row per item to the fused channel")
    encoder_precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the item encoder's matrix products; weights and rows stay float32"
    )
    alpha: Rate = Field(default=0.5, description="the curve parameter is drawn from Beta(alpha, alpha) in training")
    fusion: Literal["bezier", "slerp", "mean", "concat"] = Field(
        default="bezier",
        description="the modalities' points become one: spherical Bezier curve, mean of all pairs' slerps, mean, "
        "or a linear map of all",
    )
    curve_order: list[str] | None = Field(
        default=None, description="modalities in the order of the curve's control points; null: as prepared"
    )
    user_init_std: Rate | None = Field(
        default=None, description="std of the initial user channels; null: xavier-normal"
    )

    @model_validator(mode="after")
    def _width(self) -> Model:
        if self.dim % 4:
            raise ValueError("dim must be a multiple of 4, which TorchRec's tables need")
        return self


class Propagation(_Section):
    """LightGCN over the user-item graph, then the item-item graph."""

    mode: Literal["exact", "sampled", "auto"] = Field(
        default="auto",
        description="exact: all nodes every step; sampled: the batch's neighbourhood; auto: see auto_rows",
    )
    user_item_layers: Annotated[int, Field(ge=0)] = Field(default=3, description="L_ui, summed over layers")
    item_item_layers: Annotated[int, Field(ge=0)] = Field(default=1, description="L_ii; 0 switches the item graph off")
    fanouts: list[Fanout] = Field(
        default=[10],
        description="sampled: neighbours a node per layer, nearest layer first; one number serves all layers",
    )
    item_fanout: Fanout = Field(default=-1, description="sampled: item-graph neighbours per item")
    auto_rows: Positive = Field(default=2_000_000, description="auto means exact up to this many users + items")

    @model_validator(mode="after")
    def _layers(self) -> Propagation:
        if len(self.fanouts) not in (1, self.user_item_layers) or 0 in self.fanouts or self.item_fanout == 0:
            raise ValueError(
                f"fanouts: give one number, or one per layer ({self.user_item_layers}); -1 keeps all, 0 none"
            )
        return self


class Loss(_Section):
    """Alignment + gamma/2 (user uniformity + item uniformity)."""

    gamma: NonNegative | Literal["auto"] = Field(
        default=0.9, description="weight of the uniformity terms; auto: by the items' degrees, where push equals pull"
    )
    t: Annotated[float, Field(gt=0, le=10)] = Field(default=2.0, description="temperature of the Gaussian potential")
    item_uniformity: Literal["calibrated", "plain", "none"] = Field(
        default="calibrated", description="pairs of unlike items are pushed apart harder; all alike; not at all"
    )
    phi: Literal["similarity", "reliable"] = Field(
        default="similarity",
        description="phi of calibrated pairs: the cosine of their fused rows, clamped, or this times the features' "
        "reliability as preparation measured it",
    )
    phi_gradient: bool = Field(default=True, description="whether the fusion is trained by phi, too")
    min_sim: UnitInterval = Field(default=0.0, description="lower clamp of the calibrating similarity")
    max_sim: UnitInterval = Field(default=1.0, description="upper clamp of the calibrating similarity")
    scope: Literal["global", "local"] = Field(
        default="global",
        description="pairs over the whole batch, or only within each part (cheaper, not the same loss)",
    )
    in_batch_correction: Literal["horvitz_thompson", "inverse_degree", "none"] = Field(
        default="horvitz_thompson", description="importance weights of in-batch negatives; none: popular items dominate"
    )

    @model_validator(mode="after")
    def _clamp(self) -> Loss:
        if self.min_sim > self.max_sim:
            raise ValueError(f"min_sim {self.min_sim} is above max_sim {self.max_sim}")
        return self


class TableOptimizer(_Section):
    """Fused into the backward pass of the sharded tables."""

    name: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        default="rowwise_adagrad", description="adam needs a GPU: FBGEMM has no fused Adam on the CPU"
    )
    lr: Rate = Field(default=0.03, description="learning rate")
    eps: Rate = Field(default=1e-8, description="added to the root of the accumulated squares")
    weight_decay: NonNegative = Field(
        default=0.0,
        description="of the rows looked up: in the gradient of rowwise_adagrad, decoupled in adam; others have none",
    )


class DenseOptimizer(_Section):
    """Adam on the encoder's and the fusion's weights."""

    lr: Rate = Field(default=1e-3, description="learning rate")
    weight_decay: NonNegative = Field(default=0.0, description="L2, added to the gradient")


class Evaluate(_Section):
    """Full ranking over the catalogue."""

    ks: list[Positive] = Field(default=[5, 10, 20, 50], min_length=1, description="cut-offs K of every metric")
    every: Positive = Field(default=1, description="epochs between two evaluations")
    monitor: str = Field(
        default="recall@20", description="the validation metric of early stopping and of the best epoch"
    )
    users: Positive | None = Field(
        default=None, description="users ranked in a validation, a sample drawn by the seed; null: all"
    )
    test_users: Positive | None = Field(default=None, description="likewise in the test")
    user_block: Positive = Field(default=1024, description="users scored at a time")
    item_block: Positive = Field(default=8192, description="items scored at a time")

    @model_validator(mode="after")
    def _monitor(self) -> Evaluate:
        names = [f"{metric}@{k}" for metric in ("recall", "ndcg", "precision", "map") for k in self.ks]
        if self.monitor not in names:
            raise ValueError(f"monitor {self.monitor!r} is not computed; one of {', '.join(names)}")
        return self


class Machine(_Section):
    """The device and its threads."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: the GPUs, if there are any")
    threads: Positive | None = Field(
        default=None, description="CPU threads a rank; null: the cores shared among the ranks"
    )
    kernels: Literal["torch", "triton"] = Field(
        default="torch", description="inner loops by torch's operators, or (GPU) the program's own Triton kernels"
    )
    record: bool = Field(
        default=True,
        description="one GPU, exact propagation: record a step as a CUDA graph and replay it; off: launch every kernel",
    )
    prefetch: Annotated[int, Field(ge=0)] = Field(
        default=2, description="batches planned ahead of the step, in a thread"
    )
    timeout: Positive = Field(default=600, description="seconds a collective may wait for another rank")


class Settings(_Section):
    """All settings of a run."""

    data: Data = Data()
    run: Run = Run()
    train: Train = Train()
    model: Model = Model()
    propagation: Propagation = Propagation()
    negatives: Literal["uniform", "in_batch", "local"] = Field(
        default="in_batch",
        description="where negatives come from: all trained items, the batch's own items, the own part",
    )
    loss: Loss = Loss()
    tables: TableOptimizer = TableOptimizer()
    dense: DenseOptimizer = DenseOptimizer()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()

    def plain(self) -> dict[str, Any]:
        """The settings as nested dicts of JSON types."""
        return self.model_dump(mode="json")
