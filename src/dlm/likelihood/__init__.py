"""How likely a masked diffusion LM finds given texts: `score` for answers to prompts, `perplexity` for running text."""

from dlm.likelihood.estimate import Perplexity, Scores, perplexity, score

__all__ = ["Perplexity", "Scores", "perplexity", "score"]
