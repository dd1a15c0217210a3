"""Pruning of language models: layer by layer on calibration text, and perplexity."""
