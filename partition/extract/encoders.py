"""Pretrained encoders, one class per type of model: a call takes items and returns rows.

Shapes: n items, d width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from partition.errors import InputError
from partition.extract.extra import needs_extra
from partition.extract.request import Pooling, Request

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_MAX_TOKENS = 512  # of a text, unless --max-tokens or the limit of the model is smaller


@dataclass(frozen=True)
class Piece:
    """One item for an encoder, with at least one of the two."""

    text: str | None = None
    image: Image | None = None


class Encoder(Protocol):
    """Computes rows of items."""

    kind: str  # the type of the model, in words

    def encode(self, pieces: Sequence[Piece]) -> np.ndarray:
        """[len(pieces), d] float32."""


class SentenceTransformerEncoder:
    """Encodes texts, images or both by the model's own `encode`."""

    def __init__(self, request: Request, device: str, dtype: Any) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise needs_extra(error) from None
        self._model = SentenceTransformer(request.model, device=device, model_kwargs={"dtype": dtype}, **request.source)
        self._takes_images, self._batch = self._model.supports("image"), request.batch_size
        if request.images is not None and not self._takes_images:
            raise _refused(request, "sentence-transformers model of texts", "images")
        if request.text and request.images is not None and not self._model.supports(("image", "text")):
            raise _one_at_a_time(request)
        if request.pooling != Pooling.AUTO:
            message = f"--pooling {request.pooling}: a sentence-transformers model pools in its own way"
            raise InputError(message, "extract.pooling")
        if request.max_tokens is not None:
            self._model.max_seq_length = request.max_tokens
        self.kind = "sentence-transformers"

    def encode(self, pieces: Sequence[Piece]) -> np.ndarray:
        """[len(pieces), d] float32."""
        inputs: list[Any] = [piece.text for piece in pieces]
        if self._takes_images:  # such a model could take a bare string for the path of an image
            both = [(("text", piece.text), ("image", piece.image)) for piece in pieces]
            inputs = [{key: value for key, value in given if value is not None} for given in both]
        rows: np.ndarray = self._model.encode(inputs, batch_size=self._batch, show_progress_bar=False)
        return np.asarray(rows, np.float32)


class _Module:
    """A transformers model and its preprocessing."""

    kind = ""

    def __init__(self, request: Request, module: Any, missing: list[str], unused: str | None) -> None:
        needed = sorted(name for name in missing if unused is None or unused not in name)
        if needed:
            message = f"--model {request.model}: the weights of {needed[0]} are not in it, {len(needed)} in all"
            raise InputError(message, "extract.weights")
        self._request, self._module = request, module

    def encode(self, pieces: Sequence[Piece]) -> np.ndarray:
        """[len(pieces), d] float32."""
        import torch

        with torch.inference_mode():
            rows: np.ndarray = self._rows(pieces).float().cpu().numpy()
        return rows

    def _rows(self, pieces: Sequence[Piece]) -> torch.Tensor:
        raise NotImplementedError

    def _moved(self, inputs: Any) -> dict[str, Any]:
        kind, device = self._module.dtype, self._module.device
        return {
            name: value.to(device, kind if value.is_floating_point() else None)
            for name, value in inputs.items()
            if hasattr(value, "is_floating_point")
        }

    def _tokenized(self, texts: list[str | None], tokenizer: Any, padding: bool | str, limit: int) -> dict[str, Any]:
        return self._moved(tokenizer(texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt"))

    def _token_limit(self, tokenizer: Any) -> int:
        config = self._module.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or _MAX_TOKENS
        return min(self._request.max_tokens or _MAX_TOKENS, tokenizer.model_max_length, most)


class TwoTowerEncoder(_Module):
    """CLIP, SigLIP and similar models: the projected text or image tower."""

    kind = "two towers, projected"

    def __init__(self, request: Request, module: Any, missing: list[str]) -> None:
        import transformers

        super().__init__(request, module, missing, None)
        if request.text and request.images is not None:
            raise _one_at_a_time(request)
        if request.pooling != Pooling.AUTO:
            message = f"--pooling {request.pooling}: {type(module).__name__} projects in its own way"
            raise InputError(message, "extract.pooling")
        kind = transformers.AutoImageProcessor if request.images is not None else transformers.AutoTokenizer
        self._prepare = kind.from_pretrained(request.model, **request.source)
        # SigLIP was trained on texts padded to full length.
        self._padding = "max_length" if module.config.model_type.startswith("siglip") else True

    def _rows(self, pieces: Sequence[Piece]) -> torch.Tensor:
        if self._request.images is not None:
            inputs = self._moved(self._prepare([piece.image for piece in pieces], return_tensors="pt"))
            found = self._module.get_image_features(**inputs)
        else:
            texts = [piece.text for piece in pieces]
            inputs = self._tokenized(texts, self._prepare, self._padding, self._token_limit(self._prepare))
            found = self._module.get_text_features(**inputs)
        return getattr(found, "pooler_output", found)


class TextEncoder(_Module):
    """Encodes texts by their last hidden states."""

    def __init__(self, request: Request, module: Any, missing: list[str]) -> None:
        import transformers

        super().__init__(request, module, missing, "pooler")
        if request.images is not None:
            raise _refused(request, f"text encoder ({type(module).__name__})", "images")
        self._tokenizer = _with_padding(transformers.AutoTokenizer.from_pretrained(request.model, **request.source))
        if module.config.is_encoder_decoder:
            self._module = module.get_encoder()
        self._pooling = request.pooling
        if self._pooling == Pooling.AUTO:
            self._pooling = Pooling.LAST if _decoder_only(module.config) else Pooling.MEAN
        self.kind = f"text encoder, {self._pooling} of the last hidden states"

    def _rows(self, pieces: Sequence[Piece]) -> torch.Tensor:
        texts = [piece.text for piece in pieces]
        inputs = self._tokenized(texts, self._tokenizer, True, self._token_limit(self._tokenizer))
        return _pooled(self._module(**inputs).last_hidden_state, inputs["attention_mask"], self._pooling)


class ImageEncoder(_Module):
    """Encodes images by the last hidden states of a transformer or a convolutional network."""

    def __init__(self, request: Request, module: Any, missing: list[str]) -> None:
        import transformers

        super().__init__(request, module, missing, "pooler")
        if request.text:
            raise _refused(request, f"image encoder ({type(module).__name__})", "texts")
        self._processor = transformers.AutoImageProcessor.from_pretrained(request.model, **request.source)
        self._pooling = Pooling.MEAN if request.pooling == Pooling.AUTO else request.pooling
        self.kind = f"image encoder, {self._pooling} of the last hidden states"

    def _rows(self, pieces: Sequence[Piece]) -> torch.Tensor:
        inputs = self._moved(self._processor([piece.image for piece in pieces], return_tensors="pt"))
        hidden = self._module(pixel_values=inputs["pixel_values"]).last_hidden_state
        if hidden.ndim == 4:  # a convolutional network: [n, d, height, width]
            hidden = hidden.flatten(2).transpose(1, 2)
            if self._pooling != Pooling.MEAN:
                message = f"--pooling {self._pooling}: a convolutional network has no tokens; use mean"
                raise InputError(message, "extract.pooling")
        return _pooled(hidden, hidden.new_ones(hidden.shape[:2]), self._pooling)


class MultimodalEncoder(_Module):
    """Encodes texts with their images by the last hidden states of a prompt to a language model."""

    def __init__(self, request: Request, module: Any, missing: list[str]) -> None:
        import transformers

        super().__init__(request, module, missing, None)
        self._processor = transformers.AutoProcessor.from_pretrained(request.model, **request.source)
        self._tokenizer = _with_padding(self._processor.tokenizer)
        self._pooling = Pooling.LAST if request.pooling == Pooling.AUTO else request.pooling
        self.kind = f"multimodal language model, {self._pooling} of the last hidden states"

    def _rows(self, pieces: Sequence[Piece]) -> torch.Tensor:
        # A processor takes one image per prompt, or none at all: items with and without images go separately.
        import torch

        rows: list[torch.Tensor | None] = [None] * len(pieces)
        for pictured in (True, False):
            chosen = [number for number, piece in enumerate(pieces) if (piece.image is not None) == pictured]
            if chosen:
                found = self._same([pieces[number] for number in chosen], pictured)
                for number, row in zip(chosen, found, strict=True):
                    rows[number] = row
        return torch.stack([row for row in rows if row is not None])

    def _same(self, pieces: list[Piece], pictured: bool) -> torch.Tensor:
        prompts = [self._prompt(self._cut(piece.text), pictured) for piece in pieces]
        images: dict[str, Any] = {"images": [[piece.image] for piece in pieces]} if pictured else {}
        inputs = self._moved(self._processor(text=prompts, padding=True, return_tensors="pt", **images))
        hidden = self._module(**inputs).last_hidden_state
        return _pooled(hidden, inputs["attention_mask"], self._pooling)

    def _prompt(self, text: str | None, pictured: bool) -> str:
        if getattr(self._processor, "chat_template", None):
            content: list[dict[str, str]] = [{"type": "image"}] if pictured else []
            if text:
                content.append({"type": "text", "text": text})
            prompt: str = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            return prompt
        return "\n".join(filter(None, [self._processor.image_token if pictured else None, text]))

    def _cut(self, text: str | None) -> str | None:
        if text is None:
            return None
        tokens, limit = self._tokenizer(text, add_special_tokens=False)["input_ids"], self._token_limit(self._tokenizer)
        return text if len(tokens) <= limit else self._tokenizer.decode(tokens[:limit], skip_special_tokens=True)


def _decoder_only(config: Any) -> bool:
    """A causal language model that is not also a masked one (BERT can be built as both)."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    masked, causal = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return kind in causal and kind not in masked and not config.is_encoder_decoder


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[n, d] rows of hidden states [n, tokens, d] with mask [n, tokens]; NaN for an item without a token."""
    import torch

    inside = mask.bool()
    if pooling == Pooling.MEAN:
        weights = mask.to(hidden.dtype)[..., None]
        rows = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    else:
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        if pooling == Pooling.FIRST:
            chosen = places.masked_fill(~inside, mask.shape[1] - 1).amin(1)
        else:
            chosen = places.masked_fill(~inside, 0).amax(1)
        rows = hidden[torch.arange(len(hidden), device=hidden.device), chosen]
    return rows.masked_fill(~inside.any(1, keepdim=True), torch.nan)


def _refused(request: Request, model: str, given: str) -> InputError:
    return InputError(f"--model {request.model}: a {model}; it takes no {given}", "extract.input")


def _one_at_a_time(request: Request) -> InputError:
    message = f"--model {request.model}: has one row for a text and one for an image; give --text or --images"
    return InputError(message, "extract.input")
