"""Text, files and figures that cross the program's border; every other room may use these."""
