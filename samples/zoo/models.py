"""What the zoo's models are: their published architectures at a tiny size, and their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from tvp.trainer import scenes

CANVAS = 64
PATCH = 8
WIDTH = 128
N_QUERIES = scenes.GRID**2  # one query of the Q-Former a cell of the scene's grid
PHOTO_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PHOTO_QUESTIONS = ("What is in the photo?", "This is a photo of a")
LAYOUTS = {
    "llava": ("USER: ", "\n{question} ASSISTANT:"),
    "blip2": ("", "Question: {question} Answer:"),
}
BOS, PAD, EOS, UNK, IMAGE = "<s>", "<pad>", "</s>", "<unk>", "<image>"
N_VOCAB = 448


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on what the zoo's models are asked and answer."""
    words = [*scenes.KINDS, *scenes.COLOURS, *scenes.COUNTS, *scenes.YES_NO, *PHOTO_LABELS]
    questions = [
        "How many objects are there?",
        *(f"What shape is the {c} object?" for c in scenes.COLOURS),
        *(f"What color is the {k}?" for k in scenes.KINDS),
        *(f"Is there a {c} {k}?" for c in scenes.COLOURS for k in scenes.KINDS),
        *PHOTO_QUESTIONS,
    ]
    corpus = [f" {word}" for word in words]
    for before, after in LAYOUTS.values():
        corpus += [before + after.format(question=q) for q in questions]
    corpus += [
        f"a photo of a {label}. a {c} {k} and a {c} {k}, this is a picture of"
        for label in PHOTO_LABELS
        for c in scenes.COLOURS
        for k in scenes.KINDS
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=[BOS, PAD, EOS, UNK, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """LLaVA: CLIP ViT with 8-px patches, two-layer MLP, Llama of four layers."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(CANVAS // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    start_attention_by_likeness(model.model.language_model.layers)
    return model


def make_blip2(tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """BLIP-2: ViT with 8-px patches, Q-Former with 16 queries, OPT of four layers."""
    vision = Blip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        cross_attention_frequency=1,
        encoder_hidden_size=WIDTH,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = OPTConfig(
        vocab_size=N_VOCAB,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=N_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = Blip2ForConditionalGeneration(config)
    # Its own start is zero, where the layer norm that follows blows the gradient up by 1 / sqrt(eps).
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    start_attention_by_likeness(model.language_model.model.decoder.layers)
    return model


def start_attention_by_likeness(layers: nn.ModuleList) -> None:
    """Let a decoder's attention start by looking for what is alike, as that of trained models does.

    Queries equal keys, and what is found is handed on: a word in a question attends to image
    embeddings near it from the first step. From random starts this alone takes thousands of steps.
    Source: "Mimetic Initialization of Self-Attention Layers", ICML 2023 (arXiv 2305.09828).
    """
    for layer in layers:
        attention = layer.self_attn
        out = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        with torch.no_grad():
            nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            nn.init.orthogonal_(attention.v_proj.weight)
            out.weight.copy_(0.5 * attention.v_proj.weight.T)


MAKERS = {"llava": make_llava, "blip2": make_blip2}


def see(
    name: str, model: nn.Module, pixels: torch.Tensor, n_kept: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eye's patch features (n, patches, width) and the connector's input to its projection.

    n_kept patches at random are looked at (default: all): halves the cost of a lesson, and what
    can be told from half a photo is learnt more firmly (as in FLIP, arXiv 2212.00794).
    """
    vision = model.model.vision_tower.vision_model if name == "llava" else model.vision_model
    hidden = vision.embeddings(pixels)
    if n_kept is not None:
        chosen = torch.rand(len(pixels), hidden.shape[1] - 1).argsort(1)[:, :n_kept] + 1
        chosen = torch.cat([torch.zeros(len(pixels), 1, dtype=torch.long), chosen], 1)
        hidden = hidden.gather(1, chosen[:, :, None].expand(-1, -1, hidden.shape[-1]))
    if name == "llava":
        hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state[:, 1:]
        return hidden, hidden
    hidden = vision.post_layernorm(vision.encoder(inputs_embeds=hidden).last_hidden_state)
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    return hidden[:, 1:], model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state


def project(name: str, model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    return model.model.multi_modal_projector(features) if name == "llava" else model.language_projection(features)


def eye_parameters(name: str, model: nn.Module) -> list[nn.Parameter]:
    if name == "llava":
        return list(model.model.vision_tower.parameters())
    return [*model.vision_model.parameters(), *model.qformer.parameters(), model.query_tokens]


def save(name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that `from_pretrained` and the published processors read, weights in float16."""
    size = {"height": CANVAS, "width": CANVAS}
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(folder)
    model.float()
    if name == "llava":
        LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": CANVAS}, crop_size=size),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            image_token=IMAGE,
            num_additional_image_tokens=1,
        ).save_pretrained(folder)
    else:
        Blip2Processor(BlipImageProcessor(size=size), tokenizer, num_query_tokens=N_QUERIES).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
