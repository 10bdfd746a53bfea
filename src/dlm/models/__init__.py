"""Backbones: making, loading and saving them, and the Denoiser that the decoders see."""
