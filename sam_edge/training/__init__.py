"""The one training loop, SAM's losses, prompt sampling, views of pictures; and the recipe of nano."""
