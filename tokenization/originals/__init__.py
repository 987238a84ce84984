"""The published tokenizers' original files: fetched by their hashes, and read without unpickling."""
