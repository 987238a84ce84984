"""Token shards to weights: one loop on Accelerate, its data stream, optimiser, checkpoints and recipes."""
