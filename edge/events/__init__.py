"""What the station tells the world: events over ZeroMQ, and the client side that reads them."""
