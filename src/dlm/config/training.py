"""Whatever is trained: the blocks `model`, `base`, `reference`, `sft`, `negatives`, `r2ft`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from dlm.config.checks import check_launcher
from dlm.config.schema import AtLeast, Count, Natural, NonNegative, Positive, Share, dotted, require
from dlm.errors import UserError


@dataclass(frozen=True)
class ModelParams:
    """Shape of the models that are made here (base and reference alike): Llama blocks, tied embeddings."""

    hidden_size: Count
    layers: Count
    heads: Count
    intermediate_size: Count
    max_length: Count
    init_std: Positive

    def check(self, where: str) -> None:
        if self.hidden_size % (2 * self.heads):
            raise UserError(
                f"{where}.hidden_size must be an even multiple of {where}.heads, "
                f"got {self.hidden_size} and {self.heads}"
            )


@dataclass(frozen=True)
class TrainingParams:
    """One training run. `batch_size` sequences go through the model at once, times `gradient_accumulation` a step.

    Attributes:
        minutes: after which training ends though `steps` are not reached, null for never.
    """

    steps: Count
    batch_size: Count
    gradient_accumulation: Count
    optimizer: Literal["adamw", "muon"]
    learning_rate: Positive
    lr_schedule: Literal["constant", "cosine", "linear"]
    warmup_steps: Natural
    weight_decay: NonNegative
    max_grad_norm: Positive
    precision: Literal["auto", "fp32", "bf16"]
    gradient_checkpointing: bool
    compile: bool
    eval_every: Count
    save_every: Count
    minutes: NonNegative | None = None


@dataclass(frozen=True)
class BaseParams:
    """The base checkpoint: random, pretrained here (from scratch, or on from `checkpoint`), one that exists, or an
    autoregressive one that is adapted (docs/adapt.md).

    Attributes:
        launcher: what starts the stage's script, and how many processes of it (docs/scale.md).
        layout: of `checkpoint` (models.layouts).
        tokenizer: where the tokenizer of `checkpoint` is, null for beside it.
        logits_shift: of an adapted model: 1 keeps the next token's logits where they are, position i is predicted at
            i - 1; 0 predicts each position at itself.
        anneal_steps: of adaptation: steps over which causal attention becomes full, 0 for full at once.
        block_size: of a block-causal model, which the base is from here on (models/blocks.py); 0 leaves it as it is.
        text: train for the training records, or a file: text (data/text.py), or rows of ids (.npy).
        records_share: share of the rows of running text that are made of the training records.
        held_out: share of the documents of `text`, its last ones, for the loss on held-out data and for the n-gram
            scorer; no model is trained on them.
        crop_share: share of the steps whose canvases are cut to a random length (LLaDA's recipe).
    """

    launcher: str
    init: Literal["random", "pretrain", "continue", "checkpoint", "adapt"]
    checkpoint: str
    layout: Literal["auto", "causal_lm", "masked_lm", "llada", "dream", "mdlm", "bd3lm", "sdar", "fast_dllm"]
    tokenizer: str | None
    logits_shift: Literal[0, 1]
    anneal_steps: Natural
    block_size: Natural
    rows: Literal["text", "records"]
    text: str
    records_share: Share
    held_out: Share
    sequence_length: Annotated[int, AtLeast(2)]
    suffix_share: Share
    crop_share: Share
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        adapts = self.init == "adapt"
        require(adapts or not self.anneal_steps, dotted(where, "anneal_steps"), "0 unless adapted", self.anneal_steps)
        for name in ("anneal_steps", "suffix_share"):
            value = getattr(self, name)
            require(not (self.block_size and value), dotted(where, name), "0 where block_size is not", value)
        other = self.rows == "text" and self.text != "train"
        requirement = "0 where the rows are the training records alone"
        require(other or not self.records_share, dotted(where, "records_share"), requirement, self.records_share)
        cuts = self.rows == "records" or not self.suffix_share
        require(cuts, dotted(where, "suffix_share"), "0 where rows is text", self.suffix_share)
        either = not self.suffix_share or not self.crop_share
        require(either, dotted(where, "crop_share"), "0 where suffix_share is not", self.crop_share)
        ours = self.rows == "text" or self.text == "train"
        require(ours, dotted(where, "text"), "train where rows is records", self.text)
        holds_out_text = self.text != "train" or not self.held_out
        requirement = "0 where text is train: data.valid_size is held out"
        require(holds_out_text, dotted(where, "held_out"), requirement, self.held_out)
        require(self.held_out < 1, dotted(where, "held_out"), "below 1", self.held_out)


@dataclass(frozen=True)
class ReferenceParams:
    """The autoregressive reference: same shape, same SFT data; it answers by nucleus sampling and scores perplexity.

    Attributes:
        init: what the records are learnt on top of; pretrain: as the base (its text, its block `training`).
    """

    launcher: str
    init: Literal["random", "pretrain", "checkpoint"]
    checkpoint: str
    top_p: Share
    temperature: Positive
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)


@dataclass(frozen=True)
class LoraParams:
    """Low-rank adapters in place of full fine-tuning, for SFT and R2FT alike (paper §A.1.2, for LLaDA-8B).

    Attributes:
        rank: 0 trains all weights.
        targets: the linear parts that get adapters, by their last name.
        merge: whether checkpoints are whole models; else the adapter alone, beside the place of its base.
    """

    rank: Natural
    alpha: Count
    dropout: Share
    targets: tuple[str, ...]
    merge: bool

    def check(self, where: str) -> None:
        require(bool(self.targets), dotted(where, "targets"), "a list of parts", list(self.targets))


@dataclass(frozen=True)
class SftParams:
    """Supervised fine-tuning (docs/method.md §2); the SFT-only model trains `r2ft.training.steps` longer.

    Attributes:
        supervise_padding: whether the SFT-only model's loss counts every EOS of the padding, as in the paper.
        padding_weight: how much each EOS behind the answer's first then counts, against 1 for the answer's tokens.
        crop_share: share of the steps whose canvases are cut to a random length; a rival of R2FT.
        loss_average: what weighs the same in a step's loss: each token that counts, or each example (its own mean).
    """

    launcher: str
    supervise_padding: bool
    padding_weight: Share
    crop_share: Share
    lora: LoraParams
    training: TrainingParams
    loss_average: Literal["token", "example"] = "token"

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)


@dataclass(frozen=True)
class NegativesParams:
    """Rule-made rejected continuations (paper §A.1.1, Algorithm 1)."""

    rule: Literal["continuation", "inside", "outside"]
    per_example: Count
    examples: Count | None
    g_max: Count
    z_min: Count
    z_max: int
    eos_probability: Share
    at_least_answer: bool
    high_prior_share: Share

    def check(self, where: str) -> None:
        require(self.z_max >= self.z_min, dotted(where, "z_max"), f"at least z_min ({self.z_min})", self.z_max)


@dataclass(frozen=True)
class R2ftParams:
    """The R2FT objective (paper Eq. 5) and its short training."""

    launcher: str
    beta_w: NonNegative
    beta_l: NonNegative
    margin: float
    gamma: NonNegative
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
