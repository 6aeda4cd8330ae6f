"""Looking at networks: their layers in numbers, and the chapter's figures."""
