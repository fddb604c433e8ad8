"""The public functions: training, inference, the four steps, and the norms built on them."""
