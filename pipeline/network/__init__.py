"""Layers as lists of blocks; no loss, no optimizer."""
