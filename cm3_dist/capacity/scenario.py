"""What is planned: data, settings and machine, and the ways to its sizes: counted, drawn or expected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cm3_dist.capacity import disk
from cm3_dist.capacity.from_folder import drawn_steps, rank_loads
from cm3_dist.capacity.from_numbers import (
    ITEM_LAW,
    USER_LAW,
    Degrees,
    Expectation,
    expected_manifest,
    item_neighbours,
)
from cm3_dist.capacity.hardware import Machine
from cm3_dist.capacity.prediction import Prediction, predict
from cm3_dist.capacity.sizes import RankLoad
from cm3_dist.config.settings import Machine as MachineSettings
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.propagation_mode import resolve_mode
from partition.folder import layout
from partition.folder.manifest import Manifest, Modality, read_manifest
from partition.synthetic.options import parse_modalities

INSIDE = 0.5  # share of interactions that METIS leaves on one rank, where nobody knows better


@dataclass(frozen=True)
class Plan:
    """One run. `inside`: share of interactions with both ends on one rank."""

    manifest: Manifest
    settings: Settings
    machine: Machine
    inside: float
    neighbours: float  # of an item in the item graph
    users: Degrees
    items: Degrees
    root: Path | None = None  # of the prepared folder
    loads: tuple[RankLoad, ...] = ()  # counted in it

    @staticmethod
    def of_folder(settings: Settings, root: Path, machine: Machine, inside: float | None) -> Plan:
        """A prepared folder, counted for so many ranks.

        Raises:
            InputError: it is none, or its parts do not fit the ranks.
        """
        manifest = read_manifest(root)
        loads = rank_loads(root, manifest, machine.ranks)
        similar = sum(load.similar.edges for load in loads) / manifest.items
        counted = sum(part.inner_edges for part in manifest.parts) / max(manifest.train, 1)
        users, items = (Degrees.of(root, manifest, file) for file in (layout.USERS, layout.ITEMS))
        share = counted if inside is None else inside
        return Plan(manifest, settings, machine, share, similar, users, items, root, tuple(loads))

    @staticmethod
    def of_numbers(
        settings: Settings,
        sizes: list[int],
        modalities: str,
        machine: Machine,
        inside: float | None,
        k: int,
    ) -> Plan:
        """`sizes`: users, items, interactions; one part a rank."""
        share = max(INSIDE, 1 / machine.ranks) if inside is None else inside
        found = [
            Modality.model_validate({"name": name, "source_dim": width.dim, "dim": width.dim, "dtype": width.dtype})
            for name, width in parse_modalities(modalities).items()
        ]
        users, items, interactions = sizes
        manifest = expected_manifest(users, items, interactions, found, machine.ranks, share)
        degrees = (
            Degrees.power_law(users, manifest.train, USER_LAW),
            Degrees.power_law(items, manifest.train, ITEM_LAW),
        )
        return Plan(manifest, settings, machine, share, item_neighbours(manifest, k), *degrees)

    @property
    def mode(self) -> str:
        """`exact` or `sampled`."""
        return resolve_mode(self.settings, self.manifest)

    def drawn(self, steps: int) -> Prediction:
        """From steps drawn as training draws them: loads the folder's graph into this process."""
        assert self.root is not None
        with distributed(MachineSettings(device="cpu")) as runtime:
            found = drawn_steps(self.settings, self.mode, list(self.loads), runtime, steps)
        return self._predict(list(self.loads), found)

    def expected(self) -> Prediction:
        """From expected steps; what ranks hold is counted where there is a folder."""
        expectation = self._expectation()
        step = expectation.step()
        loads = list(self.loads) or [expectation.load()]
        return self._predict(loads, [[step] * len(loads)])

    def changed(self, settings: Settings, ranks: int | None = None, modalities: list[Modality] | None = None) -> Plan:
        """With other settings, on more ranks, or with narrower features; everything expected, nothing counted."""
        manifest = self.manifest
        if modalities is not None:
            manifest = manifest.model_copy(update={"modalities": modalities})
        if ranks is not None:
            total = manifest.train + manifest.validation + manifest.test
            found = manifest.modalities
            manifest = expected_manifest(manifest.users, manifest.items, total, found, ranks, self.inside)
        machine = self.machine if ranks is None else replace(self.machine, ranks=ranks)
        return replace(self, manifest=manifest, settings=settings, machine=machine, loads=())

    def _expectation(self) -> Expectation:
        ranks = self.machine.ranks
        return Expectation(
            self.manifest, self.settings, self.mode, ranks, self.users, self.items, self.inside, self.neighbours
        )

    def _predict(self, loads: list[RankLoad], steps: list[Any]) -> Prediction:
        whole = loads if len(loads) == self.machine.ranks else loads * self.machine.ranks
        prepared = (
            disk.prepared_bytes(self.manifest, whole)
            if self.root is None
            else disk.folder_bytes(self.root, self.manifest)
        )
        return predict(self.manifest, self.settings, self.mode, self.machine, loads, steps, prepared)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        manifest = self.manifest
        return {
            "data": {
                "name": manifest.name,
                "users": manifest.users,
                "items": manifest.items,
                "train": manifest.train,
                "validation": manifest.validation,
                "test": manifest.test,
                "modalities": [modality.model_dump() for modality in manifest.modalities],
                "inside": self.inside,
                "item_neighbours": self.neighbours,
            },
            "settings": self.settings.plain(),
        }
