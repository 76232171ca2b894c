"""What starts an inspection: a request, a signal at a GPIO line, or the camera's own trigger."""
