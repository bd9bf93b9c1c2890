"""Synthetic scenes with exact masks, for training and testing without photos."""
