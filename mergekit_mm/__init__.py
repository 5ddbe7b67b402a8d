"""Merge multimodal LLMs with stock mergekit. Imports nothing: every start of a Python interpreter loads this file."""

__version__ = "0.2.0"
