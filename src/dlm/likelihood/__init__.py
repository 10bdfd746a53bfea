"""How likely a masked diffusion LM finds given texts: `score` for answers to prompts, `perplexity` for running text,
`rolling` for each of several texts; `is_greedy` says which answers greedy decoding would write."""

from dlm.likelihood.estimate import Order, Perplexity, Scores, perplexity, rolling, score
from dlm.likelihood.greedy import is_greedy

__all__ = ["Order", "Perplexity", "Scores", "is_greedy", "perplexity", "rolling", "score"]
