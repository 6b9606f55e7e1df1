"""The training loop: trains, evaluates, saves and tests the best epoch, from settings to metrics.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from cm3_dist.checkpoint.manager import Checkpoints
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error, on_rank_0
from cm3_dist.distributed.host_memory import peak_memory
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.stop_signal import Watch
from cm3_dist.distributed.traffic import traffic
from cm3_dist.errors import Interrupted
from cm3_dist.monitoring.monitor import Monitor, PhaseTimer
from cm3_dist.monitoring.summary import print_result
from cm3_dist.pipeline.step_plan import StepPlan
from cm3_dist.training.health_check import Checkup
from cm3_dist.training.progress import Progress, Resume
from cm3_dist.training.run_dir import open_run_folder, refuse_taken, write_result
from cm3_dist.training.trainer import Trainer, check_splits
from cm3_dist.training.trainer_state import restore, resume_from, save


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
    began, folder = time.time(), settings.run.dir
    agree_on_error(runtime, lambda: refuse_taken(folder, bool(resume)))
    with ExitStack() as stack:
        checkpoints = Checkpoints(
            folder / "checkpoints", settings.run.keep, runtime, background=settings.run.save_in_background
        )
        failing = [checkpoints.failed]
        watch = stack.enter_context(Watch(settings.run, runtime, lambda: any(failed() for failed in failing)))
        trainer = Trainer(settings, runtime)
        agree_on_error(runtime, lambda: check_splits(trainer.manifest))
        progress = resume_from(trainer, checkpoints, whole=resume is Resume.AUTO) if resume else Progress()
        plan, steps = trainer.model.tables.plan, trainer.batches.steps
        if runtime.rank == 0:
            print(f"{trainer.describe()}\n{plan}", flush=True)
        on_rank_0(runtime, lambda: open_run_folder(folder, settings, plan, runtime.world_size))
        done = {"resumed_at": progress.step, "evaluated_at": progress.evaluated_at}
        make = partial(Monitor, folder, settings, runtime.rank, plan=plan, steps_per_epoch=steps, **done)
        monitor = stack.enter_context(agree_on_error(runtime, make))
        failing.append(monitor.failed)
        timer = PhaseTimer()
        checkup = Checkup(trainer, monitor)
        train_epochs(trainer, checkpoints, progress, monitor, timer, watch, checkup)
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
    watch: Watch,
    checkup: Checkup,
) -> None:
    """Trains until the settings say stop, evaluating and saving as they say. Collective.

    Raises:
        Interrupted: a signal asked for it; everything is saved.
    """
    settings, steps = trainer.settings, trainer.batches.steps
    limit = min(settings.train.max_steps or steps * settings.train.epochs, steps * settings.train.epochs)

    def keep(best: bool = False) -> Path:
        monitor.flush()
        agree_on_error(trainer.runtime, monitor.check)
        with timer("save"):
            path = save(trainer, checkpoints, progress, best=best)
        monitor.scalars(progress.step, {"time/save": timer.take()["save"]})
        watch.saved()
        return path

    while True:
        if stop := watch.now():
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
            verdict = watch.after_step(progress.step)
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


def _next(plans: Iterator[StepPlan], timer: PhaseTimer) -> StepPlan | None:
    """The next plan, or None; the time spent waiting for it counts as `sample`."""
    with timer("sample"):
        return next(plans, None)
