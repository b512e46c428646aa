"""The functions that Triton compiles, one file per family of work."""
