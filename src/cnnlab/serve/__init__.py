"""An HTTP service that classifies images with an exported network, without torch: see docs/serve.md."""
