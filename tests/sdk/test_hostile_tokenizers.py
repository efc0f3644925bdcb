"""Tokenizers that would take gigabytes, minutes or the process are refused before they are loaded."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import pytest

from tests.bundles import listed_anew, seal
from tvp import sdk
from tvp.sdk.errors import BundleError
from tvp.sdk.formats.tokenizer import read_tokenizer
from tvp.sdk.formats.tokenizer_parts import refuse_regex

# Published: GPT-2, Llama 3 and Qwen 2, o200k, DeepSeek, CLIP, and one that groups digits from the right.
PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*""",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[[:alpha:]]+| {2,}",
]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_expressions_are_read(pattern):
    refuse_regex(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+", "(?:a*)*b", "(a|b+){2,}", "((a+)?)+", "(a?)*", "a{1000}", "((a{60}){60}){60}", "a{50}{50}{50}",
        r"(a)\1", r"(?<x>a\g<x>)", r"\k<x>", r"\s*\s*\s*\s*x", "(a*b*)(c*d*)", "(?(1)a)", "(?~a)", "[[a]", "a" * 5000,
        "a{999999999}", "x{0,65}", "(?:a{1,3})+",
    ],
)  # fmt: skip
def test_expressions_that_explode_are_refused(pattern):
    with pytest.raises(ValueError, match="regular expression"):
        refuse_regex(pattern)


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}


def sequence(name, parts):
    return {"type": "Sequence", name: parts}


def template(n_texts, n_tokens=0):
    token = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * n_texts + [token] * n_tokens,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }


NESTED = replace("b")
for _ in range(10):
    NESTED = sequence("normalizers", [NESTED])
HOSTILE = {
    "chained Replace": ("normalizer", sequence("normalizers", [replace("a" * 30)] * 12), "times as long"),
    "Replace by a page": ("normalizer", replace("b" * 100_000), "times as long"),
    "Replace of nothing": ("normalizer", replace("b", String=""), "empty text"),
    "Replace by an expression": ("normalizer", replace("b" * 40, Regex="a"), "times as long"),
    "long Prepend": ("normalizer", {"type": "Prepend", "prepend": "a" * 10**6}, "before each text"),
    "chained decoders": ("decoder", sequence("decoders", [replace("a" * 30)] * 12), "times as long"),
    "nested sequences": ("normalizer", NESTED, "nested too deeply"),
    "many parts": ("normalizer", sequence("normalizers", [{"type": "NFC"}] * 100), "more than 64 parts"),
    "nested expression": (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "((a{60}){60}){60}"}, "behavior": "Isolated", "invert": False},
        "repeats a part",
    ),
    "doubling": ("post_processor", sequence("processors", [template(2)] * 30), "repeats the text"),
    "many tokens": ("post_processor", template(1, 65), "65 tokens around"),
    "many processors": ("post_processor", sequence("processors", [template(1, 8)] * 20), "tokens around"),
    "unknown part": ("normalizer", {"type": "Python", "code": "x"}, "the part 'Python'"),
    "no object": ("decoder", ["Fuse"], "not an object"),
    "no template": ("post_processor", {"type": "TemplateProcessing", "single": [{"SpecialToken": {}}]}, "refused"),
}


@pytest.fixture(scope="module")
def tokenizer(one_bundle):
    return json.loads((one_bundle / "base" / "tokenizer.json").read_text())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parts_are_refused(name, tokenizer, tmp_path):
    section, part, said = HOSTILE[name]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer | {section: part}))
    tracemalloc.start()
    with pytest.raises(BundleError, match=said):
        read_tokenizer(file)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "said"),
    [("[" * 100_000, "not JSON"), ('{"a": 1, "a": 2}', "comes twice"), ("[]", "not a JSON object"), ("{", "not JSON")],
)
def test_what_is_no_tokenizer_is_refused(content, said, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=said):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**28)
    with pytest.raises(BundleError, match="at most"):
        read_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("place", "name"),
    [("base", "n_positions"), ("base", "n_vocab"), ("base", "n_layers"), ("base", "n_image_tokens"), ("base", "n_text"),
     ("base", "n_kv_heads"), ("base", "head_size"), ("", "max_new_tokens")],
)  # fmt: skip
def test_sizes_that_no_model_has_are_not_believed(place, name, one_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(one_bundle, copy)
    file = copy / place / "manifest.json"
    file.write_bytes(seal(json.loads(file.read_bytes()) | {name: 2**31 - 1}))
    with pytest.raises(BundleError, match=f"{name} is 2147483647; it must be"):
        sdk.load(copy)


def test_a_hostile_tokenizer_is_refused_in_a_bundle(one_bundle, tokenizer, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(one_bundle, copy)
    content = json.dumps(tokenizer | {"normalizer": replace("b" * 100_000)}).encode()
    (copy / "base" / "tokenizer.json").write_bytes(content)
    base = listed_anew((copy / "base" / "manifest.json").read_bytes(), "tokenizer.json", content)
    (copy / "base" / "manifest.json").write_bytes(base)
    task = json.loads((copy / "manifest.json").read_bytes()) | {"base": json.loads(base)["sha256"]}
    (copy / "manifest.json").write_bytes(seal(task))
    with pytest.raises(BundleError, match="times as long"):
        sdk.load(copy)
