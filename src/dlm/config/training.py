"""Whatever is trained: the blocks `model`, `base`, `reference`, `sft`, `negatives`, `r2ft`."""

from dataclasses import dataclass
from typing import Literal

from dlm.config.checks import check_launcher
from dlm.config.schema import at_least, dotted, require, share
from dlm.errors import UserError


@dataclass(frozen=True)
class ModelParams:
    """Shape of the models that are made here (base and reference alike): Llama blocks, tied embeddings."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    max_length: int
    init_std: float

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["hidden_size", "layers", "heads", "intermediate_size", "max_length"])
        require(self.init_std > 0, dotted(where, "init_std"), "above 0", self.init_std)
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

    steps: int
    batch_size: int
    gradient_accumulation: int
    optimizer: Literal["adamw", "muon"]
    learning_rate: float
    lr_schedule: Literal["constant", "cosine", "linear"]
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    precision: Literal["auto", "fp32", "bf16"]
    gradient_checkpointing: bool
    compile: bool
    eval_every: int
    save_every: int
    minutes: float | None = None

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["steps", "batch_size", "gradient_accumulation", "eval_every", "save_every"])
        at_least(self, where, 0, ["warmup_steps", "weight_decay", "minutes"])
        require(self.learning_rate > 0, dotted(where, "learning_rate"), "above 0", self.learning_rate)
        require(self.max_grad_norm > 0, dotted(where, "max_grad_norm"), "above 0", self.max_grad_norm)


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
        text: train for the training records, or a file: text (data/text.py), or rows of ids (.npy).
        records_share: share of the rows of running text that are made of the training records.
        held_out: share of the documents of `text`, its last ones, for the loss on held-out data and for the n-gram
            scorer; no model is trained on them.
        crop_share: share of the steps whose canvases are cut to a random length (LLaDA's recipe).
    """

    launcher: str
    init: Literal["random", "pretrain", "continue", "checkpoint", "adapt"]
    checkpoint: str
    layout: Literal["auto", "causal_lm", "masked_lm", "llada", "dream", "mdlm"]
    tokenizer: str | None
    logits_shift: Literal[0, 1]
    anneal_steps: int
    rows: Literal["text", "records"]
    text: str
    records_share: float
    held_out: float
    sequence_length: int
    suffix_share: float
    crop_share: float
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        at_least(self, where, 2, ["sequence_length"])
        at_least(self, where, 0, ["anneal_steps"])
        share(self, where, ["suffix_share", "crop_share", "held_out", "records_share"])
        adapts = self.init == "adapt"
        require(adapts or not self.anneal_steps, dotted(where, "anneal_steps"), "0 unless adapted", self.anneal_steps)
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
    top_p: float
    temperature: float
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        share(self, where, ["top_p"])
        require(self.temperature > 0, dotted(where, "temperature"), "above 0", self.temperature)


@dataclass(frozen=True)
class LoraParams:
    """Low-rank adapters in place of full fine-tuning, for SFT and R2FT alike (paper §A.1.2, for LLaDA-8B).

    Attributes:
        rank: 0 trains all weights.
        targets: the linear parts that get adapters, by their last name.
        merge: whether checkpoints are whole models; else the adapter alone, beside the place of its base.
    """

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]
    merge: bool

    def check(self, where: str) -> None:
        at_least(self, where, 0, ["rank"])
        at_least(self, where, 1, ["alpha"])
        share(self, where, ["dropout"])
        require(bool(self.targets), dotted(where, "targets"), "a list of parts", list(self.targets))


@dataclass(frozen=True)
class SftParams:
    """Supervised fine-tuning (docs/method.md §2); the SFT-only model trains `r2ft.training.steps` longer.

    Attributes:
        supervise_padding: whether the SFT-only model's loss counts every EOS of the padding, as in the paper.
        padding_weight: how much each EOS behind the answer's first then counts, against 1 for the answer's tokens.
        crop_share: share of the steps whose canvases are cut to a random length; a rival of R2FT.
    """

    launcher: str
    supervise_padding: bool
    padding_weight: float
    crop_share: float
    lora: LoraParams
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        share(self, where, ["crop_share", "padding_weight"])


@dataclass(frozen=True)
class NegativesParams:
    """Rule-made rejected continuations (paper §A.1.1, Algorithm 1)."""

    rule: Literal["continuation", "inside", "outside"]
    per_example: int
    examples: int | None
    g_max: int
    z_min: int
    z_max: int
    eos_probability: float
    at_least_answer: bool
    high_prior_share: float

    def check(self, where: str) -> None:
        at_least(self, where, 1, ["per_example", "examples", "g_max", "z_min"])
        share(self, where, ["eos_probability", "high_prior_share"])
        require(self.z_max >= self.z_min, dotted(where, "z_max"), f"at least z_min ({self.z_min})", self.z_max)


@dataclass(frozen=True)
class R2ftParams:
    """The R2FT objective (paper Eq. 5) and its short training."""

    launcher: str
    beta_w: float
    beta_l: float
    margin: float
    gamma: float
    training: TrainingParams

    def check(self, where: str) -> None:
        check_launcher(self.launcher, where)
        at_least(self, where, 0, ["beta_w", "beta_l", "gamma"])
