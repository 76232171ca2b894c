"""Watching over a station: signs of life of its threads, systemd, and an HTTP page with its health and metrics."""
