"""The local page over runs: watch, compare, try, browse images, train. It reads run folders; there is no database."""
