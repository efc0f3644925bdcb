"""Tiny random models of every family, saved the way published checkpoints are.

The zoo's makers make the zoo's architectures. The others are made here: a vision encoder of 64 px, two layers of width
32, and the processor that the published checkpoints have. tokens.py has their tokenizers and chat templates.

Over 400 lines because it has a maker for each family, which are looked up and never read through.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import processors

from samples.zoo import guide, models, words
from samples.zoo.save import save
from tests.tokens import IMAGE, TEMPLATES, bytelevel, ids, marks, sentencepiece
from tvp.trainer.frame import Frame
from tvp.trainer.learned import Learned
from tvp.trainer.lens import LensDesign, LensKind
from tvp.trainer.prompt import Geometry

CANVAS, PATCH, WIDTH, N_QUERIES = 64, 16, 32, 8
SQUARE = {"height": CANVAS, "width": CANVAS}
STEP = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION_ENCODER = {**STEP, "image_size": CANVAS, "patch_size": PATCH}
PINPOINTS = [[CANVAS, 2 * CANVAS], [2 * CANVAS, CANVAS], [2 * CANVAS, 2 * CANVAS]]


def save_tiny(name: str, folder: Path) -> Path:
    """Save an architecture with random weights that give varied answers."""
    torch.manual_seed(0)
    if name in MAKERS:
        MAKERS[name](folder)
        return folder
    tokenizer = words.make_tokenizer(name)
    model = models.MAKERS[name](tokenizer)
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)  # small starts give the same answer to everything
            if weight.endswith("Attention.q.weight"):  # T5's attention does not divide by the root of a head's size
                parameter *= 32**-0.5
    save(name, model, tokenizer, folder)
    return folder


def save_tiny_guide(folder: Path) -> Path:
    """Save the guide's architecture with random weights."""
    torch.manual_seed(0)
    model, tokenizer = guide.make()
    guide.save(model, tokenizer, folder)
    return folder


def amend(folder: Path, **fields: Any) -> None:
    """Change fields of a checkpoint's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def finish(model: Any, folder: Path, *parts: Any, words_scale: float = 1.0, **fields: Any) -> None:
    """Shake a model's weights, and save it with its processors and tokenizers; fields go into config.json."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            elif parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        if words_scale != 1:
            model.get_input_embeddings().weight *= words_scale
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    amend(folder, **fields)


def llama(tokenizer: hf.PreTrainedTokenizerBase, kind: type = hf.LlamaConfig, **more: Any) -> Any:
    return kind(**STEP, num_key_value_heads=1, max_position_embeddings=256, **marks(tokenizer), **more)


def t5(tokenizer: hf.PreTrainedTokenizerBase) -> hf.T5Config:
    return hf.T5Config(
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id,
        **marks(tokenizer),
    )


def blip_parts(tokenizer: hf.PreTrainedTokenizerBase, text: Any) -> dict[str, Any]:
    """The configuration that BLIP-2 and the families after it share."""
    qformer = {**STEP, "cross_attention_frequency": 2, "encoder_hidden_size": WIDTH}
    qformer |= {"vocab_size": 1024, "max_position_embeddings": 128, "pad_token_id": 0}
    qformer |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        "vision_config": VISION_ENCODER,
        "qformer_config": qformer,
        "text_config": text.to_dict(),
        "num_query_tokens": N_QUERIES,
        **ids(tokenizer, image_token_index=IMAGE),
    }


def make_instructblip_t5(folder: Path) -> None:
    tokenizer, reader = words.make_tokenizer("blip2-t5"), words.make_tokenizer("guide")
    model = hf.InstructBlipForConditionalGeneration(hf.InstructBlipConfig(**blip_parts(tokenizer, t5(tokenizer))))
    images = hf.BlipImageProcessor(size=SQUARE)
    finish(model, folder, hf.InstructBlipProcessor(images, tokenizer, reader, num_query_tokens=N_QUERIES))


def make_converted(kind: str) -> Callable[[Path], None]:
    """MiniGPT-4 or VPGTrans, or BLIVA with its Q-Former's tokenizer, as `tvp convert` writes them."""

    def make(folder: Path) -> None:
        from tvp.trainer.families._bliva_model import BlivaForConditionalGeneration

        tokenizer = sentencepiece()
        parts = blip_parts(tokenizer, llama(tokenizer))
        if kind == "bliva":
            model = BlivaForConditionalGeneration(hf.InstructBlipConfig(**parts))
            words.make_tokenizer("guide").save_pretrained(folder / "qformer_tokenizer")
        else:
            model = hf.Blip2ForConditionalGeneration(hf.Blip2Config(**parts))
        finish(model, folder, tokenizer, hf.BlipImageProcessor(size=SQUARE), tvp_family=kind)
        (folder / "generation_config.json").unlink()

    return make


def make_visualglm(folder: Path) -> None:
    from tvp.trainer.families._visualglm_model import VisualGLMConfig, VisualGLMForConditionalGeneration

    tokenizer = bytelevel("qwen2vl", "[gMASK]", "<sop>", "<eop>", end="<eop>")
    found = ids(tokenizer, gmask_token_id="[gMASK]", bos_token_id="<sop>", eos_token_id="<eop>")
    # The release's tokenizer ends every text with these.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [gMASK] <sop>",
        special_tokens=[("[gMASK]", found["gmask_token_id"]), ("<sop>", found["bos_token_id"])],
    )
    text = {
        "hidden_size": WIDTH,
        "num_layers": 2,
        "num_attention_heads": 2,
        "inner_hidden_size": 2 * WIDTH,
        "max_sequence_length": 256,
        "vocab_size": len(tokenizer),
    }
    parts = blip_parts(tokenizer, hf.PretrainedConfig())
    model = VisualGLMForConditionalGeneration(VisualGLMConfig(**{**parts, "text_config": {**text, **found}}))
    finish(model, folder, tokenizer, hf.BlipImageProcessor(size=SQUARE), tvp_family="visualglm")


def make_llava_clip(folder: Path) -> None:
    """LLaVA-1.5: the patches of CLIP's second-to-last layer, without the class token."""
    tokenizer = sentencepiece()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION_ENCODER),
        text_config=llama(tokenizer),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **ids(tokenizer, image_token_index=IMAGE),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": CANVAS}, crop_size=SQUARE)
    more = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    finish(
        hf.LlavaForConditionalGeneration(config),
        folder,
        hf.LlavaProcessor(images, tokenizer, image_token=IMAGE, **more),
    )


def make_llava_next(folder: Path) -> None:
    tokenizer = sentencepiece()
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION_ENCODER),
        text_config=llama(tokenizer),
        image_grid_pinpoints=PINPOINTS,
        **ids(tokenizer, image_token_index=IMAGE),
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": CANVAS}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    more = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = hf.LlavaNextProcessor(images, tokenizer, image_token=IMAGE, **more)
    finish(hf.LlavaNextForConditionalGeneration(config), folder, processor)


def make_llava_onevision(folder: Path) -> None:
    tokenizer = bytelevel("qwen2vl", "<video>")
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_ENCODER, vision_use_head=False),
        text_config=llama(tokenizer, hf.Qwen2Config),
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        **ids(tokenizer, image_token_index=IMAGE, video_token_index="<video>"),
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=(CANVAS // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATES["llava_onevision"],
    )
    finish(hf.LlavaOnevisionForConditionalGeneration(config), folder, processor)


def make_idefics3(folder: Path) -> None:
    """An Idefics3 whose template and tokenizer both write a begin token, as Llama 3's do."""
    around = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
    tokenizer = bytelevel("llava", *around, end="<end_of_utterance>")
    config = hf.Idefics3Config(
        vision_config=VISION_ENCODER,
        text_config=llama(tokenizer).to_dict(),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **ids(tokenizer, image_token_id=IMAGE),
    )
    edge = {"longest_edge": CANVAS}
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer,
        image_seq_len=4,
        chat_template=TEMPLATES["idefics3"],
    )
    finish(hf.Idefics3ForConditionalGeneration(config), folder, processor)


def make_qwen2_5_vl(folder: Path) -> None:
    """A Qwen2.5-VL: two encoder layers look within windows of 2 x 2 merged tokens, the one between at all 4 x 4."""
    inner = words.make_tokenizer("qwen2vl")
    special = inner.additional_special_tokens
    tokenizer = hf.Qwen2TokenizerFast(
        tokenizer_object=inner.backend_tokenizer,
        bos_token=None,
        unk_token=inner.unk_token,
        eos_token=inner.eos_token,
        pad_token=inner.pad_token,
        additional_special_tokens=special,
        padding_side="left",
    )
    patch, merge = 8, 2
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": patch,
            "spatial_merge_size": merge,
            "window_size": 2 * merge * patch,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **STEP,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},  # of the 8 pairs of a head
            **marks(tokenizer),
        },
        **ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
        **ids(tokenizer, vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>"),
    )
    size = {"patch_size": patch, "merge_size": merge, "min_pixels": CANVAS**2, "max_pixels": CANVAS**2}
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(**size),
        tokenizer,
        hf.Qwen2VLVideoProcessor(**size),
        chat_template=TEMPLATES["qwen2_5_vl"],
    )
    finish(hf.Qwen2_5_VLForConditionalGeneration(config), folder, processor, tvp_canvas=CANVAS)


def make_paligemma(folder: Path, gemma: type = hf.GemmaConfig, **more: Any) -> None:
    inner = words.make_tokenizer("llava")
    tokenizer = hf.GemmaTokenizerFast(
        tokenizer_object=inner.backend_tokenizer,
        bos_token=words.BOS,
        eos_token=words.EOS,
        unk_token=words.UNK,
        pad_token=words.PAD,
        padding_side="left",
    )
    images = hf.SiglipImageProcessor(size=SQUARE, resample=3)
    images.image_seq_length = (CANVAS // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(images, tokenizer)  # adds <image>, <locNNNN> and <segNNN> to its tokenizer
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_ENCODER, projection_dim=WIDTH, vision_use_head=False).to_dict(),
        text_config=llama(tokenizer, gemma, head_dim=16, **more).to_dict(),
        projection_dim=WIDTH,
        **ids(tokenizer, image_token_index=IMAGE),
    )
    # Gemma's word embeddings are large, and are its head too: at full size a word only repeats itself.
    finish(hf.PaliGemmaForConditionalGeneration(config), folder, processor, words_scale=0.1)


def make_paligemma2(folder: Path) -> None:
    make_paligemma(folder, hf.Gemma2Config, query_pre_attn_scalar=16)


def make_internvl(folder: Path) -> None:
    inner = bytelevel("qwen2vl", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner.backend_tokenizer,
        eos_token=inner.eos_token,
        pad_token=inner.pad_token,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    config = hf.InternVLConfig(
        vision_config={
            **VISION_ENCODER,
            "image_size": [CANVAS, CANVAS],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
        },
        text_config=llama(tokenizer, hf.Qwen2Config).to_dict(),
        image_seq_length=4,
        **ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE),
        tokenizer,
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=TEMPLATES["internvl"],
    )
    finish(hf.InternVLForConditionalGeneration(config), folder, processor)


def make_clip(folder: Path) -> None:
    tokenizer = bytelevel("guide", "<|endoftext|>", end="<|endoftext|>")  # the highest id: CLIP finds it by that
    found = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (words.BOS, "<|endoftext|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=found
    )
    tokenizer.padding_side = "right"
    text = {**STEP, **marks(tokenizer), "max_position_embeddings": 40}
    config = hf.CLIPConfig(text_config=text, vision_config=VISION_ENCODER, projection_dim=24)
    finish(
        hf.CLIPModel(config), folder, tokenizer, hf.CLIPImageProcessor(size={"shortest_edge": CANVAS}, crop_size=SQUARE)
    )


def make_siglip(folder: Path) -> None:
    tokenizer = words.make_tokenizer("blip2-t5")
    tokenizer.padding_side, tokenizer.model_max_length = "right", 40
    text = {**STEP, **marks(tokenizer), "max_position_embeddings": 40, "projection_size": WIDTH}
    model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=VISION_ENCODER))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    finish(model, folder, tokenizer, hf.SiglipImageProcessor(size=SQUARE))


MAKERS: dict[str, Callable[[Path], Any]] = {
    "instructblip-t5": make_instructblip_t5,
    "minigpt4": make_converted("minigpt4"),
    "vpgtrans": make_converted("vpgtrans"),
    "bliva": make_converted("bliva"),
    "visualglm": make_visualglm,
    "llava-clip": make_llava_clip,
    "llava_next": make_llava_next,
    "llava_onevision": make_llava_onevision,
    "idefics3": make_idefics3,
    "qwen2_5_vl": make_qwen2_5_vl,
    "paligemma": make_paligemma,
    "paligemma2": make_paligemma2,
    "internvl": make_internvl,
    "clip": make_clip,
    "siglip": make_siglip,
    "open_clip": save_tiny_guide,
}


def random_frame(rank: int = 0) -> Learned:
    """A frame of 8 px around 48 to learn, with random values."""
    frame = Frame(Geometry(CANVAS, 48), "free", rank, 0)
    generator = torch.Generator().manual_seed(1)
    frame.values = [torch.rand(v.shape, generator=generator) for v in frame.values]
    frame.settle()
    return Learned(frame.geometry, frame)


def random_lens(kind: LensKind = "conv", frame: bool = False, normalise: bool = False) -> Learned:
    """A lens to learn, near the identity, with a frame of 8 px or without."""
    design = LensDesign(kind, normalise, width=4)
    generator = torch.Generator().manual_seed(2)
    values = {n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in design.start().items()}
    return Learned(Geometry(CANVAS, 48 if frame else CANVAS), random_frame().frame if frame else None, design, values)
