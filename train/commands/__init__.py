"""Console commands: argument parsing and printing, no logic of their own."""

# Ctrl-C while a command's modules are still being loaded ends in one word, not a traceback.
import edge.commands  # noqa: F401
