"""Reverse Speculative Decoding (arXiv 2509.22230): traces, training, evaluation, comparison."""

__version__ = "0.1.0"
