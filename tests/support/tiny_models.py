"""Randomly initialised encoders of a few thousand weights, saved as the hub would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [
    "red",
    "blue",
    "green",
    "soft",
    "toy",
    "chair",
    "lamp",
    "cotton",
    "steel",
    "for",
    "the",
    "with",
    "baby",
    "garden",
]


def tokenizer(extra: tuple[str, ...] = ()) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *extra, *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        additional_special_tokens=list(extra),
        model_max_length=24,
    )


_SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 64, **_SIZE}
_VISION: dict[str, Any] = {"image_size": 32, "patch_size": 16, **_SIZE}


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    _seeded(lambda: BertModel(BertConfig(**_TEXT))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def decoder(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    _seeded(lambda: LlamaForCausalLM(LlamaConfig(**_TEXT, pad_token_id=0))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentences(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    module = Transformer(str(bert(folder / "bert")))
    SentenceTransformer(
        modules=[module, Pooling(module.get_embedding_dimension()), Normalize()], device="cpu"
    ).save_pretrained(str(folder / "whole"))
    return folder / "whole"


def clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    text = {**_TEXT, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=8)
    _seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipModel

    text = {**_TEXT, "max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2}
    _seeded(lambda: SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    _seeded(lambda: ViTModel(ViTConfig(**_VISION), add_pooling_layer=False)).save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    _seeded(lambda: ResNetModel(config)).save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = tokenizer(("<image>",))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_TEXT, pad_token_id=0),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    _seeded(lambda: LlavaForConditionalGeneration(config)).save_pretrained(folder)
    LlavaProcessor(
        _image_processor(),
        words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def _image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _seeded(make: Any) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()
