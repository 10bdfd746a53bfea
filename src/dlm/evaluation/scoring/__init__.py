"""Log-likelihoods of texts under a causal model: perplexity, relevance, and the models that give them."""
