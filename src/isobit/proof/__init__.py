"""Proof without the card: compile kernels for machines that are not here, and read the machine code.

``claims`` says what the rows of ``kernels/gpu/rows.py`` promise, ``build`` compiles and disassembles it, ``listing``
and ``loops`` read the disassembly, ``evidence`` holds what was found and checks it against the promise, ``matrix`` does
all of that for many pairs in parallel, and ``page`` writes docs/support.md. Nothing here is needed to run a model, and
nothing imports torch.
"""
