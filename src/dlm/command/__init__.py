"""The `dlm` command: decoders, generate, infill."""
