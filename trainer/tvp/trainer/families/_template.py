"""The text around a question: the checkpoint's own chat template, or its family's usual prompt."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.layout import PromptLayout

if TYPE_CHECKING:
    from .family import GenerativeFamily

log = logging.getLogger("tvp.trainer")

QUESTION = "{question}"
SECONDS = 30  # of the clock; `_render.py` limits those of the processor
MOST_LETTERS = 100_000


def layout_of(
    family: GenerativeFamily, image_token: str, default: str, image: str = "{image}", apart: bool = False
) -> PromptLayout:
    """Return the layout of a family's prompts.

    It comes from `tvp_prompt` of the checkpoint's config.json, else from its chat template, else it is `default`.

    Args:
        family: the model.
        image_token: the text of the token that stands for the image in a template.
        default: the family's usual prompt, with `{question}` and at most one `{image}` before it.
        image: the text that the model's processor puts in place of the image token, with `{image}` for the
            embeddings. Default: the embeddings alone.
        apart: answers are tokenised apart from the prompt, as encoder-decoders read them. Default False.

    Raises:
        ModelError: the prompt or the template has no place for the question.
    """
    prompt = getattr(family.model.config, "tvp_prompt", None)
    if not image_token and "{image}" in (prompt or (image if family.template else default)):
        raise ModelError(
            "The tokenizer of this checkpoint has no image token of its own: config.json names the id of another token "
            "(image_token_index, image_token_id), or none. Take config.json and tokenizer from the same release."
        )
    if prompt is None and family.template:
        prompt = _render(family, family.template, image_token).replace(image_token, image)
    # A space at the end would merge with the first token of the answer, so it is written before the answer instead.
    prompt = str(prompt or default).rstrip(" ")
    if QUESTION not in prompt or prompt.count("{image}") > 1 or "{image}" in prompt.partition(QUESTION)[2]:
        raise ModelError(
            f"The prompt of this checkpoint ({prompt!r}) must hold {QUESTION} and at most one {{image}}, before it. "
            "Set tvp_prompt in its config.json."
        )
    answer = "{answer}" if apart or prompt[-1].isspace() else " {answer}"
    return PromptLayout(prompt, answer, image_token, family.end_tokens, apart)


def _render(family: GenerativeFamily, template: str, image_token: str) -> str:
    """Write one question about one picture with a chat template, without a begin token that the tokenizer adds."""
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    contents = (parts, f"{image_token}\n{QUESTION}")  # templates for plain text take no parts
    if "strftime_now" in template:
        log.warning("The chat template of this checkpoint asks for today's date. TVP gives it none.")
    tokenizer = family.tokenizer
    tokens = json.dumps(tokenizer.special_tokens_map, default=str)
    chats = json.dumps([[{"role": "user", "content": content}] for content in contents])
    for text in _texts(template, chats, tokens):
        if text is not None and text.count(image_token) == 1 and QUESTION in text:
            begin = tokenizer.bos_token
            adds_begin = begin and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
            return text.removeprefix(begin) if adds_begin else text
    raise ModelError(
        "The chat template of this checkpoint does not show a picture and a question. "
        "Set tvp_prompt in its config.json."
    )


@lru_cache(64)
def _texts(template: str, chats: str, tokens: str) -> list[str | None]:
    """Return what `_render.py` writes for each chat (JSON), in a process with limits of time and memory."""
    given = json.dumps({"template": template, "chats": json.loads(chats), "tokens": json.loads(tokens)})
    command = [sys.executable, "-P", str(Path(__file__).with_name("_render.py"))]  # -P: no import from its folder
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=SECONDS, check=True)
        texts: list[str | None] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise ModelError(
            "The chat template of this checkpoint does not end, or takes too much time or memory. "
            "Set tvp_prompt in its config.json, which goes before it."
        ) from error
    if any(len(text or "") > MOST_LETTERS for text in texts):
        raise ModelError(
            f"The chat template of this checkpoint writes more than {MOST_LETTERS} letters. "
            "Set tvp_prompt in its config.json, which goes before it."
        )
    return texts
