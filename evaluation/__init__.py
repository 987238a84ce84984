"""Weights -> numbers and pictures: frozen features, heads, probes, generation, reports."""
