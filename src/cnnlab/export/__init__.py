"""Export a run's network: everything from decoded pixels to named probabilities, in one file."""

import os

# Official builds of onnxruntime, once imported, report their use to Microsoft and keep a device identifier in the
# user's cache. Users of cnnlab have not agreed to that. A value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
