"""Console commands: argument parsing and printing, no logic of their own."""
