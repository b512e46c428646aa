"""Machine code of one kernel for one target: what to compile (``request``), Triton called for it (``build``), and
processes that do so side by side (``processes``). Only ``build`` imports Triton.
"""
