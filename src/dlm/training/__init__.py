"""transformers' Trainer with this project's losses, for pretraining, SFT, R2FT and the reference alike."""
