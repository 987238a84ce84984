"""The engine of every training: the loop, the optimiser, checkpoints, the life of a run folder."""
