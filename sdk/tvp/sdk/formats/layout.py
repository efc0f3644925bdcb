"""The text that a language model reads, and its order.

Trainer, exporter and sdk all tokenise through this module, so a question becomes the same tokens in training, in
scoring, in PyTorch and on the edge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import RequestError

UNKNOWN = "<unk>"  # SentencePiece's token for an unknown character; a question may contain one
UNKNOWN_OF_CONNECTOR = ("[UNK]", "<unk>")  # of BERT, which Q-Formers are made of, and of SentencePiece


@dataclass(frozen=True)
class PromptLayout:
    """The order of a picture, a question and an answer in the text that a language model reads.

    The text is tokenised as a whole and then split at the image token. Its parts alone would give other tokens:
    SentencePiece treats the start of a text differently.

    Attributes:
        prompt: the text before the answer, with `{question}` and `{image}` in their places. Without `{image}` the
            image embeddings come before everything, also before the begin token.
        answer: the text of an answer, with `{answer}` in its place, usually behind a space.
        image_token: the special token that stands for the picture while the text is tokenised.
        end: ids of the tokens that end an answer. Training teaches the first one.
        apart: whether the answer is a text of its own, as for an encoder-decoder; otherwise it continues the prompt.
    """

    prompt: str
    answer: str
    image_token: str
    end: tuple[int, ...]
    apart: bool = False


class PromptTokenizer(NamedTuple):
    """A layout with the tokenizer that reads it.

    Attributes:
        layout: of the model.
        encode: takes a text, and whether to add begin and end tokens; returns token ids.
        special_ids: token ids that a question or an answer may not contain.
    """

    layout: PromptLayout
    encode: Callable[[str, bool], list[int]]
    special_ids: frozenset[int]

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and behind the image embeddings, up to the answer.

        Raises:
            RequestError: the question contains a special token or half a character.
        """
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
        """Return the token ids of an answer, its separator and its end token included: the same for loss and scores.

        Raises:
            RequestError: the answer contains a special token or half a character.
        """
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


def refuse_special_of_connector(question: str, tokens: Iterable[str]) -> None:
    """Raise RequestError for a question that holds a special token of a connector's own tokenizer.

    Args:
        question: the text. An unknown character in it becomes the token for unknown ones, so ids would say too much.
        tokens: texts of that tokenizer's special tokens.
    """
    if any(token in question for token in tokens if token not in UNKNOWN_OF_CONNECTOR):
        raise RequestError(f"The question contains a special token of the model: {question[:80]!r}. Leave it out.")


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
        begun: for a question that begins a sentence ("This is a photo of a"), with `{question}` and `{answer}` in
            their places.
        asked: for a question that ends in a question mark, and for an empty one.
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
