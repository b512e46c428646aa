"""Tools that a model may call: what requests say of them, how each family of models writes calls, how they are read."""
