"""How a checkpoint wants to be asked: its own chat template, or its family's usual words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.layout import PromptLayout

if TYPE_CHECKING:
    from .family import GenerativeFamily

QUESTION = "{question}"


def layout_of(
    family: GenerativeFamily, image_token: str, default: str, image: str = "{image}", apart: bool = False
) -> PromptLayout:
    """The layout of a family's prompts.

    In this order: `tvp_prompt` of the checkpoint's config.json, its chat template, and `default`.
    image_token: the text of the token that stands for the image in a template.
    image: what the model's processor puts in its place, with the embeddings at `{image}`.
    apart: answers are tokenised apart from the prompt, as encoder-decoders read them.
    """
    prompt = getattr(family.model.config, "tvp_prompt", None)
    if prompt is None and family.template:
        prompt = _render(family, family.template, image_token).replace(image_token, image)
    # A space at the end would merge with the answer's first token; it is written before the answer instead.
    prompt = str(prompt or default).rstrip(" ")
    if QUESTION not in prompt or prompt.count("{image}") > 1 or "{image}" in prompt.partition(QUESTION)[2]:
        raise ModelError(
            f"The prompt of this checkpoint ({prompt!r}) must hold {QUESTION} and at most one {{image}}, before it. "
            "Set tvp_prompt in its config.json."
        )
    answer = "{answer}" if apart or prompt[-1].isspace() else " {answer}"
    return PromptLayout(prompt, answer, image_token, family.end_tokens, apart)


def _render(family: GenerativeFamily, template: str, image_token: str) -> str:
    """One question about one picture in a chat template; begin tokens that the tokenizer adds are left out."""
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    tokenizer = family.tokenizer
    for content in (parts, f"{image_token}\n{QUESTION}"):  # templates of plain text take no parts
        try:
            text: str = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError):
            continue
        if text.count(image_token) == 1 and QUESTION in text:
            begin = tokenizer.bos_token
            adds_begin = begin and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
            return text.removeprefix(begin) if adds_begin else text
    raise ModelError(
        "The chat template of this checkpoint does not show a picture and a question. "
        "Set tvp_prompt in its config.json."
    )
