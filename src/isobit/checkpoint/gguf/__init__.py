"""Files of llama.cpp: what they hold, checked byte by byte, and the files of a model's folder made of it.

Nothing here imports what reads a model's small files: those come here for the ones that a GGUF file stands for.
"""
