"""The order in which a language model reads a prompt.

Trainer, exporter and sdk all tokenise through this file, so a prompt is the same tokens in training, in scoring, in
PyTorch and on the edge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import RequestError

UNKNOWN = "<unk>"  # stands for a character that SentencePiece does not know, and which a question may hold


@dataclass(frozen=True)
class PromptLayout:
    """A prompt as one text, which is tokenised as a whole and then split at the image token.

    Its parts alone would be other tokens: some tokenizers, like SentencePiece's, treat the start of a text differently.

    Attributes:
        prompt: the text before the answer, with the places `{question}` and `{image}`. Without `{image}` the image
            embeddings come before everything, the begin token included.
        answer: the text of an answer, with the place `{answer}`, usually after a space.
        image_token: the special token that stands for the image while the text is tokenised.
        end: ids of the tokens that end an answer; training teaches the first one.
        apart: whether an answer is a text of its own, as for an encoder-decoder. Otherwise it continues the prompt.
    """

    prompt: str
    answer: str
    image_token: str
    end: tuple[int, ...]
    apart: bool = False


@dataclass(frozen=True)
class PromptTokenizer:
    """A layout with the tokenizer that reads it.

    Attributes:
        layout: the layout.
        encode: takes a text, and whether to add begin and end tokens; returns ids.
        special_ids: ids that a question or an answer must not contain.
    """

    layout: PromptLayout
    encode: Callable[[str, bool], list[int]]
    special_ids: frozenset[int]

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and behind the image embeddings, up to the start of the answer."""
        self._refuse_special("question", question)
        layout = self.layout
        text = layout.prompt.replace("{image}", layout.image_token).replace("{question}", question)
        ids = self.encode(text, True)
        if "{image}" not in layout.prompt:
            return [], ids
        (image,) = self.encode(layout.image_token, False)
        place = ids.index(image)
        return ids[:place], ids[place + 1 :]

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer with its separator and its end token: the same in loss and scores."""
        self._refuse_special("answer", answer)
        if self.layout.apart:
            return [*self.encode(self.layout.answer.replace("{answer}", answer), False), self.layout.end[0]]
        # Tokenised behind a prompt, because SentencePiece gives a text's first space a token of its own; and without
        # begin and end tokens, because ChatGLM's come last.
        prompt = self.layout.prompt.replace("{image}", "").replace("{question}", "a")
        n_prompt = len(self.encode(prompt, False))
        text = prompt + self.layout.answer.replace("{answer}", answer)
        return [*self.encode(text, False)[n_prompt:], self.layout.end[0]]

    def _refuse_special(self, kind: str, text: str) -> None:
        refuse_half_characters(kind, text)
        if self.special_ids.intersection(self.encode(text, False)):
            raise RequestError(f"The {kind} contains a special token of the model: {text[:80]!r}. Leave it out.")


def refuse_half_characters(kind: str, text: str) -> None:
    """Raise RequestError for a text that no tokenizer can read; kind: how the message names the text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The {kind} contains half a character (a lone surrogate): {text[:80]!r}. Remove it."
        ) from error


@dataclass(frozen=True)
class CaptionTemplates:
    """Templates of the text that a picture is compared with, one text for each answer (CLIP, SigLIP).

    Attributes:
        begun: for a question that starts a sentence ("This is a photo of a"), with the places `{question}` and
            `{answer}`.
        asked: for a question that ends in a question mark, and for an empty one, with the same places.
    """

    begun: str = "{question} {answer}"
    asked: str = "a photo of a {answer}"

    def texts(self, question: str, answers: Sequence[str]) -> list[str]:
        """Return one text for each answer."""
        question = question.strip()
        template = self.asked if question.endswith("?") or not question else self.begun

        def text(answer: str) -> str:  # both at once, since a question may contain "{answer}"
            return re.sub(r"\{(question|answer)\}", lambda m: question if m[1] == "question" else answer, template)

        return [text(answer) for answer in answers]
