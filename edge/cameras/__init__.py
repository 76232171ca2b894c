"""Where frames come from, one file per kind of camera, and the ring of frame slots they are written into."""
