"""The sizes of published models, restated from their config.json, two layers deep: encoder, Q-Former, language model.

Over 400 lines because it is data, one entry a checkpoint, that is looked up and never read through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

DEPTH = 2  # layers of each vision encoder, Q-Former and language model; the only thing that is not as published

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Published:
    """A published model.

    name: of the checkpoint whose config.json is restated, and whose generation_config.json gives `end`;
        of the release, where its weights come as other files that tvp convert reads.
    special: token -> published id; begin, close: those that the tokenizer puts around a text;
        marks: those that a family asks the tokenizer for, by attribute.
    size: px of the side of what the vision encoder takes; n_image, width: the image embeddings of one picture.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    special: Mapping[str, int]
    size: int
    n_image: int
    width: int
    end: int | list[int] | None = None
    begin: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]] = OPENAI
    filter: str = "bicubic"
    marks: Mapping[str, str] = field(default_factory=dict)


def encoder(width: int, inner: int, n_heads: int, size: int, patch: int = 14, **more: Any) -> dict[str, Any]:
    """A `vision_config`. inner: the width of the MLPs; size, patch: px."""
    parts = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": n_heads}
    return parts | {"num_hidden_layers": DEPTH, "image_size": size, "patch_size": patch} | more


def decoder(
    width: int, inner: int, n_heads: int, n_kv_heads: int, n_vocab: int, n_positions: int, **more: Any
) -> dict[str, Any]:
    """A `text_config` of a Llama-like model."""
    parts = {"model_type": "llama", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": DEPTH}
    parts |= {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads}
    return parts | {"vocab_size": n_vocab, "max_position_embeddings": n_positions, "rms_norm_eps": 1e-6} | more


EVA = encoder(1408, 6144, 16, 224, qkv_bias=True)  # EVA-CLIP-g, as BLIP-2 has it
CLIP_L = encoder(1024, 4096, 16, 336, projection_dim=768)  # openai/clip-vit-large-patch14-336
SO400M = encoder(1152, 4304, 16, 384)  # google/siglip-so400m-patch14-384
SIGLIP_ENCODER = {"model_type": "siglip_vision_model", "vision_use_head": False}
QFORMER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": DEPTH,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
}
# facebook/opt-2.7b and google/flan-t5-xl, with BLIP-2's image token.
OPT = {
    "model_type": "opt",
    "hidden_size": 2560,
    "word_embed_proj_dim": 2560,
    "ffn_dim": 10240,
    "num_attention_heads": 32,
    "num_hidden_layers": DEPTH,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
}
T5_XL = {
    "model_type": "t5",
    "d_model": 2048,
    "d_ff": 5120,
    "d_kv": 64,
    "num_heads": 32,
    "num_layers": DEPTH,
    "num_decoder_layers": DEPTH,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
}
VICUNA = decoder(4096, 11008, 32, 32, 32001, 2048)  # lmsys/vicuna-7b-v1.1, with <image> as tvp convert adds it
VICUNA_1_5 = decoder(4096, 11008, 32, 32, 32064, 4096, rms_norm_eps=1e-5)
MISTRAL = decoder(4096, 14336, 32, 8, 32064, 32768, rms_norm_eps=1e-5, rope_theta=1e6)  # 7B-Instruct-v0.2
MISTRAL |= {"model_type": "mistral", "sliding_window": None}
LLAMA_3_1 = decoder(4096, 14336, 32, 8, 128259, 131072, rms_norm_eps=1e-5, rope_theta=5e5)  # 8B-Instruct
LLAMA_3_1["rope_scaling"] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SMOL_135M = decoder(576, 1536, 9, 3, 49280, 8192, rms_norm_eps=1e-5, rope_theta=1e5, head_dim=64)
SMOL_1_7B = decoder(2048, 8192, 32, 32, 49155, 16384, rms_norm_eps=1e-5, rope_theta=273768.0)
QWEN2 = decoder(896, 4864, 14, 2, 152000, 32768, model_type="qwen2", rope_theta=1e6, tie_word_embeddings=True)
QWEN2_5 = QWEN2 | {"vocab_size": 151674, "tie_word_embeddings": False}
QWEN2_5["rope_scaling"] = {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}
GEMMA = decoder(2048, 16384, 8, 1, 257216, 8192, model_type="gemma", head_dim=256)
# The language models of Qwen2-VL and Qwen2.5-VL, whose numbers stand beside `vision_config`.
MROPE = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
MROPE |= {"tie_word_embeddings": True, "image_token_id": 151655}
QWEN2_1_5B = decoder(1536, 8960, 12, 2, 151936, 32768, model_type="qwen2_vl", **MROPE)
QWEN2_5_3B = decoder(2048, 11008, 16, 2, 151936, 128000, model_type="qwen2_5_vl", **MROPE)
MERGED = {"depth": DEPTH, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}

LLAMA_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000}
QWEN_TOKENS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN_VL_TOKENS = QWEN_TOKENS | {"<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|image_pad|>": 151655}
BERT_TOKENS = {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102}

BLIP2 = Published(
    name="Salesforce/blip2-opt-2.7b",
    kind="blip-2",
    config={
        "vision_config": EVA,
        "qformer_config": QFORMER,
        "text_config": OPT,
        "num_query_tokens": 32,
        "image_token_index": 50265,
    },
    special={"<pad>": 1, "</s>": 2, "<image>": 50265},
    begin=("</s>",),
    end=50118,  # a line break
    size=224,
    n_image=32,
    width=2560,
)
T5 = {"special": {"<pad>": 0, "</s>": 1, "<image>": 32100}, "begin": (), "close": ("</s>",), "end": 1, "width": 2048}
MINIGPT4 = replace(
    BLIP2,
    name="Vision-CAIR/MiniGPT-4",
    kind="minigpt4",
    config=BLIP2.config | {"text_config": VICUNA, "image_token_index": 32000},
    special=LLAMA_TOKENS,
    begin=("<s>",),
    end=2,
    width=4096,
)
INSTRUCTBLIP = replace(
    MINIGPT4,
    name="Salesforce/instructblip-vicuna-7b",
    kind="instructblip",
    config=MINIGPT4.config
    | {
        "qformer_config": QFORMER | {"vocab_size": 30523},
        # [PAD] and <image>, filled up to a multiple of 64
        "text_config": VICUNA | {"vocab_size": 32064},
        "image_token_index": 32001,
    },
    special=LLAMA_TOKENS | {"[PAD]": 32000, "<image>": 32001},
)
LLAVA = Published(
    name="llava-hf/llava-1.5-7b-hf",
    kind="llava",
    config={
        "vision_config": CLIP_L | {"model_type": "clip_vision_model"},
        "text_config": VICUNA_1_5,
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    special=LLAMA_TOKENS,
    begin=("<s>",),
    end=2,
    size=336,
    n_image=576,
    width=4096,
)
SMOLVLM = Published(
    name="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    kind="smolvlm",
    config={
        "vision_config": encoder(768, 3072, 12, 512, 16),
        "text_config": SMOL_135M,
        "scale_factor": 4,
        "image_token_id": 49190,
    },
    special={
        "<|im_start|>": 1,
        "<global-img>": 49152,
        "<fake_token_around_image>": 49189,
        "<image>": 49190,
        "<end_of_utterance>": 49279,
    },
    end=49279,
    size=512,
    n_image=64,
    width=576,
    pixels=HALF,
    filter="lanczos",
)
QWEN2_VL = Published(
    name="Qwen/Qwen2-VL-2B-Instruct",
    kind="qwen2_vl",
    config=QWEN2_1_5B | {"vision_config": MERGED | {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4}},
    special=QWEN_VL_TOKENS,
    end=[151645, 151643],
    size=224,
    n_image=64,
    width=1536,
)

PUBLISHED = [
    BLIP2,
    replace(
        BLIP2,
        name="Salesforce/blip2-flan-t5-xl",
        config=BLIP2.config | {"text_config": T5_XL, "image_token_index": 32100},
        **T5,
    ),
    MINIGPT4,
    replace(MINIGPT4, name="VPGTrans/VPGTrans", kind="vpgtrans"),
    INSTRUCTBLIP,
    replace(
        INSTRUCTBLIP,
        name="Salesforce/instructblip-flan-t5-xl",
        config=INSTRUCTBLIP.config | {"text_config": T5_XL, "image_token_index": 32100},
        **T5,
    ),
    replace(
        INSTRUCTBLIP,
        name="mlpc-lab/BLIVA_Vicuna",
        kind="bliva",
        config=INSTRUCTBLIP.config | {"text_config": VICUNA, "image_token_index": 32000},
        special=LLAMA_TOKENS,
        n_image=32 + 256,  # queries and patches
    ),
    LLAVA,
    replace(
        LLAVA,
        name="llava-hf/llava-v1.6-mistral-7b-hf",
        kind="llava_next",
        config=LLAVA.config | {"text_config": MISTRAL},
        n_image=576 + 1,  # one tile and its line break
    ),
    Published(
        name="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        kind="llava_onevision",
        config={
            "vision_config": SO400M | SIGLIP_ENCODER,
            "text_config": QWEN2,
            "image_token_index": 151646,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": True,
        },
        special=QWEN_TOKENS | {"<image>": 151646},
        end=151645,
        size=384,
        n_image=729 + 1,
        width=896,
        pixels=HALF,
    ),
    replace(
        SMOLVLM,
        name="HuggingFaceM4/Idefics3-8B-Llama3",
        kind="idefics3",
        config={
            "vision_config": SO400M | {"image_size": 364},
            "text_config": LLAMA_3_1,
            "scale_factor": 2,
            "image_token_id": 128257,
        },
        # No <|im_start|> and no <global-img>: it reads them as plain text.
        special={
            "<|begin_of_text|>": 128000,
            "<fake_token_around_image>": 128256,
            "<image>": 128257,
            "<end_of_utterance>": 128258,
        },
        begin=("<|begin_of_text|>",),
        end=128258,
        size=364,
        n_image=169,
        width=4096,
    ),
    SMOLVLM,
    replace(
        SMOLVLM,
        name="HuggingFaceTB/SmolVLM-Instruct",
        kind="idefics3",
        config={"vision_config": SO400M, "text_config": SMOL_1_7B, "scale_factor": 3, "image_token_id": 49153},
        special={
            "<|im_start|>": 1,
            "<fake_token_around_image>": 49152,
            "<image>": 49153,
            "<end_of_utterance>": 49154,
        },
        end=49154,
        size=384,
        n_image=81,
        width=2048,
    ),
    QWEN2_VL,
    replace(
        QWEN2_VL,
        name="Qwen/Qwen2.5-VL-3B-Instruct",
        kind="qwen2_5_vl",
        config=QWEN2_5_3B
        | {
            "vision_config": MERGED
            | {
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "out_hidden_size": 2048,
                "tokens_per_second": 2,
                "window_size": 112,
                "fullatt_block_indexes": [DEPTH - 1],  # the last, as published; the other has windows
            }
        },
        width=2048,
    ),
    Published(
        name="google/paligemma-3b-mix-224",
        kind="paligemma",
        config={
            "vision_config": SO400M | SIGLIP_ENCODER | {"image_size": 224, "projection_dim": 2048},
            "text_config": GEMMA,
            "image_token_index": 257152,
            "projection_dim": 2048,
        },
        special={"<pad>": 0, "<eos>": 1, "<bos>": 2, "<image>": 257152},
        marks={"bos_token": "<bos>"},  # which its tokenizer is saved not to add
        end=1,
        size=224,
        n_image=256,
        width=2048,
        pixels=HALF,
    ),
    Published(
        name="OpenGVLab/InternVL3-1B-hf",
        kind="internvl",
        config={
            "vision_config": encoder(1024, 4096, 16, 448, attention_bias=True)
            | {"image_size": [448, 448], "patch_size": [14, 14]},
            "text_config": QWEN2_5,
            "downsample_ratio": 0.5,
            "image_token_id": 151667,
        },
        special=QWEN_TOKENS | {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667},
        end=151645,
        size=448,
        n_image=256,
        width=896,
        pixels=IMAGENET,
    ),
    Published(
        name="openai/clip-vit-large-patch14-336",
        kind="clip",
        config={
            "vision_config": CLIP_L,
            "text_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": DEPTH,
                "vocab_size": 49408,
                "eos_token_id": 2,  # the published file's, at which transformers looks for the largest id
            },
            "projection_dim": 768,
        },
        special={"<|startoftext|>": 49406, "<|endoftext|>": 49407},
        begin=("<|startoftext|>",),
        close=("<|endoftext|>",),
        marks={"pad_token": "<|endoftext|>"},
        size=336,
        n_image=1,
        width=768,
    ),
    Published(
        name="google/siglip-so400m-patch14-384",
        kind="siglip",
        config={
            "vision_config": SO400M,
            "text_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": DEPTH,
                "vocab_size": 32000,
                "max_position_embeddings": 64,
            },
        },
        special={"</s>": 1},
        close=("</s>",),
        marks={"pad_token": "</s>"},
        size=384,
        n_image=1,
        width=1152,
        pixels=HALF,
    ),
    Published(
        name="THUDM/visualglm-6b",
        kind="visualglm",
        config={
            "vision_config": EVA,
            "qformer_config": QFORMER,
            "text_config": {"num_layers": DEPTH},  # our class's defaults are THUDM/chatglm-6b
            "num_query_tokens": 32,
            "image_token_index": 130344,  # as tvp convert writes it: behind the tokenizer's own
        },
        special={"<pad>": 3, "[gMASK]": 130001, "<sop>": 130004, "<eop>": 130005, "<image>": 130344},
        close=("[gMASK]", "<sop>"),
        end=130005,
        size=224,
        n_image=32,
        width=4096,
    ),
]
CLOSED = [case for case in PUBLISHED if case.kind in ("clip", "siglip")]
WORDS = [case for case in PUBLISHED if case not in CLOSED]
