"""Who compares two answers to a prompt, or grades one: a chat endpoint, a local model, the builtin corpus's exact judge."""
