"""Token shards: their format, and the work that makes them, in parts that survive a kill."""
