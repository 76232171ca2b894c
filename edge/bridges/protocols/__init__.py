"""One module for each protocol, named as in `bridge.toml`; each has a `PROTOCOL`, see `edge.bridges.base`."""
