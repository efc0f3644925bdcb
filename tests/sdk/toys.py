"""Models that write random tokens, one for each kind of tokenizer that bundles have."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests import tokens as made
from tvp.sdk._following import Grammars
from tvp.sdk._generation import Answering, Generation
from tvp.sdk.formats.token_bytes import token_bytes

LETTERS = [chr(i) for i in range(33, 127)]


def unigram():
    """A tokenizer like T5's, which has no bytes to fall back to."""
    pieces = ["</s>", "<unk>", "▁", *LETTERS, *(f"▁{c}" for c in LETTERS), "yes", "▁no", '":▁', "é"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=1, byte_fallback=False))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return tokenizer


def wordpiece():
    """A tokenizer like BERT's: words are apart, and '##' goes on with one."""
    pieces = ["[SEP]", "[UNK]", *LETTERS, *(f"##{c}" for c in LETTERS), "yes", "##no", "##é", "word"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[SEP]", "[UNK]"])
    return tokenizer


# name -> the tokenizer and the id of its end token
KINDS = {
    "byte-level": (made.bytelevel("llava").backend_tokenizer, 2),
    "sentencepiece": (made.sentencepiece().backend_tokenizer, 2),
    "unigram": (unigram(), 0),
    "wordpiece": (wordpiece(), 0),
}


class Toy:
    """A model whose logits are random, with some liking for signs that end something."""

    def __init__(self, kind):
        self.tokenizer, self.end = KINDS[kind]
        self.n_vocab = self.tokenizer.get_vocab_size() + 7  # of which the tokenizer does not know the last
        self.grammars = Grammars(self.tokenizer, self.n_vocab, (self.end,))
        self.table = token_bytes(self.tokenizer, self.n_vocab, (self.end,))
        self.liking = np.array([3.0 * any(c in token for c in b'"}],') for token in self.table], np.float32)
        self.liking[self.end] = 2

    def begin(self, limit=600, **options):
        generation = Generation.of({"max_new_tokens": limit, **options}, 1)
        follower = self.grammars.find(generation.structure).follow()
        return Answering(self.tokenizer, (self.end,), generation, 0.0, follower)

    def write(self, number, **options):
        """The answer; its error is in `error`."""
        rng, answering = np.random.default_rng(number), self.begin(**options)
        while not answering.finish:
            answering.take(rng.normal(size=self.n_vocab, scale=3).astype(np.float32) + self.liking, 10**6)
        return answering

    def writes(self, text, **options):
        """Whether a text is an answer, token by token as the tokenizer reads it."""
        answering = self.begin(**options)
        for token in self.tokenizer.encode(text, add_special_tokens=False).ids:
            if not answering.follower.look() or not answering.follower.allows(token):
                return False
            answering.follower.take(token)
        return answering.follower.look() and answering.follower.allows(self.end)


TOYS = {kind: Toy(kind) for kind in KINDS}
