"""The command `tvp serve`. It imports the extra when it runs, so that its help needs none."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from .._options import PROVIDERS
from ..errors import RequestError

MIB = 2**20
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("tasks", nargs=-1, metavar="TASK...")
@click.option("--list", "task_list", type=FILE, help="File with more tasks, one a line. SIGHUP reads it again.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--keys", type=FILE, help="File with a name and a key in each line, and 'admin' where it loads tasks.")
@click.option("--certificate", type=FILE, help="PEM file of the certificate, for TLS.")
@click.option("--private-key", type=FILE, help="PEM file of the certificate's private key.")
@PROVIDERS
@click.option("--check", is_flag=True, help="Replay a task's golden cases before it is served.")
@click.option("--queue", type=click.IntRange(1), default=64, show_default=True, help="Questions that may wait.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Questions answered together.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Seconds for a question, waiting included.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest answer.")
@click.option("--max-body", type=click.IntRange(1), default=16, show_default=True, help="Largest request, in MiB.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=40, show_default=True, help="Largest picture, in megapixels."
)
@click.option("--max-connections", type=click.IntRange(1), default=256, show_default=True, help="At the same time.")
@click.option(
    "--remember",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Memory for pictures that were seen, in MiB.",
)
@click.option(
    "--allow-host", "allowed_hosts", multiple=True, help="Host that pictures may be fetched from: NAME or NAME:PORT."
)
@click.option(
    "--access-log/--no-access-log", default=True, show_default=True, help="A line on stderr for each request."
)
def serve(
    tasks: tuple[str, ...],
    task_list: Path | None,
    host: str,
    port: int,
    keys: Path | None,
    certificate: Path | None,
    private_key: Path | None,
    providers: str | dict[str, str],
    check: bool,
    queue: int,
    batch: int,
    time_limit: float,
    max_tokens: int,
    max_body: int,
    max_pixels: int,
    max_connections: int,
    remember: int,
    allowed_hosts: tuple[str, ...],
    access_log: bool,
) -> None:
    """Serve tasks over HTTP: a page to ask on, OpenAI's API, and endpoints of its own.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file. NAME=TASK gives it another name.

    SIGTERM ends the server when what it accepted is answered. SIGHUP reads keys, list and certificate again, loads what
    changed, and drops what is no longer listed.

    Example: tvp serve runs/camera
    """
    from .keys import Keys
    from .server import is_local
    from .server import serve as run
    from .settings import Address, Settings

    if not is_local(host) and keys is None:
        raise click.UsageError(f"Everybody in the network could ask a server at {host}. Give keys: --keys FILE.")
    if (certificate is None) != (private_key is None):
        raise click.UsageError("--certificate and --private-key belong together. Give both, or none.")
    if not tasks and task_list is None:
        raise click.UsageError("Name a task, or give a list of them: --list FILE.")
    if not is_local(host) and certificate is None:
        click.echo(
            "Keys, pictures and answers travel unencrypted. Give --certificate, or put a proxy in front.", err=True
        )
    try:
        settings = Settings(
            n_waiting=queue,
            batch=batch,
            time_limit=time_limit,
            max_tokens=max_tokens,
            max_body=max_body * MIB,
            max_pixels=max_pixels * 10**6,
            max_connections=max_connections,
            max_view_bytes=remember * MIB,
            allowed_hosts=allowed_hosts,
            hosts=("localhost", "127.0.0.1", "::1", host) if keys is None else (),
        )
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    _log(access_log)
    run(
        tasks,
        task_list,
        Address(host, port, certificate, private_key),
        settings,
        Keys(keys),
        providers,
        check,
        click.echo,
    )


def _log(access: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name, level in (("tvp.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("tvp.serve.access").disabled = not access
