"""The GPU kernels: what there is (``variant``, ``rows``), which is taken (``selection``, ``fits``), how it is compiled
(``tiles``, ``lane_tiles``, ``configure``), how weights lie (``held``, ``layouts``, ``operands``), on what and with
which memory (``machine``, ``card``, ``workspace``), and how it runs (``bind``, ``run``, ``prepare``, ``rounding``,
``launch``).

``triton/`` has the functions that are compiled and nothing else; ``compile/`` turns one into machine code, ``packs/``
does so ahead of time. What plans read (``rows``, ``selection``, ``fits``, ``tiles``, ``configure``) imports no torch.
"""
