"""A client for bundles, written from docs/reference/bundle.md alone: it imports nothing of tvp, on purpose.

Slow and plain: one row a run, a growing cache, the CPU. Tests hold the page and the sdk against it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps
from tokenizers import Tokenizer

KNOWN = {"calibration"}  # features that this client knows


def demand(holds: bool, otherwise: str) -> None:
    """Refuse, where the page says so."""
    if not holds:
        raise ValueError(otherwise)


def is_intact(data: bytes) -> bool:
    own = json.loads(data)["sha256"].encode()
    return data.count(own) == 1 and hashlib.sha256(data.replace(own, b"0" * 64)).hexdigest().encode() == own


def read_manifest(folder: Path) -> dict[str, Any]:
    """A manifest whose digest, format and files are right."""
    data = (folder / "manifest.json").read_bytes()
    demand(is_intact(data), "the manifest was changed")
    manifest: dict[str, Any] = json.loads(data)
    demand(manifest["format"] == 2 and not {*manifest.get("requires", [])} - KNOWN, "the bundle is of a later version")
    for name, said in manifest["files"].items():
        path = PurePosixPath(name)
        demand(not path.is_absolute() and ".." not in path.parts, f"{name} leaves the folder")
        content = (folder / name).read_bytes()
        demand(said == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}, f"{name} was changed")
    return manifest


def read_picture(file: Path) -> np.ndarray:
    """(height, width, 3), uint8: upright, transparent pixels on white; not for pictures of 16 bits a channel."""
    picture = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def load_tokenizer(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_graph(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # a tiny graph's other threads would only wait, and take a core for it
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))


class Client:
    """A bundle, verified and open. The base's graphs and tokenizers are kept by the names of their files."""

    def __init__(self, folder: Path) -> None:
        self.folder, base = folder, folder / "base"
        self.task, self.base = read_manifest(folder), read_manifest(base)
        demand(self.task["base"] == self.base["sha256"], "the bundle was made for another base")
        files = [folder / "preprocess.onnx", *(base / name for name in self.base["files"] if name.endswith(".onnx"))]
        self.graphs = {f.stem: open_graph(f) for f in files}
        files = [base / name for name in self.base["files"] if name.endswith("tokenizer.json")]
        self.tokenizers = {file.stem: load_tokenizer(file) for file in files}
        self.tokenizer, self.most = self.tokenizers["tokenizer"], self.base["n_positions"] or float("inf")
        if self.base["kind"] != "contrastive":
            self.embed_tokens = np.load(base / "embed_tokens.npy")

    def use_lens(self, folder: Path) -> None:
        """Put the prompt of a lens bundle in the place of the task's, and check its golden pixels."""
        lens = read_manifest(folder)
        demand(lens["kind"] == "lens", "this is no lens bundle")
        made, wanted = lens["pixels"], self.task.get("pixels")
        demand(bool(wanted) and made["size"] == wanted["size"], "the pixel values have another size")
        for name in ("mean", "std"):
            demand(np.abs(np.subtract(made[name], wanted[name])).max() <= 1e-6, f"the {name} is another")
        demand(made["filter"] in ("", wanted["filter"]), "the filter is another")
        self.graphs["preprocess"] = open_graph(folder / "preprocess.onnx")
        golden = json.loads((folder / "golden" / "pixels.json").read_bytes())
        given = self.run("preprocess", image=read_picture(folder / "golden" / "0.png"))["pixel_values"]
        given = given[0, :, :: golden["every"], :: golden["every"]]
        gap = np.abs(given - np.reshape(golden["values"], given.shape)) * np.reshape(made["std"], (3, 1, 1)) * 255
        demand(gap.max() <= 1.001, "the lens does not do what it did at its export")

    def run(self, graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a graph by name; inputs that it does not have are left out."""
        session = self.graphs[graph]
        outputs = session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})
        return {o.name: value for o, value in zip(session.get_outputs(), outputs, strict=True)}

    def check_text(self, text: str) -> str:
        """The text, if no special token is in it."""
        special = {token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special}
        special -= {"<unk>"} if self.base["kind"] != "contrastive" else set()
        demand(not any(token in text for token in special), f"a special token is in {text!r}")
        return text

    def see(self, picture: Path, question: str) -> np.ndarray:
        """Image embeddings: (1, n_image_tokens, n_text), or (1, 1, n_features)."""
        demand(question.strip() != "", "the question is empty")
        seen = self.run("vision_encoder", **self.run("preprocess", image=read_picture(picture)))
        if "connector" in self.graphs:
            text = self.base["layout"]["prompt"].replace("{image}", "").replace("{question}", question)
            ids = np.array([self.tokenizers["connector_tokenizer"].encode(text).ids])
            demand(ids.size <= self.base["n_connector_positions"], "the connector cannot read so long a question")
            seen = self.run("connector", **seen, question_ids=ids, question_mask=np.ones_like(ids))
        return seen["image_embeds"]

    def unlikeness(self, picture: Path) -> float | None:
        """How far the picture is from what is usual; None where the bundle does not say."""
        if not self.task.get("n_moment_pictures", 0):
            return None
        demand("moments.npy" in self.task["files"], "the moments are not listed")
        mean, spread = np.load(self.folder / "moments.npy").astype(np.float64)
        demand(bool(np.isfinite(mean + spread).all() and (spread > 0).all()), "the moments are no numbers")
        (seen,) = self.run("vision_encoder", **self.run("preprocess", image=read_picture(picture))).values()
        seen = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
        numbers = seen[0] if len(seen) == 1 else np.concatenate([seen.mean(0), seen.std(0)])
        demand(len(numbers) == len(mean), "the moments are about other features")
        return float(np.sqrt(np.mean(((numbers - mean) / spread) ** 2)))

    # The decoder. A state is a number of tokens and their cache; it is never changed, so one can go back to it.

    def embed(self, ids: list[int]) -> np.ndarray:
        return self.embed_tokens[np.array(ids, int)][None].astype(np.float32)  # (1, n_tokens, n_text)

    def begin(self, picture: Path, question: str) -> tuple[np.ndarray, Any]:
        """Logits behind the prompt, and the state."""
        prompt, image = self.base["layout"]["prompt"], self.base["layout"]["image_token"]
        text = prompt.replace("{image}", image)
        ids = self.tokenizer.encode(text.replace("{question}", self.check_text(question))).ids
        place = ids.index(self.tokenizer.token_to_id(image)) if "{image}" in prompt else -1
        before, behind = ids[: max(place, 0)], ids[place + 1 :]
        embeds = np.concatenate([self.embed(before), self.see(picture, question), self.embed(behind)], axis=1)
        kept = [i for i in self.graphs["decoder_model_merged"].get_inputs() if i.name.startswith("past_key_values.")]
        nothing = np.zeros((1, self.base["n_kv_heads"], 0, self.base["head_size"]), np.float32)
        empty = {i.name: nothing.astype(np.float16 if i.type == "tensor(float16)" else np.float32) for i in kept}
        self.cross = self.run("encoder_model", inputs_embeds=embeds) if "encoder_model" in self.graphs else {}
        if self.cross:
            return self.step(self.embed([self.base["start_token"]]), (0, empty))
        n_first = embeds.shape[1] - (self.base["n_causal"] == 1)
        self.n_before, self.last = len(before), n_first - 1
        logits, state = self.step(embeds[:, :n_first], (0, empty))
        return self.step(embeds[:, n_first:], state) if n_first < embeds.shape[1] else (logits, state)

    def step(self, embeds: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """The logits of the last of these tokens, and the state with them."""
        length, past = state
        total = length + embeds.shape[1]
        demand(total <= self.most, "more tokens than the model reads")
        if self.base["kind"] == "causal":
            past = {name: np.pad(kept, [(0, 0), (0, 0), (0, total - length), (0, 0)]) for name, kept in past.items()}
        counts = {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
        places = {"position_ids": self.positions(np.arange(length, total)), "num_logits_to_keep": np.array(1)}
        out = self.run("decoder_model_merged", inputs_embeds=embeds, **past, **self.cross, **counts, **places)
        return out["logits"][0, -1], (total, {name: out[name.replace("past_key_values", "present")] for name in past})

    def positions(self, place: np.ndarray) -> np.ndarray:
        """(1, n_new), or (position_axes, 1, n_new)."""
        if self.base.get("position_axes", 1) == 1:
            return place[None]
        if self.base["position_axes"] == 2:
            return np.stack([np.minimum(place, self.last), np.maximum(place - self.last, 0)])[:, None]
        b, n = self.n_before, self.base["n_image_tokens"]
        s, k = int(n**0.5), place - b
        inside = np.stack([np.full_like(place, b), b + k // s, b + k % s])
        return np.where(k < 0, place, np.where(k < n, inside, place - n + s))[:, None]

    def ask(self, picture: Path, question: str, max_new_tokens: int) -> tuple[list[int], list[float], str]:
        """A greedy answer: its tokens, their log-probabilities, and the text."""
        logits, state = self.begin(picture, question)
        rows, end = [logits], self.base["layout"]["end"]
        while rows[-1].argmax() not in end and len(rows) < max_new_tokens and state[0] < self.most:
            logits, state = self.step(self.embed([rows[-1].argmax()]), state)
            rows.append(logits)
        tokens, scores = [int(row.argmax()) for row in rows], [float(log_softmax(row).max()) for row in rows]
        said = tokens[:-1] if tokens[-1] in end else tokens
        return tokens, scores, self.tokenizer.decode(said, skip_special_tokens=True).strip()

    def rank(self, picture: Path, question: str, labels: list[str]) -> list[tuple[str, float]]:
        """Labels and scores, the best first."""
        score = self.match if self.base["kind"] == "contrastive" else self.score
        offsets = dict.fromkeys(labels, 0.0)
        for known in self.task.get("calibration", []):
            if known["question"] == question and sorted(known["labels"]) == sorted(labels):
                offsets = dict(zip(known["labels"], known["offsets"], strict=True))
        scores = [a - offsets[label] for a, label in zip(score(picture, question, labels), labels, strict=True)]
        return sorted(zip(labels, scores, strict=True), key=lambda row: -row[1])

    def score(self, picture: Path, question: str, labels: list[str]) -> list[float]:
        layout, (first, begun), scores = self.base["layout"], self.begin(picture, question), []
        start = "" if layout["apart"] else layout["prompt"].replace("{image}", "").replace("{question}", "a")
        for label in labels:
            texts = [start, start + layout["answer"].replace("{answer}", self.check_text(label))]
            before, whole = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
            ids, rows, state = [*whole[len(before) :], layout["end"][0]], [first], begun
            for token in ids[:-1]:
                logits, state = self.step(self.embed([token]), state)
                rows.append(logits)
            scores.append(float(np.mean([log_softmax(row)[token] for row, token in zip(rows, ids, strict=True)])))
        return scores

    def match(self, picture: Path, question: str, labels: list[str]) -> list[float]:
        question, n, pad = self.check_text(question.strip()), self.base["n_positions"], self.base["pad_token"]
        caption = self.base["captions"]["asked" if question.endswith("?") else "begun"]
        self.tokenizer.enable_truncation(n)
        features = []
        for label in labels:
            put = {"{question}": question, "{answer}": self.check_text(label)}
            ids = self.tokenizer.encode("".join(put.get(p, p) for p in re.split(r"(\{\w+\})", caption))).ids
            ids += [pad] * (n - len(ids) if pad != -1 else 0)
            features.append(self.run("text_encoder", input_ids=np.array([ids]))["text_features"][0])
        logits = self.base["scale"] * (np.stack(features) @ self.see(picture, question)[0, 0]) + self.base["bias"]
        return list(log_softmax(logits) if self.base["scoring"] == "softmax" else -np.logaddexp(0, -logits))

    def replay(self, case: dict[str, Any]) -> dict[str, Any]:
        """What a golden case says, as this client finds it."""
        picture, question = self.folder / "golden" / case["picture"], case["question"]
        if case["kind"] == "answer":
            tokens, scores, text = self.ask(picture, question, len(case["tokens"]))
            return {"tokens": tokens, "log_probabilities": scores, "text": text}
        demand(case["kind"] == "ranking", "a golden case is of another kind")
        ranked = self.rank(picture, question, case["labels"])
        return {"scores": [dict(ranked)[label] for label in case["labels"]], "text": ranked[0][0]}
