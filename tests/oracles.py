"""What transformers says of a tiny checkpoint: its loss, its greedy answer and its pixels, with no code of ours.

Where transformers has no such model (VisualGLM), our modules run in full, without a cache, over inputs
that are put together here by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
import transformers as hf
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.glm import visualglm_image_embeds
from tests.tiny import CANVAS, N_QUERIES
from tests.tokens import IMAGE

N_PATCHES = 16
PHOTO = "a photo of a {}"


@dataclass(frozen=True)
class About:
    """How a published model is asked.

    prompt: the text that its processor takes; None where its chat template writes it.
    answer: how its answers are written behind that, end token included.
    style: which function of `Published` puts the inputs together.
    n_image: image tokens that are written by hand, where no processor of this model does so.
    options: what its processor is told besides.
    """

    prompt: str | None
    answer: str = " {}</s>"
    style: str = "processor"
    n_image: int = 0
    options: dict[str, Any] = field(default_factory=dict)


VICUNA = "USER: <image>\n{} ASSISTANT:"
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)
GPT4 = "<Img><image></Img> {}"
ABOUT = {
    "blip2": About("Question: {} Answer:"),
    "blip2-t5": About("Question: {} Answer:", "{}</s>", "encoder"),
    "instructblip": About("Question: {} Short answer:"),
    "instructblip-t5": About("{}", "{}</s>", "encoder"),
    "minigpt4": About(GPT4, " {}\n", "hand", N_QUERIES),
    "vpgtrans": About(GPT4, " {}###", "hand", N_QUERIES),
    "bliva": About("{}", " {}</s>", "bliva", N_QUERIES + N_PATCHES),
    "visualglm": About("<img><image></img>问：{}\n答：", " {}", "visualglm", N_QUERIES),
    "llava": About(VICUNA),
    "llava-clip": About(VICUNA),
    "llava_next": About(VICUNA, style="tile", n_image=N_PATCHES + 1),
    "llava_onevision": About(None, "{}<|im_end|>", "tile", N_PATCHES + 1),
    "smolvlm": About("<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:", " {}<end_of_utterance>"),
    "idefics3": About(None, " {}<end_of_utterance>"),
    "qwen2vl": About(QWEN, "{}<|im_end|>"),
    "qwen2_5_vl": About(None, "{}<|im_end|>"),
    "paligemma": About("{}", "{}", "suffix"),
    "paligemma2": About("{}", "{}", "suffix"),
    "internvl": About(None, "{}<|im_end|>", options={"crop_to_patches": False}),
}
CLOSED = ("clip", "siglip", "open_clip")
NAMES = (*ABOUT, *CLOSED)


def published(name: str, folder: Path, model: Any) -> Published | PublishedClip:
    """The oracle of a checkpoint; the weights are those of the family's own model."""
    return (PublishedClip if name in CLOSED else Published)(name, folder, model)


class Published:
    """A model that reads and writes tokens."""

    def __init__(self, name: str, folder: Path, model: Any) -> None:
        self.name, self.model, self.about = name, model, ABOUT[name]
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self.images = hf.AutoImageProcessor.from_pretrained(folder, use_fast=False)
        self.by_hand = self.about.style in ("hand", "bliva", "visualglm")
        if self.name == "bliva":
            self.reader = hf.AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
        if not self.by_hand:
            self.processor = hf.AutoProcessor.from_pretrained(folder)
            self.processor.image_processor = self.images  # the one that resizes with Pillow

    def prompt(self, question: str) -> str:
        if self.about.prompt is not None:
            return self.about.prompt.format(question)
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)

    def inputs(self, picture: Image.Image, question: str, answer: str | None = None) -> dict[str, Any]:
        """What the model's forward takes, with labels where there is an answer."""
        prompt, style = self.prompt(question), self.about.style
        if style == "suffix":
            suffix = {} if answer is None else {"suffix": answer}
            return dict(self.processor(images=picture, text=f"{IMAGE}{prompt}", return_tensors="pt", **suffix))
        answered = "" if answer is None else self.about.answer.format(answer)
        inputs = self._read(picture, prompt if style == "encoder" else prompt + answered)
        asked = self._read(picture, prompt)
        if "qformer_input_ids" in inputs:  # it reads the question only
            inputs |= {key: asked[key] for key in ("qformer_input_ids", "qformer_attention_mask")}
        if answer is None:
            return inputs
        if style == "encoder":
            return inputs | {"labels": self.tokenizer(answer, return_tensors="pt").input_ids}
        labels = inputs["input_ids"].clone()
        if self.name == "vpgtrans":  # one token ends an answer: the first that ### is made of
            labels = labels[:, :-1]
            inputs |= {key: inputs[key][:, :-1] for key in ("input_ids", "attention_mask")}
        labels[:, : asked["input_ids"].shape[1]] = -100
        return inputs | {"labels": labels}

    def _read(self, picture: Image.Image, text: str) -> dict[str, Any]:
        if self.about.n_image == 0:
            begin = self.tokenizer.bos_token
            # As `apply_chat_template` does, which tokenises a text with a begin token of its own without another.
            twice = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
            return dict(self.processor(images=picture, text=text, return_tensors="pt", **twice, **self.about.options))
        ids = self.tokenizer(text.replace(IMAGE, IMAGE * self.about.n_image)).input_ids
        if IMAGE not in text:  # then its picture comes before all, as BLIVA's release puts it
            ids = [self.tokenizer.convert_tokens_to_ids(IMAGE)] * self.about.n_image + ids
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        seen = self.images(picture, return_tensors="pt")
        inputs["pixel_values"] = seen.pixel_values
        if self.about.style == "tile":  # the first of a picture's tiles is all of it
            inputs |= {"pixel_values": seen.pixel_values[:, :1], "image_sizes": seen.image_sizes}
        if self.about.style == "bliva":
            question = self.reader(text, return_tensors="pt")
            inputs["qformer_input_ids"] = question.input_ids
            inputs["qformer_attention_mask"] = question.attention_mask
        return inputs

    @torch.no_grad()
    def loss(self, picture: Image.Image, question: str, answer: str) -> Tensor:
        if self.name == "visualglm":
            asked, answered = self._glm_ids(question), self._glm_ids(answer=answer)
            logits = self._glm_logits(picture, asked, answered[:-1])[-len(answered) :]
            return F.cross_entropy(logits, torch.tensor(answered))
        with self._one_tile():
            return self.model(**self.inputs(picture, question, answer)).loss

    @torch.no_grad()
    def generate(self, picture: Image.Image, question: str, n_new: int) -> tuple[list[int], Tensor]:
        """Greedy token ids, end token included, and their logits (n_new, n_vocab)."""
        if self.name == "visualglm":
            return self._glm_generate(picture, question, n_new)
        ends = {"minigpt4": ["<0x0A>"], "vpgtrans": ["##", "▁###"]}.get(self.name, [])
        more = (
            {"eos_token_id": [*self.tokenizer.convert_tokens_to_ids(ends), self.tokenizer.eos_token_id]} if ends else {}
        )
        with self._one_tile():
            output = self.model.generate(
                **self.inputs(picture, question),
                max_new_tokens=n_new,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **more,
            )
        return output.sequences[0][-len(output.logits) :].tolist(), torch.cat(output.logits)

    @contextmanager
    def _one_tile(self) -> Iterator[None]:
        """Let transformers take a picture as one tile, which its count of tiles, always two or more, forbids."""
        one = nullcontext()
        if self.about.style == "tile":
            module = f"transformers.models.{self.name}.modeling_{self.name}"
            one = mock.patch(f"{module}.image_size_to_num_patches", return_value=1)
        with one:
            yield

    def _glm_ids(self, question: str | None = None, answer: str = "") -> Any:
        def plain(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False).input_ids

        if question is None:
            return plain(f" {answer}<eop>")
        before, after = self.prompt(question).split(IMAGE)
        return plain(before), plain(f"{after}[gMASK]<sop>")

    def _glm_logits(self, picture: Image.Image, asked: tuple[list[int], list[int]], answered: list[int]) -> Tensor:
        """Logits at <sop> and behind: all before <sop> sees itself, and stands at block 0."""
        language, (before, after) = self.model.language_model, asked
        words = language.transformer.word_embeddings
        seen = visualglm_image_embeds(self.model, self.images(picture, return_tensors="pt").pixel_values)[0]
        inputs = torch.cat([words(torch.tensor(before)), seen, words(torch.tensor(after + answered))])[None]
        n_context, length = len(before) + len(seen) + len(after) - 1, inputs.shape[1]
        place = torch.arange(length)
        block = (place - n_context + 1).clamp(min=0)
        mask = (place[None, :] <= place[:, None]) | (place < n_context)[None, :]
        positions = torch.stack([place.clamp(max=n_context - 1), block])[None]
        hidden = language.transformer(inputs, positions, mask[None, None]).last_hidden_state
        return language.lm_head(hidden)[0, n_context:]

    def _glm_generate(self, picture: Image.Image, question: str, n_new: int) -> tuple[list[int], Tensor]:
        """A loop of full forwards."""
        end = self.tokenizer.convert_tokens_to_ids("<eop>")
        answered: list[int] = []
        logits: list[Tensor] = []
        while len(answered) < n_new and end not in answered:
            logits.append(self._glm_logits(picture, self._glm_ids(question), answered)[-1])
            answered.append(int(logits[-1].argmax()))
        return answered, torch.stack(logits)

    def pixels(self, picture: Image.Image) -> Tensor:
        """(3, size, size), normalised."""
        found = self.images(picture, return_tensors="pt", **self.about.options).pixel_values
        if not self.name.startswith("qwen"):
            return found.reshape(-1, *found.shape[-3:])[0]  # a whole picture is its own first tile
        patch, merge = self.images.patch_size, self.images.merge_size
        n = CANVAS // patch // merge
        grid = found.view(n, n, merge, merge, 3, -1, patch, patch)[..., 0, :, :]
        return grid.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, CANVAS, CANVAS)


class PublishedClip:
    """A model that compares pictures with texts."""

    def __init__(self, name: str, folder: Path, model: Any) -> None:
        self.name, self.model = name, model
        if name == "open_clip":
            place = f"local-dir:{folder}"
            _, _, self.transform = open_clip.create_model_and_transforms(place)
            self.tokenizer = open_clip.get_tokenizer(place)
        else:
            self.tokenizer = hf.AutoTokenizer.from_pretrained(folder)
            self.images = hf.AutoImageProcessor.from_pretrained(folder, use_fast=False)

    @torch.no_grad()
    def logits(self, picture: Image.Image, texts: list[str]) -> Tensor:
        pixels = self.pixels(picture)[None]
        if self.name == "open_clip":
            return self.model.get_logits(pixels, self.tokenizer(texts))[0][0]
        padding = "max_length" if self.name == "siglip" else True
        read = dict(self.tokenizer(texts, padding=padding, return_tensors="pt"))
        read.pop("token_type_ids", None)
        if self.name == "siglip":
            read.pop("attention_mask")  # its tokenizer gives none
        return self.model(pixel_values=pixels, **read).logits_per_image[0]

    def scores(self, picture: Image.Image, question: str, candidates: list[str]) -> Tensor:
        start = "a photo of a" if question.endswith("?") else question
        logits = self.logits(picture, [f"{start} {candidate}" for candidate in candidates])
        return logits.sigmoid().log() if self.name == "siglip" else logits.softmax(-1).log()

    def loss(self, picture: Image.Image, question: str, answer: str, candidates: list[str]) -> Tensor:
        scores = self.scores(picture, question, candidates)
        right = candidates.index(answer)
        if self.name != "siglip":
            return -scores[right]
        wrong = 1 - scores.exp()
        return -torch.stack([s if i == right else wrong[i].log() for i, s in enumerate(scores)]).mean()

    def pixels(self, picture: Image.Image) -> Tensor:
        if self.name == "open_clip":
            return self.transform(picture)
        return self.images(picture, return_tensors="pt").pixel_values[0]


class Double(TorchFunctionMode):
    """Reads float32 as float64 wherever a model asks for it: in norms, softmax and rotations.

    Their rounding would drown a difference quotient of a model in float64.
    """

    def __enter__(self) -> Double:
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(torch.float32)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        function = Tensor.double if function is Tensor.float else function
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})
