"""What a decoded response is worth: degeneration, speed, perplexity, exact judging, confidence intervals."""
