from __future__ import annotations

import pytest

from partition.errors import InputError
from partition.options import default_weights, item_graph_weights, pca_dims

MODALITIES = ["image", "text"]


def test_default_weights() -> None:
    assert default_weights(["image", "text"]) == {"image": 0.1, "text": 0.9}
    assert default_weights(["audio", "image"]) == {"audio": 0.9, "image": 0.1}
    assert default_weights(["image"]) == {"image": 1.0}
    assert default_weights(["a", "b"]) == {"a": 0.5, "b": 0.5}
    assert default_weights(["image", "text", "video"]) == pytest.approx({"image": 1 / 3, "text": 1 / 3, "video": 1 / 3})
    assert default_weights(["image", "text", "spectral"]) == {"image": 0.1, "text": 0.9, "spectral": 0.0}
    assert default_weights(["spectral"]) == {"spectral": 1.0}


def test_weights_of_the_item_graph() -> None:
    assert item_graph_weights([], ["image", "text"]) == {"image": 0.1, "text": 0.9}
    assert item_graph_weights(["text=1", "image=0"], ["image", "text"]) == {"image": 0, "text": 1}


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (["text=1"], "option.item-graph-weight"),
        (["text=1", "image=-1"], "option.item-graph-weight"),
        (["text=1", "image=inf"], "option.item-graph-weight"),
        (["text=0", "image=0"], "option.item-graph-weight"),
        (["1"], "option.item-graph-weight"),
        (["audio=1"], "features.unknown"),
        (["text=x"], "option.number"),
    ],
)
def test_refused_weights_of_the_item_graph(weights: list[str], code: str) -> None:
    with pytest.raises(InputError, match="--item-graph-weight") as caught:
        item_graph_weights(weights, MODALITIES)
    assert caught.value.code == code


def test_pca_dims() -> None:
    assert pca_dims(["8", "text=2"], MODALITIES) == {"*": 8, "text": 2}


@pytest.mark.parametrize(
    ("text", "code"),
    [("video=2", "features.unknown"), ("0", "option.pca"), ("1.5", "option.pca"), ("text=few", "option.number")],
)
def test_refused_pca_dims(text: str, code: str) -> None:
    with pytest.raises(InputError, match="--pca") as caught:
        pca_dims([text], MODALITIES)
    assert caught.value.code == code
