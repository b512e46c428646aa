"""The files beside the weights that say how text becomes tokens, and how a model wants its tokens chosen."""
