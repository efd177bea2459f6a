"""MQTT 5 properties of a PUBLISH, for paho-mqtt."""

from __future__ import annotations

from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


def publish_properties() -> Any:
    """Empty PUBLISH properties; members are set by their names in MQTT 5."""
    # paho has no types for this one.
    make: Any = Properties
    return make(PacketTypes.PUBLISH)


def user_property(*pairs: tuple[str, str]) -> Any:
    """PUBLISH properties with these user properties."""
    properties = publish_properties()
    properties.UserProperty = list(pairs)
    return properties


def properties_of(response_topic: str | None, correlation: bytes | None, number: str | None) -> Any:
    """PUBLISH properties with these members, None where there is none."""
    if response_topic is None and number is None:
        return None
    properties = publish_properties()
    if response_topic is not None:
        properties.ResponseTopic = response_topic
        properties.CorrelationData = correlation
    if number is not None:
        properties.UserProperty = [("id", number)]
    return properties
