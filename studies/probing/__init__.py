"""The probing study: run its steps, collect its results, write docs/results.md."""
