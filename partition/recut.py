"""`python -m partition recut`: cuts a prepared folder into another number of parts.

What does not depend on the number of parts is taken from the folder: the split, the features, the ids and the item
graph. The parts are those that `partition build` with this number of parts writes, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partition import stage_results as stored
from partition.cut.assign import assign_parts, chosen_method
from partition.errors import InputError
from partition.folder import layout
from partition.folder.manifest import Manifest
from partition.folder.read_dataset import PreparedFolder
from partition.folder.write import write_prepared
from partition.options import SEED, CutMethod, RecutOptions
from partition.output import preparing
from partition.resume import Work
from partition.stages import Stages


def recut(options: RecutOptions, stages: Stages | None = None) -> Path:
    """Cuts a prepared folder anew. The same command resumes after the last finished stage.

    Args:
        options: the command.
        stages: for progress; by default they are printed.

    Returns:
        The folder written, `options.output`.

    Raises:
        InputError: anything wrong with the folder, the options or the output; nothing is written then.
    """
    stages = stages or Stages()
    command = {"recut": options.model_dump(mode="json", exclude={"output", "overwrite"})}
    manifest_file = options.prepared / layout.MANIFEST  # has the digests of all other files
    inputs = [str(manifest_file)] if manifest_file.exists() else []
    with preparing(options.output, options.overwrite, command, inputs) as work:
        _recut(options, work, stages)
    return options.output


def _recut(options: RecutOptions, work: Work, stages: Stages) -> None:
    """All stages. Its mapped files are closed when it returns: on NFS the work folder cannot be deleted before."""
    with stages("prepared") as say:
        source = PreparedFolder.open(options.prepared)
        manifest = source.manifest
        dataset, graph = source.dataset(work.folder), source.item_graph()
        say(f"{len(dataset.user):,} interactions, {manifest.users:,} users, {manifest.items:,} items")
    user, item = dataset.train(work.folder)
    wanted = options.method or _method(options.prepared, manifest)
    method = chosen_method(wanted, len(user))

    def make(path: Path) -> None:
        sizes, seed = (manifest.users, manifest.items), manifest.settings.get("seed", SEED)
        stored.write_assignment(assign_parts(user, item, *sizes, options.parts, method, seed, work.folder), path)

    with stages("parts", kept=work.has("parts.npz")) as say:
        assignment = stored.read_assignment(work.result("parts.npz", make))
        inside = assignment.share_inside(user, item)
        say(
            f"{manifest.num_parts} -> {options.parts} by {method}, {inside:.0%} of the training interactions inside one"
        )
    with stages("write") as say:
        statistics = manifest.statistics | stages.statistics
        settings = _settings(manifest, options, wanted)
        write_prepared(dataset, graph, assignment, options.output, settings, statistics, work)
        say(str(options.output))


def _method(root: Path, manifest: Manifest) -> CutMethod:
    """The method by which the folder was cut."""
    found = manifest.settings.get("method", CutMethod.AUTO)
    try:
        return CutMethod(found)
    except ValueError:
        message = f"{root / layout.MANIFEST}: settings.method: {found!r} is no way to cut; give --method"
        raise InputError(message, "manifest.field") from None


def _settings(manifest: Manifest, options: RecutOptions, method: CutMethod) -> dict[str, Any]:
    """The settings of the folder with the new parts, and from what they were cut."""
    source = {"digest": manifest.digest(), "parts": manifest.num_parts}
    changed = {"parts": options.parts, "method": method.value, "output": str(options.output)}
    return {**manifest.settings, **changed, "recut_from": source}
