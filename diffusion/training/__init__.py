"""Training: state, one compiled step, checkpoints, logs and the loop that calls them."""
