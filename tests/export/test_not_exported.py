"""A language model that cannot be traced is told in one sentence, and nothing is left behind."""

from __future__ import annotations

import pytest
import transformers as hf
from click.testing import CliRunner

from tests.tiny import PATCH, SQUARE, STEP, VISION_ENCODER, finish
from tests.tokens import IMAGE, ids, marks, sentencepiece
from tvp.export.cli import export
from tvp.sdk.errors import ModelError

MAKERS = {
    "mixtral": lambda tokenizer: hf.MixtralConfig(
        **STEP, num_key_value_heads=1, num_local_experts=4, max_position_embeddings=256, **marks(tokenizer)
    ),
    "mamba": lambda tokenizer: hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **marks(tokenizer)),
    # Its rotation uses complex numbers, which ONNX lacks; torch would print the whole graph.
    "llama4_text": lambda tokenizer: hf.Llama4TextConfig(
        **STEP,
        intermediate_size_mlp=64,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=2,
        max_position_embeddings=256,
        **marks(tokenizer),
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_decoder_that_is_not_traced_is_named(tmp_path, kind, capfd):
    tokenizer = sentencepiece()
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION_ENCODER, vision_use_head=False),
        text_config=MAKERS[kind](tokenizer),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **ids(tokenizer, image_token_index=IMAGE),
    )
    images = hf.SiglipImageProcessor(size=SQUARE)
    more = {"patch_size": PATCH, "vision_feature_select_strategy": "full"}
    processor = hf.LlavaProcessor(images, tokenizer, image_token=IMAGE, **more)
    finish(hf.LlavaForConditionalGeneration(config), tmp_path / "model", processor)
    capfd.readouterr()
    arguments = ["-m", str(tmp_path / "model"), "-t", "scenes", "-o", str(tmp_path / "out"), "--cases", "1"]
    error = CliRunner().invoke(export, arguments).exception
    assert isinstance(error, ModelError), error
    assert f"cannot be exported: '{kind}' is not traced" in str(error)
    assert "can be trained on and evaluated" in str(error)
    assert "\n" not in str(error)
    assert len(capfd.readouterr().out) < 1000
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
