"""What goes with a model to the Hub: its card, the media that it has seen, the push."""
