"""Masked diffusion language models: decoders, rejective fine-tuning, and their evaluation."""

from typing import TYPE_CHECKING, Any

from dlm.errors import UserError

if TYPE_CHECKING:
    from dlm.decoding.lm import DiffusionLM, Generation, Infilling

__all__ = ["DiffusionLM", "Generation", "Infilling", "UserError", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; a script that only reads parameters should not pay for them.
    if name in ("DiffusionLM", "Generation", "Infilling"):
        from dlm.decoding import lm

        return getattr(lm, name)
    raise AttributeError(f"module 'dlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
