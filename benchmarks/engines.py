"""Other engines on the same decoder, for benchmarks/speed.py: Optimum's export, onnxruntime-genai's graph, llama.cpp.

Each gets the weights of the same language model, in blocks of its own kind: the sdk and genai's builder share a scale
of four bytes among 128 weights (8.25 and 4.25 bits a weight), llama.cpp's q8_0 and q4_0 one of two bytes among 32 (8.5
and 4.5 bits), so that llama.cpp reads 3 % and 6 % more. An engine that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers as hf

from tvp import sdk
from tvp.export import graphs

CLASSES = {"llama": hf.LlamaForCausalLM, "qwen2": hf.Qwen2ForCausalLM}


def save_text_model(family: Any, folder: Path) -> None:
    """Save the language model alone, as transformers saves its text models."""
    config = family.text_config
    config.architectures = [CLASSES[config.model_type].__name__]
    model = CLASSES[config.model_type](config)
    weights = {f"model.{name}": value for name, value in family.decoder.state_dict().items()}
    model.load_state_dict(weights | {"lm_head.weight": family.head.weight})
    model.save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)


def text_model(family: Any, folder: Path, name: str) -> Path:
    """The folder of the language model alone, made where it is missing."""
    place = folder / "text" / name
    if not place.exists():
        save_text_model(family, place)
    return place


def open_session(file: Path) -> Any:
    """Open a graph with onnxruntime on the CPU, with the sdk's options."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as the sdk
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Growing:
    """A vision encoder of standard operators, and the decoder as Optimum exports it: its cache grows by copying."""

    def __init__(self, family: Any, folder: Path, task: sdk.Task, ids: torch.Tensor) -> None:
        if not folder.exists():
            from optimum.exporters.onnx import main_export

            text = text_model(family, folder.parents[1], folder.name)
            main_export(str(text), folder, task="text-generation-with-past", do_validation=False)
            graphs.export_vision_encoder(family, folder / "encoder.onnx", fused=False)
        self._task, self._ids = task, ids.numpy()
        self._encoder, self._decoder = open_session(folder / "encoder.onnx"), open_session(folder / "model.onnx")
        self._inputs = {value.name: value for value in self._decoder.get_inputs()}

    def ask(self, picture: Any, n_new: int) -> None:
        """Do the work of `ask`: the vision encoder, then a prompt of as many ids, then token after token."""
        self._encoder.run(None, {"pixel_values": self._task.pixel_values(picture)})
        past = {
            name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for name, value in self._inputs.items()
            if name.startswith("past")
        }
        ids, length = self._ids, 0
        for _ in range(n_new):
            length += ids.shape[1]
            feeds = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64)}
            if "position_ids" in self._inputs:
                feeds["position_ids"] = np.arange(length - ids.shape[1], length)[None]
            logits, *present = self._decoder.run(None, feeds | past)
            past = dict(zip(past, present, strict=True))
            ids = logits[:, -1:].argmax(-1)

    def close(self) -> None:
        self._encoder = self._decoder = None


class GenAI:
    """The graph of onnxruntime-genai's builder, run by onnxruntime with buffers that are bound once."""

    @staticmethod
    def calls(family: Any, folder: Path, name: str, length: int, n_new: int) -> dict[str, Callable[[], Any]]:
        if importlib.util.find_spec("onnxruntime_genai") is None:
            return {}
        package = Path(importlib.util.find_spec("onnxruntime_genai").origin).parent  # type: ignore[union-attr,arg-type]
        made = {}
        for precision in ("fp32", "int4"):
            place = folder / "genai" / name / precision
            if not place.exists():
                text = text_model(family, folder, name)
                where = ["-i", text, "-o", place, "-c", folder / "cache", "-p", precision, "-e", "cpu"]
                options = ["exclude_embeds=true", "int4_block_size=128", "int4_accuracy_level=4"]
                # A program of its own, which finds the modules beside it.
                builder = [sys.executable, package / "models" / "builder.py", *where, "--extra_options", *options]
                subprocess.run(builder, check=True)
            made[f"genai's graph {precision}"] = GenAI._call(place / "model.onnx", family, length, n_new)
        return made

    @staticmethod
    def _call(file: Path, family: Any, length: int, n_new: int) -> Callable[[], None]:
        session = open_session(file)
        n_kv_heads, head = graphs.cache_shape(family)
        capacity = -(-(length + n_new) // 64) * 64
        words = family.embed_tokens.weight.detach().numpy()
        tensors = []
        for _ in range(2 * family.text_config.num_hidden_layers):
            zeros = np.zeros((1, n_kv_heads, capacity, head), np.float32)
            tensors.append(onnxruntime.OrtValue.ortvalue_from_numpy(zeros))
        binding = session.io_binding()
        binding.bind_output("logits")  # bound first, so that it is the first of get_outputs()
        for i, tensor in enumerate(tensors):
            kind = ("key", "value")[i % 2]
            binding.bind_ortvalue_input(f"past_key_values.{i // 2}.{kind}", tensor)
            binding.bind_ortvalue_output(f"present.{i // 2}.{kind}", tensor)
        names = {value.name for value in session.get_inputs()}

        def step(rows: Any, total: int) -> int:
            feeds = {"inputs_embeds": rows, "attention_mask": np.ones((1, total), np.int64)}
            if "position_ids" in names:
                feeds["position_ids"] = np.arange(total - rows.shape[1], total)[None]
            kept = {key: onnxruntime.OrtValue.ortvalue_from_numpy(value) for key, value in feeds.items()}
            for key, value in kept.items():
                binding.bind_ortvalue_input(key, value)
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            return int(binding.get_outputs()[0].numpy()[0, -1].argmax())

        step(words[np.zeros(length, np.int64)][None], length)

        def call() -> None:
            token = 5
            for i in range(n_new):
                token = step(words[token][None, None], length + i + 1)

        return call


class LlamaCpp:
    """llama.cpp through its Python package, on GGUF files of the same weights."""

    @staticmethod
    def calls(family: Any, folder: Path, name: str, length: int, n_new: int) -> dict[str, Callable[[], Any]]:
        if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
            return {}
        made = {}
        for precision in ("f32", "q8_0", "q4_0"):
            file = folder / "gguf" / name / f"{precision}.gguf"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                LlamaCpp._write(family, file, precision)
            made[f"llama.cpp {precision}"] = LlamaCpp._call(file, length, n_new)
        return made

    @staticmethod
    def _write(family: Any, file: Path, precision: str) -> None:
        import gguf

        config = family.text_config
        writer = gguf.GGUFWriter(str(file), config.model_type)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        kind = {"f32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}.get(
            precision, gguf.GGMLQuantizationType.Q4_0
        )
        arch = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config.model_type]
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        weights = {f"model.{key}": value for key, value in family.decoder.state_dict().items()}
        for key, value in (weights | {"lm_head.weight": family.head.weight.detach()}).items():
            array = value.float().numpy()
            if config.model_type == "llama" and (".q_proj.weight" in key or ".k_proj.weight" in key):
                n_heads = config.num_attention_heads if ".q_proj" in key else config.num_key_value_heads
                # llama.cpp rotates pairs of neighbours, transformers pairs of the two halves
                array = array.reshape(n_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            new = names.get_name(key, try_suffixes=(".weight", ".bias"))
            wide = array.ndim == 2 and array.shape[-1] % 32 == 0 and kind != gguf.GGMLQuantizationType.F32
            if wide:
                writer.add_tensor(new, gguf.quants.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(new, np.ascontiguousarray(array))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @staticmethod
    def _call(file: Path, length: int, n_new: int) -> Callable[[], None]:
        import llama_cpp

        model = llama_cpp.Llama(
            str(file), n_ctx=length + n_new + 8, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False
        )
        model.eval([5] * length)

        def call() -> None:
            model.n_tokens = length
            token = 5
            for _ in range(n_new):
                model.eval([token])
                token = int(np.argmax(model._scores[-1] if model._logits_all else model.scores[model.n_tokens - 1]))

        return call
