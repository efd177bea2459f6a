"""Tokens: what is refused, whose keys are believed, and log-ins over real sockets that end when the token does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.acl.embedded import EmbeddedAcl
from gateway.broker.house import Limits
from gateway.broker.listeners import Listener
from gateway.credentials import Credentials
from gateway.links.local import Entrance, LocalLink
from gateway.objects import Objects
from gateway.rights import Clients, Rights, TopicRule
from gateway.settings import SettingsError, load
from gateway.tokens import (
    MAX_TOKEN_BYTES,
    Bearers,
    Identity,
    Rules,
    TokenError,
    TokenKeyError,
    Tokens,
    claimed,
    looks_like_token,
)
from gateway.wire.packets import Connack, Connect
from tests.broker.world import RawClient, close_all, run, until
from tests.inside import inside
from tests.test_backoff import Nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.service import Service

NOW = 1_800_000_000.0
SECRET = b"0123456789abcdef0123456789abcdef"
LONG = SECRET * 2
OPEN = Rules()
STRICT = Rules(issuer="https://idp.home.local", audience="ctxt", leeway=5)
GOOD: dict[str, Any] = {"sub": "oven", "exp": NOW + 60, "iss": STRICT.issuer, "aud": "ctxt"}
PAST_ALL = PyJWS()


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def encoded(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(claims: Any, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> bytes:
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return PAST_ALL.encode(payload, key, algorithm, header).encode()


def shared(folder: Path, secret: bytes = SECRET, rules: Rules = STRICT, clock: Any = None) -> Tokens:
    file = folder / "shared.key"
    file.write_bytes(secret)
    file.chmod(0o600)
    return Tokens(key_file=file, rules=rules, clock=clock or Clock())


def jwk(key: Any, name: str | None = None, **rest: Any) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        found = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        found = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**found, **({} if name is None else {"kid": name}), **rest}


def published(folder: Path, *keys: dict[str, Any], rules: Rules = STRICT, **rest: Any) -> Tokens:
    file = folder / "jwks.json"
    file.write_text(json.dumps({"keys": keys}))
    return Tokens(jwks=file, rules=rules, clock=Clock(), **rest)


@pytest.fixture(scope="module")
def curve() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def modulus() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


# Form ------------------------------------------------------------------------------------------------------------------


def test_a_good_token_names_a_client_its_groups_and_when_it_ends(tmp_path: Path) -> None:
    tokens = shared(tmp_path)
    found = tokens.check(sign({**GOOD, "groups": ["kitchen", "night-shift"]}))
    assert found == Identity("oven", frozenset({"kitchen", "night-shift"}), NOW + 65)
    assert tokens.check(sign({**GOOD, "aud": ["other", "ctxt"]})).groups == frozenset()
    assert tokens.check(sign(GOOD, typ="at+jwt", kid="whatever")).client == "oven"
    assert not tokens.slow


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"exp": None}, "does not say when it expires"),
        ({"exp": NOW - 5}, "has expired"),
        ({"exp": NOW + 367 * 86_400}, "longer than tokens may be"),
        ({"exp": str(NOW + 60)}, "exp is no time"),
        ({"exp": True}, "exp is no time"),
        ({"exp": 10**400}, "longer than tokens may be|no JSON object"),
        ({"nbf": NOW + 6}, "not good yet"),
        ({"nbf": "now"}, "nbf is no time"),
        ({"iat": NOW + 3600}, "not good yet"),
        ({"iss": "https://idp.example"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"iss": [STRICT.issuer]}, "another issuer"),
        ({"aud": None}, "for whom"),
        ({"aud": "other"}, "for somebody else"),
        ({"aud": ["other"]}, "for somebody else"),
        ({"aud": {"ctxt": 1}}, "for somebody else"),
        ({"aud": ["ctxt"] * 101}, "for somebody else"),
        ({"sub": None}, "does not name a client"),
        ({"sub": 7}, "does not name a client"),
        ({"sub": ["oven"]}, "does not name a client"),
        ({"sub": "gateway"}, "cannot be"),
        ({"sub": "anonymous"}, "cannot be"),
        ({"sub": "oven/+"}, "cannot be"),
        ({"sub": "oven\n"}, "cannot be"),
        ({"sub": ""}, "cannot be"),
        ({"sub": "o" * 65}, "cannot be"),
        ({"groups": "kitchen"}, "no list"),
        ({"groups": {"kitchen": 1}}, "no list"),
        ({"groups": ["kitchen", 7]}, "group that cannot be"),
        ({"groups": ["@kitchen"]}, "group that cannot be"),
        ({"groups": ["*"]}, "group that cannot be"),
        ({"groups": ["k"] * 101}, "no list"),
    ],
)
def test_what_a_signed_token_may_not_say(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    claims = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(TokenError, match=says):
        shared(tmp_path).check(sign(claims))


def test_clocks_may_differ_by_the_leeway_and_no_more(tmp_path: Path) -> None:
    clock = Clock()
    tokens = shared(tmp_path, clock=clock)
    token = sign({**GOOD, "nbf": NOW + 5})
    assert tokens.check(token).client == "oven"
    clock.now = NOW + 64.9
    assert tokens.check(token).client == "oven"
    clock.now = NOW + 65
    with pytest.raises(TokenError, match="expired"):
        tokens.check(token)


def test_a_token_for_somebody_is_refused_where_the_gateway_has_no_name(tmp_path: Path) -> None:
    tokens = shared(tmp_path, rules=OPEN)
    assert tokens.check(sign({"sub": "oven", "exp": NOW + 60, "iss": "anybody"})).client == "oven"
    with pytest.raises(TokenError, match="somebody else"):
        tokens.check(sign({"sub": "oven", "exp": NOW + 60, "aud": "ctxt"}))


def test_other_members_may_hold_client_and_groups(tmp_path: Path) -> None:
    tokens = shared(tmp_path, rules=Rules(client_claim="device", groups_claim="https://home.local/roles"))
    found = tokens.check(sign({"sub": "7c0e!", "device": "oven", "exp": NOW + 9, "https://home.local/roles": ["a"]}))
    assert (found.client, found.groups) == ("oven", frozenset({"a"}))


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"eyJ",
        b"eyJ..",
        b"eyJhbGciOiJIUzI1NiJ9.e30",
        b"eyJhbGciOiJIUzI1NiJ9.e30.",
        b"eyJhbGciOiJIUzI1NiJ9.e30.AA.AA",
        b"eyJhbGciOiJIUzI1NiJ9.e30.A A",
        b"eyJhbGciOiJIUzI1NiJ9.!!!.AAAA",
        b"eyJ\xff.e30.AAAA",
        b"eyJ" + b"A" * 70_000 + b".e30.AAAA",
        encoded({"alg": "HS256"}) + b"=.e30.AAAA",
        encoded([1]) + b".e30.AAAA",
        encoded(b'{"alg":' + b"[" * 2_000) + b".e30.AAAA",
        sign(b"[]"),
        sign(b"{" * 3_000),
        sign(b'{"sub":"oven","exp":NaN}'),
        sign(b'{"sub":"oven","exp":Infinity}'),
        sign(b""),
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, token: bytes) -> None:
    with pytest.raises(TokenError):
        shared(tmp_path).check(token)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_are_believed_or_break_anything(tmp_path: Path, data: st.DataObject) -> None:
    tokens = shared(tmp_path)
    good = sign({**GOOD, "groups": ["kitchen"]})
    at = data.draw(st.integers(0, len(good) - 1))
    wrong = good[:at] + data.draw(st.binary(min_size=0, max_size=3)) + good[at + 1 :]
    claimed(wrong, "sub")
    if wrong == good:
        return
    with pytest.raises(TokenError):
        tokens.check(wrong)


def test_the_longest_token_is_longer_than_real_ones_and_bounded(tmp_path: Path) -> None:
    tokens = shared(tmp_path)
    assert tokens.check(sign({**GOOD, "more": "x" * 8_000})).client == "oven"
    token = sign({**GOOD, "more": "x" * MAX_TOKEN_BYTES})
    assert looks_like_token(token)
    assert claimed(token, "sub") == ""
    with pytest.raises(TokenError, match="longer than"):
        tokens.check(token)


def test_passwords_that_are_no_tokens_are_told_from_tokens() -> None:
    assert looks_like_token(sign(GOOD))
    for password in (b"correct horse", b"eyJ", b"eyJ.a", b"a.b.c", b"eyJa.b.c d", b"eyJa.b.c\n", b"eyJ\xff.b.c"):
        assert not looks_like_token(password)


def test_whom_a_token_claims_to_name_is_read_without_believing_it() -> None:
    assert claimed(sign(GOOD, LONG), "sub") == "oven"
    for token in (b"", b"eyJ", b"eyJ.!.a", b"eyJ.e30.a", sign([1]), sign({"sub": 7})):
        assert claimed(token, "sub") == ""


# Algorithms ------------------------------------------------------------------------------------------------------------


def test_the_header_does_not_choose_how_it_is_checked(tmp_path: Path, curve: Any, modulus: Any) -> None:
    pem = modulus.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = jwk(modulus, "a")
    public = published(tmp_path, key, jwk(curve, "b"))
    assert public.slow
    assert public.check(sign(GOOD, modulus, "RS256", kid="a")).client == "oven"
    assert public.check(sign(GOOD, modulus, "PS512", kid="a")).client == "oven"
    assert public.check(sign(GOOD, curve, "ES256", kid="b")).client == "oven"
    # A public key taken for a shared one: the whole key, or what is in the file.
    for material in (pem, key["n"].encode(), json.dumps(key).encode()):
        head = encoded({"alg": "HS256", "typ": "JWT", "kid": "a"}) + b"." + encoded(GOOD)
        forged = head + b"." + encoded(hmac.new(material, head, hashlib.sha256).digest())
        with pytest.raises(TokenError, match="algorithm"):
            public.check(forged)
    for algorithm in ("none", "None", "nOnE", "", None, 7, ["RS256"], "HS256", "ES256"):
        for signature in (b"", b"AAAA"):
            token = encoded({"alg": algorithm, "kid": "a"}) + b"." + encoded(GOOD) + b"." + signature
            with pytest.raises(TokenError, match="algorithm"):
                public.check(token)
    # Another's signature, under the name of this key.
    with pytest.raises(TokenError, match="signature"):
        public.check(sign(GOOD, rsa.generate_private_key(65537, 2048), "RS256", kid="a"))
    with pytest.raises(TokenError, match="signature"):
        public.check(sign(GOOD, ec.generate_private_key(ec.SECP256R1()), "ES256", kid="b"))


def test_a_shared_key_takes_the_algorithms_that_it_is_long_enough_for(tmp_path: Path) -> None:
    assert shared(tmp_path, LONG).check(sign(GOOD, LONG, "HS512")).client == "oven"
    with pytest.raises(TokenError, match="HS256"):
        shared(tmp_path, SECRET).check(sign(GOOD, LONG, "HS512"))
    with pytest.raises(TokenError, match="signature"):
        shared(tmp_path).check(sign(GOOD, LONG))
    shared(tmp_path, SECRET + b"\n").check(sign(GOOD))
    for short in (b"", b"short", SECRET[:-1], SECRET[:-1] + b"\n"):
        with pytest.raises(TokenKeyError, match="less than 32 bytes"):
            shared(tmp_path, short)


def test_a_public_key_is_no_shared_key(tmp_path: Path, curve: Any) -> None:
    pem = curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for content in (pem, json.dumps({"keys": [jwk(curve)]}).encode()):
        with pytest.raises(TokenKeyError, match="no shared key"):
            shared(tmp_path, content)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"crit": ["exp"], "exp": NOW}, "extension"),
        ({"crit": []}, "extension"),
        ({"b64": False}, "extension"),
        ({"typ": "logout+jwt"}, "made for something else"),
        ({"typ": "dpop+jwt"}, "made for something else"),
        ({"typ": 7}, "made for something else"),
        ({"kid": "c"}, "not known"),
        ({"kid": 7}, "not known"),
        ({}, "does not name its key"),
        # Keys and where to find them are not the token's to say.
        ({"jwk": {"kty": "oct", "k": "AAAA"}, "jku": "https://evil.example/jwks.json"}, "does not name its key"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, curve: Any, modulus: Any, header: Any, says: str) -> None:
    tokens = published(tmp_path, jwk(curve, "a"), jwk(modulus, "b"))
    token = encoded({"alg": "ES256", **header}) + b"." + encoded(GOOD) + b"." + b"A" * 86
    with pytest.raises(TokenError, match=says):
        tokens.check(token)


def test_kinds_of_keys(tmp_path: Path, curve: Any) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    wide = ec.generate_private_key(ec.SECP521R1())
    tokens = published(tmp_path, jwk(edwards, "e"), jwk(wide, "w"), jwk(curve, "c", use="sig", alg="ES256"))
    assert tokens.check(sign(GOOD, edwards, "EdDSA", kid="e")).client == "oven"
    assert tokens.check(sign(GOOD, wide, "ES512", kid="w")).client == "oven"
    assert tokens.check(sign(GOOD, curve, "ES256", kid="c")).client == "oven"


def test_a_single_key_needs_no_name(tmp_path: Path, curve: Any) -> None:
    assert published(tmp_path, jwk(curve)).check(sign(GOOD, curve, "ES256")).client == "oven"
    assert published(tmp_path, jwk(curve, "a")).check(sign(GOOD, curve, "ES256")).client == "oven"
    with pytest.raises(TokenError, match="not known"):
        published(tmp_path, jwk(curve, "a")).check(sign(GOOD, curve, "ES256", kid="b"))


def test_keys_that_are_not_for_signatures_or_too_weak_are_left_out(tmp_path: Path, curve: Any) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    useless = [
        jwk(weak, "weak"),
        jwk(curve, "enc", use="enc"),
        jwk(curve, "ops", key_ops=["sign"]),
        jwk(curve, "alg", alg="HS256"),
        jwk(curve, "kid") | {"kid": 7},
        {"kty": "oct", "k": "AAAA", "kid": "shared"},
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        {"kty": "EC", "crv": ["P-256"]},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        "key",
        None,
    ]
    tokens = published(tmp_path, *useless, jwk(curve, "good"))  # type: ignore[arg-type]
    assert tokens.check(sign(GOOD, curve, "ES256", kid="good")).client == "oven"
    for name in ("weak", "enc", "ops", "alg", "shared"):
        with pytest.raises(TokenError, match="not known"):
            tokens.check(sign(GOOD, curve, "ES256", kid=name))
    with pytest.raises(TokenKeyError, match="no public key for signatures"):
        published(tmp_path, *useless)  # type: ignore[arg-type]
    with pytest.raises(TokenKeyError, match="several keys of one name"):
        published(tmp_path, jwk(curve, "a"), jwk(curve, "a"))


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"keys": 7}', "x" * 300_000, json.dumps({"keys": [{}] * 101}), "[" * 5000]
)
def test_files_that_are_no_key_sets(tmp_path: Path, content: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content)
    with pytest.raises(TokenKeyError, match=r"jwks\.json"):
        Tokens(jwks=file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenKeyError, match=r"nowhere\.json cannot be read: No such file"):
        Tokens(jwks=tmp_path / "nowhere.json")


def test_no_error_has_a_part_of_the_token(tmp_path: Path) -> None:
    tokens = shared(tmp_path)
    marked = "Zebra77"
    attempts = [
        sign({**GOOD, "sub": marked + "/"}),
        sign({**GOOD, "iss": marked}),
        sign({**GOOD, "aud": marked}),
        sign({**GOOD, "exp": marked}),
        sign({**GOOD, "groups": [marked + "!"]}),
        sign({**GOOD, "sub": marked}, LONG),
        encoded({"alg": marked, "kid": marked}) + b".e30.AAAA",
        encoded({"alg": "HS256", "typ": marked}) + b".e30.AAAA",
    ]
    for token in attempts:
        with pytest.raises(TokenError) as caught:
            tokens.check(token)
        assert marked not in str(caught.value)
        assert token.decode()[:20] not in str(caught.value)
        assert caught.value.__cause__ is None


# Keys that change ------------------------------------------------------------------------------------------------------


def replace(file: Path, *keys: Any) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": keys}))
    fresh.replace(file)


def test_a_new_key_is_found_when_a_token_names_it_but_not_more_often_than_each_second(
    tmp_path: Path, curve: Any, modulus: Any
) -> None:
    ticks = Clock(100)
    tokens = published(tmp_path, jwk(curve, "old"), ticks=ticks)
    fresh = sign(GOOD, modulus, "RS256", kid="new")
    replace(tmp_path / "jwks.json", jwk(modulus, "new"))
    with pytest.raises(TokenError, match="not known"):
        tokens.check(fresh)
    ticks.now += 1
    assert tokens.check(fresh).client == "oven"
    with pytest.raises(TokenError, match="not known"):
        tokens.check(sign(GOOD, curve, "ES256", kid="old"))


def test_a_bad_file_leaves_the_old_keys_and_is_told_once(
    tmp_path: Path, curve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = published(tmp_path, jwk(curve, "a"))
    good = sign(GOOD, curve, "ES256", kid="a")
    (tmp_path / "jwks.json").write_text("{")
    tokens.look()
    tokens.look()
    assert tokens.check(good).client == "oven"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    with pytest.raises(TokenKeyError, match="no JWK set"):
        tokens.reread()
    (tmp_path / "jwks.json").unlink()
    tokens.look()
    assert tokens.check(good).client == "oven"
    replace(tmp_path / "jwks.json", jwk(curve, "b"))
    take = tokens.reread()
    assert tokens.check(good).client == "oven", "nothing changes before it is taken over"
    take()
    with pytest.raises(TokenError, match="not known"):
        tokens.check(good)


def test_a_shared_key_that_everybody_can_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared(tmp_path)
    assert not caplog.records
    (tmp_path / "shared.key").chmod(0o644)
    Tokens(key_file=tmp_path / "shared.key")
    assert "can be read by everybody" in caplog.text
    assert SECRET.decode() not in caplog.text


# Making ----------------------------------------------------------------------------------------------------------------


def test_what_is_minted_is_good(tmp_path: Path) -> None:
    for secret in (SECRET, LONG):
        tokens = shared(tmp_path, secret)
        token = tokens.mint("oven", ["kitchen", "attic"], 3600).encode()
        assert looks_like_token(token)
        assert tokens.check(token) == Identity("oven", frozenset({"kitchen", "attic"}), NOW + 3605)
    with pytest.raises(TokenError, match="cannot be"):
        tokens.mint("gateway", [], 60)
    with pytest.raises(TokenError, match="group"):
        tokens.mint("oven", ["no group"], 60)
    with pytest.raises(TokenError, match="longer than"):
        tokens.mint("oven", [], 400 * 86_400)


def test_nothing_is_minted_with_public_keys(tmp_path: Path, curve: Any) -> None:
    with pytest.raises(TokenError, match="only the issuer"):
        published(tmp_path, jwk(curve)).mint("oven", [], 60)


def test_another_library_reads_what_is_minted(tmp_path: Path) -> None:
    header, payload, signature = shared(tmp_path).mint("oven", ["a"], 60).split(".")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    digest = subprocess.run(
        [openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{SECRET.hex()}", "-binary"],
        input=f"{header}.{payload}".encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert encoded(digest).decode() == signature


# Log-ins ---------------------------------------------------------------------------------------------------------------


class Place:
    """A link with its broker, whose wall clock is the test's."""

    def __init__(self, folder: Path, *, any_name: bool, tokens: Tokens, clock: Clock) -> None:
        self.credentials = Credentials(folder / "clients.db")
        for name in ("oven", "fridge"):
            self.credentials.add(name, "correct horse")
        kitchen = Clients(False, frozenset(), frozenset({"kitchen"}))
        self.rights = Rights([], [TopicRule("kitchen/#", kitchen, kitchen)], Objects())
        self.clock = clock
        self.link = LocalLink(
            [Entrance(Listener("here", "mqtt", "127.0.0.1", 0), anonymous=True)],
            Limits(),
            EmbeddedAcl(self.rights),
            self.credentials,
            wrong_passwords=3,
            clock=Clock(0),
            bearers=Bearers(tokens, any_name=any_name),
        )
        self.link.broker.wall = clock

    async def connect(
        self, username: str | None, password: bytes | None, *, level: int = 5, client_id: str = "c", **more: Any
    ) -> tuple[RawClient, Connack]:
        client = await RawClient.open(self.link.address[1], level)
        client.send(Connect(client_id, level, username=username, password=password, **more))
        return client, await client.expect(Connack)


@asynccontextmanager
async def place(folder: Path, tokens: Tokens, clock: Clock, *, any_name: bool = False) -> AsyncIterator[Place]:
    made = Place(folder, any_name=any_name, tokens=tokens, clock=clock)
    await made.link.start(Nothing())
    try:
        yield made
    finally:
        await close_all()
        await made.link.stop()
        made.credentials.close()


@pytest.mark.parametrize("slow", [False, True])
def test_a_token_is_a_password(tmp_path: Path, curve: Any, slow: bool) -> None:
    def token(name: str) -> bytes:
        claims = {**GOOD, "sub": name}
        return sign(claims, curve, "ES256") if slow else sign(claims)

    async def go() -> None:
        tokens = published(tmp_path, jwk(curve)) if slow else shared(tmp_path)
        async with place(tmp_path, tokens, Clock()) as here:
            for level, username in ((5, "oven"), (5, ""), (5, None), (4, "oven"), (4, "")):
                client, connack = await here.connect(username, token("oven"), level=level)
                assert connack.reason == 0, (level, username)
                assert here.link.broker.clients() == {"oven"}
                client.close()
                await until(lambda: not here.link.broker.clients())
            _, connack = await here.connect("fridge", token("oven"))
            assert connack.reason == 0x86
            assert "another client" in str(connack.properties)
            # Nobody becomes anonymous with a token that is not good.
            _, connack = await here.connect(None, token("stranger"))
            assert connack.reason == 0x86
            _, connack = await here.connect("", token("stranger"), level=4)
            assert connack.reason == 0x86
            _, connack = await here.connect("oven", b"correct horse")
            assert connack.reason == 0

    run(go)


def test_wrong_tokens_count_as_wrong_passwords(tmp_path: Path) -> None:
    async def go() -> None:
        async with place(tmp_path, shared(tmp_path), Clock()) as here:
            for _ in range(3):
                _, connack = await here.connect(None, sign(GOOD, LONG))
                assert connack.reason == 0x86
            for username in (None, "oven"):
                _, connack = await here.connect(username, sign(GOOD))
                assert connack.reason == 0x9F, "a good one is not looked at either"
            _, connack = await here.connect("oven", b"correct horse")
            assert connack.reason == 0x9F
            _, connack = await here.connect(None, sign({**GOOD, "sub": "fridge"}))
            assert connack.reason == 0, "another client at this address is heard"

    run(go)


def test_clients_that_are_not_listed_come_in_where_the_settings_say_so_and_disabled_ones_nowhere(
    tmp_path: Path,
) -> None:
    async def go() -> None:
        async with place(tmp_path, shared(tmp_path), Clock(), any_name=True) as here:
            stranger, connack = await here.connect(None, sign({**GOOD, "sub": "stranger"}))
            assert connack.reason == 0
            here.credentials.disable("oven")
            _, connack = await here.connect("oven", sign(GOOD))
            assert connack.reason == 0x86
            fridge, connack = await here.connect("fridge", sign({**GOOD, "sub": "fridge"}))
            assert connack.reason == 0
            here.link.look()
            assert here.link.broker.clients() == {"stranger", "fridge"}
            here.credentials.remove("fridge")
            here.link.look()
            assert here.link.broker.clients() == {"stranger", "fridge"}, "the token suffices"
            here.credentials.add("stranger", "correct horse")
            here.credentials.disable("stranger")
            here.link.look()
            assert await stranger.ended() == 0x87
            assert here.link.broker.clients() == {"fridge"}
            fridge.close()

    run(go)


def test_removing_a_client_ends_its_connection_by_token(tmp_path: Path) -> None:
    async def go() -> None:
        async with place(tmp_path, shared(tmp_path), Clock()) as here:
            oven, _ = await here.connect(None, sign(GOOD))
            here.credentials.remove("oven")
            assert await oven.ended() == 0x87, "the link looks each second"

    run(go)


def test_a_connection_ends_with_its_token_and_others_stay(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        async with place(tmp_path, shared(tmp_path, clock=clock), clock) as here:
            first, _ = await here.connect("oven", sign(GOOD), client_id="a", properties={0x11: 600})
            old, _ = await here.connect("oven", sign(GOOD), client_id="b", level=4)
            later, _ = await here.connect("oven", sign({**GOOD, "exp": NOW + 600}), client_id="d")
            other, _ = await here.connect("oven", b"correct horse", client_id="e")
            broker = here.link.broker
            clock.now = NOW + 64
            broker.look(broker.clock())
            assert len(broker._connections) == 4
            clock.now = NOW + 65
            broker.look(broker.clock())
            disconnect = await first.next()
            assert disconnect.reason == 0x87  # type: ignore[union-attr]
            assert "expired" in str(disconnect.properties)  # type: ignore[union-attr]
            assert await old.ended() is None
            assert {session.client_id for session in broker.sessions.values() if session.connection} == {"d", "e"}
            # The session waits for another log-in.
            _, connack = await here.connect("oven", sign(GOOD), client_id="a", clean_start=False)
            assert connack.reason == 0x86
            again, connack = await here.connect(
                "oven", sign({**GOOD, "exp": NOW + 300}), client_id="a", clean_start=False
            )
            assert (connack.reason, connack.session_present) == (0, True)
            for client in (later, other, again):
                client.close()
            await until(lambda: not broker._connections)
            assert not broker._ending, "nothing is kept of connections that have gone"

    run(go)


def test_groups_hold_as_long_as_the_token(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        async with place(tmp_path, shared(tmp_path, clock=clock), clock) as here:
            plain, _ = await here.connect("fridge", sign({**GOOD, "sub": "fridge", "groups": ["attic"]}), client_id="a")
            assert await plain.subscribe("kitchen/x") == [0x87]
            member, _ = await here.connect("oven", sign({**GOOD, "groups": ["kitchen"]}), client_id="b")
            assert await member.subscribe("kitchen/x") == [0]
            assert here.rights.may_publish("oven", "kitchen/x")
            here.rights.expire(NOW + 65)
            assert not here.rights.may_publish("oven", "kitchen/x")

    run(go)


def test_the_settings_switch_tokens_on_in_a_whole_gateway(tmp_path: Path) -> None:
    (tmp_path / "tokens.key").write_bytes(SECRET)
    (tmp_path / "tokens.key").chmod(0o600)
    lines = (
        '[tokens]\nkey_file = "tokens.key"\nissuer = "home"\nclients = "any"\n'
        "[groups]\nkitchen = []\n"
        '[[topic]]\nfilter = "kitchen/#"\nread = ["@kitchen"]\nwrite = ["@kitchen"]\n'
    )
    with inside(tmp_path, lines) as gateway:
        tokens = Tokens(key_file=tmp_path / "tokens.key", rules=Rules(issuer="home"))
        good = tokens.mint("oven", ["kitchen"], 3600)
        pub = shutil.which("mosquitto_pub")
        if pub is None:
            pytest.skip("needs mosquitto_pub")
        for token, said in ((good, "on"), (good[:-6] + "AAAAAA", "off")):
            who = [pub, "-p", str(gateway.port), "-u", "oven", "-P", token, "-V", "5", "-q", "1"]
            sent = subprocess.run(
                [*who, "-t", "kitchen/light", "-m", said, "-r"], capture_output=True, text=True, timeout=20, check=False
            )
            assert (sent.returncode == 0) == (said == "on"), sent.stderr

        def retained(service: Service) -> Any:
            assert isinstance(service._link, LocalLink)
            return service._link.broker.retained.get("kitchen/light")

        kept = gateway.call(retained)
        assert kept.payload == b"on"


def test_the_gateway_does_not_start_with_keys_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "tokens.key").write_bytes(b"short")
    with (
        pytest.raises(TokenKeyError, match="less than 32 bytes"),
        inside(tmp_path, '[tokens]\nkey_file = "tokens.key"\n'),
    ):
        pass


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('key_file = "a"\njwks = "b"', "tokens.key_file: there is tokens.jwks too"),
        ('jwks = "b"\nissuer = "i"', "tokens.audience: is missing"),
        ('jwks = "b"\naudience = "i"', "tokens.issuer: is missing"),
        ('issuer = "i"', "has no effect without jwks or key_file"),
        ('key_file = "a"\nleeway = "2m"', "tokens.leeway: must be at most 1m"),
    ],
)
def test_settings_of_tokens_that_cannot_be(tmp_path: Path, lines: str, says: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[tokens]\n{lines}\n")
    with pytest.raises(SettingsError, match=says):
        load(file, {"HOME": str(tmp_path)})


def test_a_gateway_without_tokens_does_not_load_their_libraries(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom gateway.service import build\nfrom gateway.settings import load\n"
        f"build(load(None, {{'HOME': {str(tmp_path)!r}, 'CTXT_STATE_DIR': {str(tmp_path / 'state')!r}}}))\n"
        "sys.exit(','.join({name.split('.')[0] for name in sys.modules} & {'jwt', 'cryptography'}))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert found.stderr.strip() == ""
