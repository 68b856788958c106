"""Operations: status, readiness, metrics and tracing."""
