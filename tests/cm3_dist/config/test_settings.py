from __future__ import annotations

from pathlib import Path

import pytest

from cm3_dist.config.loading import known_keys, load_settings
from cm3_dist.config.reference import page
from cm3_dist.config.settings import Settings
from partition.errors import InputError
from tests.support.paths import ROOT


def test_defaults_yaml_and_overrides_in_that_order(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("train: {epochs: 7, seed: 3}\nnegatives: uniform\n")
    settings = load_settings(config, ["train.epochs=9", "propagation.fanouts=[4,3,2]", "tables.lr=1e-2"])
    assert (settings.train.epochs, settings.train.seed, settings.negatives) == (9, 3, "uniform")
    assert settings.propagation.fanouts == [4, 3, 2]
    assert settings.tables.lr == 0.01
    assert settings.loss == Settings().loss


def test_settings_survive_being_written_and_read(tmp_path: Path) -> None:
    import yaml

    settings = load_settings(None, ["train.epochs=9", "model.item_ids=true"])
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings.plain()))
    assert load_settings(path, []) == settings


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("train.epoch=3", "settings.unknown", "'train.epochs'"),
        ("trian.epochs=3", "settings.unknown", "'train.epochs'"),
        ("epochs=3", "settings.unknown", "'train.epochs'"),
        ("train.epochs=0", "settings.value", "train.epochs"),
        ("train.epochs=many", "settings.value", "train.epochs"),
        ("loss.gamma=.inf", "settings.value", "loss.gamma"),
        ("negatives=hard", "settings.value", "negatives"),
        ("model.dim=6", "settings.value", "model"),
        ("propagation.fanouts=[3,2]", "settings.value", "fanouts"),
        ("loss.max_sim=-0.5", "settings.value", "max_sim"),
        ("evaluate.monitor=recall@7", "settings.value", "recall@7"),
        ("model.curve_centre=item", "settings.removed", "model.curve_centre"),
        ("train.epochs", "settings.syntax", "train.epochs"),
        ("train.epochs=[", "settings.syntax", "train.epochs"),
    ],
)
def test_bad_overrides_are_named(override: str, code: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        load_settings(None, [override])
    assert error.value.code == code
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bound_may_equal_its_limit() -> None:
    assert load_settings(None, ["loss.min_sim=1.0"]).loss.min_sim == 1.0


def test_the_message_for_an_unknown_setting_suggests_a_known_one() -> None:
    with pytest.raises(InputError) as error:
        load_settings(None, ["train.epoch=3"])
    assert str(error.value) == "command line: unknown setting 'train.epoch'; did you mean 'train.epochs'?"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"train: [1", "settings.syntax"),
        (b"- a\n- b\n", "settings.syntax"),
        (b"train: {epoch: 3}\n", "settings.unknown"),
        (b"\xff\xfe\x00", "settings.syntax"),
        (b"train: !!python/object/apply:os.system [ls]\n", "settings.syntax"),
        (None, "settings.missing"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"job\.yaml") as error:
        load_settings(path, [])
    assert error.value.code == code


def test_every_job_file_is_valid() -> None:
    jobs = sorted((ROOT / "jobs").glob("*.yaml"))
    assert jobs
    for job in jobs:
        load_settings(job, [])


def test_known_keys_cover_what_the_docs_name() -> None:
    keys = known_keys()
    for key in ("data.path", "run.dir", "train.max_steps", "train.seed", "propagation.mode", "negatives", "loss.scope"):
        assert key in keys


def test_the_page_of_settings_is_up_to_date() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == page(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    rows = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]
    assert {row[0].strip("|` ") for row in rows} == set(known_keys())
    assert all(len(row) == 4 and row[3].strip("| ") for row in rows)


def test_a_removed_setting_as_a_dotted_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "dotted.yaml"
    file.write_text("model.layer_weights: null\n")
    with pytest.raises(InputError) as error:
        load_settings(file, [])
    assert error.value.code == "settings.unknown"
