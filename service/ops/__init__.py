"""What operators ask for: logs, metrics, traces, status, readiness."""
