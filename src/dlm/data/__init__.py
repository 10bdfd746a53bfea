"""Where text comes from: sources, templates, tokenisation, and the builtin corpus."""
