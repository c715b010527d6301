"""Models of ``transformers`` with tiny configurations and random weights.

Rules:

- Each is a row of the table under "Libraries" in ``docs/works.md``.
- Two of them drop at random, as virtual workers draw from this process's generator.
- One sequence of a batch is padded, as the model expects it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import nn

from .training import Make

SAME = "same as local"
ROUNDED = "same to rounding"

BATCH, LENGTH = 2, 6


class Architecture(NamedTuple):
    """A model and what becomes of its training.

    Attributes:
        make: makes it and its inputs.
        open: the outcome at a worker without a policy: ``SAME``, or an error's name.
        guarded: likewise at one with a policy; ``ROUNDED`` where it takes the path
            that ``torch.compile`` would take.
        line: what it needs, as it is written.
    """

    make: Make
    open: str = SAME
    guarded: str = SAME
    line: str = ""


ARCHITECTURES: dict[str, Architecture] = {}
"""All of them, by the name on the page."""


def architecture(
    name: str, open: str = SAME, guarded: str = SAME, line: str = ""
) -> Callable[[Make], Make]:
    """Let a function make the architecture of that name."""

    def add(make: Make) -> Make:
        ARCHITECTURES[name] = Architecture(make, open, guarded, line)
        return make

    return add


SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 32}
SURE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIDES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 50,
    "dropout": 0.0,
}
SPEECH: dict[str, Any] = {
    **SIZES,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def tokens() -> torch.Tensor:
    """Return token numbers: (batch, length) int64."""
    return torch.randint(3, 50, (BATCH, LENGTH))


def mask() -> torch.Tensor:
    """Return a mask of 1 and 0 whose first row is padded: (batch, length) int64."""
    ones = torch.ones(BATCH, LENGTH, dtype=torch.long)
    ones[0, 4:] = 0
    return ones


def classified() -> dict[str, Any]:
    """Return sequences and a class for each."""
    return {
        "input_ids": tokens(),
        "attention_mask": mask(),
        "labels": torch.tensor([0, 1]),
    }


def continued() -> dict[str, Any]:
    """Return sequences whose every token is to be told from those before it."""
    ids, kept = tokens(), mask()
    labels = ids.masked_fill(kept == 0, -100)
    return {"input_ids": ids, "attention_mask": kept, "labels": labels}


def translated() -> dict[str, Any]:
    """Return sequences, and others to make of them."""
    return {"input_ids": tokens(), "attention_mask": mask(), "labels": tokens()}


def pictured(size: int = 16) -> dict[str, Any]:
    """Return images and a class for each."""
    return {
        "pixel_values": torch.randn(BATCH, 3, size, size),
        "labels": torch.tensor([0, 1]),
    }


def spoken() -> dict[str, Any]:
    """Return sound and a class for each."""
    kept = torch.ones(BATCH, 400, dtype=torch.long)
    kept[0, 300:] = 0
    return {
        "input_values": torch.randn(BATCH, 400),
        "attention_mask": kept,
        "labels": torch.tensor([0, 1]),
    }


# --- encoders of text ---------------------------------------------------------------


@architecture("BERT")
def bert() -> tuple[nn.Module, dict[str, Any]]:
    """BERT, to classify."""
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT, **SURE)), classified()


@architecture("RoBERTa")
def roberta() -> tuple[nn.Module, dict[str, Any]]:
    """RoBERTa, whose positions come from the tokens."""
    config = hf.RobertaConfig(**TEXT, **SURE)
    return hf.RobertaForTokenClassification(config), {
        **continued(),
        "labels": torch.randint(0, 2, (BATCH, LENGTH)),
    }


@architecture("DistilBERT")
def distilbert() -> tuple[nn.Module, dict[str, Any]]:
    """DistilBERT, with dropout."""
    config = hf.DistilBertConfig(
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=16,
        vocab_size=50,
        max_position_embeddings=32,
    )
    return hf.DistilBertForSequenceClassification(config), classified()


@architecture("ALBERT")
def albert() -> tuple[nn.Module, dict[str, Any]]:
    """ALBERT, to fill in."""
    config = hf.AlbertConfig(embedding_size=8, **TEXT, **SURE)
    return hf.AlbertForMaskedLM(config), continued()


@architecture(
    "DeBERTa", line='model.config.problem_type = "single_label_classification"'
)
def deberta() -> tuple[nn.Module, dict[str, Any]]:
    """DeBERTa, which else finds the labelled rows by their values."""
    model = hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**TEXT, **SURE))
    model.config.problem_type = "single_label_classification"
    return model, classified()


@architecture("ModernBERT")
def modernbert() -> tuple[nn.Module, dict[str, Any]]:
    """ModernBERT."""
    special = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
    config = hf.ModernBertConfig(**TEXT, pad_token_id=0, **special)
    return hf.ModernBertForSequenceClassification(config), classified()


@architecture("Longformer", guarded="OpNotAdmittedError")
def longformer() -> tuple[nn.Module, dict[str, Any]]:
    """Longformer, whose paths depend on where attention is global."""
    config = hf.LongformerConfig(attention_window=4, **TEXT, **SURE)
    return hf.LongformerForSequenceClassification(config), classified()


# --- decoders -----------------------------------------------------------------------


@architecture("GPT-2")
def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    """GPT-2."""
    config = hf.GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        vocab_size=50,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return hf.GPT2LMHeadModel(config), continued()


@architecture("OPT")
def opt() -> tuple[nn.Module, dict[str, Any]]:
    """OPT, whose positions come from the mask."""
    config = hf.OPTConfig(ffn_dim=16, word_embed_proj_dim=16, dropout=0.0, **TEXT)
    return hf.OPTForCausalLM(config), continued()


@architecture("LLaMA")
def llama() -> tuple[nn.Module, dict[str, Any]]:
    """LLaMA, to classify by the last token that is no padding."""
    config = hf.LlamaConfig(num_key_value_heads=1, pad_token_id=0, **TEXT)
    return hf.LlamaForSequenceClassification(config), classified()


@architecture("Mistral")
def mistral() -> tuple[nn.Module, dict[str, Any]]:
    """Mistral, with a window."""
    config = hf.MistralConfig(num_key_value_heads=1, sliding_window=4, **TEXT)
    return hf.MistralForCausalLM(config), continued()


@architecture("Qwen2")
def qwen2() -> tuple[nn.Module, dict[str, Any]]:
    """Qwen2."""
    return hf.Qwen2ForCausalLM(
        hf.Qwen2Config(num_key_value_heads=1, **TEXT)
    ), continued()


@architecture("Mixtral", line='model.set_experts_implementation("batched_mm")')
def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    """Mixtral, a mixture of experts."""
    config = hf.MixtralConfig(num_key_value_heads=1, num_local_experts=2, **TEXT)
    model = hf.MixtralForCausalLM(config)
    model.set_experts_implementation("batched_mm")
    return model, continued()


@architecture("GPT-NeoX")
def neox() -> tuple[nn.Module, dict[str, Any]]:
    """GPT-NeoX."""
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT)), continued()


@architecture("XLNet")
def xlnet() -> tuple[nn.Module, dict[str, Any]]:
    """XLNet."""
    config = hf.XLNetConfig(
        vocab_size=50,
        d_model=16,
        n_layer=1,
        n_head=2,
        d_inner=16,
        dropout=0.0,
        summary_last_dropout=0.0,
    )
    return hf.XLNetForSequenceClassification(config), classified()


@architecture("Mamba", guarded=ROUNDED)
def mamba() -> tuple[nn.Module, dict[str, Any]]:
    """Mamba, which scans in another way where it is compiled."""
    config = hf.MambaConfig(
        hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4
    )
    return hf.MambaForCausalLM(config), continued()


@architecture("Bloom", open="UnsupportedError", guarded="UnsupportedError")
def bloom() -> tuple[nn.Module, dict[str, Any]]:
    """Bloom, which differentiates its GELU in Python."""
    config = hf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=50)
    return hf.BloomForCausalLM(config), continued()


# --- both ---------------------------------------------------------------------------


@architecture("T5")
def t5() -> tuple[nn.Module, dict[str, Any]]:
    """T5."""
    config = hf.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        vocab_size=50,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return hf.T5ForConditionalGeneration(config), translated()


@architecture("BART")
def bart() -> tuple[nn.Module, dict[str, Any]]:
    """BART."""
    config = hf.BartConfig(max_position_embeddings=32, **SIDES)
    return hf.BartForConditionalGeneration(config), translated()


@architecture("Whisper")
def whisper() -> tuple[nn.Module, dict[str, Any]]:
    """Whisper."""
    config = hf.WhisperConfig(
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **SIDES,
    )
    model = hf.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.randn(BATCH, 8, 16), "labels": tokens()}


# --- images, sound, series ----------------------------------------------------------


@architecture("ViT")
def vit() -> tuple[nn.Module, dict[str, Any]]:
    """ViT."""
    config = hf.ViTConfig(image_size=16, patch_size=8, **SIZES, **SURE)
    return hf.ViTForImageClassification(config), pictured()


@architecture("Swin")
def swin() -> tuple[nn.Module, dict[str, Any]]:
    """Swin, with shifted windows."""
    config = hf.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=2,
        drop_path_rate=0.0,
        **SURE,
    )
    return hf.SwinForImageClassification(config), pictured()


@architecture("ConvNeXt")
def convnext() -> tuple[nn.Module, dict[str, Any]]:
    """ConvNeXt."""
    config = hf.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    return hf.ConvNextForImageClassification(config), pictured()


@architecture("ResNet")
def resnet() -> tuple[nn.Module, dict[str, Any]]:
    """ResNet, with batch norm."""
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    return hf.ResNetForImageClassification(config), pictured()


@architecture("CLIP")
def clip() -> tuple[nn.Module, dict[str, Any]]:
    """CLIP, whose loss is its own."""
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    config = hf.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 2},
        vision_config=vision,
        projection_dim=8,
    )
    inputs = {**pictured(), **classified(), "return_loss": True}
    del inputs["labels"]
    return hf.CLIPModel(config), inputs


@architecture("Wav2Vec2")
def wav2vec2() -> tuple[nn.Module, dict[str, Any]]:
    """Wav2Vec2, to classify."""
    config = hf.Wav2Vec2Config(classifier_proj_size=8, **SPEECH)
    return hf.Wav2Vec2ForSequenceClassification(config), spoken()


@architecture("Wav2Vec2 with CTC", guarded="OpNotAdmittedError")
def wav2vec2_ctc() -> tuple[nn.Module, dict[str, Any]]:
    """Wav2Vec2, to write down."""
    config = hf.Wav2Vec2Config(vocab_size=12, **SPEECH)
    labels = torch.randint(1, 10, (BATCH, 5))
    return hf.Wav2Vec2ForCTC(config), {**spoken(), "labels": labels}


@architecture("PatchTST")
def patchtst() -> tuple[nn.Module, dict[str, Any]]:
    """PatchTST, to forecast, with dropout."""
    config = hf.PatchTSTConfig(
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        prediction_length=4,
        d_model=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
    )
    inputs = {
        "past_values": torch.randn(BATCH, 16, 2),
        "future_values": torch.randn(BATCH, 4, 2),
    }
    return hf.PatchTSTForPrediction(config), inputs
