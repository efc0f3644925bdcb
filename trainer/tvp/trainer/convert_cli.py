"""`tvp convert`."""

from __future__ import annotations

from pathlib import Path

import click

from .convert import convert as run_conversion
from .published import KINDS

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_FILE,
    help="Q-Former, query tokens and projection (.pth or .safetensors). Several are read in order; the last wins.",
)
@click.option("--language-model", type=_FILE, required=True, help="Folder of Vicuna, Llama or ChatGLM-6B.")
@click.option("--vision-encoder", type=_FILE, help="EVA-CLIP-g, such as eva_vit_g.pth, where no checkpoint holds it.")
@click.option("--tokenizer", type=_FILE, help="Folder with tokenizer.json; default: the language model's.")
@click.option("--qformer-tokenizer", type=_FILE, help="Folder of BLIVA's BERT tokenizer.")
@click.option("-o", "--output", type=_FILE, required=True, help="Folder to make.")
def convert(
    kind: str,
    checkpoints: tuple[Path, ...],
    language_model: Path,
    vision_encoder: Path | None,
    tokenizer: Path | None,
    qformer_tokenizer: Path | None,
    output: Path,
) -> None:
    """Turn a published checkpoint of KIND into a folder that TVP loads."""
    if kind != "visualglm" and not checkpoints:
        raise click.UsageError(f"{kind} needs --checkpoint; only visualglm's folder holds everything.")
    run_conversion(
        kind, checkpoints, language_model, vision_encoder, output, tokenizer, qformer_tokenizer=qformer_tokenizer
    )
    click.echo(f"wrote {output}")
