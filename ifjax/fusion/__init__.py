"""Intra-Fusion: scores, transport maps, merged weights."""
