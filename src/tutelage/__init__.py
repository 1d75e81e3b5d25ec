"""Raise a language model through its whole education, in one readable PyTorch codebase."""

__version__ = "0.1.0.dev0"
