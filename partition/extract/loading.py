"""Loads a model from a local folder or the Hugging Face hub, as the encoder of its type.

The type of the model determines how a row is computed: a sentence-transformers model by its own `encode`; a two-tower
model (CLIP, SigLIP) by the projection of one tower; a text or an image encoder by its last hidden states; a multimodal
language model by the last hidden states of a prompt with image and text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partition.errors import InputError
from partition.extract.encoders import (
    Encoder,
    ImageEncoder,
    MultimodalEncoder,
    SentenceTransformerEncoder,
    TextEncoder,
    TwoTowerEncoder,
)
from partition.extract.extra import needs_extra
from partition.extract.request import Device, Request


def load_encoder(request: Request) -> Encoder:
    """Loads `request.model`: on a GPU in the precision in which it is stored, on a CPU in float32.

    Raises:
        InputError: the extra is not installed, or the model cannot be found or read, lacks weights, or does not take
            the requested kind of input.
    """
    model = str(request.model)
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).is_dir():
        raise InputError(f"--model {model}: no such folder", "extract.model")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise needs_extra(error) from None
    from huggingface_hub.utils import logging as hub_logging

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    if request.device == Device.CUDA and not torch.cuda.is_available():
        message = "--device cuda: torch sees no GPU here; `python -m cm3_dist.doctor` says why"
        raise InputError(message, "extract.device")
    device = "cuda" if request.device != Device.CPU and torch.cuda.is_available() else "cpu"
    dtype: Any = torch.float32 if device == "cpu" else "auto"
    with _loading(model):
        if _has_file(request, "modules.json"):
            return SentenceTransformerEncoder(request, device, dtype)
        config = transformers.AutoConfig.from_pretrained(model, **request.source)
        module, missing = _load(request, device, dtype)
        if config.model_type in _multimodal_types() and not hasattr(module, "get_text_features"):
            return MultimodalEncoder(request, module, missing)
        if hasattr(module, "get_text_features") and hasattr(module, "get_image_features"):
            return TwoTowerEncoder(request, module, missing)
        if module.main_input_name == "pixel_values":
            return ImageEncoder(request, module, missing)
        if module.main_input_name == "input_ids":
            return TextEncoder(request, module, missing)
    message = f"--model {model}: {type(module).__name__} takes {module.main_input_name}, not text or images"
    raise InputError(message, "extract.model")


def _load(request: Request, device: str, dtype: Any) -> tuple[Any, list[str]]:
    """The model, and the names of weights that were missing and are now random."""
    import transformers

    module, info = transformers.AutoModel.from_pretrained(
        str(request.model), dtype=dtype, output_loading_info=True, **request.source
    )
    return module.to(device).eval(), list(info["missing_keys"])


def _has_file(request: Request, name: str) -> bool:
    from transformers.utils.hub import cached_file

    if Path(str(request.model)).is_dir():
        return (Path(str(request.model)) / name).is_file()
    found = cached_file(
        str(request.model),
        name,
        revision=request.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _multimodal_types() -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"--model {model}: {text}", "extract.model") from None
