"""Loading a task: find its bundle, verify it, open it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ._image import Background, Reader, make_reader
from ._image_limits import DEFAULT, ImageLimits
from ._lens import OpenedLens, OpenedPrompt, open_lens
from ._models import open_model
from ._models.graph_shapes import check_preprocess
from ._runtime.machine import threads as number_of_threads
from ._runtime.providers import ON_CPU, Providers, make_plan
from ._runtime.sessions import FILES, open_session
from ._store import find, home
from ._task import Task
from .errors import BundleError
from .formats.integrity import refuse_links, verify
from .formats.manifest import GOLDEN, read_base_manifest, read_task_manifest
from .formats.moments import moments_in

log = logging.getLogger("tvp.sdk")


def load(
    task: str | os.PathLike[str],
    *,
    providers: Providers = "auto",
    threads: int | None = None,
    verify_files: bool = True,
    limits: ImageLimits = DEFAULT,
    background: Background = "white",
    lens: str | os.PathLike[str] | None = None,
) -> Task:
    """Load a task.

    Args:
        task: a folder, a name under $TVP_HOME/tasks, or a `.tvp` file, which is unpacked once to $TVP_HOME/cache.
        providers: onnxruntime's execution providers.
            `auto` (default) takes CUDA where onnxruntime has it and the bundle can use it (it was made for CUDA, or is
            fp32 or fp16), else the CPU.
            A name (`cpu`, `cuda`, `tensorrt`, or onnxruntime's own), (name, options), or a list of these runs there
            or is an error.
            A mapping gives any of these to a part: `vision_encoder`, `connector`, `encoder`, `decoder`,
            `text_encoder`. TensorRT runs the vision encoder only, is never chosen by `auto`, and keeps its engine
            under $TVP_HOME/cache.
            A provider that `auto` chose and that does not start is replaced by the CPU, with a warning.
            `Task.providers` says what runs where.
        threads: number of threads that compute together on the CPU, from 1 to 1024. Default: $TVP_THREADS, else one for
            each core, or fewer where the process may use fewer (taskset, cpusets, a container's quota). Give few where
            several processes share a machine.
        verify_files: check the sha256 of every file first. Leave it on unless you trust the storage. A file of a
            loaded base is not read again while its inode, size and times stay the same. Without it, links are refused,
            and a base that is open already is used again only if it was opened from the very same files (hard links
            are), unchanged since then; a copy is opened anew.
        limits: what a picture may cost; see `ImageLimits`.
        background: what shows through transparent pixels of pictures: `white`, another name, `#rrggbb` or (r, g, b).
        lens: a lens bundle: a folder, or a name under $TVP_HOME/lenses. Its prompt takes the place of the task's own;
            see `Task.use_lens`. Default: none.

    Raises:
        BundleError: the bundle or the lens is missing, damaged, of a newer format, or without its base; or the lens
            makes other pixel values than the task takes.
        ProviderError: a provider is unknown or does not start.
        RequestError: the number of threads is out of its range, or the limits or the background are wrong.
    """
    read = make_reader(limits, background)
    n_threads = number_of_threads(threads)
    folder = find(task)
    try:
        loaded = _open(folder, providers, n_threads, verify_files, read)
    except BundleError as error:
        if Path(task).suffix == ".tvp" and folder != Path(task).absolute():
            raise BundleError(
                f"{error} The folder is a copy that was unpacked from {os.fspath(task)}: if that file is intact, "
                "delete the folder, and it is unpacked again."
            ) from error
        raise
    if lens is not None:
        loaded.use_lens(lens)
    return loaded


def _open(folder: Path, providers: Providers, threads: int, verify_files: bool, read: Reader) -> Task:
    manifest = read_task_manifest(folder / "manifest.json")
    base = read_base_manifest(folder / "base" / "manifest.json")
    if base.digest != manifest.base:
        raise BundleError(
            f"The bundle {folder} was exported with the base {manifest.base[:16]}…, and its folder 'base' "
            f"holds {base.digest[:16]}…. Put the right base there or export again."
        )
    plan = make_plan(
        providers,
        [part for part, file in FILES.items() if file in base.needs],
        home() / "cache" / "tensorrt" / base.digest,
        base.precision,
        base.device,
        threads,
    )
    for needed, entries, place in (
        (("preprocess.onnx", GOLDEN), manifest.files, folder),
        (base.needs, base.files, folder / "base"),
    ):
        missing = [name for name in needed if name not in entries]
        if missing:
            raise BundleError(f"The manifest in {place} does not list {missing[0]}. Export the bundle again.")
    if verify_files:
        verify(folder, manifest.files)
    else:
        refuse_links(folder, manifest.files)
    model = open_model(folder / "base", base, plan, verify_files=verify_files)
    for part, reason in model.parts.fallbacks.items():
        log.warning("%s Running the %s on the CPU instead.", reason, part)
    preprocess = open_session(folder / "preprocess.onnx", ON_CPU, manifest.files, threads)
    encoder = model.parts.sessions["vision_encoder"]
    check_preprocess(preprocess, encoder)
    moments = moments_in(folder, manifest)

    def open_for_task(lens: str | os.PathLike[str]) -> OpenedLens:
        return open_lens(lens, manifest, base.precision, encoder, threads, verify_files)

    return Task(folder, manifest, model, OpenedPrompt(preprocess, moments), read, open_for_task)
