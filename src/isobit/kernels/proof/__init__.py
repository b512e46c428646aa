"""Proof without the card: compile kernels for machines that are not here, and read the machine code.

``request`` says what to compile, ``build`` compiles it in Triton without a GPU, ``listing`` and ``loops`` read the
disassembly, ``evidence`` holds what was found and checks it against what the rows of ``kernels/variants.py`` promise,
``matrix`` does all of that for many pairs in parallel, and ``page`` writes docs/support.md. Only ``build`` and
``worker`` import Triton; nothing here imports torch.
"""
