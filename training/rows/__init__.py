"""Training rows by number: from shards, from pixels, from labelled media, and mixtures of them."""
