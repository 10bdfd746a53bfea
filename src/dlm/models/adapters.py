"""Low-rank adapters through peft (paper §A.1.2: LLaDA-8B): trained in place of the weights, merged or kept apart.

peft takes a second to import, so it is imported where an adapter is at work.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dlm.blocks import LoraParams
from dlm.errors import UserError
from dlm.files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter alone."""
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: Path | str) -> str:
    """Where the adapter's base is: a folder or a hub name. Raises UserError where the adapter does not say."""
    base = json.loads((Path(folder) / CONFIG).read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder}: {CONFIG} names no base_model_name_or_path; write the base checkpoint's place there")
    return str(base)


def new_adapter(model: PreTrainedModel, lora: LoraParams, base: Path | str, seed: int) -> Any:
    """`model` in a peft wrapper with fresh adapters, which alone are trained.

    Args:
        base: what the adapter names as its base checkpoint.

    Raises:
        UserError: a target that is no part of the model.
    """
    from peft import LoraConfig, get_peft_model

    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if unknown := [target for target in lora.targets if target not in parts]:
        linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
        raise UserError(
            f"params.yaml: sft.lora.targets: {', '.join(unknown)} is no part of {base}; it has {', '.join(linear)}"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        base_model_name_or_path=Path(base).as_posix(),
    )
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def read_adapter(model: PreTrainedModel, folder: Path | str, *, trainable: bool) -> Any:
    """`model` in a peft wrapper with a saved adapter. Raises UserError for a broken one."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # safetensors raises its own, undocumented type for a truncated file
        raise UserError(f"{folder}: no adapter could be loaded: {' '.join(str(error).split())[:300]}") from None


def is_wrapped(model: Any) -> bool:
    """Whether a model is in a peft wrapper; whoever wrapped it has imported peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def unwrapped(model: Any) -> PreTrainedModel:
    """The model inside a wrapper, its adapters at work in it; any other model as it is."""
    inner: PreTrainedModel = model.get_base_model() if is_wrapped(model) else model
    return inner


def merged(model: Any) -> PreTrainedModel:
    """A wrapped model with its adapters added to the weights; any other model as it is."""
    whole: PreTrainedModel = model.merge_and_unload() if is_wrapped(model) else model
    return whole


def save_adapter(model: Any, folder: Path) -> None:
    """The adapters of a wrapped model alone, the same bytes every time."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set in the order of its hashes
    write_json(folder / CONFIG, config)


def restore(model: Any, checkpoint: Path) -> None:
    """The trained weights of a Trainer's checkpoint, into the model that it is of."""
    if not is_wrapped(model):
        model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        return
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS))


def _is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear)
