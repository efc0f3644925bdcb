"""The order of what a language model reads. Trainer, exporter and sdk all tokenise through this file,
so that a prompt is the same tokens in training, in scoring, in PyTorch and on the edge."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import RequestError

UNKNOWN = "<unk>"  # what SentencePiece reads in place of a character it does not know, which a question may hold


@dataclass(frozen=True)
class PromptLayout:
    """A prompt as one text that is tokenised as a whole, then split at the image token.

    Tokenising its parts apart would give other tokens where a tokenizer treats the start of a text
    differently, as SentencePiece ones do.

    prompt: the text before the answer, with the place of `{question}` and of `{image}`; without
        `{image}` the image embeddings come before everything, the begin token included.
    answer: the text of an answer, with the place of `{answer}` (usually after a space).
    image_token: the special token that stands for the image while the text is tokenised.
    end: ids of the tokens that end an answer; the first is the one that training teaches.
    apart: the answer is a text of its own, as an encoder-decoder reads it, not what continues the prompt.
    """

    prompt: str
    answer: str
    image_token: str
    end: tuple[int, ...]
    apart: bool = False


@dataclass(frozen=True)
class PromptTokenizer:
    """A layout with the tokenizer that reads it.

    encode: text, and whether to add begin and end tokens -> ids.
    special_ids: ids that a question may not contain.
    """

    layout: PromptLayout
    encode: Callable[[str, bool], list[int]]
    special_ids: frozenset[int]

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the image embeddings, up to where the answer starts."""
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
        """Token ids of an answer with its separator and its end token: the same in loss and scores."""
        self._refuse_special("answer", answer)
        if self.layout.apart:
            return [*self.encode(self.layout.answer.replace("{answer}", answer), False), self.layout.end[0]]
        # Behind some word, because SentencePiece gives a text's first space a token of its own; and without
        # begin and end tokens, because ChatGLM's come last.
        asked = self.layout.prompt.replace("{image}", "").replace("{question}", "a")
        answered = asked + self.layout.answer.replace("{answer}", answer)
        n_asked = len(self.encode(asked, False))
        return [*self.encode(answered, False)[n_asked:], self.layout.end[0]]

    def _refuse_special(self, kind: str, text: str) -> None:
        refuse_half_characters(kind, text)
        if self.special_ids.intersection(self.encode(text, False)):
            raise RequestError(f"The {kind} holds a special token of the model: {text[:80]!r}. Leave it out.")


def refuse_half_characters(kind: str, text: str) -> None:
    """Raise RequestError for a text that no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"The {kind} holds half a character (a lone surrogate): {text[:80]!r}.") from error


@dataclass(frozen=True)
class CaptionTemplates:
    """How a question and an answer become the text that a picture is compared with (CLIP, SigLIP).

    begun: for a question that is the start of a sentence ("This is a photo of a"), with the places of `{question}`
        and `{answer}`. asked: for one that ends in a question mark, and for an empty one.
    """

    begun: str = "{question} {answer}"
    asked: str = "a photo of a {answer}"

    def texts(self, question: str, answers: Sequence[str]) -> list[str]:
        """One text for each answer."""
        question = question.strip()
        template = self.asked if question.endswith("?") or not question else self.begun

        def text(answer: str) -> str:  # at once, since a question may hold "{answer}"
            return re.sub(r"\{(question|answer)\}", lambda m: question if m[1] == "question" else answer, template)

        return [text(answer) for answer in answers]
