"""Who compares answers, or grades them: a chat endpoint, a local model, the builtin corpus's exact judge."""
