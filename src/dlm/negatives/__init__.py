"""Rule-made rejected answers for R2FT."""
