"""The denoiser that the decode loop sees: hidden states of a canvas, and the head only where it is asked for."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel


class Denoiser:
    """A backbone with the SUBS parameterisation: the mask token never gets probability (METHOD §1).

    The vocabulary projection is a large part of a small model's work; callers gather the positions first and get
    exactly the logits that a full projection would give there.
    """

    def __init__(self, model: PreTrainedModel, mask_id: int, *, bf16: bool = False) -> None:
        self.model = model.eval()
        self.mask_id = mask_id
        self.bf16 = bf16

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    def hidden(
        self, canvas: Int[Tensor, "batch length"], valid: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Final hidden states; positions that are not `valid` (right padding) are not attended to."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.model.get_decoder()(input_ids=canvas, attention_mask=valid.long(), use_cache=False)
        return output.last_hidden_state

    def logits(self, hidden: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        """Float32 logits of some positions; the mask token's is -inf."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model.get_output_embeddings()(hidden)
        logits = logits.float()
        logits[:, self.mask_id] = float("-inf")
        return logits
