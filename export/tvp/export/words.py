"""Golden words: labels from the whole vocabulary, scored at the export about a picture that is resized."""

from __future__ import annotations

import logging
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from tvp.sdk import Task
from tvp.sdk.errors import RequestError
from tvp.sdk.formats.golden_words import GoldenWords
from tvp.sdk.formats.tokenizer import read_tokenizer
from tvp.trainer.families import Family

from .parity import Case, bound
from .ranking import golden_case

log = logging.getLogger("tvp.export")

N_LABELS, N_WORDS = 32, 8  # of each label at most
LARGER = 1.37  # the picture's sides, as a share of the canvas; made odd


@torch.no_grad()
def golden_words(
    task: Task, family: Family, case: Case, canvas: int, exact: bool
) -> tuple[NDArray[np.uint8], GoldenWords, float] | None:
    """Score words of the vocabulary with PyTorch and with the bundle.

    Args:
        task: the bundle, loaded.
        family: the model, on the CPU in fp32.
        case: whose picture, at another size, and question are asked.
        canvas: side of what the model is shown, px.
        exact: whether the bundle's scores must be PyTorch's (fp32).

    Returns:
        The picture, the golden words, and the largest difference of the bundle's scores from PyTorch's;
        None where the bundle cannot score such words.
    """
    picture = odd(case.picture, canvas)
    pixels = torch.from_numpy(task.pixel_values(picture))
    tokenizer = read_tokenizer(task.folder / "base" / "tokenizer.json")
    for n_words in (N_WORDS, 1):
        labels = labels_of(tokenizer, n_words)
        with suppress(RequestError):  # the context may be too short for so many
            own = {row.label: row.score for row in task.rank(picture, case.question, labels=labels)}
            break
    else:
        log.warning("the model can score no words of its vocabulary, so `tvp check` replays the golden cases alone")
        return None
    theirs = golden_case(family, pixels, "", case.question, labels).scores
    largest = float(np.abs(theirs).max())
    words = GoldenWords(case.question, labels, theirs, bound(largest))
    far = words.gap(own)
    if not exact:
        scores = tuple(float(f"{own[label]:.7g}") for label in labels)
        words = GoldenWords(case.question, labels, scores, max(2 * bound(largest), far))
    return picture, words, far


def odd(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture that is larger than a canvas of this side, uint8 (height, width, 3), both odd and not equal."""
    width, height = (int(side * larger) | 1 for larger in (LARGER, LARGER + 0.2))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def labels_of(tokenizer: Tokenizer, n_words: int) -> tuple[str, ...]:
    """Return labels of so many words each, which are spread over a vocabulary. Special tokens are none of them."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    words = []
    for token, number in sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda row: row[1]):
        text = tokenizer.decode([number]).strip()
        if token not in special and text.isprintable() and text and "\ufffd" not in text:
            words.append(text)
    words = list(dict.fromkeys(words))
    chosen = [words[i] for i in np.linspace(0, len(words) - 1, min(N_LABELS * n_words, len(words)), dtype=int)]
    n_labels = min(N_LABELS, len(chosen))
    return tuple(dict.fromkeys(" ".join(chosen[start::n_labels]) for start in range(n_labels)))
