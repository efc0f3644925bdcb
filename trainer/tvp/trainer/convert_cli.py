"""The command `tvp convert`."""

from __future__ import annotations

from pathlib import Path

import click

from .choices import CONVERTED

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("kind", type=click.Choice(CONVERTED))
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_FILE,
    help="File with the Q-Former, its queries and the projection (.pth or .safetensors). Repeat it for several; where "
    "two hold the same tensor, the later one is used.",
)
@click.option(
    "--language-model", type=_FILE, required=True, help="Folder of the language model: Vicuna, Llama or ChatGLM-6B."
)
@click.option(
    "--vision-encoder",
    type=_FILE,
    help="File of the vision encoder EVA-CLIP-g, such as eva_vit_g.pth. Leave it out if a checkpoint holds it.",
)
@click.option("--tokenizer", type=_FILE, help="Folder with a tokenizer.json. Default: the language model's folder.")
@click.option("--qformer-tokenizer", type=_FILE, help="Folder of the BERT tokenizer that BLIVA's Q-Former reads with.")
@click.option("-o", "--output", type=_FILE, required=True, help="Folder to write. It must not exist.")
def convert(
    kind: str,
    checkpoints: tuple[Path, ...],
    language_model: Path,
    vision_encoder: Path | None,
    tokenizer: Path | None,
    qformer_tokenizer: Path | None,
    output: Path,
) -> None:
    """Turn a model's published files into a folder that TVP can load.

    KIND says which model the files belong to.
    """
    if kind != "visualglm" and not checkpoints:
        raise click.UsageError(f"{kind} needs --checkpoint. Only visualglm has everything in one folder.")
    from .convert import convert as run_conversion  # which imports torch

    run_conversion(
        kind, checkpoints, language_model, vision_encoder, output, tokenizer, qformer_tokenizer=qformer_tokenizer
    )
    click.echo(f"wrote {output}")
