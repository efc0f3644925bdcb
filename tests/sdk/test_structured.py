"""Answers that have a structure: whatever a model would like to write, what is returned parses and is valid."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests import tokens as made
from tvp import sdk
from tvp.sdk._following import Grammars
from tvp.sdk._generation import Answering, Generation, log_softmax
from tvp.sdk.cli import cli
from tvp.sdk.errors import AnswerError, RequestError
from tvp.sdk.formats.token_bytes import token_bytes

pytest.importorskip("llguidance", reason="the extra 'structured' is not installed: pip install '.[dev]'")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install '.[dev]'")

GOLDENS = Path(__file__).parents[1] / "goldens" / "format-2"
LETTERS = [chr(i) for i in range(33, 127)]
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


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


@pytest.fixture(scope="module", params=["llava_next.tvp", "instructblip-t5.tvp"])
def task(request):
    with sdk.load(GOLDENS / request.param) as loaded:
        yield loaded


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[str(row[0])[:50] for row in REFUSED])
def test_what_is_not_followed_is_refused_by_name_before_anything_runs(options, told, monkeypatch):
    toy = TOYS["byte-level"]
    with pytest.raises(RequestError, match=told):
        toy.begin(**options)


def test_a_deep_schema_is_refused():
    schema = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested in more than 64 levels"):
        TOYS["byte-level"].begin(schema=schema)


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["star", "disc"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["shape", "count"],
    "additionalProperties": False,
}
LONG = {"max_new_tokens": 60}


def test_a_wrong_structure_costs_no_picture(task, monkeypatch):
    monkeypatch.setattr(task, "_see", lambda *_: pytest.fail("a picture was seen"))
    with pytest.raises(RequestError, match="uniqueItems"):
        task.ask(PICTURE, "What?", schema={"uniqueItems": True})


def test_answers_of_a_task_have_their_structure(task):
    answer = task.ask(PICTURE, "What?", schema=SCHEMA, **LONG)
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert "".join(task.stream(PICTURE, "What?", schema=SCHEMA, **LONG)) == answer.text
    assert task.see(PICTURE).ask("What?", schema=SCHEMA, **LONG).tokens == answer.tokens
    assert len(answer.log_probabilities) == len(answer.tokens)
    assert task.ask(PICTURE, "What?", choices=["red", "blue"]).text in ("red", "blue")
    drawn = {task.ask(PICTURE, "What?", choices=["red", "blue"], temperature=5.0, seed=s).text for s in range(12)}
    assert drawn == {"red", "blue"}


def test_a_batch_has_a_follower_for_each_row(task):
    rows = [(PICTURE[i:], question) for i in range(3) for question in ("What?", "How many objects are there?")]
    alone = [task.ask(*row, schema=SCHEMA, **LONG) for row in rows]
    together = task.ask_many(rows, batch=6, schema=SCHEMA, **LONG)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_an_answer_that_ends_early_is_an_error_and_no_answer(task):
    short = {"schema": SCHEMA, "max_new_tokens": 3}
    with pytest.raises(AnswerError, match="not complete after 3 tokens"):
        task.ask(PICTURE, "What?", **short)
    pieces = []
    with pytest.raises(AnswerError):
        pieces.extend(task.stream(PICTURE, "What?", **short))
    rows = [(PICTURE, "What?"), (PICTURE, "How many objects are there?")]
    with pytest.raises(AnswerError, match="answer 1 of 2"):
        task.ask_many(rows, **short)
    errors = task.ask_many(rows, errors="return", **short)
    assert [type(error) for error in errors] == [AnswerError] * 2
    # A number that could have gone on is not an answer either.
    with pytest.raises(AnswerError):
        task.ask(PICTURE, "What?", regex="[0-9]{3,}", max_new_tokens=5)
    cancel = threading.Event()
    cancel.set()
    for stopped in ({"time_limit": 1e-6}, {"cancel": cancel}):
        with pytest.raises(AnswerError, match=r"time limit|cancelled"):
            task.ask(PICTURE, "What?", schema=SCHEMA, **stopped)
        with pytest.raises(AnswerError, match=r"time limit|cancelled"):
            list(task.stream(PICTURE, "What?", schema=SCHEMA, **stopped))


def test_without_the_extra_the_error_names_it(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'tvp-edge\[structured\]'"):
        task.ask(PICTURE, "What?", choices=["never asked before"])
    assert task.ask(PICTURE, "What?", max_new_tokens=2).tokens


def run(*arguments):
    result = CliRunner().invoke(
        cli, ["ask", str(GOLDENS / "llava_next.tvp"), "docs/images/scene.png", "What?", *arguments]
    )
    return result.exit_code, result.output, result.exception


def test_the_command_line_asks_for_structures(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    code, output, _ = run("--schema", str(file), "--max-new-tokens", "60")
    assert code == 0
    jsonschema.validate(json.loads(output), SCHEMA)
    assert run("--choice", "red", "--choice", "blue")[1] in ("red\n", "blue\n")
    assert re.fullmatch("[0-9]{2}\n", run("--regex", "[0-9]{2}", "--stream")[1])
    assert run("--regex", "[0-9]{2}", "--rank")[0] == 2
    file.write_text("[1]")
    assert isinstance(run("--schema", str(file))[2], RequestError)
