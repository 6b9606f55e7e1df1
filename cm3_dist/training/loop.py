"""The training loop: trains, evaluates, saves and tests the best epoch, from settings to metrics.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error, on_rank_0
from cm3_dist.distributed.host_memory import peak_memory
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.stop_signal import StopSignal
from cm3_dist.distributed.traffic import traffic
from cm3_dist.errors import Interrupted
from cm3_dist.monitoring.health_check import HealthCheck
from cm3_dist.monitoring.monitor import Monitor
from cm3_dist.monitoring.phase_timer import PhaseTimer
from cm3_dist.monitoring.summary import print_result
from cm3_dist.pipeline.step_plan import StepPlan
from cm3_dist.training.progress import Progress, Resume
from cm3_dist.training.run_dir import open_run_folder, refuse_taken, write_result
from cm3_dist.training.trainer import Trainer, check_splits
from cm3_dist.training.trainer_state import restore, resume_from, save


def run(settings: Settings, runtime: Runtime, resume: bool | Resume | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder. Collective.

    Args:
        settings: of the run.
        runtime: this rank.
        resume: from the newest checkpoint (also as True), or from the newest whole one if there is any.

    Returns:
        The content of metrics.json.

    Raises:
        InputError: settings, data, run folder or checkpoint do not fit.
        Interrupted: a signal ended the run; everything is saved.
    """
    began, folder = time.time(), settings.run.dir
    agree_on_error(runtime, lambda: refuse_taken(folder, bool(resume)))
    with ExitStack() as stack:
        loop = TrainingLoop(settings, runtime, resume, stack)
        loop.train()
        best = loop.best()
        content = loop.test(best)
    content |= loop.account() | {"seconds": time.time() - began}
    if runtime.rank == 0:
        print_result(content, write_result(folder, content), best)
    return content


class TrainingLoop:
    """One start of a run: the trainer, its progress, and what saves, shows and stops it. All methods are collective.

    Args:
        settings: of the run.
        runtime: this rank.
        resume: as in `run`.
        stack: closes the monitor and the stop signal at the end.
    """

    def __init__(self, settings: Settings, runtime: Runtime, resume: bool | Resume | None, stack: ExitStack) -> None:
        self._settings, self._runtime, folder = settings, runtime, settings.run.dir
        self._monitor: Monitor | None = None
        self._checkpoints = CheckpointManager(
            folder / "checkpoints", settings.run.keep, runtime, background=settings.run.save_in_background
        )
        self._stop_signal = stack.enter_context(StopSignal(settings.run, runtime, self._failed))
        self._trainer = Trainer(settings, runtime)
        agree_on_error(runtime, lambda: check_splits(self._trainer.manifest, settings))
        self._progress = Progress()
        if resume:
            self._progress = resume_from(self._trainer, self._checkpoints, whole=resume is Resume.AUTO)
        plan, self._steps = self._trainer.model.tables.plan, self._trainer.batches.steps
        if runtime.rank == 0:
            print(f"{self._trainer.describe()}\n{plan}", flush=True)
        on_rank_0(runtime, lambda: open_run_folder(folder, settings, plan, runtime.world_size))

        def monitor() -> Monitor:
            return Monitor(
                folder,
                settings,
                runtime.rank,
                plan=plan,
                steps_per_epoch=self._steps,
                resumed_at=self._progress.step,
                evaluated_at=self._progress.evaluated_at,
            )

        self._monitor = stack.enter_context(agree_on_error(runtime, monitor))
        self._timer = PhaseTimer()
        self._health = HealthCheck(
            monitor=self._monitor,
            shard=self._trainer.shard,
            features=self._trainer.features,
            encoder=self._trainer.model.encoder,
            validation=self._trainer.evaluator.held_out("validation"),
            settings=settings,
            runtime=runtime,
        )

    def best(self) -> Path:
        """The checkpoint of the best evaluation, or without validation interactions the last one."""
        best = self._checkpoints.best()
        assert best is not None
        return best

    def train(self) -> None:
        """Trains until the settings say stop, evaluating and saving as they say.

        Raises:
            Interrupted: a signal ended the run; everything is saved.
        """
        progress = self._progress
        while True:
            if stop := self._stop_signal.stop_requested():
                path = self._save()
                self._checkpoints.wait()
                raise Interrupted(stop, progress.step, path.name)
            if progress.step > progress.evaluated_at and self._evaluation_is_due():
                self._save(best=self._validate() if self._trainer.manifest.validation else self._take_last())
            if progress.step >= self._limit or progress.exhausted(self._settings.train.patience):
                self._checkpoints.wait()
                return
            self._train_epoch()

    def test(self, best: Path) -> dict[str, Any]:
        """Metrics of the checkpoint `best` on the test split, next to the baselines, and what the run was."""
        trainer, progress, manifest = self._trainer, self._progress, self._trainer.manifest
        restore(trainer, self._checkpoints, best)
        test = trainer.evaluator.rank(trainer.final_rows(), "test") if manifest.test else {}
        if test:
            note = "  (at the best validation epoch)" if manifest.validation else "  (after the last epoch)"
            self.monitor.evaluation(progress.step, progress.best_epoch, "test", test, note)
        evaluated = [split for split in ("validation", "test") if getattr(manifest, split)]
        return {
            "validation": progress.best_metrics,
            "test": test,
            "evaluated": evaluated,
            "baselines": trainer.evaluator.baselines(evaluated[-1]) if evaluated else {},
            "best_epoch": progress.best_epoch,
            "epochs": -(-progress.step // self._steps),
            "steps": progress.step,
            "world_size": self._runtime.world_size,
            "parts": trainer.manifest.num_parts,
            "data": trainer.manifest.name,
            "split": trainer.manifest.split,
            "peak_memory_mib": peak_memory(self._runtime),
        }

    def account(self) -> dict[str, Any]:
        """Warnings, skipped steps and seconds per phase of this start."""
        return {
            "warnings": list(self._health.warnings.values()),
            "skipped_steps": self.monitor.skipped,
            "seconds_by_phase": self._timer.total,
        }

    @property
    def monitor(self) -> Monitor:
        """Shows and records the run."""
        assert self._monitor is not None
        return self._monitor

    @property
    def _limit(self) -> int:
        """Steps after which the run ends."""
        train = self._settings.train
        return min(train.max_steps or self._steps * train.epochs, self._steps * train.epochs)

    def _train_epoch(self) -> None:
        """Trains to the end of the epoch, of the run, or to a stop signal."""
        trainer, progress, monitor = self._trainer, self._progress, self.monitor
        epoch, first = divmod(progress.step, self._steps)
        last = min(self._steps, first + self._limit - progress.step)
        monitor.begin_epoch(epoch, first)
        plans = trainer.planner.epoch(epoch, first, last)
        while (plan := self._next(plans)) is not None:
            result = trainer.step(plan, self._timer)
            scalars = trainer.rates() | {"graph/input_share": plan.input_share} | traffic.scalars()
            monitor.step(progress.step, epoch, plan.size, result.stacked(), scalars, self._timer.take())
            progress.step += 1
            verdict = self._stop_signal.after_step(progress.step)
            if verdict.stop:
                plans.close()
                break
            if verdict.failed:
                agree_on_error(self._runtime, monitor.check)
                self._checkpoints.wait()
            if verdict.save:
                self._save()
        monitor.end_epoch()

    def _evaluation_is_due(self) -> bool:
        """Whether an evaluation follows the steps done so far."""
        epoch, inside = divmod(self._progress.step, self._steps)
        return self._progress.step == self._limit or (inside == 0 and epoch % self._settings.evaluate.every == 0)

    def _validate(self) -> bool:
        """Evaluates on the validation split; whether it is the best so far."""
        trainer, progress = self._trainer, self._progress
        epoch = (progress.step - 1) // self._steps
        with self._timer("evaluate"):
            rows = trainer.final_rows()
            metrics = trainer.evaluator.rank(rows, "validation")
            self._health.after_evaluation(progress.step, epoch, rows)
        better = progress.evaluated(epoch, metrics, self._settings.evaluate.monitor)
        note = f"  ({'best' if better else 'not better'})"
        self.monitor.evaluation(progress.step, epoch, "validation", metrics, note)
        sent = sum(traffic.take().values()) / 2**20
        seconds = self._timer.take()["evaluate"]
        self.monitor.scalars(progress.step, {"time/evaluate": seconds, "traffic/evaluate_mib": sent})
        return better

    def _take_last(self) -> bool:
        """Takes the state after the steps done so far for the best: without validation interactions the last one is."""
        progress = self._progress
        epoch = (progress.step - 1) // self._steps
        self._health.after_evaluation(progress.step, epoch, None)
        progress.unevaluated(epoch)
        return True

    def _save(self, *, best: bool = False) -> Path:
        self.monitor.flush()
        agree_on_error(self._runtime, self.monitor.check)
        with self._timer("save"):
            path = save(self._trainer, self._checkpoints, self._progress, best=best)
        self.monitor.scalars(self._progress.step, {"time/save": self._timer.take()["save"]})
        self._stop_signal.saved()
        return path

    def _next(self, plans: Iterator[StepPlan]) -> StepPlan | None:
        """The next plan, or None; the time spent waiting for it counts as `sample`."""
        with self._timer("sample"):
            return next(plans, None)

    def _failed(self) -> bool:
        """Whether this rank failed to write a checkpoint or the event log."""
        return self._checkpoints.failed() or (self._monitor is not None and self._monitor.failed())
