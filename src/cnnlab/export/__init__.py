"""Take a run's network elsewhere: the whole way from decoded pixels to named probabilities in one file."""
