"""Feature rows that change places, and what preparation then makes of the features' reliability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import somersd

from partition.transform.dataset import Features
from partition.transform.reliability import reliability, somers_d
from partition.transform.shuffle_features import noisy_items, permute_rows


def test_the_chosen_items_get_each_others_rows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float16)
    chosen = noisy_items(300, 0.25, seed=1)
    assert len(chosen) == 75
    found = [permute_rows(Features(values, 9), chosen, 1, number, tmp_path / f"{number}.npy") for number in (0, 1, 0)]
    kept = np.setdiff1d(np.arange(300), chosen)
    for features in found:
        assert features.values.dtype == np.float16
        assert features.source_dim == 9
        np.testing.assert_array_equal(features.values[kept], values[kept])
        assert (features.values[chosen] != values[chosen]).any(axis=1).all()  # nobody keeps the own row
        assert {row.tobytes() for row in features.values} == {row.tobytes() for row in values}
    np.testing.assert_array_equal(found[0].values, found[2].values)
    assert (found[0].values != found[1].values).any(axis=1).mean() > 0.2  # modalities do not agree


def test_more_noise_adds_to_less() -> None:
    shares = [noisy_items(400, fraction, seed=3) for fraction in (0.0, 0.1, 0.5, 1.0)]
    assert [len(chosen) for chosen in shares] == [0, 40, 200, 400]
    for few, many in zip(shares, shares[1:], strict=False):
        assert np.isin(few, many).all()
    assert not np.array_equal(shares[1], noisy_items(400, 0.1, seed=4))


def test_somers_d_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.integers(2, 11, 30)  # ties, too
    sign = np.sign(a[:, None] - b[None, :])
    assert somers_d(a, b) == pytest.approx(sign.mean(), abs=1e-12)
    assert somers_d(a, b) == pytest.approx(somersd(np.repeat([1, 0], [40, 30]), np.concatenate([a, b])).statistic)


def _tastes(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Users who mostly stay within one of ten tastes; a modality that shows the items' tastes, and one of noise."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, 10, 400)
    user, item = np.repeat(np.arange(1_000), 60), rng.integers(0, 400, 60_000)
    chosen = (taste[item] == user % 10) | (rng.random(60_000) < 0.03)
    user, item = user[chosen], item[chosen]
    shown = np.eye(10)[taste] + 0.5 * rng.normal(size=(400, 10))
    return {"shown": shown * 1e200, "noise": rng.normal(size=(400, 10))}, user, item  # the scale does not matter


def test_reliability_tells_features_from_noise(tmp_path: Path) -> None:
    features, user, item = _tastes()
    found = reliability(features, user, item, seed=0)
    assert found == reliability(features, user, item, seed=0)
    assert found["reliability_noise"] < 0.1 < found["reliability"] < found["reliability_shown"] <= 1
    assert found["reliability_shown"] > 0.7
    shares = []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        chosen = noisy_items(400, fraction, seed=0)
        values = permute_rows(Features(features["shown"], 10), chosen, 0, 0, tmp_path / f"{fraction}.npy").values
        shares.append(reliability({"shown": values}, user, item, seed=0)["reliability"])
    assert shares == sorted(shares, reverse=True)
    assert shares[3] < 0.05
    assert shares[1:3] == pytest.approx([0.75**2 * shares[0], 0.5**2 * shares[0]], abs=0.08)


def test_without_pairs_nothing_is_trusted() -> None:
    features = {"a": np.ones((3, 2)), "b": np.zeros((3, 2))}
    alone = reliability(features, np.array([0, 1, 2]), np.array([0, 1, 2]), seed=0)
    assert alone == {"reliability": 0, "reliability_a": 0, "reliability_b": 0}
    assert reliability(features, np.zeros(3, np.int64), np.array([0, 1, 2]), seed=0)["reliability"] == 0


def test_reliability_compares_items_by_the_modalities_that_both_have() -> None:
    features, user, item = _tastes()
    both = {"shown": features["shown"], "noise": features["noise"]}
    whole = reliability(both, user, item, seed=0)
    assert reliability(both, user, item, seed=0, missing={"shown": np.zeros(400, bool)}) == whole
    missing = np.random.default_rng(1).random(400) < 0.3
    zeros = {**both, "shown": np.where(missing[:, None], 0, both["shown"])}
    masked = reliability(zeros, user, item, seed=0, missing={"shown": missing})
    # Half as many pairs: a larger standard error is subtracted.
    assert masked["reliability_shown"] == pytest.approx(whole["reliability_shown"], abs=0.06)
    assert masked["reliability_noise"] == whole["reliability_noise"]
    assert reliability(zeros, user, item, seed=0)["reliability_shown"] < whole["reliability_shown"] - 0.1
    # Of a modality that only one item has there is no pair.
    alone = np.arange(400) > 0
    assert reliability(both, user, item, seed=0, missing={"shown": alone})["reliability_shown"] == 0
