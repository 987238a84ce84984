"""The training of visual tokenizers: losses, steps, loop."""
