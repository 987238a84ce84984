"""Training of visual tokenizers: losses, steps and loop."""
