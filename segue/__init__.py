"""The shared vocabulary: what training and serving must agree on."""

import os

# ONNX Runtime tells its makers how it is used unless told not to, and asks only when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
