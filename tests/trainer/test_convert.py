"""Published layouts become folders that give the published models' outputs.

Over 400 lines because the published names of two layouts are written out here once more, apart from the code's
own tables, so that they are an oracle.
"""

from __future__ import annotations

import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
)

from tests.glm import prefix_layout, visualglm_image_embeds
from tvp.sdk.errors import ModelError
from tvp.trainer import convert as module
from tvp.trainer import families
from tvp.trainer.choices import CONVERTED
from tvp.trainer.convert import convert
from tvp.trainer.convert_cli import convert as command
from tvp.trainer.families._bliva_model import BlivaForConditionalGeneration
from tvp.trainer.families._visualglm_model import VisualGLMConfig, VisualGLMForConditionalGeneration
from tvp.trainer.families.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from tvp.trainer.published import KINDS

VISION_ENCODER, QFORMER, TEXT, N_VOCAB, N_QUERIES, N_ENCODER_LAYERS, N_LAYERS = 88, 64, 32, 24, 4, 2, 3
PARTS = ("weight", "bias")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def tokenizer():
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(N_VOCAB - 3))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def shaken(model, seed=0):
    """Random weights large enough that every one of them counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1) * 0.3)
            if name.startswith("vision_model."):
                parameter.copy_(parameter.half())  # the vision encoder is published so
            if name.endswith("qkv.bias"):
                parameter[VISION_ENCODER : 2 * VISION_ENCODER] = 0  # LAVIS has no bias for the keys
    return model.eval()


def parts_of_a_config():
    encoder = {
        "hidden_size": VISION_ENCODER,
        "intermediate_size": 24,
        "num_hidden_layers": N_ENCODER_LAYERS,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    qformer = {
        "vocab_size": 12,
        "max_position_embeddings": 10,
        "hidden_size": QFORMER,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 1,
        "intermediate_size": 20,
        "encoder_hidden_size": VISION_ENCODER,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    text = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=TEXT,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return {
        "vision_config": encoder,
        "qformer_config": qformer,
        "text_config": text.to_dict(),
        "num_query_tokens": N_QUERIES,
    }


def lavis_table(projection, reads_text):
    """LAVIS' names -> transformers' names, written out."""
    encoder = {
        "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
        "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    }
    norm = "qformer.embeddings.layernorm" if reads_text else "qformer.layernorm"
    rest = {"query_tokens": "query_tokens"}
    pairs = [
        ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        ("ln_vision", "vision_model.post_layernorm"),
        ("Qformer.bert.embeddings.LayerNorm", norm),
        (projection, "language_projection"),
    ]
    for i in range(N_ENCODER_LAYERS):
        ours, theirs = f"vision_model.encoder.layers.{i}", f"visual_encoder.blocks.{i}"
        encoder[f"{theirs}.attn.qkv.weight"] = f"{ours}.self_attn.qkv.weight"
        for a, b in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.projection")):
            pairs.append((f"{theirs}.{a}", f"{ours}.{b}"))
        pairs += [(f"{theirs}.mlp.{fc}", f"{ours}.mlp.{fc}") for fc in ("fc1", "fc2")]
    for i in range(N_LAYERS):
        ours, theirs = f"qformer.encoder.layer.{i}", f"Qformer.bert.encoder.layer.{i}"
        for kind in ("attention", "crossattention") if i % 2 == 0 else ("attention",):
            pairs += [(f"{theirs}.{kind}.self.{n}", f"{ours}.{kind}.attention.{n}") for n in ("query", "key", "value")]
            pairs += [(f"{theirs}.{kind}.output.{n}", f"{ours}.{kind}.output.{n}") for n in ("dense", "LayerNorm")]
        for end in ("_query", "") if reads_text else ("_query",):
            for name in (f"intermediate{end}.dense", f"output{end}.dense", f"output{end}.LayerNorm"):
                pairs.append((f"{theirs}.{name}", f"{ours}.{name}"))
    if reads_text:
        for name in ("word_embeddings", "position_embeddings"):
            rest[f"Qformer.bert.embeddings.{name}.weight"] = f"qformer.embeddings.{name}.weight"
        pairs.append(("vision_project", "vision_project"))
    for theirs, ours in pairs:
        table = encoder if theirs.startswith("visual_encoder.") else rest
        table.update({f"{theirs}.{part}": f"{ours}.{part}" for part in PARTS})
    return encoder, rest


def publish(model, folder, projection, reads_text=False):
    """Write a model the way its parts are published; returns what `convert` takes."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    encoder_table, rest_table = lavis_table(projection, reads_text)
    encoder = {theirs.removeprefix("visual_encoder."): state.pop(ours) for theirs, ours in encoder_table.items()}
    for i in range(N_ENCODER_LAYERS):
        query, _, value = state.pop(f"vision_model.encoder.layers.{i}.self_attn.qkv.bias").chunk(3)
        encoder |= {f"blocks.{i}.attn.q_bias": query.clone(), f"blocks.{i}.attn.v_bias": value.clone()}
    rest = {theirs: state.pop(ours) for theirs, ours in rest_table.items()}
    own = {k: rest.pop(k) for k in list(rest) if k.startswith((projection, "vision_project"))}
    rest |= {"t5_proj.weight": torch.ones(2, 2), "Qformer.bert.embeddings.position_ids": torch.arange(10)[None]}
    encoder = {k: v.half() for k, v in encoder.items()}  # as eva_vit_g.pth is
    encoder |= {f"norm.{part}": torch.ones(VISION_ENCODER) for part in PARTS}  # in eva_vit_g.pth, and not used
    encoder |= {
        k.replace("blocks.0.", f"blocks.{N_ENCODER_LAYERS}."): v
        for k, v in encoder.items()
        if k.startswith("blocks.0.")
    }
    folder.mkdir(exist_ok=True)
    torch.save({"model": rest, "epoch": 3}, folder / "blip2.pth")
    torch.save({"model": own}, folder / "own.pth")
    torch.save(encoder, folder / "encoder.pth")
    language = {k.removeprefix("language_model."): v for k, v in state.items()}
    assert all(k.startswith("language_model.") for k in state)
    text = LlamaForCausalLM(model.config.text_config)
    text.load_state_dict(language)
    text.save_pretrained(folder / "vicuna")
    tokenizer().save_pretrained(folder / "vicuna")
    return [folder / "blip2.pth", folder / "own.pth"], folder / "vicuna", folder / "encoder.pth"


@pytest.fixture
def short_encoder(monkeypatch):
    """As if EVA had one layer more than these tiny vision encoders use."""
    monkeypatch.setattr(module, "EVA_LAYERS", N_ENCODER_LAYERS + 1)


@pytest.fixture(scope="module")
def blip2():
    return shaken(Blip2ForConditionalGeneration(Blip2Config(**parts_of_a_config())))


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))


def logits(model, pixels, image, **more):
    ids = torch.tensor([[1, *[image] * more.pop("n_image", N_QUERIES), 5, 7, 2]] * len(pixels))
    with torch.no_grad():
        return model(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


@pytest.mark.parametrize("kind", ["minigpt4", "vpgtrans"])
def test_minigpt4_and_vpgtrans_answer_as_their_parts(kind, blip2, pixels, tmp_path, short_encoder):
    out = convert(kind, *publish(blip2, tmp_path / "parts", "llama_proj"), tmp_path / "out")
    about = json.loads((out / "config.json").read_text())
    assert (about["tvp_family"], about["model_type"], about["text_config"]["model_type"]) == (kind, "blip-2", "llama")
    model, report = Blip2ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, weight in blip2.state_dict().items():
        assert torch.equal(model.state_dict()[name][: len(weight)], weight), name
    words = AutoTokenizer.from_pretrained(out)
    image = words.convert_tokens_to_ids("<image>")
    assert image == N_VOCAB == about["image_token_index"]
    assert words("w1 <image> w2").input_ids == [4, image, 5]
    ours = logits(model, pixels, image)
    blip2.config.image_token_index = 9  # any token that the text does not hold
    theirs = logits(blip2, pixels, 9)
    torch.testing.assert_close(ours[..., :N_VOCAB], theirs)
    torch.testing.assert_close(ours[..., N_VOCAB], theirs[..., 0])  # the unknown token, once more
    processor = AutoImageProcessor.from_pretrained(out, use_fast=False)
    assert processor.size == {"height": 28, "width": 28}
    assert processor.resample == 3
    assert processor.image_mean == [0.48145466, 0.4578275, 0.40821073]
    assert not list(tmp_path.glob("*.tmp"))
    assert_the_family_answers(out, kind, N_QUERIES)


def assert_the_family_answers(out, name, n_image):
    """The folder is all that the trainer needs: it loads, sees, answers, and scores as it is taught."""
    family = families.load(out)
    assert family.name == name
    seen = family.see(family.to_pixels(torch.rand(2, 3, 40, 40)), ["w1", "w2 w3"])
    assert seen.shape == (2, n_image, TEXT)
    tokens, _ = family.generate_tokens(seen, ["w1", "w2 w3"], 3)
    assert all(1 <= len(row) <= 3 for row in tokens)
    scores = family.answer_scores(seen, ["w1", "w2 w3"], ["w4", "w5 w6"])
    for i, question in enumerate(["w1", "w2 w3"]):
        for j, answer in enumerate(["w4", "w5 w6"]):
            loss = family.answer_loss(seen[i : i + 1], [question], [answer])
            torch.testing.assert_close(scores[i, j], -loss, atol=1e-4, rtol=1e-4)


def test_everything_in_one_safetensors_file_with_prefixes_does_too(blip2, tmp_path, short_encoder):
    files, language, encoder = publish(blip2, tmp_path / "parts", "llama_proj")
    tensors = {k: v for f in files for k, v in torch.load(f, weights_only=True)["model"].items()}
    seen = torch.load(encoder, weights_only=True)
    tensors |= {f"visual_encoder.{k}": v for k, v in seen.items() if not k.startswith(f"blocks.{N_ENCODER_LAYERS}.")}
    save_file(tensors, tmp_path / "all.safetensors")
    out = convert("minigpt4", tmp_path / "all.safetensors", language, None, tmp_path / "out")
    model = Blip2ForConditionalGeneration.from_pretrained(out)
    for name, weight in blip2.state_dict().items():
        assert torch.equal(model.state_dict()[name][: len(weight)], weight), name


@pytest.fixture(scope="module")
def bliva():
    return shaken(BlivaForConditionalGeneration(InstructBlipConfig(**parts_of_a_config(), image_token_index=9)), 1)


QUESTION = torch.tensor([[3, 4, 5], [6, 7, 0]])
QUESTION_MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_bliva_shows_queries_then_patches_of_the_layer_before_the_last(bliva, pixels):
    kept = []
    hook = bliva.vision_model.encoder.layers[-2].register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        ours = bliva.image_embeds(pixels, QUESTION, QUESTION_MASK)
        hook.remove()
        queries = InstructBlipForConditionalGeneration.get_image_features(bliva, pixels, QUESTION, QUESTION_MASK)
        patches = bliva.vision_project(kept[0][:, 1:])
    assert ours.shape == (2, N_QUERIES + 4, TEXT)
    torch.testing.assert_close(ours[:, :N_QUERIES], queries)
    torch.testing.assert_close(ours[:, N_QUERIES:], patches)
    # and the inherited forward reads all of them
    assert (
        logits(
            bliva, pixels, 9, n_image=N_QUERIES + 4, qformer_input_ids=QUESTION, qformer_attention_mask=QUESTION_MASK
        )
        .isfinite()
        .all()
    )


def test_bliva_survives_saving(bliva, pixels, tmp_path):
    bliva.save_pretrained(tmp_path)
    again, report = BlivaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(
            again.eval().image_embeds(pixels, QUESTION, QUESTION_MASK),
            bliva.image_embeds(pixels, QUESTION, QUESTION_MASK),
        )


def test_bliva_converts(bliva, pixels, tmp_path, short_encoder):
    parts = publish(bliva, tmp_path / "parts", "llm_proj", reads_text=True)
    out = convert("bliva", *parts, tmp_path / "out", qformer_tokenizer=tokenizer())
    about = json.loads((out / "config.json").read_text())
    assert (about["tvp_family"], about["model_type"]) == ("bliva", "instructblip")
    assert about["architectures"] == ["BlivaForConditionalGeneration"]
    model, report = BlivaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        ours = model.eval().image_embeds(pixels, QUESTION, QUESTION_MASK)
        torch.testing.assert_close(ours, bliva.image_embeds(pixels, QUESTION, QUESTION_MASK))
    assert AutoTokenizer.from_pretrained(out / "qformer_tokenizer")("w3").input_ids == [6]
    assert AutoTokenizer.from_pretrained(out).bos_token == "</s>"
    assert_the_family_answers(out, "bliva", N_QUERIES + 4)


def test_blivas_texts_begin_with_the_token_that_its_release_begins_with(bliva, tmp_path, short_encoder):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, **{f"w{i}": i for i in range(4, N_VOCAB)}}
    vicuna = LlamaTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, [], unk_token="<unk>")))
    assert vicuna("a").input_ids[0] == 1
    parts = publish(bliva, tmp_path / "parts", "llm_proj", reads_text=True)
    out = convert("bliva", *parts, tmp_path / "out", vicuna, qformer_tokenizer=tokenizer())
    assert AutoTokenizer.from_pretrained(out)("a").input_ids[0] == 2


def test_bliva_without_its_second_tokenizer_is_refused(bliva, tmp_path, short_encoder):
    parts = publish(bliva, tmp_path / "parts", "llm_proj", reads_text=True)
    with pytest.raises(ModelError, match="qformer"):
        convert("bliva", *parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def sat_tensors():
    """Random VisualGLM weights under the names of its release."""
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "vit.transformer.word_embeddings.weight": (1, VISION_ENCODER),
        "vit.transformer.position_embeddings.weight": (5, VISION_ENCODER),
        "vit.mixins.patch_embedding.proj.weight": (VISION_ENCODER, 3, 14, 14),
        "vit.mixins.patch_embedding.proj.bias": (VISION_ENCODER,),
        "qformer.transformer.word_embeddings.weight": (N_QUERIES, QFORMER),
        "glm_proj.weight": (TEXT, QFORMER),
        "glm_proj.bias": (TEXT,),
    }

    def norm(name, width):
        shapes.update({f"{name}.{part}": (width,) for part in PARTS})

    def linear(name, ins, outs):
        shapes.update({f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)})

    norm("vit.mixins.cls.ln_vision", VISION_ENCODER)
    norm("qformer.transformer.final_layernorm", QFORMER)
    for base, n_layers, width in (("vit", N_ENCODER_LAYERS, VISION_ENCODER), ("qformer", N_LAYERS, QFORMER)):
        for i in range(n_layers):
            layer = f"{base}.transformer.layers.{i}"
            norm(f"{layer}.input_layernorm", width)
            norm(f"{layer}.post_attention_layernorm", width)
            linear(f"{layer}.attention.query_key_value", width, 3 * width)
            linear(f"{layer}.attention.dense", width, width)
            linear(f"{layer}.mlp.dense_h_to_4h", width, 20)
            linear(f"{layer}.mlp.dense_4h_to_h", 20, width)
            if base == "qformer" and i % 2 == 0:
                linear(f"{layer}.cross_attention.query", width, width)
                linear(f"{layer}.cross_attention.key_value", VISION_ENCODER, 2 * width)
                linear(f"{layer}.cross_attention.dense", width, width)
                norm(f"{layer}.post_cross_attention_layernorm", width)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1) * 0.3 for name, shape in shapes.items()
    }


def sat_forward(tensors, pixels):
    """VisualGLM's picture path as SwissArmyTransformer runs it, from the published tensors."""

    def linear(name, x):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def attend(query, key, value):  # one head
        return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value

    def mlp(layer, x):
        return linear(f"{layer}.mlp.dense_4h_to_h", F.gelu(linear(f"{layer}.mlp.dense_h_to_4h", x)))

    proj = "vit.mixins.patch_embedding.proj"
    x = F.conv2d(pixels, tensors[f"{proj}.weight"], tensors[f"{proj}.bias"], stride=14).flatten(2).mT
    x = torch.cat([tensors["vit.transformer.word_embeddings.weight"].expand(len(x), 1, -1), x], 1)
    x = x + tensors["vit.transformer.position_embeddings.weight"]
    for i in range(N_ENCODER_LAYERS):
        layer = f"vit.transformer.layers.{i}"
        fused = linear(f"{layer}.attention.query_key_value", norm(f"{layer}.input_layernorm", x, 1e-6))
        x = x + linear(f"{layer}.attention.dense", attend(*fused.chunk(3, -1)))
        x = x + mlp(layer, norm(f"{layer}.post_attention_layernorm", x, 1e-6))
    seen = norm("vit.mixins.cls.ln_vision", x, 1e-6)
    x = tensors["qformer.transformer.word_embeddings.weight"].expand(len(x), -1, -1)
    for i in range(N_LAYERS):
        layer = f"qformer.transformer.layers.{i}"
        x = norm(f"{layer}.input_layernorm", x, 1e-12)
        fused = linear(f"{layer}.attention.query_key_value", x)
        x = x + linear(f"{layer}.attention.dense", attend(*fused.chunk(3, -1)))
        x = norm(f"{layer}.post_attention_layernorm", x, 1e-12)
        if i % 2 == 0:
            key, value = linear(f"{layer}.cross_attention.key_value", seen).chunk(2, -1)
            read = attend(linear(f"{layer}.cross_attention.query", x), key, value)
            x = x + linear(f"{layer}.cross_attention.dense", read)
            x = norm(f"{layer}.post_cross_attention_layernorm", x, 1e-12)
        x = x + mlp(layer, x)
    return linear("glm_proj", norm("qformer.transformer.final_layernorm", x, 1e-12))


def chatglm(folder):
    config = ChatGLMConfig(
        vocab_size=N_VOCAB,
        hidden_size=TEXT,
        num_layers=2,
        num_attention_heads=2,
        inner_hidden_size=20,
        max_sequence_length=64,
        bos_token_id=20,
        eos_token_id=21,
        mask_token_id=18,
        gmask_token_id=19,
    )
    model = shaken(ChatGLMForConditionalGeneration(config), 3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("layout", ["hub", "sat"])
def test_visualglm_sees_as_its_release(layout, pixels, tmp_path):
    tensors, folder = sat_tensors(), tmp_path / "glm"
    language = chatglm(folder)
    file = folder / "model.safetensors"
    if layout == "hub":  # vision encoder and Q-Former in the language model's own folder
        inside = load_file(file) | {f"image_encoder.{k}": v for k, v in tensors.items()}
        inside["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.zeros(2)
        save_file(inside, file, {"format": "pt"})
        files = []
    else:
        files = [tmp_path / "mp_rank_00_model_states.pt"]
        torch.save({"module": {f"mixins.eva.model.{k}": v for k, v in tensors.items()}}, files[0])
    out = convert("visualglm", files, folder, None, tmp_path / "out", tokenizer())
    about = json.loads((out / "config.json").read_text())
    assert (about["tvp_family"], about["model_type"]) == ("visualglm", "visualglm")
    assert VisualGLMConfig.from_pretrained(out).image_token_id == N_VOCAB
    assert AutoTokenizer.from_pretrained(out)("w1<image>").input_ids == [4, N_VOCAB]
    assert AutoImageProcessor.from_pretrained(out, use_fast=False).size == {"height": 28, "width": 28}
    model, report = VisualGLMForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.generation_config.eos_token_id == 21
    with torch.no_grad():
        torch.testing.assert_close(visualglm_image_embeds(model.eval(), pixels), sat_forward(tensors, pixels))
        ids = torch.tensor([[3, 4, 19, 20, 5]])
        mask, positions = prefix_layout([3], 5)
        ours = model.language_model(ids, attention_mask=mask, position_ids=positions)
        theirs = language(ids, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(ours[..., :N_VOCAB], theirs)
    model.save_pretrained(tmp_path / "again")
    again = VisualGLMForConditionalGeneration.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(visualglm_image_embeds(again.eval(), pixels), visualglm_image_embeds(model, pixels))
    assert_the_family_answers(out, "visualglm", N_QUERIES)


def rewrite(file, change):
    found = torch.load(file, weights_only=True)
    change(found["model"])
    torch.save(found, file)


def test_all_that_is_wrong_is_in_one_error_and_nothing_is_written(blip2, tmp_path, short_encoder):
    files, language, encoder = publish(blip2, tmp_path / "parts", "llama_proj")

    def spoil(tensors):
        del tensors["ln_vision.bias"]
        tensors["Qformer.bert.surprise"] = torch.zeros(1)
        tensors["Qformer.bert.encoder.layer.1.attention.self.key.weight"] = torch.zeros(QFORMER, 7)

    rewrite(files[0], spoil)
    seen = torch.load(encoder, weights_only=True)
    del seen["blocks.1.attn.q_bias"]
    torch.save(seen, encoder)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError) as caught:
        convert("minigpt4", files, language, encoder, tmp_path / "out")
    assert str(caught.value).splitlines()[1:] == [
        "  mis-shaped: Qformer.bert.encoder.layer.1.attention.self.key.weight is (64, 7), should be (64, 64)",
        "  missing: ln_vision.bias",
        "  missing: visual_encoder.blocks.1.attn.q_bias",
        "  unexpected: Qformer.bert.surprise",
    ]
    assert sorted(tmp_path.iterdir()) == before


class Trap:
    def __reduce__(self):
        return (open, ("sprung", "w"))


def test_a_checkpoint_that_runs_code_is_not_opened(blip2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, language, encoder = publish(blip2, tmp_path / "parts", "llama_proj")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}))
    torch.save({"model": Trap()}, tmp_path / "zip.pth")
    for name in ("trap.pth", "zip.pth", "absent.pth"):
        with pytest.raises(ModelError, match=name):
            convert("minigpt4", tmp_path / name, language, encoder, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


def test_wrong_requests_are_named(blip2, tmp_path):
    files, language, encoder = publish(blip2, tmp_path / "parts", "llama_proj")
    with pytest.raises(ModelError, match="Did you mean minigpt4"):
        convert("minigpt", files, language, encoder, tmp_path / "out")
    with pytest.raises(ModelError, match="exists already"):
        convert("minigpt4", files, language, encoder, tmp_path / "parts")
    with pytest.raises(ModelError, match="'llama'; this needs 'chatglm'"):
        convert("visualglm", files, language, encoder, tmp_path / "out")
    (language / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        convert("minigpt4", files, language, encoder, tmp_path / "out")


def test_the_command(blip2, tmp_path, short_encoder):
    (first, second), language, encoder = publish(blip2, tmp_path / "parts", "llama_proj")
    line = ["vpgtrans", "--checkpoint", first, "--checkpoint", second, "--language-model", language]
    line = [str(word) for word in [*line, "-o", tmp_path / "out"]]
    without_encoder = CliRunner().invoke(command, line).exception
    assert "missing: visual_encoder.cls_token" in str(without_encoder)
    result = CliRunner().invoke(command, [*line, "--vision-encoder", str(encoder)], catch_exceptions=False)
    assert result.exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_knows_every_kind():
    assert tuple(KINDS) == CONVERTED
