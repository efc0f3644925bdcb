"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
from pathlib import Path

from tvp.sdk.formats.temporary import temporary_file


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it, so that it is there whole or not at all."""
    with temporary_file(path) as temporary:
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
