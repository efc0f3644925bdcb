"""Which language models an export can have: `python -m benchmarks.decoders [--only NAME …] [--page FILE]`.

Builds every causal and seq2seq decoder of the installed transformers, two layers deep, behind BLIP-2's vision encoder,
and tries its export. What the trial accepts is exported, and asked 20 questions. Prints a table with the count of each
kind; --page writes it as a page of the documentation, and -o as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import logging
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from samples.zoo import words
from tvp.export.bundle import export
from tvp.export.kinds import kind_of
from tvp.export.kinds.generative import n_positions
from tvp.sdk.errors import ModelError, TvpError
from tvp.trainer import tasks
from tvp.trainer.families import GenerativeFamily, PixelFormat
from tvp.trainer.families.blip2 import family_of

SIZE, WIDTH, N_CASES = 64, 32, 20
# Fields of configurations that say a size, in the words of their models -> a tiny value.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "n_embed", "model_dim"], WIDTH),
    **dict.fromkeys(["embed_dim", "embedding_size"], WIDTH),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"], 2),
    **dict.fromkeys(["num_decoder_layers", "num_encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"], 2),
    **dict.fromkeys(["decoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"], 2),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 1),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"], 64),
    "dff": 64,
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"], 64),
    **dict.fromkeys(["intermediate_size_mlp", "expert_ffn_hidden_size", "shared_intermediate_size", "dim_ff"], 64),
    **dict.fromkeys(["head_dim", "d_kv", "attention_head_dim", "kv_channels", "dim_head"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length"], 256),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"], 2),
    "rotary_dim": 8, "dropout": 0.0, "attention_dropout": 0.0, "is_decoder": True, "word_embed_proj_dim": WIDTH,
    "sliding_window": 128, "initializer_range": 0.1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": True,
    "mamba_d_state": 8, "state_size": 8, "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_d_ssm": 64, "lru_width": WIDTH,
}  # fmt: skip
# Fields of one model whose usual values do not fit two tiny layers.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1, "mamba_expand": 2},
    "falcon_h1": {"mamba_n_groups": 1, "lm_head_multiplier": 0.5},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granitemoe": {"logits_scaling": 6.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 30.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "codegen": {"n_head": 4, "num_attention_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 128},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 2},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "rembert": {"input_embedding_size": WIDTH, "output_embedding_size": WIDTH},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1},
    "dots1": {"n_shared_experts": 1},
    "deepseek_v2": {"topk_method": "greedy", "num_key_value_heads": 2},
    "deepseek_v3": {"num_key_value_heads": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": None, "vocab_size_per_layer_input": 64},
    "phimoe": {"rope_scaling": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_groups": 1, "mamba_expand": 2},
    "minimax": {"layer_types": ["full_attention", "linear_attention"]},
    "xlnet": {"d_inner": 64},
}


@dataclass(frozen=True)
class Row:
    """What became of one decoder.

    Attributes:
        name: transformers' model_type.
        kind: causal or seq2seq.
        outcome: `exact`, `bounded`, `refused`, or `not built`.
        why: the bound, or the reason.
        seconds: of a core that the trial took.
        scores: largest difference of a score in the export's gate.
    """

    name: str
    kind: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    scores: float = 0.0


def names() -> dict[str, str]:
    """Every model_type of a decoder -> its kind."""
    seq2seq = dict.fromkeys(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "seq2seq")
    return dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "causal") | seq2seq


def build(name: str, kind: str = "causal", **more: Any) -> GenerativeFamily:
    """Make a BLIP-2 with this decoder, with random weights; raises whatever transformers raises.

    Args:
        name: transformers' model_type.
        kind: `causal` (default) or `seq2seq`.
        more: fields of its configuration.
    """
    torch.manual_seed(0)
    tokenizer = words.make_tokenizer("blip2-t5" if kind == "seq2seq" else "blip2")
    config_class = hf.CONFIG_MAPPING[name]
    known = set(inspect.signature(config_class.__init__).parameters) | set(dir(config_class))
    known |= set(getattr(config_class, "attribute_map", {}))
    known -= {field for field in known if isinstance(getattr(config_class, field, None), property)}
    wanted = SIZES | OWN.get(name, {}) | {"vocab_size": len(tokenizer)} | more
    text = config_class(**{field: value for field, value in wanted.items() if field in known or field in more})
    if kind == "seq2seq":
        text.decoder_start_token_id = tokenizer.pad_token_id
    vision = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    qformer = {**vision, "encoder_hidden_size": WIDTH, "vocab_size": 64, "hidden_dropout_prob": 0.0}
    config = hf.Blip2Config(
        vision_config={**vision, "image_size": SIZE, "patch_size": 16},
        qformer_config={**qformer, "attention_probs_dropout_prob": 0.0},
        text_config=text.to_dict(),
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids(words.IMAGE),
    )
    config.use_decoder_only_language_model = kind == "causal"
    model = hf.Blip2ForConditionalGeneration(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return family_of(model, tokenizer, PixelFormat(SIZE, (0.5,) * 3, (0.5,) * 3))


def _run(family: GenerativeFamily) -> None:
    """Run the language model as transformers made it; raises whatever transformers raises."""
    model: Any = family.model.language_model
    more: dict[str, Any] = {}
    if family.model.config.text_config.is_encoder_decoder:
        more["decoder_input_ids"] = torch.tensor([[0, 1]])
    else:
        more["use_cache"] = False
    with torch.no_grad():
        model.eval()(inputs_embeds=torch.zeros(1, 3, model.get_input_embeddings().embedding_dim), **more)


def trial_of(name: str, kind: str) -> Row:
    """Build a decoder and try its export."""
    return _try(name, kind)[0]


def row(name: str, kind: str) -> Row:
    """Build a decoder, try its export, and where it is accepted, export and ask it."""
    found, family = _try(name, kind)
    if family is None:
        return found
    with tempfile.TemporaryDirectory() as folder:
        place, task = Path(folder) / "task", tasks.get("scenes")
        report = export(name, task, place, family=family, n_cases=N_CASES, reuse=False, n_moment_pictures=0)
    return replace(found, scores=report.logits)


def _try(name: str, kind: str) -> tuple[Row, GenerativeFamily | None]:
    """Return the row, and the model if its export is accepted."""
    if "audio_config" in getattr(hf.CONFIG_MAPPING[name], "sub_configs", {}):  # gigabytes, whatever its text's sizes
        return Row(name, kind, "not built", "a model of several parts, which hears"), None
    try:
        family = build(name, kind)
        _run(family)
    except TvpError as error:
        return Row(name, kind, "refused", str(error)), None
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return Row(name, kind, "not built", why), None
    began = time.process_time()
    try:
        kind_of(family).check(family)
    except ModelError as error:
        return Row(name, kind, "refused", str(error), time.process_time() - began), None
    seconds = time.process_time() - began
    most, usual = n_positions(family), getattr(family.text_config, "max_position_embeddings", None)
    if most and usual and most < usual:
        return Row(name, kind, "bounded", f"texts of {most} of {usual} tokens", seconds), family
    return Row(name, kind, "exact", "", seconds), family


OUTCOMES = {
    "exact": "answers and scores are the model's own, in texts of any length that it reads",
    "bounded": "the same, and a bundle reads texts up to a length: where a sliding window would begin to slide, or "
    "positions would change",
    "refused": "`tvp export` and its `--dry-run` say why, in seconds",
    "not built": "transformers itself makes no BLIP-2 with it, or none that runs, from a configuration of two layers",
}


def reason(row: Row) -> str:
    """The bound or the reason as the page has it."""
    return (row.why.partition("is not traced, because ")[2].partition(" It can be")[0] or row.why).replace("|", "/")


def page(rows: list[Row]) -> str:
    """The table as a page of the documentation."""
    counts = Counter(row.outcome for row in rows)
    tried = sorted(row.seconds for row in rows if row.seconds)
    lines = [
        "# Language models",
        "",
        "Which language models an export can have behind a vision encoder: every decoder of transformers "
        f"{hf.__version__} that can be built from a configuration, two layers deep, in a BLIP-2. What is accepted was "
        f"exported in fp32 and answered {N_CASES} of {N_CASES} questions as the unpatched model does, with scores "
        f"within 1e-3 × max(1, largest absolute score). The trials took {tried[0]:.1f} to "
        f"{tried[-1]:.1f} seconds of a core.",
        "",
        "`python -m benchmarks.decoders --page docs/reference/decoders.md` measures this again and writes this page.",
        "",
        "| | count | meaning |",
        "| --- | --- | --- |",
        *(f"| {outcome} | {counts[outcome]} | {meaning} |" for outcome, meaning in OUTCOMES.items()),
        "",
        "| language model | kind | outcome | |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: row.name):
        lines.append(f"| {row.name} | {row.kind} | {row.outcome} | {reason(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--trial", action="store_true", help="try only; export nothing")
    parser.add_argument("--page", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for name, kind in names().items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                rows.append(trial_of(name, kind) if arguments.trial else row(name, kind))
        except Exception as error:
            rows.append(Row(name, kind, "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        last = rows[-1]
        print(f"{name:<22} {kind:<8} {last.outcome:<10} {last.seconds:5.1f} s {last.scores:.0e} {last.why}", flush=True)
    print(dict(Counter(row.outcome for row in rows)))
    if arguments.page:
        arguments.page.write_text(page(rows))
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
