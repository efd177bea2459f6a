"""The plugin `http` with a real RabbitMQ: attacks and agreement, judged by what is delivered; what a revocation takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.acl.attacks import ATTACKS, CLIENTS, SETTINGS, Site
from tests.acl.brokers_rabbitmq import beside_rabbitmq, escape, plain

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with beside_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), SETTINGS, *CLIENTS) as (gateway, broker):
        site = Site(gateway, "rabbitmq", broker.port, 4, escape=escape, plain=plain)
        site.prepare()
        yield site
        site.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_rabbitmq_withstands(here: Site, attack: str) -> None:
    try:
        here.prepare()
        assert (ATTACKS[attack](here) == "") is (attack not in here.lacks)
    finally:
        here.close()
