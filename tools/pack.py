"""Running text as rows of token ids, for a machine that should not spend its time on tokenising: base.text: FILE.npy.

python tools/pack.py simplewiki.txt.xz data/input/smollm2-135m-instruct --length 512 --out rows.npy
"""

import argparse
from pathlib import Path

import numpy as np

from dlm.pipeline.start import run_script
from dlm.config.schema import require
from dlm.data.text import pack, read_documents
from dlm.data.tokenizer import load_tokenizer
from dlm.files import atomic_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="documents separated by blank lines (.txt, also .xz .gz .zst)")
    parser.add_argument("tokenizer", help="a folder, a GGUF file or a name on the hub")
    parser.add_argument("--length", type=int, required=True, help="tokens a row: base.sequence_length")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    require(arguments.length >= 1, "--length", "at least 1", arguments.length)
    documents = read_documents(arguments.text)
    require(bool(documents), str(arguments.text), "a text with a document", "")
    rows = np.array(pack(load_tokenizer(arguments.tokenizer), documents, arguments.length))
    rows = rows.astype(np.uint16 if rows.max() < 2**16 else np.uint32)
    with atomic_path(arguments.out) as temporary, temporary.open("wb") as handle:
        np.save(handle, rows)
    print(f"{arguments.out}: {len(rows)} rows of {arguments.length}")


if __name__ == "__main__":
    run_script(main)
