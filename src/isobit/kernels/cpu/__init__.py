"""The CPU kernels: C++ in ``cpp/`` behind a C interface, and its ctypes bindings.

``library`` loads what was built (``library_file`` looks at it first, ``threads`` says how many), ``linear``, ``layer``
and ``stack`` call it, ``formats`` says what it takes, ``status`` shows all of that. ``library``, ``formats`` and
``threads`` need no torch.
"""
