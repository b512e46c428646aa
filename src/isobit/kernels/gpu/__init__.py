"""The GPU kernels: what there is (``rows``), which is taken (``choose``, ``fits``), how it is compiled (``tiles``,
``lane_tiles``), how weights lie (``layouts``, ``operands``), and how it runs (``bind``, ``run``, ``launch``).

``triton/`` has the functions that are compiled and nothing else; ``compile/`` turns one into machine code, ``packs/``
does so ahead of time. What plans read (``rows``, ``choose``, ``fits``, ``tiles``, ``lane_tiles``) imports no torch.
"""
