"""Text, files and figures that enter or leave the program; every other package may import these."""
