"""A checkpoint in parts that travel: matrices as 8-bit integers with a scale a row, compressed, in files of 16 MB.

    python tools/parts.py pack build/models/r2ft OUT --name r2ft
    python tools/parts.py join OUT build/models/r2ft --name r2ft

What is joined differs from what was packed by at most half a step of 1/127 of the largest weight of a row.
"""

import argparse
import io
import tarfile
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load, load_file, save
from torch import Tensor

from dlm.pipeline.start import run_script
from dlm.errors import UserError
from dlm.files import atomic_directory

PART = 16_000_000  # bytes
SCALE = ".scale"


def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8, each with a float32 scale for every row; vectors as they are."""
    found = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
            found[name] = (weight.float() / scale[:, None]).round().to(torch.int8)
            found[name + SCALE] = scale
        else:
            found[name] = weight.contiguous()
    return found


def dequantised(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: weight.float() * packed[name + SCALE][:, None] if name + SCALE in packed else weight
        for name, weight in packed.items()
        if not name.endswith(SCALE)
    }


def pack(source: Path, out: Path, name: str) -> None:
    if not (source / "model.safetensors").is_file():
        raise UserError(f"{source}: no model.safetensors there; give a checkpoint's folder")
    beside = [path for path in sorted(source.iterdir()) if path.is_file() and path.suffix != ".safetensors"]
    files = {path.name: path.read_bytes() for path in beside}
    files["model.safetensors"] = save(quantised(load_file(source / "model.safetensors")), {"format": "pt"})
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for file, content in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    packed = zstandard.ZstdCompressor(level=3, threads=-1).compress(raw.getvalue())
    out.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(packed), PART)):
        (out / f"{name}.{number:03}").write_bytes(packed[start : start + PART])
    print(f"{out}/{name}.*: {len(packed) / 1e6:.0f} MB")


def join(source: Path, out: Path, name: str) -> None:
    parts = sorted(source.glob(f"{name}.[0-9][0-9][0-9]"))
    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder")
    stream = zstandard.ZstdDecompressor().decompressobj()
    try:
        raw = stream.decompress(b"".join(part.read_bytes() for part in parts))
    except zstandard.ZstdError:
        raw = b""
    if [int(part.suffix[1:]) for part in parts] != list(range(len(parts))) or not stream.eof:
        raise UserError(f"{source}: not all parts {name}.000, {name}.001, ... are there and whole; fetch them again")
    with atomic_directory(out) as folder, tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        archive.extractall(folder, filter="data")
        weights = dequantised(load((folder / "model.safetensors").read_bytes()))
        (folder / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pack", "join"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True, help="what the parts' names begin with")
    arguments = parser.parse_args()
    {"pack": pack, "join": join}[arguments.what](arguments.source, arguments.out, arguments.name)


if __name__ == "__main__":
    run_script(main)
