"""Commands that make models: they need torch and its company."""
