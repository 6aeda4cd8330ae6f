"""Look inside networks: layer by layer in numbers, and at what they see in images."""
