"""A service over HTTP that classifies images with an exported network. No torch: see docs/serve.md."""
