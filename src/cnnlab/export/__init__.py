"""Take a run's network elsewhere: the whole way from decoded pixels to named probabilities in one file."""

import os

# Official builds of onnxruntime report their use to Microsoft and keep a device identifier in the user's cache, from
# their import on. Nobody who classifies images with cnnlab asked for that. A value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
