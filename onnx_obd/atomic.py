"""A file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from onnx_obd.errors import ExportError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write ``content`` to ``path``: temporary file in the same folder, fsync, rename.

    An existing file keeps its old content until the new one is complete on disk, and its permissions after that.
    Missing folders are made.

    Raises:
        ExportError: the file cannot be written; nothing is left behind.
    """
    target = Path(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:  # "x" never follows a link or takes over somebody's file
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise ExportError(f"cannot write '{target}': {error.strerror or error}") from error
    return target
