"""Pruning through dependency groups, and distillation."""
