"""From a frame slot to a verdict: before → core → after."""
