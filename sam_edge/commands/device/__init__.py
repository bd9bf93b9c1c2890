"""Commands that a device runs."""
