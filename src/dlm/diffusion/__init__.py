"""The diffusion process, the training objectives and the corruption rules: pure functions."""
