"""Console commands: argument parsing and printing, no logic of their own."""

# Ctrl-C while a command's modules are still being loaded ends in one word, not a traceback.
import edge.commands  # noqa: F401

#: Modules of the extra `train` that every command here imports sooner or later.
NEEDED = ("torch", "onnx", "sklearn", "skimage", "scipy", "matplotlib", "tensorboard")
