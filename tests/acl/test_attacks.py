"""The table of attacks against the broker inside, in both protocol versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acl.attacks import ATTACKS, CLIENTS, SETTINGS, Site
from tests.inside import inside

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=[5, 4], ids=["v5", "v311"])
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with inside(tmp_path_factory.mktemp("attacks"), SETTINGS, *CLIENTS) as gateway:
        site = Site(gateway, "inside", gateway.port, request.param)
        site.prepare()
        yield site
        site.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_broker_inside_withstands(here: Site, attack: str) -> None:
    try:
        here.prepare()
        assert ATTACKS[attack](here) == ""
    finally:
        here.close()
