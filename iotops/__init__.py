"""iotops keeps a Raspberry Pi IoT hub recoverable."""

__version__ = "0.1.0"
