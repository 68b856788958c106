"""Definitions that training and serving share: tracks, plays, session windows, releases, metrics and errors."""

import os

# ONNX Runtime sends usage data to its developers unless this variable is set before its first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
