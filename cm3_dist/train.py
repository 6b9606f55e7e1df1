"""Trains CM3 on a prepared folder::

    python -m partition build --input DATA --parts 4 --output prepared/NAME        # once
    torchrun --nproc_per_node=2 -m cm3_dist.train data.path=prepared/NAME run.dir=runs/NAME
    python -m cm3_dist.train --config jobs/baby.yaml train.epochs=3                # one process

Settings are `key.sub=value`, over the YAML file given with --config, over the defaults of cm3_dist/config/settings.py.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.host_memory import peak_memory
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.errors import Interrupted

if TYPE_CHECKING:
    from cm3_dist.checkpoint.manager import Checkpoints
    from cm3_dist.distributed.stop_signal import StopSignal
    from cm3_dist.monitoring.monitor import Monitor, PhaseTimer
    from cm3_dist.training.health_check import Checkup
    from cm3_dist.training.progress import Progress
    from cm3_dist.training.trainer import Trainer


class Resume(str, Enum):
    """Which checkpoint a run goes on from."""

    NEWEST = "newest"  # which must be whole
    AUTO = "auto"  # the newest whole one, or none


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Train CM3 on a prepared folder; alone, or as `torchrun --nproc_per_node=N -m cm3_dist.train ...`.")
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="settings, e.g. train.epochs=5")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings")] = None,
    resume: Annotated[
        Resume | None,
        typer.Option(
            "--resume",
            metavar="[auto]",
            show_choices=False,
            help="continue the run in run.dir from its newest checkpoint; with `--resume auto` from the newest one "
            "that is whole, naming the damaged ones it passes over, and from the start if there is none",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--settings", help="print all settings with their meaning, and exit")] = False,
) -> None:
    """Command line; the help text is above."""
    settings = load_settings(config, overrides or [])
    if show:
        from cm3_dist.config.show_settings import print_settings

        print_settings(settings)
        return
    from cm3_dist.distributed.oom_advice import explained

    with distributed(settings.machine) as runtime, explained(settings, runtime.rank):
        run(settings, runtime, resume)


def run(settings: Settings, runtime: Runtime, resume: bool | Resume | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder. Collective. Returns the content of metrics.json.

    Args:
        settings: of the run.
        runtime: this rank.
        resume: go on from the newest checkpoint (also as True), or from the newest whole one if there is any.

    Raises:
        InputError: settings, data, run folder or checkpoint are not fit for it.
        Interrupted: a signal ended it; everything is saved.
    """
    # Torch, TorchRec and DGL take seconds to import: settings and --help do not wait for them.
    from cm3_dist.checkpoint.manager import Checkpoints
    from cm3_dist.distributed.stop_signal import StopSignal
    from cm3_dist.monitoring.monitor import Monitor, PhaseTimer
    from cm3_dist.monitoring.summary import print_result
    from cm3_dist.training.health_check import Checkup
    from cm3_dist.training.progress import Progress
    from cm3_dist.training.run_dir import open_run_folder, refuse_taken, write_result
    from cm3_dist.training.trainer import Trainer, check_splits
    from cm3_dist.training.trainer_state import resume_from

    began, folder = time.time(), settings.run.dir
    agree_on_error(runtime, lambda: refuse_taken(folder, bool(resume)))
    with ExitStack() as stack:
        checkpoints = Checkpoints(
            folder / "checkpoints", settings.run.keep, runtime, background=settings.run.save_in_background
        )
        failing = [checkpoints.failed]
        stop_signal = stack.enter_context(
            StopSignal(settings.run, runtime, lambda: any(failed() for failed in failing))
        )
        trainer = Trainer(settings, runtime)
        agree_on_error(runtime, lambda: check_splits(trainer.manifest))
        progress = resume_from(trainer, checkpoints, whole=resume is Resume.AUTO) if resume else Progress()
        plan, steps = trainer.model.tables.plan, trainer.batches.steps
        if runtime.rank == 0:
            print(f"{trainer.describe()}\n{plan}", flush=True)
        start = partial(open_run_folder, folder, settings, plan, runtime.world_size)
        agree_on_error(runtime, start if runtime.rank == 0 else bool)
        done = {"resumed_at": progress.step, "evaluated_at": progress.evaluated_at}
        make = partial(Monitor, folder, settings, runtime.rank, plan=plan, steps_per_epoch=steps, **done)
        monitor = stack.enter_context(agree_on_error(runtime, make))
        failing.append(monitor.failed)
        timer = PhaseTimer()
        checkup = Checkup(trainer, monitor)
        train_epochs(trainer, checkpoints, progress, monitor, timer, stop_signal, checkup)
        best = checkpoints.best()
        assert best is not None
        content = test_best(trainer, checkpoints, progress, monitor, best)
    content |= {
        "warnings": list(checkup.said.values()),
        "skipped_steps": monitor.skipped,
        "seconds": time.time() - began,
        "seconds_by_phase": timer.total,
    }
    if runtime.rank == 0:
        print_result(content, write_result(folder, content), best)
    return content


def train_epochs(
    trainer: Trainer,
    checkpoints: Checkpoints,
    progress: Progress,
    monitor: Monitor,
    timer: PhaseTimer,
    stop_signal: StopSignal,
    checkup: Checkup,
) -> None:
    """Trains until the settings say stop, evaluating and saving as they say. Collective.

    Raises:
        Interrupted: a signal asked for it; everything is saved.
    """
    from cm3_dist.distributed.traffic import traffic

    settings, steps = trainer.settings, trainer.batches.steps
    limit = min(settings.train.max_steps or steps * settings.train.epochs, steps * settings.train.epochs)

    def keep(best: bool = False) -> Path:
        from cm3_dist.training.trainer_state import save

        monitor.flush()
        agree_on_error(trainer.runtime, monitor.check)
        with timer("save"):
            path = save(trainer, checkpoints, progress, best=best)
        monitor.scalars(progress.step, {"time/save": timer.take()["save"]})
        stop_signal.saved()
        return path

    while True:
        if stop := stop_signal.stop_requested():
            path = keep()
            checkpoints.wait()
            raise Interrupted(stop, progress.step, path.name)
        if progress.step > progress.evaluated_at and _evaluates(settings, progress.step, steps, limit):
            keep(best=_validate(trainer, progress, monitor, timer, checkup))
        if progress.step >= limit or progress.exhausted(settings.train.patience):
            checkpoints.wait()
            return
        epoch, first = divmod(progress.step, steps)
        last = min(steps, first + limit - progress.step)
        monitor.begin_epoch(epoch, first)
        plans = trainer.planner.epoch(epoch, first, last)
        while (plan := _next(plans, timer)) is not None:
            result = trainer.step(plan, timer)
            scalars = trainer.rates() | {"graph/input_share": plan.input_share} | traffic.scalars()
            monitor.step(progress.step, epoch, plan.size, result.stacked(), scalars, timer.take())
            progress.step += 1
            verdict = stop_signal.after_step(progress.step)
            if verdict.stop:
                plans.close()
                break
            if verdict.failed:
                agree_on_error(trainer.runtime, monitor.check)
                checkpoints.wait()
            if verdict.save:
                keep()
        monitor.end_epoch()


def _evaluates(settings: Settings, step: int, steps: int, limit: int) -> bool:
    """Whether an evaluation follows the first `step` steps."""
    epoch, inside = divmod(step, steps)
    return step == limit or (inside == 0 and epoch % settings.evaluate.every == 0)


def _validate(trainer: Trainer, progress: Progress, monitor: Monitor, timer: PhaseTimer, checkup: Checkup) -> bool:
    """Evaluates on the validation split; whether it is the best so far. Collective."""
    from cm3_dist.distributed.traffic import traffic

    epoch = (progress.step - 1) // trainer.batches.steps
    with timer("evaluate"):
        rows = trainer.final_rows()
        metrics = trainer.evaluator.rank(rows, "validation")
        checkup.look(progress.step, epoch, rows)
    better = progress.evaluated(epoch, metrics, trainer.settings.evaluate.monitor)
    monitor.evaluation(progress.step, epoch, "validation", metrics, f"  ({'best' if better else 'not better'})")
    sent = sum(traffic.take().values()) / 2**20
    monitor.scalars(progress.step, {"time/evaluate": timer.take()["evaluate"], "traffic/evaluate_mib": sent})
    return better


def test_best(
    trainer: Trainer, checkpoints: Checkpoints, progress: Progress, monitor: Monitor, best: Path
) -> dict[str, Any]:
    """Metrics of the best checkpoint on the test split, next to the baselines. Collective."""
    from cm3_dist.training.trainer_state import restore

    restore(trainer, checkpoints, best)
    test = trainer.evaluator.rank(trainer.final_rows(), "test") if trainer.manifest.test else {}
    if test:
        monitor.evaluation(progress.step, progress.best_epoch, "test", test, "  (at the best validation epoch)")
    return {
        "validation": progress.best_metrics,
        "test": test,
        "baselines": trainer.evaluator.baselines("test" if test else "validation"),
        "best_epoch": progress.best_epoch,
        "epochs": -(-progress.step // trainer.batches.steps),
        "steps": progress.step,
        "world_size": trainer.runtime.world_size,
        "parts": trainer.manifest.num_parts,
        "data": trainer.manifest.name,
        "split": trainer.manifest.split,
        "peak_memory_mib": peak_memory(trainer.runtime),
    }


def _next(plans: Any, timer: Any) -> Any:
    """The next plan; the time it is waited for counts as `sample`."""
    with timer("sample"):
        return next(plans, None)


def main() -> None:
    """Command line."""
    app(spell_out(sys.argv[1:]), prog_name="python -m cm3_dist.train")


def spell_out(arguments: list[str]) -> list[str]:
    """Gives `--resume`, whose value may be left out, a value: what follows is one only if it is `auto`."""
    spelt: list[str] = []
    for argument in arguments:
        if argument == "auto" and spelt and spelt[-1] == "--resume=newest":
            spelt[-1] = "--resume=auto"
        else:
            spelt.append("--resume=newest" if argument == "--resume" else argument)
    return spelt


if __name__ == "__main__":
    entry_point(main)()
