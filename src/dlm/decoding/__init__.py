"""Decoding as one loop with orthogonal parts; a decoder is a row of parts (decoder.py)."""
