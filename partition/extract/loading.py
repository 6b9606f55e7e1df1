"""Which encoder a model is, from a local folder or the Hugging Face hub.

What the model is decides how it is called: a sentence-transformers model by its own `encode`; of a model with two
towers (CLIP, SigLIP) the tower that is asked for, projected; a text or an image encoder by its last hidden states; a
multimodal language model by those of a prompt with the picture and the text.
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
from partition.extract.request import Request


def load_encoder(request: Request) -> Encoder:
    """Loads `request.model`, in the precision it is stored in on a GPU, in float32 on a CPU.

    Raises:
        InputError: the extra is not installed, the model cannot be found or read, lacks weights, or does not take what
            it is to encode.
    """
    model = str(request.model)
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).is_dir():
        raise InputError(f"--model {model}: no such folder")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise needs_extra(error) from None
    from huggingface_hub.utils import logging as hub_logging

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    if request.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; `python -m cm3_dist.doctor` says why")
    device = "cuda" if request.device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype: Any = torch.float32 if device == "cpu" else "auto"
    with _one_line(model):
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
    raise InputError(f"--model {model}: {type(module).__name__} takes {module.main_input_name}, not text or pictures")


def _load(request: Request, device: str, dtype: Any) -> tuple[Any, list[str]]:
    """The model, and the names of weights that were not in it and now are random."""
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
def _one_line(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"--model {model}: {text}") from None
