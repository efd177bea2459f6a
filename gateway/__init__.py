"""An MQTT gateway for context data: every object has one writer, every observer is in sync."""

__version__ = "0.1.0"
