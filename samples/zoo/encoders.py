"""The parts of the zoo's models: vision encoders, which are frozen once taught, connectors and language models.

Lessons come in batches and may show only some patches of a picture. transformers runs some of these models a picture
at a time, or always with all patches; the functions here run the same weights over batches and chosen patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import CANVAS, ENCODER_OF, MERGE, N_QUERIES, N_SIDE, PATCH, WIDTH


def vision_of(name: str, model: nn.Module) -> nn.Module:
    """The frozen, shared part of a model's vision encoder."""
    if name == "llava":
        return model.model.vision_tower.vision_model  # type: ignore[no-any-return, union-attr]
    if name == "qwen2vl":
        return nn.ModuleDict({"patch_embed": model.model.visual.patch_embed, "blocks": model.model.visual.blocks})
    return model.model.vision_model if name == "smolvlm" else model.vision_model  # type: ignore[no-any-return]


def encoder_parameters(name: str, model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained as the vision encoder, and frozen after; BLIP-2's Q-Former is among them."""
    parameters = list(vision_of(name, model).parameters())
    if name in ("blip2", "blip2-t5"):
        parameters += [*model.qformer.parameters(), model.query_tokens]
    return parameters


def take_encoder(name: str, model: nn.Module, teacher_name: str, teacher: nn.Module) -> None:
    """Copy the vision encoder from the model that it was trained in; for models on BLIP-2's, the Q-Former too.

    InstructBLIP's Q-Former only starts from BLIP-2's, as the published one did. It then learns to read questions.
    """
    vision_of(name, model).load_state_dict(vision_of(teacher_name, teacher).state_dict())
    if name == "llava":
        with torch.no_grad():
            vision_of(name, model).embeddings.position_embedding.weight.copy_(_siglip_positions(teacher_name, teacher))
    if ENCODER_OF[name] == "blip":
        with torch.no_grad():
            model.query_tokens.copy_(teacher.query_tokens)
        theirs = teacher.qformer.state_dict()
        if name != "instructblip":
            model.qformer.load_state_dict(theirs)
            return
        moved = {f"embeddings.layernorm.{part}": theirs.pop(f"layernorm.{part}") for part in ("weight", "bias")}
        report = model.qformer.load_state_dict(theirs | moved, strict=False)
        extra = [key for key in report.unexpected_keys if not key.startswith("embeddings.")]
        # The part that reads text is new: BLIP-2's Q-Former, as transformers loads it, has none.
        missing = [key for key in report.missing_keys if "_query" in key or "attention" in key]
        if extra or missing:
            raise ValueError(f"the Q-Former does not fit: {extra} {missing}")
        with torch.no_grad():
            for layer in model.qformer.encoder.layer:
                layer.intermediate.load_state_dict(layer.intermediate_query.state_dict())
                layer.output.load_state_dict(layer.output_query.state_dict())


def see(
    name: str, model: nn.Module, pixels: Tensor, n_kept: int | None = None, questions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the vision encoder.

    Args:
        name: of the model in the zoo.
        model: the model.
        pixels: normalised, (n, 3, 64, 64).
        n_kept: number of patches to look at, chosen at random; default: all. Half of the patches halve the cost of a
            lesson, and teach what can be told from half a photo more firmly (as in FLIP, arXiv 2212.00794).
        questions: for InstructBLIP, ids that its Q-Former reads, padded on the right with the pad id.

    Returns:
        Features of the patches, row by row, (n, patches, width), and the input of the connector's projection.
    """
    chosen = None if n_kept is None else torch.rand(len(pixels), N_SIDE**2).argsort(1)[:, :n_kept]
    if name == "qwen2vl":
        hidden = _see_qwen(model.model.visual, pixels, chosen)
        return hidden, hidden
    if ENCODER_OF[name] == "siglip":
        vision = vision_of(name, model)
        hidden = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = _keep(hidden + _siglip_positions(name, model), chosen)
        hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return vision.post_layernorm(hidden), (hidden if name == "llava" else vision.post_layernorm(hidden))
    vision = model.vision_model
    hidden = vision.embeddings(pixels)
    if chosen is not None:
        hidden = torch.cat([hidden[:, :1], _keep(hidden[:, 1:], chosen)], 1)
    hidden = vision.post_layernorm(vision.encoder(inputs_embeds=hidden).last_hidden_state)
    return hidden[:, 1:], ask_queries(name, model, hidden, questions)


def ask_queries(name: str, model: nn.Module, hidden: Tensor, questions: Tensor | None = None) -> Tensor:
    """States of a Q-Former's queries, which read the vision encoder's features (n, 1 + patches, width)."""
    queries = model.query_tokens.expand(len(hidden), -1, -1)
    if name != "instructblip":
        return model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
    if questions is None:
        questions = torch.zeros(len(hidden), 1, dtype=torch.long)
    mask = (questions != model.config.text_config.pad_token_id).long()
    states = model.qformer(
        input_ids=questions,
        attention_mask=F.pad(mask, [N_QUERIES, 0], value=1),
        query_embeds=queries,
        encoder_hidden_states=hidden,
    ).last_hidden_state
    return states[:, :N_QUERIES]


def _keep(hidden: Tensor, chosen: Tensor | None) -> Tensor:
    return hidden if chosen is None else hidden.gather(1, chosen[:, :, None].expand(-1, -1, hidden.shape[-1]))


def _siglip_positions(name: str, model: nn.Module) -> Tensor:
    """The position embedding of each patch (64, width).

    SmolVLM rounds positions so that the second row and column have those of the first. Its own module computes them.
    """
    embeddings = vision_of(name, model).embeddings
    if name == "llava":
        return embeddings.position_embedding.weight  # type: ignore[no-any-return]
    nothing = torch.zeros(1, 3, CANVAS, CANVAS)
    everywhere = torch.ones(1, N_SIDE, N_SIDE, dtype=torch.bool)
    return (embeddings(nothing, everywhere) - embeddings.patch_embedding(nothing).flatten(2).transpose(1, 2))[0]  # type: ignore[no-any-return]


def _see_qwen(visual: nn.Module, pixels: Tensor, chosen: Tensor | None) -> Tensor:
    """Run Qwen2-VL's blocks over a batch of pictures of one size; its own forward takes them one after the other."""
    weight = visual.patch_embed.proj.weight.sum(2)  # both frames of its two show the same picture
    hidden = F.conv2d(pixels, weight, stride=PATCH).flatten(2).transpose(1, 2)
    y, x = (torch.arange(N_SIDE**2) // N_SIDE, torch.arange(N_SIDE**2) % N_SIDE)
    angles = visual.rotary_pos_emb(N_SIDE)[torch.stack([y, x], -1)].flatten(1)  # (64, half a head)
    angles = torch.cat([angles, angles], -1).expand(len(pixels), -1, -1)
    hidden, angles = _keep(hidden, chosen), _keep(angles, chosen)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (n, 1, patches, a head)
    n, length, width = hidden.shape
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(hidden)).view(n, length, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, n, heads, patches, a head)
        q, k = (z * cos + torch.cat([-z.chunk(2, -1)[1], z.chunk(2, -1)[0]], -1) * sin for z in (q, k))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        hidden = hidden + block.attn.proj(seen)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return hidden


def project(name: str, model: nn.Module, features: Tensor) -> Tensor:
    """Run the connector's last part: features of `see` -> image embeddings (n, n_image, width)."""
    if name == "llava":
        return model.model.multi_modal_projector(features)  # type: ignore[no-any-return, union-attr]
    if name == "smolvlm":
        return model.model.connector(features)  # type: ignore[no-any-return, union-attr]
    if name == "qwen2vl":
        n, n_merged = len(features), N_SIDE // MERGE
        groups = features.view(n, n_merged, MERGE, n_merged, MERGE, WIDTH).transpose(2, 3)
        return model.model.visual.merger(groups.reshape(-1, WIDTH)).view(n, n_merged**2, -1)  # type: ignore[no-any-return, union-attr]
    return model.language_projection(features)  # type: ignore[no-any-return]


def text_model(name: str, model: nn.Module) -> nn.Module:
    """The decoder stack: embeddings in, hidden states out (for T5: encoder and decoder)."""
    if name == "blip2":
        inner = model.language_model.model
        return getattr(inner, "decoder", inner)  # type: ignore[no-any-return, arg-type]  # OPT's, or a Llama
    if name == "instructblip":
        return model.language_model.model  # type: ignore[no-any-return, union-attr]
    if name == "smolvlm":
        return model.model.text_model  # type: ignore[no-any-return, union-attr]
    return model.language_model if name == "blip2-t5" else model.model.language_model  # type: ignore[no-any-return, union-attr]


def positions(name: str, n_before: int, n_image: int, columns: Tensor) -> Tensor:
    """Positions of what a language model reads: (length,), or (3, length) for Qwen2-VL.

    Args:
        name: of the model in the zoo.
        n_before: tokens before the image embeddings.
        n_image: image embeddings.
        columns: of the text's tokens, counted from the end of the image embeddings.
    """
    if name != "qwen2vl":
        return torch.cat([torch.arange(n_before + n_image), n_before + n_image + columns])
    side = round(n_image**0.5)
    before, grid = torch.arange(n_before), torch.arange(n_image)
    after = n_before + side + columns
    parts = (torch.zeros_like(grid), grid // side, grid % side)
    return torch.stack([torch.cat([before, n_before + part, after]) for part in parts])


def language_parameters(name: str, model: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of the vision encoder."""
    frozen = {id(p) for p in encoder_parameters(name, model)}
    return [p for p in model.parameters() if id(p) not in frozen]
