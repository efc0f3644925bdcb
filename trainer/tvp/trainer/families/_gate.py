"""What is looked at in a checkpoint's folder before any loader reads it; every refusal is a ModelError.

A checkpoint is somebody else's. transformers and open_clip would follow names in its files: to code in the folder, to
a kernel, a backbone, a tokenizer or an adapter of a hub, to files elsewhere. Here such names are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tvp.sdk.errors import ModelError

from ..tensor_files import check_tensors

CONFIG, TOKENIZER, PROCESSOR, OPEN_CLIP = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "open_clip_config.json",
)
# The settings that transformers and open_clip read, without those of the tokens.
SETTINGS = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    PROCESSOR,
    TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    OPEN_CLIP,
)
SETTINGS_OF_TOKENS = (TOKENIZER, "special_tokens_map.json", "added_tokens.json", "chat_template.json", PROCESSOR)
LARGEST, LARGEST_TEMPLATE, DEEPEST = 64 * 2**20, 2**20, 32  # bytes, bytes, levels of nesting
# The most of what a loader builds before it reads a weight: tables of names and positions, layers.
MOST = {
    r"(.*_)?(layers|depth)": 1000,
    r"num_labels": 10_000,
    r"image_size|tvp_canvas": 8192,  # px
    r"max_position_embeddings|max_sequence_length|n_positions": 2**22,
    r"context_length|num_query_tokens": 2**16,
}
CODE = {"auto_map", "trust_remote_code", "custom_generate", "custom_pipelines"}
KERNELS = {"kernel_config", "kernel_mapping", "kernels", "use_kernels", "hub_kernels"}
# Names of other files and models.
POINTERS = {
    "configuration_files",
    "fast_tokenizer_files",
    "transformers_weights",
    "gguf_file",
    "backbone",
    "use_pretrained_backbone",
    "use_timm_backbone",
}
QUANTISED = {"quantization_config", "compression_config"}
ATTENTION = re.compile(r"_?attn_implementation(_internal)?")
KINDS_OF_ATTENTION = {"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# Parts of the families besides the causal language models.
PARTS = {
    *("blip_2_vision_model", "clip_vision_model", "idefics3_vision", "instructblip_vision_model", "internvl_vision"),
    *("siglip_vision_model", "smolvlm_vision", "blip_2_qformer", "instructblip_qformer"),
    *("clip_text_model", "siglip_text_model", "t5", "mt5", "umt5", "chatglm", "qwen2_vl_text", "qwen2_5_vl_text"),
    *("qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm"),  # as the first releases called their parts
}
# Files of tokens, of which a tokenizer needs one.
TOKENS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
# Of peft, and of LLaVA's own training.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
POINTER = b"version https://git-lfs.github.com/spec/"
TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}  # that TVP reads from safetensors
ALONE = re.compile("[\ud800-\udfff]")
# What an open_clip configuration may say of a tokenizer: the rest is handed on to a loader, or draws tokens at random.
TOKENIZER_KWARGS = {"clean", "strip_sep_token", "additional_special_tokens"}


def check_texts(folder: Path, name: str, settings: Sequence[str] = SETTINGS) -> None:
    """Look at everything in a folder but its weights.

    Args:
        folder: of a checkpoint or a tokenizer.
        name: as the user gave it, for messages.
        settings: the files that a loader will read. Default: all.

    Raises:
        ModelError: a file asks for code, names other files or models, is no JSON, or is not the file itself.
    """
    refuse_pointers(folder, name)
    refuse_adapter(folder, name)
    for file in settings:
        if not (folder / file).is_file():
            continue
        found = read_json(folder / file, name)
        if file not in ("special_tokens_map.json", "added_tokens.json"):  # their keys are names of tokens
            check_settings(found, f"{file} of {name!r}")
    for template in folder.rglob("*.jinja"):
        if not template.is_file() or template.stat().st_size > LARGEST_TEMPLATE:
            raise ModelError(f"{template.name} of {name!r} is no chat template: a file of at most 1 MiB is read.")
    for file in (TOKENIZER, CONFIG):  # the second where the first says nothing
        if (folder / file).is_file():
            _refuse_class(read_json(folder / file, name).get("tokenizer_class"), f"{file} of {name!r}")
    if (folder / TOKENIZER).is_file():
        _check_files_of_tokens(read_json(folder / TOKENIZER, name), name)
    if (folder / OPEN_CLIP).is_file():
        _check_open_clip(folder, name)


def check_parts(config: dict[str, Any], about: str) -> None:
    """Refuse parts that no family has: some of transformers' models fetch a backbone of their own when they are built.

    Args:
        config: of a model.
        about: which file it is, for messages.

    Raises:
        ModelError: as said.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for path, value in walk(config, about):
        known = isinstance(value, str) and (value in PARTS or value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        if len(path) > 1 and path[-1] == "model_type" and value and not known:
            raise ModelError(
                f"{about} sets {_spell(path)} to {value!r}, which no family has as a part. Language models are those "
                f"of transformers; others are {', '.join(sorted(PARTS))}."
            )


def check_weights(folder: Path, name: str) -> None:
    """Look at a folder's weights: that they are there, and of a type that TVP reads.

    Raises:
        ModelError: they are missing, cut off, compressed, or quantised.
    """
    refuse_pointers(folder, name)
    for index in sorted(folder.glob("*.index.json")):
        shards = read_json(index, name).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise ModelError(f"{index.name} of {name!r} is damaged: it has no weight_map of names.")
        for shard in set(shards.values()):
            if Path(shard).name != shard or "\\" in shard:
                raise ModelError(f"{index.name} of {name!r} names the file {shard!r}, which is outside of its folder.")
            if not (folder / shard).is_file():
                raise ModelError(f"The checkpoint of {name!r} is incomplete: it lacks {shard}. Download it again.")
    safe = sorted(folder.glob("*.safetensors"))
    every = sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])
    # Of a training run's folder, these alone are loaded: training_args.bin, for one, holds more than tensors.
    named = [file for file in every if re.match(r"(open_clip_)?(pytorch_)?model[.-]", file.name)]
    pickled = named or ([] if safe else every)
    for file in [*safe, *pickled]:
        if not file.is_file():
            raise ModelError(f"{file.name} of {name!r} is no file. Download it again.")
    if not safe and not pickled:
        raise ModelError(
            f"The checkpoint of {name!r} is incomplete: it has no weights (*.safetensors or *.bin). Download it again."
        )
    for file in safe:
        types = {about.get("dtype") for key, about in read_header(file, name).items() if key != "__metadata__"}
        if types - TYPES:
            raise ModelError(
                f"{file.name} of {name!r} holds tensors of the type {', '.join(sorted(map(str, types - TYPES)))}, "
                f"which TVP does not read. Take the weights of the model before it was quantised, in BF16 for instance."
            )
    for file in pickled:
        try:
            check_tensors(file)
        except Exception as error:  # the unpickler raises whatever the damage leads to
            raise ModelError(
                f"The checkpoint of {name!r} is incomplete or damaged: {file.name}: {error} Download it again."
            ) from error


def read_json(file: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of limited size and depth, in which every text is whole.

    Args:
        file: the file.
        name: of the checkpoint, for messages.

    Raises:
        ModelError: it is not such an object.
    """
    about = f"{file.name} of {name!r}"
    try:
        if file.stat().st_size > LARGEST:
            raise ModelError(f"{about} has more than {LARGEST >> 20} MiB. It is no file of settings.")
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"{about} is nested too deeply. At most {DEEPEST} levels are read.") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The checkpoint of {name!r} is incomplete or damaged: no readable {file.name}: {error}"
        ) from (error)
    if not isinstance(found, dict):
        raise ModelError(f"{about} is damaged: it holds no JSON object. Download it again for a readable {file.name}.")
    for path, value in walk(found, about):
        if (isinstance(value, str) and ALONE.search(value)) or ALONE.search(path[-1] if path else ""):
            raise ModelError(f"{about} has half a character (a lone surrogate) at {_spell(path)}. Correct the file.")
    return found


def read_header(file: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return what a safetensors file says of its tensors.

    Raises:
        ModelError: it is cut off or damaged.
    """
    try:
        with file.open("rb") as stream:
            n_bytes = int.from_bytes(stream.read(8), "little")
            if not 2 <= n_bytes <= min(LARGEST, file.stat().st_size - 8):
                raise ValueError("it is cut off, or is no safetensors file")
            found = json.loads(stream.read(n_bytes))
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise ValueError("its header is no table of tensors")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"The checkpoint of {name!r} is incomplete or damaged: {file.name}: {error}. Download it again."
        ) from error
    return found


def walk(value: Any, about: str, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value of a JSON document with its path.

    Raises:
        ModelError: it is nested more than `DEEPEST` levels.
    """
    if len(path) > DEEPEST:
        raise ModelError(f"{about} is nested too deeply. At most {DEEPEST} levels are read.")
    yield path, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(inner, about, (*path, str(key)))


def refuse_pointers(folder: Path, name: str) -> None:
    """Refuse a folder in which a file is git-LFS's pointer to the file itself."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(POINTER):
            raise ModelError(
                f"{file.name} of {name!r} is a git-LFS pointer and not the file itself. Run `git lfs pull` in its "
                "folder, or download it again."
            )


def refuse_names(templates: Any, about: str) -> None:
    """Refuse names of chat templates that are no plain file names: a tokenizer is saved with a file for each."""
    if isinstance(templates, list):
        names = [entry.get("name") if isinstance(entry, dict) else entry for entry in templates]
    else:
        names = list(templates) if isinstance(templates, dict) else []
    for name in names:
        if not isinstance(name, str) or not TEMPLATE_NAME.fullmatch(name):
            raise ModelError(f"{about} names a chat template {name!r}. A name has letters, digits, '_', '-' and '.'.")


def refuse_missing_tokens(folder: Path, name: str) -> None:
    """Refuse a folder without a file of tokens."""
    if not any((folder / file).is_file() for file in TOKENS):
        raise ModelError(
            f"{name!r} is incomplete: it has no tokenizer. TVP reads {', '.join(TOKENS)}. "
            "Copy tokenizer.json and tokenizer_config.json of the model's release into its folder."
        )


def refuse_adapter(folder: Path, name: str) -> None:
    """Refuse a folder with an adapter, which would be left out silently."""
    if found := [file for file in ADAPTERS if (folder / file).is_file()]:
        raise ModelError(
            f"{name!r} holds an adapter ({found[0]}), which TVP does not load: the model would answer without it. "
            "Merge it first: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new). "
            "If you want the model without it, remove the adapter's files."
        )


def check_settings(found: dict[str, Any], about: str) -> None:
    """Refuse settings that ask for code, for a kernel, for another file or model, or that say quantised weights.

    Args:
        found: a file's content.
        about: which file it is, for messages.

    Raises:
        ModelError: as said.
    """
    for path, value in walk(found, about):
        key = path[-1] if path else ""
        where = f"{about} sets {_spell(path)}"
        if key in CODE and value:
            raise ModelError(
                f"{where}: it asks for code beside the weights or on a hub. TVP runs no code of a checkpoint. Take a "
                "release of the model that transformers loads without it, or remove the entry if it does."
            )
        if key in KERNELS and value:
            raise ModelError(f"{where}: it asks for a kernel, which is code. Remove the entry.")
        if ATTENTION.fullmatch(key):
            for _, kind in walk(value, about):
                if isinstance(kind, str) and kind not in KINDS_OF_ATTENTION:
                    raise ModelError(
                        f"{where} to {value!r}, which may be code of a hub. Allowed are "
                        f"{', '.join(sorted(KINDS_OF_ATTENTION))}. Remove the entry: TVP chooses itself."
                    )
        if (key in POINTERS and value) or (key == "model_type" and str(value).startswith("timm")):
            raise ModelError(f"{where} to {value!r}: another file or model, which TVP does not follow to.")
        if key in QUANTISED and value:
            raise ModelError(
                f"{where}: its weights are quantised. TVP reads plain ones: take the model before it was quantised. "
                "tvp export --precision int8 or int4 makes small bundles."
            )
        if key == "chat_template":
            refuse_names(value, about)
        if isinstance(value, int):
            size = next((part for part in reversed(path) if not part.isdigit()), "")  # of a list, the list's
            if value > (most := next((n for names, n in MOST.items() if re.fullmatch(names, size)), value)):
                raise ModelError(f"{where} to {value}. At most {most} are read.")


def _refuse_class(kind: Any, about: str) -> None:
    """Refuse a class of tokenizers that is none: transformers would look up any of its names, a model's too."""
    import transformers

    known = [getattr(transformers, f"{kind}{end}", None) for end in ("", "Fast")]
    if kind in (None, "TokenizersBackend") or any(
        isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase) for found in known
    ):
        return
    raise ModelError(
        f"{about} names the tokenizer class {kind!r}, which transformers does not have. If a tokenizer.json is there, "
        "write PreTrainedTokenizerFast in its place."
    )


def _check_files_of_tokens(found: dict[str, Any], name: str) -> None:
    for key in ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "source_spm", "target_spm"):
        if found.get(key) is not None:  # transformers opens it instead of the folder's own
            raise ModelError(f"{TOKENIZER} of {name!r} sets {key} to {found[key]!r}, another file. Remove the entry.")


def _check_open_clip(folder: Path, name: str) -> None:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    about = f"{OPEN_CLIP} of {name!r}"
    model = read_json(folder / OPEN_CLIP, name).get("model_cfg")
    model = model if isinstance(model, dict) else {}
    for part, known in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        found = model.get(part)
        if not isinstance(found, dict):
            raise ModelError(f"{about} is damaged: its model_cfg has no {part}.")
        if unknown := sorted(found.keys() - known.__dataclass_fields__.keys()):
            raise ModelError(f"{about} sets {part}.{unknown[0]}, which open_clip does not know. Remove the entry.")
    text, vision = model["text_cfg"], model["vision_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or options.keys() - TOKENIZER_KWARGS:
        raise ModelError(
            f"{about} sets text_cfg.tokenizer_kwargs to {options!r}. Allowed are {', '.join(sorted(TOKENIZER_KWARGS))}."
        )
    if text.get("hf_model_name"):
        raise ModelError(
            f"{about} takes its text encoder {text['hf_model_name']!r} from a hub. A name in a file is not fetched. "
            "Name an open_clip model by NAME@TAG instead."
        )
    if re.search(r"[:/\\]", str(vision.get("timm_model_name") or "")):
        raise ModelError(f"{about} names the timm model {vision['timm_model_name']!r}, which is not one of timm's own.")
    if text.get("hf_tokenizer_name") and not any((folder / file).is_file() for file in TOKENS):
        raise ModelError(
            f"{name!r} is incomplete: it has no tokenizer, but names {str(text['hf_tokenizer_name'])!r}. A name in a "
            "file is not fetched. Download that tokenizer's files (tokenizer.json, tokenizer_config.json) into the "
            "folder."
        )


def _spell(path: tuple[str, ...]) -> str:
    return ".".join(path).encode("utf-8", "backslashreplace").decode() or "its top"
