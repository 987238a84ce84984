"""Training rows, accessed by number: from shards, pixels or labelled media, and mixtures of them."""
