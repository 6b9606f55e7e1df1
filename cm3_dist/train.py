"""Trains CM3 on a prepared folder::

    python -m partition build --input DATA --parts 4 --output prepared/NAME        # once
    torchrun --nproc_per_node=2 -m cm3_dist.train data.path=prepared/NAME run.dir=runs/NAME
    python -m cm3_dist.train --config jobs/baby.yaml train.epochs=3                # one process

Settings are `key.sub=value`, over the YAML file given with --config, over the defaults of cm3_dist/config.py.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.config import Settings, load_settings
from cm3_dist.runtime import Runtime, agree_on_error, distributed, entry_point

if TYPE_CHECKING:
    from cm3_dist.checkpoint import Checkpoints
    from cm3_dist.monitor import Monitor, PhaseTimer
    from cm3_dist.progress import Progress
    from cm3_dist.trainer import Trainer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Train CM3 on a prepared folder; alone, or as `torchrun --nproc_per_node=N -m cm3_dist.train ...`.")
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE ...", help="settings, e.g. train.epochs=5")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in run.dir from its newest checkpoint")
    ] = False,
    show: Annotated[bool, typer.Option("--settings", help="print all settings with their meaning, and exit")] = False,
) -> None:
    """Command line; the help text is above."""
    settings = load_settings(config, overrides or [])
    if show:
        from cm3_dist.show_settings import print_settings

        print_settings(settings)
        return
    with distributed(settings.machine) as runtime:
        run(settings, runtime, resume)


def run(settings: Settings, runtime: Runtime, resume: bool) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder. Collective. Returns the content of metrics.json."""
    # Torch, TorchRec and DGL take seconds to import: settings and --help do not wait for them.
    from cm3_dist.checkpoint import Checkpoints
    from cm3_dist.monitor import Monitor, PhaseTimer
    from cm3_dist.progress import Progress
    from cm3_dist.report import print_result
    from cm3_dist.run_folder import open_run_folder, refuse_taken, write_result
    from cm3_dist.state import restore
    from cm3_dist.trainer import Trainer, check_splits

    began, folder = time.time(), settings.run.dir
    agree_on_error(runtime, lambda: refuse_taken(folder, resume))
    trainer = Trainer(settings, runtime)
    agree_on_error(runtime, lambda: check_splits(trainer.manifest))
    checkpoints = Checkpoints(folder / "checkpoints", settings.run.keep, runtime)
    progress = restore(trainer, checkpoints) if resume else Progress()
    plan = trainer.model.tables.plan
    if runtime.rank == 0:
        print(f"{trainer.describe()}\n{plan}", flush=True)
    start = partial(open_run_folder, folder, settings, plan, runtime.world_size)
    agree_on_error(runtime, start if runtime.rank == 0 else bool)
    timer, steps = PhaseTimer(), trainer.batches.steps
    with Monitor(folder, settings, runtime.rank, plan=plan, steps_per_epoch=steps, resumed_at=progress.step) as monitor:
        train_epochs(trainer, checkpoints, progress, monitor, timer)
        best = checkpoints.best()
        assert best is not None
        content = test_best(trainer, checkpoints, progress, monitor, best)
    content |= {"seconds": time.time() - began, "seconds_by_phase": timer.total}
    if runtime.rank == 0:
        print_result(content, write_result(folder, content), best)
    return content


def train_epochs(
    trainer: Trainer, checkpoints: Checkpoints, progress: Progress, monitor: Monitor, timer: PhaseTimer
) -> None:
    """Trains until the settings say stop, evaluating and saving as they say. Collective."""
    from cm3_dist.state import save
    from cm3_dist.traffic import traffic

    settings, steps = trainer.settings, trainer.batches.steps
    limit = min(settings.train.max_steps or steps * settings.train.epochs, steps * settings.train.epochs)
    while progress.step < limit and not progress.exhausted(settings.train.patience):
        epoch, first = divmod(progress.step, steps)
        last = min(steps, first + limit - progress.step)
        monitor.begin_epoch(epoch, first)
        plans = trainer.planner.epoch(epoch, first, last)
        while (plan := _next(plans, timer)) is not None:
            result = trainer.step(plan, timer)
            scalars = trainer.rates() | {"graph/input_share": plan.input_share} | traffic.scalars()
            monitor.step(progress.step, epoch, plan.size, result.stacked(), scalars, timer.take())
            progress.step += 1
        monitor.end_epoch()
        if (epoch + 1) % settings.evaluate.every and progress.step < limit:
            continue
        with timer("evaluate"):
            metrics = trainer.rank(trainer.final_rows(), "validation")
        better = progress.evaluated(epoch, metrics, settings.evaluate.monitor)
        monitor.evaluation(progress.step, epoch, "validation", metrics, f"  ({'best' if better else 'not better'})")
        sent = sum(traffic.take().values()) / 2**20
        monitor.scalars(progress.step, {"time/evaluate": timer.take()["evaluate"], "traffic/evaluate_mib": sent})
        save(trainer, checkpoints, progress, best=better)


def test_best(
    trainer: Trainer, checkpoints: Checkpoints, progress: Progress, monitor: Monitor, best: Path
) -> dict[str, Any]:
    """Metrics of the best checkpoint on the test split, next to the baselines. Collective."""
    from cm3_dist.state import restore

    restore(trainer, checkpoints, best)
    test = trainer.rank(trainer.final_rows(), "test") if trainer.manifest.test else {}
    if test:
        monitor.evaluation(progress.step, progress.best_epoch, "test", test, "  (at the best validation epoch)")
    return {
        "validation": progress.best_metrics,
        "test": test,
        "baselines": trainer.baselines("test" if test else "validation"),
        "best_epoch": progress.best_epoch,
        "epochs": -(-progress.step // trainer.batches.steps),
        "steps": progress.step,
        "world_size": trainer.runtime.world_size,
        "parts": trainer.manifest.num_parts,
    }


def _next(plans: Any, timer: Any) -> Any:
    """The next plan; the time it is waited for counts as `sample`."""
    with timer("sample"):
        return next(plans, None)


def main() -> None:
    """Command line."""
    app(prog_name="cm3_dist.train")


if __name__ == "__main__":
    entry_point(main)()
