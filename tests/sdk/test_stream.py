"""The pieces of a stream, joined, are the answer: for tokens in any order, of tokenizers of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tvp.sdk._answer_text import AnswerText
from tvp.sdk.formats.tokenizer import decode

BYTES = [f"<0x{byte:02X}>" for byte in (0x20, 0x41, 0xC3, 0xA9, 0xE3, 0x81, 0x82, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
LETTERS = [pre_tokenizers.ByteLevel.alphabet()[i] for i in range(0, 256, 9)]
WORDS = [
    "a", "b", "▁a", "▁", "b▁", "▁▁b", "##a", "##", "a</w>", "</w>", "a</w>b", " .", "do not", " n't", " do", " not",
    ".", "Ġa", "Ã", "©", "ðŁ", "ĺĢ", "ã", "ģĤ", "é", "\ufffd", "|", "<pad>", "\n", " ", "<0xc3>", "<0x+9>", "<0x4",
    "1>", "STOP",
]  # fmt: skip
SPECIAL = ["<unk>", "<s>", "</s>"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *BYTES, *WORDS, *LETTERS]))
END = VOCABULARY.index("</s>")

# Decoders as published tokenizers have them.
PUBLISHED = {
    "Llama 2": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "Gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "GPT-2": decoders.ByteLevel(),
    "T5": decoders.Metaspace(),
    "BERT": decoders.WordPiece(cleanup=True),
    "OpenAI GPT": decoders.BPEDecoder("</w>"),
    "wav2vec 2": decoders.CTC(),
    "none": None,
}
PARTS = st.sampled_from(
    [
        decoders.ByteFallback(),
        decoders.ByteLevel(),
        decoders.BPEDecoder("</w>"),
        decoders.CTC(),
        decoders.Fuse(),
        decoders.Metaspace(),
        decoders.Replace("▁", " "),
        decoders.Replace(" .", "."),
        decoders.Replace("<0x4", "<0x41"),
        decoders.Replace("4", "<0x41>"),
        decoders.Replace("▁", "41"),
        decoders.Replace("a", "\ufffd"),
        decoders.Replace("\ufffd", "a"),
        decoders.Replace(Regex("a(?=b)|\\n$"), "x"),
        decoders.Strip(" ", 1, 0),
        decoders.WordPiece(cleanup=True),
    ]
)
TOKENS = st.lists(st.integers(0, len(VOCABULARY) + 1) | st.sampled_from([0, 1, *range(3, 3 + len(BYTES))]), max_size=14)
STOPS = st.lists(st.sampled_from(["STOP", "\n", " a", "ab", "é", "\ufffd", ". "]), max_size=2).map(tuple)


def tokenizer_with(decoder):
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, "<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def streamed(tokenizer, tokens, stop):
    """The pieces of an answer that ends as answers do, and the tokens that it then has."""
    text = AnswerText(tokenizer, (END,), stop)
    pieces = []
    for n in range(1, len(tokens) + 1):
        last = n == len(tokens) or tokens[n - 1] == END or text.text(tokens[:n])[1]
        pieces.append(text.more(tokens[:n], last))
        if last:
            break
    return pieces, tokens[: len(pieces)]


def whole(tokenizer, tokens, stop):
    """The answer's text, computed at once and without the code under test."""
    said = decode(tokenizer, [token for token in tokens if token != END]).lstrip()
    return min((said.partition(s)[0] for s in stop), key=len, default=said).rstrip()


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(list(PUBLISHED)), tokens=TOKENS, stop=STOPS)
def test_a_stream_is_the_answer(name, tokens, stop):
    tokenizer = tokenizer_with(PUBLISHED[name])
    pieces, read = streamed(tokenizer, tokens, stop)
    assert "".join(pieces) == whole(tokenizer, read, stop)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=4), tokens=TOKENS, stop=STOPS)
def test_a_stream_is_the_answer_with_decoders_that_nobody_published(parts, tokens, stop):
    tokenizer = tokenizer_with(decoders.Sequence(parts))
    pieces, read = streamed(tokenizer, tokens, stop)
    assert "".join(pieces) == whole(tokenizer, read, stop)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_word_is_given_out_with_its_token(name):
    tokens = [VOCABULARY.index(token) for token in ("a", "b", "do not", "é")]
    pieces, _ = streamed(tokenizer_with(PUBLISHED[name]), tokens, ())
    assert pieces[0] == "a"
    assert all(pieces)


@pytest.mark.parametrize("between", ["<unk>", "<s>", "beyond"])
def test_a_token_without_text_does_not_end_a_run_of_bytes(between):
    tokenizer = tokenizer_with(PUBLISHED["Llama 2"])
    middle = len(VOCABULARY) if between == "beyond" else VOCABULARY.index(between)
    run = [VOCABULARY.index(token) for token in ("<0x41>", "<0xC3>")]
    tokens = [run[0], middle, run[1], VOCABULARY.index("a"), VOCABULARY.index("b")]
    pieces, _ = streamed(tokenizer, tokens, ())
    assert pieces == ["", "", "", "\ufffd\ufffda", "b"]
