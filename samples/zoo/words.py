"""The zoo's texts: how each model is asked, and the tokenizer that they share."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tvp.trainer import scenes

PHOTO_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PHOTO_QUESTIONS = ("What is in the photo?", "This is a photo of a")
BOS, PAD, EOS, UNK, IMAGE = "<s>", "<pad>", "</s>", "<unk>", "<image>"
SMOL_END, SMOL_AROUND, SMOL_WHOLE = "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"
QWEN_START, QWEN_END, QWEN_IMAGE = "<|im_start|>", "<|im_end|>", "<|image_pad|>"
# Special tokens beside the five that all models have, spelt as in the published models.
EXTRA = {
    "smolvlm": [QWEN_START, SMOL_END, SMOL_AROUND, SMOL_WHOLE],
    "qwen2vl": [QWEN_START, QWEN_END, "<|vision_start|>", "<|vision_end|>", QWEN_IMAGE, "<|video_pad|>"],
}
# The text before the image embeddings, the text after them, and the text before an answer: as published.
LAYOUTS = {
    "llava": ("USER: ", "\n{question} ASSISTANT:", " "),
    "blip2": ("", "Question: {question} Answer:", " "),
    "blip2-t5": ("", "Question: {question} Answer:", ""),
    "instructblip": ("", "Question: {question} Short answer:", " "),
    "smolvlm": (
        f"{QWEN_START}User:{SMOL_AROUND}{SMOL_WHOLE}",
        f"{SMOL_AROUND}{{question}}{SMOL_END}\nAssistant:",
        " ",
    ),
    "qwen2vl": (
        f"{QWEN_START}system\nYou are a helpful assistant.{QWEN_END}\n{QWEN_START}user\n<|vision_start|>",
        f"<|vision_end|>{{question}}{QWEN_END}\n{QWEN_START}assistant\n",
        "",
    ),
}
END = {"smolvlm": SMOL_END, "qwen2vl": QWEN_END}  # the end token of an answer; of the other models </s>
N_VOCAB = 512


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the questions and answers of the zoo's models.

    All models have the same merges; special tokens differ. A text begins with <s>, except for three models: T5's ends
    with </s>, and Qwen2-VL and SmolVLM write marks of their own.
    """
    answers = [*scenes.KINDS, *scenes.COLOURS, *scenes.COUNTS, *scenes.YES_NO, *scenes.TRUE_FALSE, *PHOTO_LABELS]
    named = [f"{c} {k}" for c in scenes.COLOURS for k in scenes.KINDS]
    questions = [
        "How many objects are there?",
        *(f"What shape is the {c} object?" for c in scenes.COLOURS),
        *(f"What color is the {k}?" for k in scenes.KINDS),
        *(f"Is there a {n}?" for n in named),
        *(f'"the {k} is {c}": true or false?' for c in scenes.COLOURS for k in scenes.KINDS),
        *(f'"a {a} and a {b}": true or false?' for a, b in itertools.pairwise(named)),
        *(f'"a {a} but no {b}": true or false?' for a in scenes.KINDS for b in scenes.KINDS),
        *(f'"{text} objects": true or false?' for text in ("more than 2", "fewer than 3")),
        *PHOTO_QUESTIONS,
    ]
    corpus = [before + word for before in (" ", "") for word in answers] * 8
    for before, after, _ in LAYOUTS.values():
        corpus += [before + after.format(question=q) for q in questions]
    corpus += [f"a photo of a {label}. a {n} and a {n}, this is a picture of" for label in PHOTO_LABELS for n in named]
    every_special = list(dict.fromkeys([BOS, PAD, EOS, UNK, IMAGE, *itertools.chain(*EXTRA.values())]))
    for mark in every_special:
        corpus = [part for text in corpus for part in text.split(mark) if part]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, PAD, EOS, UNK, IMAGE, *EXTRA.get(name, [])]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 4, trainer)
    if name == "blip2-t5":
        single, marks = f"$A {EOS}", [EOS]
    elif name in ("smolvlm", "qwen2vl"):
        single, marks = "$A", []
    elif name == "guide":
        single, marks = f"{BOS} $A {EOS}", [BOS, EOS]
    else:
        single, marks = f"{BOS} $A", [BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in marks]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=END.get(name, EOS),
        unk_token=UNK,
        additional_special_tokens=[IMAGE, *EXTRA.get(name, [])],
        padding_side="left",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
