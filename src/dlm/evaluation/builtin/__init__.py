"""The builtin corpus: facts about an invented coast, and lists of its towns."""
