"""The local web page for runs: watch, compare, try, browse images, train. It reads run folders, not a database."""
