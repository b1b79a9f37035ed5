"""Subscribers of the hooks, each with an extra of its own and imported only by name: `queue_kit.telemetry.metrics` and
`queue_kit.telemetry.queue_state` for Prometheus (extra `metrics`), `queue_kit.telemetry.tracing` for OpenTelemetry
(extra `tracing`). Logging needs neither: see docs/telemetry.md.
"""
