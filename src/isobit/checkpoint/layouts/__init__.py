"""Ways to store the weights of a linear, one file each; ``table`` lists them."""
