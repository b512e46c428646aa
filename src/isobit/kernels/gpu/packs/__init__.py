"""Kernel packs: every kernel that one model needs on one target, compiled ahead of time, launched without a compiler.

``record`` finds out what a model would launch, ``write`` compiles it into a folder, ``manifest`` describes the folder,
``loaded`` opens and checks one, and ``cuda`` launches machine code through the CUDA driver.
"""
