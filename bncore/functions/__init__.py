"""The public functions: train, infer, the four steps, and what is made of them."""
