"""The CUDA runtime: frames stay on the device from the camera's slot to the mask."""
