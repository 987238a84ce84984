"""Heads on frozen features: trained together in one bank, or in closed form, and chosen on validation."""
