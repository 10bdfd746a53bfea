"""What a decoded response is worth: degeneration, speed, perplexity, judges, win rates, confidence intervals."""

from dlm.evaluation.winrate import length_controlled_win_rate, win_rate

__all__ = ["length_controlled_win_rate", "win_rate"]
