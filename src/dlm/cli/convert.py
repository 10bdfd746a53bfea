"""`dlm convert`: a published checkpoint, written as one of transformers; an autoregressive one as a denoiser."""

import argparse

import torch

from dlm.config.schema import require
from dlm.data.template import TEMPLATES
from dlm.errors import UserError
from dlm.files import atomic_directory
from dlm.models.adapt import adapt, make_block_causal
from dlm.models.backbone import load_checkpoint, save_checkpoint


def convert(arguments: argparse.Namespace) -> None:
    """Load, write the whole folder or nothing, and say what it is. Raises UserError."""
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder}: is there already; name a new folder")
    if arguments.template is not None and arguments.template not in TEMPLATES:
        raise UserError(f"--template must be one of {', '.join(TEMPLATES)}, got {arguments.template!r}")
    if arguments.causal and arguments.layout == "causal_lm":
        raise UserError("--causal keeps a model autoregressive, --layout causal_lm makes a denoiser of it; give one")
    adapts = arguments.layout == "causal_lm"
    if arguments.logits_shift is not None and not adapts:
        raise UserError("--logits-shift goes with --layout causal_lm, which adapts an autoregressive model")
    if arguments.block_size is not None:
        require(arguments.block_size >= 1, "--block-size", "at least 1", arguments.block_size)
        if arguments.causal:
            raise UserError(
                "--block-size makes a block-causal denoiser, --causal keeps a model autoregressive; give one"
            )
    dtype = "auto" if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    model, tokenizer = load_checkpoint(
        arguments.source,
        causal=adapts or arguments.causal,
        layout=arguments.layout,
        tokenizer=arguments.tokenizer,
        dtype=dtype,
        mask_token=arguments.mask_token,
    )
    if adapts:
        adapt(model, tokenizer, logits_shift=1 if arguments.logits_shift is None else arguments.logits_shift)
    if arguments.block_size is not None:
        make_block_causal(model, arguments.block_size)
    with atomic_directory(arguments.folder) as folder:
        save_checkpoint(folder, model, tokenizer)
        if arguments.template is not None:
            TEMPLATES[arguments.template].save(folder)
    count, kind = model.num_parameters() / 1e6, type(model).__name__
    print(f"{arguments.folder}: {kind}, {count:,.1f}M parameters, {str(model.dtype).removeprefix('torch.')}")
