"""Publishing a model on the Hub: its card, the record of the media that it has seen, and the push."""
