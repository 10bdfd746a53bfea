"""Low-rank adapters through peft (paper §A.1.2: LLaDA-8B): trained in place of the weights, merged or kept apart.

peft takes a second to import, so it is imported where an adapter is at work.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from dlm.config.training import LoraParams
from dlm.errors import UserError
from dlm.files import read_json, write_json
from dlm.models.layouts import llama_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in an adapter


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter alone."""
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: Path | str) -> str:
    """Where the adapter's base is: a folder or a hub name. Raises UserError where the adapter does not say."""
    base = read_json(Path(folder) / CONFIG).get("base_model_name_or_path")
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
    """`model` in a peft wrapper with a saved adapter, in its own names or in LLaDA's.

    Raises:
        UserError: an adapter of another kind than LoRA, a broken one, or one with weights that the model has no place
            for, or without some that it wants.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(folder)
    kind = read_json(folder / CONFIG).get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}: an adapter of type {kind}, only LORA can be read; merge it, give the whole model")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no {WEIGHTS} there; save the adapter as safetensors")
    try:
        config: Any = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        published = load_file(folder / WEIGHTS)
        weights = {PREFIX + llama_name(name.removeprefix(PREFIX)): value for name, value in published.items()}
        if weights.keys() != published.keys():
            _rename(config, published)
        wrapped = PeftModel(model, config)
        expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
        differences = [f"{what}: {_some(names)}" for what, names in _differences(weights.keys(), expected) if names]
        if not differences:
            set_peft_model_state_dict(wrapped, weights)
            return wrapped.train(model.training)
    except Exception as error:  # safetensors raises its own, undocumented type for a truncated file
        raise UserError(f"{folder}: no adapter could be loaded: {' '.join(str(error).split())[:300]}") from None
    raise UserError(f"{folder}: the adapter's weights are not those of its config and base, {'; '.join(differences)}")


def _rename(config: Any, published: Iterable[str]) -> None:
    """A LoraConfig in LLaDA's names, in Llama's, in place: whatever has weights, by its full name."""
    from peft.utils.other import get_pattern_key

    names = [name.removeprefix(PREFIX).rpartition(".weight")[0] or name for name in published]
    targets = sorted({name.partition(".lora_")[0] for name in names if ".lora_" in name})
    config.target_modules = {_module(name) for name in targets}
    whole = sorted({_module(name).rpartition(".")[2] for name in names if ".lora_" not in name})
    config.modules_to_save = whole or None
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    for pattern in (config.rank_pattern, config.alpha_pattern):
        settings = dict(pattern)
        pattern.clear()
        for name in targets:
            if (value := settings.get(get_pattern_key(list(settings), name))) is not None:
                pattern[re.escape(_module(name))] = value


def _module(name: str) -> str:
    return llama_name(f"{name}.").removesuffix(".")


def _differences(given: Iterable[str], expected: Iterable[str]) -> list[tuple[str, list[str]]]:
    given, expected = set(given), set(expected)
    return [("missing", sorted(expected - given)), ("left over", sorted(given - expected))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
    config = read_json(folder / CONFIG)
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
