"""Towers that see and hear, a file a family. transformers is imported here alone."""
