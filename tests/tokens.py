"""Tokenizers like the published ones, and chat templates, for the tiny models of tests/tiny.py."""

from __future__ import annotations

import json

import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from samples.zoo import words

IMAGE = "<image>"
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
# The part for a user's message, from each checkpoint on the hub.
TEMPLATES = {
    "llava_onevision": CHATML.replace("IMAGE", IMAGE).replace("c['text']", "'\\n' + c['text']"),
    "qwen2_5_vl": CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    "internvl": CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    "idefics3": (
        "<s>{% for m in messages %}{{m['role'] | capitalize}}{% if m['content'][0]['type'] == 'image' %}{{':'}}"
        "{% else %}{{': '}}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}


def sentencepiece(*special: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer like Llama's: a space belongs to the word behind it, a text starts with a space; other characters
    are bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?#<>/"
    corpus = ["How many objects are there? yes no a purple triangle and more", "USER: </Img> ASSISTANT: ###", letters]
    trained.train_from_iterator(corpus * 4, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = [words.UNK, words.BOS, words.EOS, *(f"<0x{i:02X}>" for i in range(256)), *state["vocab"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in state["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=words.UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words.BOS,
        eos_token=words.EOS,
        unk_token=words.UNK,
        pad_token=words.UNK,
        additional_special_tokens=[IMAGE, *special],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def bytelevel(kind: str, *special: str, end: str | None = None) -> hf.PreTrainedTokenizerFast:
    """The zoo's tokenizer of a kind, with further special tokens."""
    tokenizer = words.make_tokenizer(kind)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)}, replace_additional_special_tokens=False)
    tokenizer.eos_token = end or tokenizer.eos_token
    return tokenizer


def marks(tokenizer: hf.PreTrainedTokenizerBase) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def ids(tokenizer: hf.PreTrainedTokenizerBase, **names: str) -> dict[str, int]:
    return {field: tokenizer.convert_tokens_to_ids(token) for field, token in names.items()}
