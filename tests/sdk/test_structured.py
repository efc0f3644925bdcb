"""Answers that have a structure: whatever a model would like to write, what is returned parses and is valid."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from tests.sdk.toys import KINDS, TOYS, Toy, wordpiece
from tvp.sdk import _following
from tvp.sdk._following import Grammars
from tvp.sdk._generation import Generation, log_softmax
from tvp.sdk.errors import AnswerError, RequestError
from tvp.sdk.formats.token_bytes import token_bytes

pytest.importorskip("llguidance", reason="the extra 'structured' is not installed: pip install '.[dev]'")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install '.[dev]'")

each_kind = pytest.mark.parametrize("kind", KINDS)
often = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

names = st.sampled_from(["a", "b", "colour", "n objects", "é", 'q"x', "back\\slash"])
scalars = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"minLength": st.integers(0, 2), "maxLength": st.integers(2, 9)}
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[ab]{2,4}$"}, {"type": "string", "pattern": "x", "maxLength": 5},
            {"type": "string", "format": "date"}, {"type": "boolean"}, {"type": "null"}, {"const": 'it"s'},
            {"type": "number", "minimum": -3, "exclusiveMaximum": 10.5}, {"type": "number", "multipleOf": 0.25},
            {"type": "integer", "multipleOf": 7}, {"type": ["integer", "null"]}, {"enum": ["red", 3, None, {"k": [1]}]},
        ]
    ),
    st.integers(-1000, 1000).flatmap(
        lambda low: st.integers(low, low + 1000).map(lambda high: {"type": "integer", "minimum": low, "maximum": high})
    ),
)  # fmt: skip


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(names, inner, max_size=3))
    schema = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = draw(st.lists(st.sampled_from([*properties]), unique=True))
    extra = draw(st.sampled_from([None, False, {"type": "integer", "minimum": 0, "maximum": 9}]))
    return schema if extra is None else {**schema, "additionalProperties": extra}


def arrays(inner):
    return st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(2, 3),
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
        },
    )  # fmt: skip


def unions(inner):
    parts = st.lists(inner, min_size=1, max_size=3)
    tagged = st.lists(inner, min_size=1, max_size=3).map(
        lambda found: [
            {"type": "object", "properties": {"kind": {"const": n}, "is": part}, "required": ["kind"]}
            for n, part in enumerate(found)
        ]
    )
    return st.one_of(
        parts.map(lambda found: {"anyOf": found}),
        parts.map(lambda found: {"oneOf": found}),
        tagged.map(lambda found: {"oneOf": found}),
        parts.map(lambda found: {"allOf": found}),
        inner.map(
            lambda found: {"type": "object", "patternProperties": {"^[a-c]+$": found}, "additionalProperties": False}
        ),
        inner.map(lambda found: {"$defs": {"part": found}, "anyOf": [{"$ref": "#/$defs/part"}, {"type": "null"}]}),
        inner.map(
            lambda found: {"properties": {"next": {"$ref": "#"}, "a": found}, "required": ["a"], "type": "object"}
        ),
    )


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=6,
)
# At the top alone, where `$ref` finds its place.
schemas = st.one_of(schemas, unions(schemas))


@each_kind
def test_every_answer_follows_its_schema(kind):
    """Against jsonschema. Few answers of the toys may end early; they are errors then."""
    toy, count = TOYS[kind], {"whole": 0, "ended early": 0}

    @often
    @given(schemas, st.integers(0, 2**32))
    def check(schema, seed):
        try:
            answering = toy.write(seed, schema=schema, temperature=0.7 * (seed % 2), seed=seed)
        except RequestError:
            return  # unsatisfiable, or with a letter that the vocabulary has not
        if answering.error is not None:
            assert answering.finish in ("length", "stuck")
            count["ended early"] += 1
            return
        text, _ = answering.text.text(answering.tokens)
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        assert text == text.strip()
        count["whole"] += 1

    check()
    if kind != "wordpiece":  # most JSON begins with what is no word of it
        assert count["whole"] > 2 * count["ended early"], count


def test_a_structure_may_be_asked_for_without_an_end(monkeypatch):
    """What llguidance learns of a structure has a bound, which no number of answers reaches."""
    monkeypatch.setattr(_following, "MAX_STATES", 2000)
    toy = Toy("byte-level")
    several = {"type": "array", "items": {"type": "string", "maxLength": 500}, "minItems": 5, "maxItems": 8}
    assert {toy.write(number, schema=several, limit=3000).finish for number in range(60)} == {"end"}
    assert toy.write(0, schema={"type": "string", "minLength": 1500, "maxLength": 2000}, limit=3000).finish == "end"
    monkeypatch.setattr(_following, "MAX_STATES", 10)
    hopeless = Toy("byte-level").write(0, schema={"type": "string", "pattern": "^(a|b)*a(a|b){12}$"})
    assert isinstance(hopeless.error, AnswerError)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_what_a_schema_lets_through(kind):
    def writes(text, **schema):
        return TOYS[kind].writes(text, schema=schema)

    free = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert writes('{"a": 1, "b":"x"}', **free)
    assert writes('{"b":"x"}', **free)
    # As JSON it is {"a": "x"}, and that is no integer.
    assert not writes('{"a":1,"\\u0061":"x"}', **free)
    assert not writes('{"\\u0061":"x"}', **free)
    assert not writes('{"a":1.5}', **free)
    assert writes('"a\\nb"', type="string")
    assert not writes('"a\nb"', type="string")
    # One space at most, so that no answer is spaces without an end.
    assert writes('{ "a" : 1 }', **free)
    assert not writes('{  "a":1}', **free)
    assert not writes('{"a":1} ', **free)


def test_odd_schemas_are_refused_or_followed():
    odd = [
        {"type": "integer", "maximum": -0.5, "minimum": -0.7}, {"enum": []}, {"const": 1, "enum": [2]}, {"type": []},
        {"format": "date", "enum": [3]}, {"type": "array", "items": False, "minItems": 1},
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
        {"required": "a"}, {"anyOf": []}, {"anyOf": {}}, {"allOf": [3]}, {"$ref": "#/nowhere"}, {"$ref": "#"},
        {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, {"pattern": "(a*)*b", "type": "string"},
        {"type": "string", "minLength": 10**9}, {"maxItems": -1, "type": "array"}, {"multipleOf": 0, "type": "number"},
    ]  # fmt: skip
    for schema in odd:
        try:
            answering = TOYS["byte-level"].write(0, schema=schema, limit=60)
        except RequestError:
            continue
        if answering.error is None:
            jsonschema.validate(json.loads(answering.text.text(answering.tokens)[0]), schema)


@each_kind
def test_every_answer_matches_its_expression(kind):
    """Against Python's `re`, on what both read in the same way."""
    atoms = st.one_of(
        st.text("abcxyz019 .,:-_#/", min_size=1, max_size=3).map(re.escape),
        st.sampled_from(["[a-f]", "[0-9]", "(?:yes|no)", "[^a-z]", r"\."]),
    )
    counted = st.tuples(atoms, st.sampled_from(["", "?", "{2}", "{1,3}", "*", "+"])).map(
        lambda pair: f"(?:{pair[0]}){pair[1]}"
    )
    toy = TOYS[kind]

    @often
    @given(
        st.lists(st.lists(counted, min_size=1, max_size=3).map("".join), min_size=1, max_size=3).map("|".join),
        st.integers(0, 99),
    )
    def check(regex, seed):
        try:
            answering = toy.write(seed, regex=regex, limit=200)
        except RequestError:
            return
        if answering.error is None:
            assert re.fullmatch(regex, answering.text.text(answering.tokens)[0], re.DOTALL)

    check()


@each_kind
def test_every_answer_is_a_choice(kind):
    choices = ["yes", "no", "not", " yes", "é"] if kind != "wordpiece" else ["yes", "no", "word yes", " yes"]
    toy = TOYS[kind]
    said = {
        toy.write(seed, choices=choices).text.text(toy.write(seed, choices=choices).tokens)[0] for seed in range(60)
    }
    assert said == set(choices)


@each_kind
@pytest.mark.parametrize("text", ['{"a": [1, 2.5], "b": "x y"}', " yes", "a\tb é 日 🦜"])
def test_the_bytes_of_tokens_are_what_the_tokenizer_decodes(kind, text):
    toy = TOYS[kind]
    ids = toy.tokenizer.encode(text, add_special_tokens=False).ids
    decoded = toy.tokenizer.decode(ids)
    assert b"".join(toy.table[i] for i in ids).decode().lstrip(" ") == decoded.lstrip(" ")
    if kind in ("byte-level", "sentencepiece"):
        assert decoded.strip() == text.strip()


def test_tokens_of_bytes_are_bytes_and_special_tokens_write_nothing():
    table, tokenizer = TOYS["sentencepiece"].table, TOYS["sentencepiece"].tokenizer
    assert table[tokenizer.token_to_id("<0xC3>")] == b"\xc3"
    assert table[tokenizer.token_to_id("<image>")] == b""
    assert table[-1] == b""
    odd = wordpiece()
    odd.decoder = decoders.CTC()
    with pytest.raises(RequestError, match="has the decoder CTC"):
        token_bytes(odd, 9, ())


def test_log_probabilities_are_among_all_tokens():
    toy = TOYS["byte-level"]
    answering, logits = toy.begin(choices=["no"]), np.linspace(-1, 1, toy.n_vocab, dtype=np.float32)
    answering.take(logits, 99)
    assert toy.table[answering.tokens[0]].lstrip() == b"no"[: len(toy.table[answering.tokens[0]].lstrip())]
    assert answering.scores[0] == pytest.approx(log_softmax(logits)[answering.tokens[0]], abs=1e-5)


def test_options_draw_among_what_is_allowed():
    """Never another token, though the likeliest ones are forbidden."""
    toy = TOYS["byte-level"]
    logits = toy.liking * 0
    allowed = {toy.tokenizer.token_to_id(letter) for letter in "abc"}
    logits[toy.tokenizer.token_to_id("z")] = 50
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 40}, {"temperature": 9.0, "top_p": 0.9}):
        drawn = set()
        for seed in range(40):
            answering = toy.begin(regex="[abc]", seed=seed, **options)
            answering.take(logits, 99)
            drawn.add(answering.tokens[0])
        of_letters = {t for t in drawn if toy.table[t] != b" "}
        assert of_letters <= allowed | {t for t, b in enumerate(toy.table) if b.lstrip() in (b"a", b"b", b"c")}
        assert options == {} or len(drawn) > 1


def test_an_answer_ends_without_a_token_where_nothing_else_can_follow():
    toy = TOYS["byte-level"]
    answering = toy.write(0, choices=["yes"])
    assert (answering.finish, answering.tokens.count(toy.end)) == ("end", 0)
    longer = [toy.write(seed, choices=["no", "not"]) for seed in range(20)]
    ended = {a.text.text(a.tokens)[0]: a.tokens[-1] == toy.end for a in longer}
    assert ended == {"no": True, "not": False}


def test_a_token_that_ends_answers_is_never_text():
    """BLIP-2's OPT ends at a line break, which an answer may otherwise hold."""
    tokenizer = KINDS["byte-level"][0]
    (line,) = tokenizer.encode("\n", add_special_tokens=False).ids
    grammars = Grammars(tokenizer, 600, (line, 2))
    follower = grammars.find(Generation.of({"regex": "(?s)a.+b"}, 9).structure).follow()
    follower.take(tokenizer.token_to_id("a"))
    assert follower.look()
    assert line not in follower.allowed()
    for letter in "cb":
        follower.take(tokenizer.token_to_id(letter))
    assert follower.look()
    assert {line, 2} <= {*follower.allowed()}
    assert follower.allows(line)


def test_a_vocabulary_that_cannot_write_it_is_an_error_and_no_answer():
    toy = TOYS["unigram"]
    with pytest.raises(RequestError, match="no token to begin"):
        toy.begin(choices=["日本"])
    answering = toy.write(0, regex="a+日")
    assert answering.finish in ("stuck", "length")
    assert isinstance(answering.error, AnswerError)


REFUSED = [
    ({"schema": {"type": "object", "not": {}}}, "keyword 'not', which"),
    ({"schema": {"type": "array", "items": {"uniqueItems": True}}}, "keyword 'uniqueItems' at /items"),
    ({"schema": {"properties": {"a": {"if": {}}}}}, "keyword 'if' at /properties/a"),
    ({"schema": {"$defs": {"x": {"minLenght": 3}}}}, "'minLenght' at /\\$defs/x.*Did you mean minLength"),
    ({"schema": {"x-guidance": {"lenient": True}}}, "'x-guidance'"),
    ({"schema": {"anyOf": [{"contains": {}}]}}, "'contains' at /anyOf/0"),
    ({"schema": {"type": "object", "minProperties": 2}}, "'minProperties' = 2"),
    ({"schema": {"type": "string", "format": "postcode"}}, "Unknown format: postcode"),
    ({"schema": {"oneOf": [{"type": "string"}, {"minLength": 3}]}}, "oneOf constraints are not supported"),
    ({"schema": {"$ref": "http://example.org/s"}}, "schema cannot be followed"),
    ({"schema": {"type": "object", "properties": []}}, "'properties' that is no object"),
    ({"schema": {"type": "word"}}, "Invalid type: word"),
    ({"schema": {"const": "\x01"}}, "control character"),
    ({"schema": {"const": float("nan")}}, "no JSON"),
    ({"schema": {"type": "string", "minLength": 5, "maxLength": 3}}, "minLength"),
    ({"schema": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
    ({"schema": "string"}, "must be a JSON Schema"),
    ({"regex": "(?=a)b"}, "look-around.*is not supported"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": "a["}, "unclosed character class"),
    ({"regex": "[^\\x00-\\x{10FFFF}]"}, "No answer fits regex"),
    ({"regex": ""}, "not empty"),
    ({"regex": "a" * 70_000}, "at most 65,536"),
    ({"choices": []}, "list of texts"),
    ({"choices": "yes"}, "list of texts"),
    ({"choices": ["yes", ""]}, "list of texts"),
    ({"choices": ["\ud800"]}, "half a character"),
    ({"choices": ["a"], "regex": "a"}, "choices and regex are given"),
    ({"choices": ["a"], "stop": "b"}, "Leave one of them out"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[str(row[0])[:50] for row in REFUSED])
def test_what_is_not_followed_is_refused_by_name_before_anything_runs(options, told):
    toy = TOYS["byte-level"]
    with pytest.raises(RequestError, match=told):
        toy.begin(**options)


def test_a_deep_schema_is_refused():
    schema = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested in more than 64 levels"):
        TOYS["byte-level"].begin(schema=schema)
