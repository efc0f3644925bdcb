"""Turning published checkpoints into folders that TVP can load.

MiniGPT-4, VPGTrans and BLIVA are published as LAVIS state dicts; their vision encoder and Vicuna are downloaded
separately. VisualGLM-6B is published as SwissArmyTransformer (SAT) weights inside a ChatGLM-6B. `convert` joins the
parts under transformers' names. Sizes come from the shapes of the tensors, except for two: heads of the vision encoder
are 88 wide ("num_heads=1408//88" in LAVIS' eva_vit.py), and heads of the Q-Former 64 (BERT).
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BlipImageProcessor,
    LlamaTokenizerFast,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_utils import no_init_weights

from tvp.sdk.errors import ModelError, near
from tvp.sdk.formats.temporary import readable, temporary_folder

from .families._checkpoint import read_tokenizer
from .families._gate import (
    SETTINGS_OF_TOKENS,
    check_settings,
    check_texts,
    read_json,
    refuse_adapter,
    refuse_names,
    refuse_pointers,
)
from .families._translate import config_of
from .families.chatglm import ChatGLMConfig
from .hub import texts_of
from .published import KINDS, PREFIXES, Kind
from .tensor_files import load_tensors

IMAGE_TOKEN = "<image>"
ENCODER_HEAD, QFORMER_HEAD = 88, 64
# LAVIS builds 39 of the 40 layers of eva_vit_g.pth ("depth=39"): BLIP-2 reads the second-to-last one.
EVA_LAYERS = 40


def convert(
    kind: str,
    checkpoint: str | Path | Iterable[str | Path],
    language_model: str | Path,
    vision_encoder: str | Path | None,
    output: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    *,
    qformer_tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> Path:
    """Join the parts of a published model in one folder.

    Every tensor keeps its type. The tokenizer gets a token `<image>`. If the language model has no row for its id,
    copies of the row of the unknown token are added. That token is never generated, so the scores of other tokens
    change only by its share.

    Args:
        kind: a name of `KINDS`.
        checkpoint: one or several .pth, .pt, .bin or .safetensors files with the Q-Former, its queries, the vision
            encoder's last norm and the projection. If two files hold the same name, the later one is used, as LAVIS
            loads them: BLIP-2's file first, then MiniGPT-4's. May be empty for VisualGLM.
        language_model: a folder that transformers reads: Llama or Vicuna; for VisualGLM its published folder, a
            ChatGLM-6B that holds vision encoder and Q-Former too.
        vision_encoder: EVA-CLIP-g as LAVIS stores it, with or without `visual_encoder.` before its names; None if
            another file holds it.
        output: the folder to write, which must not exist. It is written under another name and then renamed.
        tokenizer: the language model's, or its folder. Default: the language model's folder. ChatGLM's own tokenizer
            needs code from the hub, which transformers does not run by itself.
        qformer_tokenizer: for BLIVA: the BERT tokenizer of its Q-Former, or its folder; saved as `qformer_tokenizer/`.

    Returns:
        The folder.

    Raises:
        ModelError: a part cannot be read, or tensors are missing, unexpected or mis-shaped; the message lists them
            all. Nothing is written then.
    """
    if kind not in KINDS:
        raise ModelError(f"There is no conversion for {kind!r}. There are {', '.join(KINDS)}.{near(kind, KINDS)}")
    plan, output, folder = KINDS[kind], Path(output), Path(language_model)
    if output.exists():
        raise ModelError(f"{output} exists already. Name a new folder, or remove it.")
    if kind == "bliva" and qformer_tokenizer is None:
        raise ModelError(
            "BLIVA's Q-Former reads the question in BERT's tokens. Name the folder of bert-base-uncased's tokenizer "
            "as qformer_tokenizer (--qformer-tokenizer)."
        )
    text = _text_config(plan, folder)
    words = _tokenizer(tokenizer or folder)
    if kind == "bliva":
        words.bos_token = words.eos_token  # "'bos_token': '</s>'" in BLIVA's bliva_vicuna7b.py
        if isinstance(words, LlamaTokenizerFast):
            words.update_post_processor()
    files = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)

    tensors = _read_folder(folder)
    tensors |= _read_encoder(Path(vision_encoder)) if vision_encoder is not None else {}
    for file in files:
        tensors |= _read(Path(file))
    tensors = {_plain(name): tensor for name, tensor in tensors.items()}
    config = _config(plan, tensors, text)
    weights = _join(plan, config, tensors)

    added = words.convert_tokens_to_ids(IMAGE_TOKEN)
    if added is None or added == words.unk_token_id:
        words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False)
    config.image_token_index = words.convert_tokens_to_ids(IMAGE_TOKEN)
    _add_rows(weights, config, words)
    config.tvp_family = kind
    config.architectures = [plan.model.__name__]
    size = config.vision_config.image_size
    processor = BlipImageProcessor(
        size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )
    reader = _tokenizer(qformer_tokenizer) if qformer_tokenizer is not None else None

    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output) as temporary:
        save_torch_state_dict(_apart(weights), temporary, metadata={"format": "pt"})
        config.save_pretrained(temporary)
        words.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if reader is not None:
            reader.save_pretrained(temporary / "qformer_tokenizer")
        readable(temporary)
        temporary.rename(output)
    return output


def _read(file: Path) -> dict[str, Tensor]:
    """Read the tensors of one file, without the dictionary that LAVIS ("model") or SAT ("module") puts around them."""
    if file.exists() and not file.is_file():
        raise ModelError(f"The checkpoint {file} is a folder, a pipe or a device. Name a regular file.")
    try:
        if file.suffix == ".safetensors":
            return _plain_types(load_file(file), file)
        found = load_tensors(file, mapped=True)
    except FileNotFoundError as error:
        raise ModelError(f"There is no checkpoint {file}.") from error
    except ModelError:
        raise
    except Exception as error:  # the unpickler raises whatever the damage leads to
        raise ModelError(
            f"The checkpoint {file} cannot be read: {_first_line(error)} Download it again. Files that "
            "hold more than tensors are not opened, because opening them can run code."
        ) from error
    for wrapper in ("model", "module", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ModelError(f"The checkpoint {file} holds no named tensors.")
    return _plain_types(tensors, file)


def _plain_types(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Refuse numbers of 8 bits, which mean nothing without the scales that go with them."""
    types = {str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point() and tensor.itemsize == 1}
    if types:
        raise ModelError(
            f"The checkpoint {file} holds tensors of the type {', '.join(sorted(types))}, which TVP does not read. "
            "Take the weights of the model before it was quantised."
        )
    return tensors


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Read a language model's tensors, named `language_model.…`; those of a vision encoder keep their names."""
    refuse_adapter(folder, str(folder))
    refuse_pointers(folder, str(folder))
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"The language model {folder} has no *.safetensors and no pytorch_model*.bin.")
    tensors = {name: tensor for file in files for name, tensor in _read(file).items()}
    return {k if k.startswith("image_encoder.") else f"language_model.{k}": v for k, v in tensors.items()}


def _read_encoder(file: Path) -> dict[str, Tensor]:
    tensors = _read(file)
    if any(name.startswith(("visual_encoder.", "vit.", "image_encoder.", "mixins.")) for name in tensors):
        return tensors
    layers = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    unused = f"blocks.{EVA_LAYERS - 1}." if len(layers) == EVA_LAYERS else None
    return {f"visual_encoder.{k}": v for k, v in tensors.items() if unused is None or not k.startswith(unused)}


def _plain(name: str) -> str:
    for pattern, replacement in PREFIXES:
        name = re.sub(pattern, replacement, name)
    return name


def _text_config(plan: Kind, folder: Path) -> PretrainedConfig:
    about = read_json(folder / "config.json", str(folder))
    if about.get("model_type") != plan.text_type:
        raise ModelError(
            f"The language model {folder} is of the architecture {about.get('model_type')!r}; this needs "
            f"{plan.text_type!r}."
        )
    if plan.text is ChatGLMConfig:  # VisualGLM's config.json also describes its vision encoder
        about = {k: v for k, v in about.items() if k not in ("eva_config", "qformer_config", "auto_map")}
    name = f"The config.json of {folder}"
    check_settings(about, name)
    about = config_of(about, name)
    # The parts have different types, so the result names none.
    try:
        return plan.text.from_dict({k: v for k, v in about.items() if k not in ("torch_dtype", "dtype")})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{name} does not make a model: {error}") from error


def _tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if isinstance(source, PreTrainedTokenizerBase):
        refuse_names(source.chat_template, "The tokenizer")
        return copy.deepcopy(source)  # a token is added to it
    try:
        folder = texts_of(str(source), str(source))
        check_texts(folder, str(source), SETTINGS_OF_TOKENS)
        return read_tokenizer(folder, str(source))
    except ModelError as error:
        raise ModelError(
            f"There is no tokenizer in {source} that transformers reads by itself: {_first_line(error)} "
            "Name a folder that has a tokenizer.json."
        ) from error


def _config(plan: Kind, tensors: Mapping[str, Tensor], text: PretrainedConfig) -> PretrainedConfig:
    """Make the configuration of the whole model from the shapes of its tensors.

    A size without a tensor keeps its default; such tensors are reported as missing later.
    """
    found = {name: _size(tensors, *rule) for name, rule in plan.sizes.items()}
    layers = {name: _indices(tensors, pattern) for name, pattern in plan.layers.items()}
    encoder, qformer, patch = found["vision_encoder"] or 1408, found["qformer"] or 768, found["patch"] or 14
    for part, width, head in (("vision_encoder", encoder, ENCODER_HEAD), ("Q-Former", qformer, QFORMER_HEAD)):
        if width % head:
            raise ModelError(f"The {part} is {width} wide, which is no multiple of {head}, the width of a head.")
    n_layers = max(layers["qformer"], default=11) + 1
    return plan.config(
        vision_config={
            "hidden_size": encoder,
            "intermediate_size": found["vision_encoder_mlp"] or 6144,
            "num_hidden_layers": max(layers["vision_encoder"], default=38) + 1,
            "num_attention_heads": encoder // ENCODER_HEAD,
            "patch_size": patch,
            "image_size": math.isqrt((found["positions"] or 257) - 1) * patch,
        },
        qformer_config={
            "hidden_size": qformer,
            "intermediate_size": found["qformer_mlp"] or 3072,
            "num_hidden_layers": n_layers,
            "num_attention_heads": qformer // QFORMER_HEAD,
            # Layer 0 reads the picture; the next layer that does tells how often.
            "cross_attention_frequency": min((i for i in layers["cross"] if i), default=n_layers),
            "vocab_size": found.get("words") or 30523,
            "max_position_embeddings": found.get("word_positions") or 512,
        },
        text_config=text.to_dict(),
        num_query_tokens=found["queries"] or 32,
    )


def _size(tensors: Mapping[str, Tensor], pattern: str, axis: int) -> int | None:
    found = [t.shape[axis] for name, t in tensors.items() if re.fullmatch(pattern, name) and t.ndim >= max(1, -axis)]
    return Counter(found).most_common(1)[0][0] if found else None


def _indices(tensors: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for name in tensors if (match := re.match(pattern, name))}


def _join(plan: Kind, config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make each tensor of the result from its published sources.

    Raises:
        ModelError: tensors are missing, unexpected or mis-shaped; the message lists them all.
    """
    with torch.device("meta"), no_init_weights():
        shapes = {k: v.shape for k, v in plan.model(config).state_dict().items()}
    if config.text_config.tie_word_embeddings and "language_model.lm_head.weight" not in tensors:
        shapes.pop("language_model.lm_head.weight", None)  # loading ties it again
    n_layers = config.qformer_config.num_hidden_layers
    used: set[str] = set()
    wrong: set[str] = set()
    weights = {}
    for target, shape in shapes.items():
        names, part, of = _source(plan, target, n_layers)
        real = [name for name in names if name != "0"]
        used.update(real)
        wrong.update(f"missing: {name}" for name in real if name not in tensors)
        want = torch.Size([shape[0] * of // len(names), *shape[1:]])
        for name in real:
            if name in tensors and _bare(tensors[name].shape) != _bare(want):
                wrong.add(f"mis-shaped: {name} is {tuple(tensors[name].shape)}, should be {tuple(want)}")
        if not wrong:
            pieces = [tensors[n] if n != "0" else torch.zeros(want, dtype=tensors[real[0]].dtype) for n in names]
            whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0].reshape(want)
            weights[target] = whole.chunk(of)[part]
    ignored = re.compile("|".join(plan.ignored))
    wrong.update(f"unexpected: {name}" for name in tensors if name not in used and not ignored.match(name))
    if wrong:
        raise ModelError(
            f"{len(wrong)} tensors do not fit a {plan.model.__name__}. Check that all files belong to one "
            "model:\n  " + "\n  ".join(sorted(wrong))
        )
    return weights


def _source(plan: Kind, target: str, n_layers: int) -> tuple[list[str], int, int]:
    """Return the published names that make a tensor of the result; and of their join, which part of how many it is."""
    for pattern, replacement in plan.sources:
        name, n = re.subn("^" + pattern, replacement, target)
        if n:
            break
    else:
        name = target
    if m := re.match(r"(.*\.layers\.)(\d+)\+1(\..*)", name):
        last = int(m[2]) + 1 == n_layers
        start = m[1].removesuffix("layers.")
        name = f"{start}final_layernorm.{m[3].split('.')[-1]}" if last else f"{m[1]}{int(m[2]) + 1}{m[3]}"
    if m := re.fullmatch(r"(.*)\[(\d)/(\d)\]", name):
        return [m[1]], int(m[2]), int(m[3])
    return name.split("+"), 0, 1


def _bare(shape: torch.Size) -> tuple[int, ...]:
    """Return a shape without leading axes of size 1, which some layouts leave out."""
    sizes = tuple(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes


def _add_rows(weights: dict[str, Tensor], config: PretrainedConfig, words: PreTrainedTokenizerBase) -> None:
    """Add rows to the language model, so that there is one for every id up to the image token's."""
    text = config.text_config
    n_missing = config.image_token_index + 1 - text.vocab_size
    if n_missing <= 0:
        return
    unknown = words.unk_token_id if words.unk_token_id is not None and words.unk_token_id < text.vocab_size else 0
    for name in ("model.embed_tokens.weight", "transformer.word_embeddings.weight", "lm_head.weight"):
        name = f"language_model.{name}"
        if name in weights:
            rows = weights[name][unknown].expand(n_missing, -1)
            weights[name] = torch.cat([weights[name], rows])
    text.vocab_size += n_missing


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors without shared memory; tensors that share it would be left out of the file."""
    seen: set[int] = set()
    out = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        alone = place not in seen and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        seen.add(place)
        out[name] = tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)
    return out
