"""What computes the parts of a decoder layer beside its linears; ``table`` has the rows and chooses."""
