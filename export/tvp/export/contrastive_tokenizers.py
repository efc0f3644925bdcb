"""Tokenizers of CLIP and SigLIP, converted to the class that the sdk reads: `tokenizers.Tokenizer`."""

from __future__ import annotations

import re
import string
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import SiglipTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from tvp.sdk.errors import ModelError
from tvp.trainer.families.clip import ContrastiveFamily

# The pattern of open_clip's SimpleTokenizer.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_of(family: ContrastiveFamily) -> tuple[Tokenizer, int]:
    """Convert the tokenizer of a model.

    Args:
        family: the model.

    Returns:
        The tokenizer, and the id of its padding token (-1 if it does not pad). It gives the same tokens as the model's
        own, except for HTML entities and broken encodings, which open_clip repairs first.

    Raises:
        ModelError: a tokenizer of this class cannot be converted.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    own = family.tokenizer
    if isinstance(own, SimpleTokenizer):
        return _convert_clip(own), 0
    if isinstance(own, SiglipTokenizer):
        return _convert_siglip(own), int(own.pad_token_id)
    inner, clean = (own.tokenizer, _cleaning_normalizers(own)) if isinstance(own, HFTokenizer) else (own, [])
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"This {family.name} model cannot be exported yet: its tokenizer {type(inner).__name__} has no fast "
            "version. The sdk needs one."
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if clean:
        tokenizer.normalizer = normalizers.Sequence([*clean, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    return tokenizer, int(inner.pad_token_id) if family.padded else -1


def _convert_clip(own: Any) -> Tokenizer:
    """Convert open_clip's tokenizer of OpenAI's CLIP (https://github.com/openai/CLIP, simple_tokenizer.py)."""
    start, end = (own.decoder[i] for i in (own.sot_token_id, own.eot_token_id))
    tokenizer = Tokenizer(models.BPE(vocab=own.encoder, merges=list(own.bpe_ranks), end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(_cleaning_normalizers(own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([own.decoder[i] for i in own.all_special_ids])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, own.sot_token_id), (end, own.eot_token_id)]
    )
    return tokenizer


def _convert_siglip(own: Any) -> Tokenizer:
    """Convert transformers' tokenizer of SigLIP, which has no fast version: it cleans texts before SentencePiece."""
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(own.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id))
    punctuation = f"[{re.escape(string.punctuation)}]"
    mapped = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Lowercase()] if own.do_lower_case else []),
            normalizers.Replace("▁", " "),
            normalizers.Replace(Regex(punctuation), ""),
            *([normalizers.Precompiled(mapped)] if mapped else []),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([str(token) for token in own.added_tokens_decoder.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {own.eos_token}", special_tokens=[(own.eos_token, own.eos_token_id)]
    )
    return tokenizer


def _cleaning_normalizers(own: Any) -> list[Any]:
    """Return open_clip's cleaning of texts as normalizers. Of its repairs (by ftfy), they only straighten quotes."""
    from open_clip.tokenizer import _clean_lower, _clean_whitespace

    found = [
        normalizers.NFC(),
        normalizers.Replace(Regex("[\u2018\u2019\u201a\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c\u201d\u201e\u201f]"), '"'),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if own.clean_fn is _clean_lower:
        final_sigma = normalizers.Replace(
            Regex(r"(?<=[\p{Lu}\p{Ll}\p{Lt}])Σ(?![\p{Lu}\p{Ll}\p{Lt}])"), "ς"
        )  # Python's lower case of a sigma depends on its place in the word
        return [*found, final_sigma, normalizers.Lowercase()]
    if own.clean_fn is _clean_whitespace:
        return found
    raise ModelError("This open_clip model cannot be exported yet: TVP does not know how its tokenizer cleans texts.")
