"""A BLIP-2 of published parts and a ViT-B/32 guide, with random weights, to measure real sizes offline."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tvp.trainer.task_definition import TaskDefinition


def words(task: TaskDefinition) -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer like OPT's, which has a token for each of the task's words, as OPT's has."""
    texts = [f"Question: {task.question} Answer: {label}\n" for label in task.labels]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, vocab_size=1024, show_progress=False
    )
    tokenizer.train_from_iterator(texts * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def save_published(folder: Path, task: TaskDefinition) -> None:
    """Save the BLIP-2 of published parts and its guide, with random weights, to `blip2` and `guide`."""
    torch.manual_seed(0)
    tokenizer = words(task)
    end = tokenizer("\n", add_special_tokens=False).input_ids[0]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}  # of all three parts
    model = hf.Blip2ForConditionalGeneration(
        hf.Blip2Config(
            vision_config=base | {"intermediate_size": 3072, "image_size": 224, "patch_size": 16},
            qformer_config=base | {"encoder_hidden_size": 768, "cross_attention_frequency": 2},
            text_config=base | {"model_type": "opt", "ffn_dim": 3072, "word_embed_proj_dim": 768, "vocab_size": 50304},
            num_query_tokens=32,
            image_token_index=image_token,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.03)  # transformers' own start leaves the vision encoder blind
    model.generation_config.eos_token_id = end  # BLIP-2 ends an answer at a line break
    model.save_pretrained(folder / "blip2")
    tokenizer.save_pretrained(folder / "blip2")
    hf.BlipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / "blip2")
    guide = open_clip.create_model("ViT-B-32")
    (folder / "guide").mkdir(parents=True)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    about = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": preprocess}
    (folder / "guide" / "open_clip_config.json").write_text(json.dumps(about))
    save_file(
        {name: value.contiguous() for name, value in guide.state_dict().items()},
        folder / "guide" / "open_clip_model.safetensors",
    )
