"""Files as bytes, unpacked by their last suffix, and the line ends of their text."""

import gzip
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dlm.errors import UserError


def _unzstd(raw: bytes) -> bytes:
    import zstandard  # of the extra [train]

    frames = []
    while raw:  # frame by frame, as zstandard's file objects take a truncated frame for the end of the file
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            frames.append(frame.decompress(raw))
        except zstandard.ZstdError as error:
            raise EOFError(error) from None
        if not frame.eof:
            raise EOFError("the last frame is not complete")
        raw = frame.unused_data
    return b"".join(frames)


DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": partial(lzma.decompress, format=lzma.FORMAT_XZ),
    ".gz": gzip.decompress,
    ".zst": _unzstd,
}


def read_bytes(path: Path) -> bytes:
    """The contents of a file, decompressed where its last suffix says so (DECOMPRESSORS).

    Raises:
        UserError: the file is missing, unreadable, truncated or empty.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); name a file that exists and may be read") from None
    compression = path.suffix.lower()
    if raw and compression in DECOMPRESSORS:
        try:
            raw = DECOMPRESSORS[compression](raw)
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise UserError(
                f"{path}: truncated or not {compression} data ({error}); download or write it again"
            ) from None
    if not raw.strip():
        raise UserError(f"{path}: is empty; download or write it again")
    return raw


def unix_lines(text: str) -> str:
    """The text with \\n at the end of every line: a tokenizer makes other ids of Windows' line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
