"""Constants of the loss that are fixed for a run: gamma and the factor of phi."""

from __future__ import annotations

from dataclasses import dataclass

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.shard import Shard
from cm3_dist.loss.auto_gamma import auto_gamma
from cm3_dist.loss.calibration import trust


@dataclass(frozen=True)
class LossConstants:
    """Constants of the loss, equal on all ranks and for any number of ranks."""

    gamma: float
    reliability: float = 1.0  # factor of phi

    @staticmethod
    def from_data(settings: Settings, shard: Shard, runtime: Runtime) -> LossConstants:
        """Computes them from the settings and the data. Collective.

        Raises:
            InputError: the prepared folder has no reliability, which `loss.phi=reliable` needs.
        """
        gamma = settings.loss.gamma
        reliability = agree_on_error(runtime, lambda: trust(settings.loss, shard.manifest))
        return LossConstants(auto_gamma(settings, shard, runtime) if gamma == "auto" else gamma, reliability)
