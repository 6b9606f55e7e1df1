"""The examples of docs/capacity.md have the figures that their commands give."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cm3_dist.capacity.__main__ import app
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "capacity.md"
GIB = 2**30


def test_the_table_is_what_the_commands_say(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^python -m cm3_dist.capacity (--users .*--device cuda .*)$", text, re.M)
    assert len(commands) == 3
    found = [_predicted(command, tmp_path / "out.json") for command in commands]
    lines = ["| | Electronics | 100M x 10M x 5B | 1B x 100M x 50B |", "|---|---|---|---|"]
    for name in found[0]:
        lines.append(f"| {name} | {' | '.join(one[name] for one in found)} |")
    table = "\n".join(lines)
    assert table in text, f"the table should be:\n{table}"


def _predicted(command: str, path: Path) -> dict[str, str]:
    result = CliRunner().invoke(app, [*shlex.split(command), "--json", str(path)])
    assert result.exit_code == 0, result.output
    seen: dict[str, Any] = json.loads(path.read_text())
    memory, seconds, disk = seen["memory"], seen["seconds"], seen["disk"]
    kinds = sorted(seconds["step_by_kind"].items(), key=lambda kind: -kind[1])[:2]
    return {
        "GiB a rank, device": f"{memory['device_peak'] / GIB:.1f}",
        "GiB a rank, host": f"{memory['host_peak'] / GIB:.1f}",
        "MiB sent a rank and step": f"{sum(seen['bytes_per_step'].values()) / 2**20:,.0f}",
        "ms a step": f"{seconds['step'] * 1e3:,.0f}",
        "of which": ", ".join(f"{name} {value * 1e3:,.0f}" for name, value in kinds),
        "steps an epoch": f"{seen['steps_per_epoch']:,}",
        "hours an epoch": f"{seconds['epoch'] / 3600:.3g}",
        "seconds an evaluation": f"{seconds['evaluation']:.1f}",
        "GiB of checkpoint": f"{disk['checkpoint'] / GIB:,.1f}",
        "GiB of prepared folder": f"{sum(disk['prepared'].values()) / GIB:,.0f}",
        "hours of preparation": f"{seconds['prepare'] / 3600:,.1f}",
        "GiB of memory for it": f"{memory['prepare'] / GIB:,.0f}",
    }
