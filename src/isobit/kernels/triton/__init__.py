"""The GPU kernels, in Triton: one file per family of work. Only ``bind.py`` and ``launch.py`` import torch."""
