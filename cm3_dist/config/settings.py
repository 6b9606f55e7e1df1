"""Typed settings with defaults and allowed values. `config.loading` reads them from a YAML file and overrides.

To add a setting, add a field here; settings are validated nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=-1, le=1)]
Fanout = Annotated[int, Field(ge=-1)]  # neighbours drawn per node and layer; -1: all


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Data(_Section):
    """The prepared data."""

    path: Path = Field(default=Path("prepared"), description="folder written by `python -m partition build`")
    check: Literal["full", "sizes", "none"] = Field(
        default="full",
        description="how files are compared with the manifest before reading. full: every byte; sizes: existence and "
        "size only; none: not at all",
    )


class Run(_Section):
    """The run folder."""

    dir: Path = Field(
        default=Path("runs/cm3"), description="folder for settings, TensorBoard, metrics.json, steps.jsonl, checkpoints"
    )
    keep: Positive = Field(default=2, description="number of checkpoints to keep, in addition to the best one")
    save_steps: Positive | None = Field(
        default=None, description="save every this many steps, in addition to every evaluation; null: evaluations only"
    )
    save_in_background: bool = Field(
        default=True,
        description="continue training while a checkpoint is written; needs memory for a copy of a rank's tables",
    )
    save_minutes: Rate | None = Field(default=None, description="save after this many minutes without a checkpoint")
    log_every: Positive = Field(default=1, description="steps per point in TensorBoard")


class Train(_Section):
    """Length of training, batch size and seed."""

    epochs: Positive = Field(default=1000, description="maximum number of epochs")
    batch_size: Positive = Field(default=2048, description="positives per step, over all ranks")
    max_steps: Positive | None = Field(default=None, description="stop after this many steps")
    patience: Annotated[int, Field(ge=0)] = Field(
        default=10, description="stop after this many evaluations without improvement; 0: train all epochs"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=2025, description="seed of all random choices")
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="if a loss or gradient is not finite: end the run, or skip the non-finite part and count the step",
    )
    max_skipped: Positive = Field(default=10, description="end the run after this many steps counted by on_nan=skip")


class Model(_Section):
    """CM3's forward pass."""

    dim: Positive = Field(default=64, description="width d of a channel, a multiple of 4")
    item_ids: bool = Field(default=False, description="add a trainable embedding per item to the fused channel")
    encoder_precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="precision of the item encoder's matrix products; weights and outputs stay float32",
    )
    alpha: Rate = Field(default=0.5, description="in training the curve parameter is drawn from Beta(alpha, alpha)")
    fusion: Literal["bezier", "slerp", "mean", "concat"] = Field(
        default="bezier",
        description="how the modalities' points are fused. bezier: spherical Bezier curve; slerp: mean of all pairs' "
        "slerps; mean: mean; concat: linear map of all points side by side",
    )
    curve_order: list[str] | None = Field(
        default=None, description="order of the modalities as control points of the curve; null: as prepared"
    )
    user_init_std: Rate | None = Field(
        default=None, description="standard deviation of the initial user channels; null: xavier-normal"
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
        description="exact: all nodes in every step; sampled: the batch's sampled neighbourhood; auto: see auto_rows",
    )
    user_item_layers: Annotated[int, Field(ge=0)] = Field(
        default=3, description="number of user-item layers, whose outputs are summed"
    )
    item_item_layers: Annotated[int, Field(ge=0)] = Field(
        default=1, description="number of item-item layers; 0: no item graph"
    )
    fanouts: list[Fanout] = Field(
        default=[10],
        description="sampled mode: neighbours per node in each layer, nearest layer first; one number for all layers",
    )
    item_fanout: Fanout = Field(default=-1, description="sampled mode: item-graph neighbours per item; -1: all")
    auto_rows: Positive = Field(default=2_000_000, description="auto: exact up to this many users + items")

    @model_validator(mode="after")
    def _layers(self) -> Propagation:
        if len(self.fanouts) not in (1, self.user_item_layers) or 0 in self.fanouts or self.item_fanout == 0:
            raise ValueError(
                f"fanouts: give one number, or one per layer ({self.user_item_layers}); -1 keeps all, 0 is not allowed"
            )
        return self


class Loss(_Section):
    """Alignment + gamma/2 (user uniformity + item uniformity)."""

    gamma: NonNegative | Literal["auto"] = Field(
        default=0.9, description="weight of the uniformity terms; auto: computed from the items' degrees"
    )
    t: Annotated[float, Field(gt=0, le=10)] = Field(default=2.0, description="temperature of the Gaussian potential")
    item_uniformity: Literal["calibrated", "plain", "none"] = Field(
        default="calibrated",
        description="calibrated: unlike items are pushed apart more strongly; plain: all pairs equally; none: no term",
    )
    phi: Literal["similarity", "reliable"] = Field(
        default="similarity",
        description="similarity of a pair in calibrated. similarity: clamped cosine of the fused rows; reliable: this "
        "times the features' reliability, which preparation measures",
    )
    phi_gradient: bool = Field(default=True, description="whether gradients flow through phi into the fusion")
    min_sim: UnitInterval = Field(default=0.0, description="lower bound of phi")
    max_sim: UnitInterval = Field(default=1.0, description="upper bound of phi")
    scope: Literal["global", "local"] = Field(
        default="global",
        description="global: pairs over the whole batch; local: pairs within each part (cheaper, but a different loss)",
    )
    in_batch_correction: Literal["horvitz_thompson", "inverse_degree", "none"] = Field(
        default="horvitz_thompson",
        description="importance weights of in-batch negatives; with none popular items dominate",
    )

    @model_validator(mode="after")
    def _clamp(self) -> Loss:
        if self.min_sim > self.max_sim:
            raise ValueError(f"min_sim {self.min_sim} is above max_sim {self.max_sim}")
        return self


class TableOptimizer(_Section):
    """The optimizer of the sharded tables, fused into the backward pass."""

    name: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        default="rowwise_adagrad", description="adam needs a GPU: FBGEMM has no fused Adam on the CPU"
    )
    lr: Rate = Field(default=0.03, description="learning rate")
    eps: Rate = Field(default=1e-8, description="added to the root of the accumulated squared gradients")
    weight_decay: NonNegative = Field(
        default=0.0,
        description="weight decay of the rows in a batch: L2 with rowwise_adagrad, decoupled with adam; not available "
        "with the others",
    )


class DenseOptimizer(_Section):
    """Adam on the weights of the item encoder."""

    lr: Rate = Field(default=1e-3, description="learning rate")
    weight_decay: NonNegative = Field(default=0.0, description="L2 penalty, added to the gradient")


class Evaluate(_Section):
    """Full ranking of the catalogue."""

    ks: list[Positive] = Field(default=[5, 10, 20, 50], min_length=1, description="cut-offs K of all metrics")
    every: Positive = Field(default=1, description="epochs per evaluation")
    monitor: str = Field(
        default="recall@20", description="validation metric for early stopping and for choosing the best epoch"
    )
    users: Positive | None = Field(
        default=None, description="number of users ranked in a validation, sampled by the seed; null: all"
    )
    test_users: Positive | None = Field(
        default=None, description="number of users ranked in the test, sampled by the seed; null: all"
    )
    user_block: Positive = Field(default=1024, description="users per block of scores")
    item_block: Positive = Field(default=8192, description="items per block of scores")

    @model_validator(mode="after")
    def _monitor(self) -> Evaluate:
        names = [f"{metric}@{k}" for metric in ("recall", "ndcg", "precision", "map") for k in self.ks]
        if self.monitor not in names:
            raise ValueError(f"monitor {self.monitor!r} is not computed; one of {', '.join(names)}")
        return self


class Machine(_Section):
    """Device, threads and communication."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: GPUs if available")
    threads: Positive | None = Field(
        default=None, description="CPU threads per rank; null: the machine's cores divided by its ranks"
    )
    kernels: Literal["torch", "triton"] = Field(
        default="torch", description="implementation of the inner loops; triton: this program's kernels, GPU only"
    )
    record: bool = Field(
        default=True,
        description="record a step as a CUDA graph and replay it; only with one GPU and exact propagation",
    )
    prefetch: Annotated[int, Field(ge=0)] = Field(default=2, description="steps planned ahead in a thread")
    timeout: Positive = Field(default=600, description="seconds that a collective waits for another rank")


class Settings(_Section):
    """All settings of a run."""

    data: Data = Data()
    run: Run = Run()
    train: Train = Train()
    model: Model = Model()
    propagation: Propagation = Propagation()
    negatives: Literal["uniform", "in_batch", "local"] = Field(
        default="in_batch",
        description="source of negatives. uniform: all trained items; in_batch: the batch's positive items; local: "
        "items of the user's part",
    )
    loss: Loss = Loss()
    tables: TableOptimizer = TableOptimizer()
    dense: DenseOptimizer = DenseOptimizer()
    evaluate: Evaluate = Evaluate()
    machine: Machine = Machine()

    def plain(self) -> dict[str, Any]:
        """The settings as nested dicts of JSON types, without Path objects."""
        return self.model_dump(mode="json")
