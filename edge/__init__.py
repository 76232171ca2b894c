"""The inspection station: camera → frame slot → inspector → event.  Never imports torch, `calib` or `train`."""

__version__ = "0.1.0"
