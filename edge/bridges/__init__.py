"""The bridge to the PLC: a station's verdicts where the line can act on them."""
