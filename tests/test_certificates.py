"""Certificates: what may stand in one, what an authority signs, and a folder of them on a real file system."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import stat
import subprocess
import time
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificates import (
    ADDRESSES,
    AUTHORITY_DAYS,
    DAY,
    DAYS,
    FILE_BYTES,
    AddressError,
    Authority,
    CertificateError,
    FilesError,
    Folder,
    Kind,
    NotThereError,
    Period,
    ThereAlreadyError,
    address,
    date,
    period,
    subject_of,
)
from tests.broker.certificates import Authority as Plain
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.certificates import Files

NOW = 1_767_225_600.0
"""2026-01-01 00:00 UTC."""


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every file."""
    return {
        str(file.relative_to(folder)): (stat.S_IMODE(file.stat().st_mode), file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


def loaded(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def fits(files: Files) -> bool:
    """Whether OpenSSL takes the key for that of the certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    except ssl.SSLError:
        return False
    return True


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """One with an authority and the gateway's certificate for localhost and 127.0.0.1."""
    made = Folder(tmp_path / "tls")
    made.init(["localhost", "127.0.0.1"], now=NOW)
    return made


# ---- addresses ---------------------------------------------------------------------------------------------------------

LABELS = st.from_regex(r"[a-z_]([a-z0-9_-]{0,61}[a-z0-9_])?", fullmatch=True)
HOSTS = st.lists(LABELS, min_size=1, max_size=3).map(".".join)


@given(HOSTS, st.booleans())
def test_a_host_name_stands_in_small_letters(host: str, wildcard: bool) -> None:
    text = f"*.{host}" if wildcard else host
    assert address(text.upper()) == address(text) == x509.DNSName(text)


@given(st.ip_addresses(), st.booleans())
def test_an_ip_address_is_one_however_it_is_written(ip: object, brackets: bool) -> None:
    assert address(f"[{ip}]" if brackets else str(ip)).value == ip


@given(st.text(max_size=300) | st.text(".*-[]:%/0123456789aA_\n", max_size=40))
def test_any_text_is_refused_or_stands_for_the_same_when_written_again(text: str) -> None:
    try:
        found = address(text)
    except AddressError as error:
        said = str(error)
    else:
        said = ""
        assert address(str(found.value)) == found
        x509.SubjectAlternativeName([found])
    assert said.isprintable()
    assert len(said) < 1_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither"),
        (".", "neither"),
        ("a..b", "neither"),
        ("a.b.", "neither"),
        ("-a", "neither"),
        ("a-", "neither"),
        ("*", "neither"),
        ("*.", "neither"),
        ("a.*.b", "neither"),
        ("a*.b", "neither"),
        ("a b", "neither"),
        ("a\n", "neither"),
        ("a:1883", "neither"),
        ("mqtts://a", "neither"),
        ("256.1.1.1", "neither"),
        ("1.2.3", "neither"),
        ("127.0.0.1/8", "neither"),
        ("[::1", "neither"),
        ("::1]", "neither"),
        ("x" * 64, "neither"),
        (".".join(["x" * 63] * 4), "neither"),
        ("küche.local", "xn--"),
        ("fe80::1%eth0", "interface"),
    ],
)
def test_what_no_certificate_can_be_for_is_refused(text: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        address(text)


def test_a_server_needs_an_address_and_has_a_bounded_number(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "tls")
    for addresses, said in (([], "needs a host name"), ([f"h{n}" for n in range(ADDRESSES + 1)], "make several")):
        with pytest.raises(AddressError, match=said):
            folder.init(addresses, now=NOW)
    assert not folder.path.exists()
    made = folder.init([f"h{n}" for n in range(ADDRESSES)], now=NOW)[1]
    assert len(subject_of(loaded(made.files.certificate))[2]) == ADDRESSES


def test_an_address_given_twice_stands_once(tmp_path: Path) -> None:
    made = Folder(tmp_path / "tls").init(["A.local", "::1", "a.local", "0:0::1"], now=NOW)[1]
    assert subject_of(loaded(made.files.certificate))[2] == [x509.DNSName("a.local"), x509.IPAddress(ip_address("::1"))]


# ---- periods -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 4e9), st.floats(0, 4e9), st.floats(0, 4e9))
def test_a_certificate_is_good_from_its_beginning_until_just_before_its_end(one: float, two: float, now: float) -> None:
    own = Period(min(one, two), max(one, two))
    fault = own.fault(now)
    assert (fault is None) == (own.begins <= now < own.ends)
    if fault is not None:
        assert date(own.begins if now < own.begins else own.ends) in fault


def test_the_period_of_a_file_is_that_of_its_first_certificate_and_of_authorities_the_latest(tmp_path: Path) -> None:
    old, new = Authority.make(NOW, 10).signed, Authority.make(NOW, 20).signed
    both = old.certificate + new.certificate
    first = Period(NOW - 3_600, NOW + 10 * DAY)
    assert period(both) == period(old.certificate) == first
    assert period(both, authorities=True) == Period(NOW - 3_600, NOW + 20 * DAY)
    assert period(new.certificate + old.certificate, authorities=True) == Period(NOW - 3_600, NOW + 20 * DAY)
    assert old.key is not None
    # A key in the same file, before or after it, changes nothing.
    assert period(old.key + old.certificate) == first
    for text in (b"", b"no certificate", old.key, old.certificate[:100], b"\xff\x00"):
        assert period(text) is None
        assert period(text, authorities=True) is None


@given(st.integers(0, AUTHORITY_DAYS * 86_400 - 1), st.integers(1, 10**400))
def test_what_is_signed_is_never_good_when_its_authority_is_not(later: int, days: int) -> None:
    signed = AUTHORITY.issue("a", Kind.CLIENT, [], now=NOW + later, days=days)
    own, its = period(AUTHORITY.signed.certificate), period(signed.certificate)
    assert own is not None
    assert its is not None
    assert own.begins <= its.begins <= NOW + later < its.ends <= own.ends
    assert its.ends == signed.ends == min(own.ends, int(NOW + later) + days * 86_400)


AUTHORITY = Authority.make(NOW)


@pytest.mark.parametrize("days", [0, -1, -(10**400)])
def test_nothing_is_made_that_is_over_at_once(days: int) -> None:
    with pytest.raises(CertificateError, match="good for some time"):
        AUTHORITY.issue("a", Kind.CLIENT, [], now=NOW, days=days)


def test_an_authority_that_is_over_or_not_good_yet_signs_nothing(folder: Folder) -> None:
    for now, said in ((NOW + AUTHORITY_DAYS * DAY, "is over since 2035-12-30"), (NOW - 2 * DAY, "clock")):
        with pytest.raises(CertificateError, match=said):
            folder.issue("alice", Kind.CLIENT, [], now=now)
        with pytest.raises(CertificateError, match=said):
            folder.renew("gateway", now=now)
    assert sorted(files_in(folder.path)) == ["ca.key", "ca.pem", "server/gateway.key", "server/gateway.pem"]


def test_a_certificate_that_ends_with_its_authority_is_told_as_shortened(folder: Folder) -> None:
    late = NOW + (AUTHORITY_DAYS - 100) * DAY
    made = folder.issue("alice", Kind.CLIENT, [], now=late, days=101)
    assert (made.shortened, made.ends) == (True, NOW + AUTHORITY_DAYS * DAY)
    assert not folder.issue("bob", Kind.CLIENT, [], now=late, days=100).shortened
    renewed, _ = folder.renew("alice", now=late, days=200)
    assert (renewed.shortened, renewed.ends) == (True, made.ends)
    assert not folder.renew("alice", now=late)[0].shortened


# ---- what is signed ----------------------------------------------------------------------------------------------------


def test_certificates_say_what_they_are_for(folder: Folder) -> None:
    client = folder.issue("alice", Kind.CLIENT, [], now=NOW).files
    ca, server, alice = (loaded(f) for f in (folder.path / "ca.pem", folder.path / "server/gateway.pem", client[0]))
    for certificate in (ca, server, alice):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        signs = certificate is ca
        assert constraints.critical
        assert usage.critical
        assert constraints.value == x509.BasicConstraints(ca=signs, path_length=0 if signs else None)
        assert (usage.value.key_cert_sign, usage.value.digital_signature) == (signs, not signs)
        public = certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP256R1)
        assert 0 < certificate.serial_number < 1 << 159
    for certificate, use in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (alice, ExtendedKeyUsageOID.CLIENT_AUTH)):
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [use]
        identifier = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        assert identifier == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert (server.issuer, alice.issuer) == (ca.subject, ca.subject)
    assert subject_of(server) == (
        *("gateway", Kind.SERVER),
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))],
    )
    assert subject_of(alice) == ("alice", Kind.CLIENT, [])
    assert subject_of(ca)[1] is Kind.AUTHORITY


def test_no_two_have_the_same_number_and_no_two_authorities_the_same_name() -> None:
    authorities = [Authority.make(NOW) for _ in range(20)]
    signed = [AUTHORITY.issue("a", Kind.CLIENT, [], now=NOW, days=1) for _ in range(100)]
    numbers = {x509.load_pem_x509_certificate(each.certificate).serial_number for each in signed}
    assert len(numbers) == 100
    # Not counted up: nobody can tell the next one from those seen.
    assert len({number >> 128 for number in numbers}) > 90
    assert len({each.certificate.subject for each in authorities}) == 20


def openssl(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [need("openssl", "openssl"), *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stdout + done.stderr


def test_openssl_finds_nothing_wrong_by_the_strict_rules(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "tls")
    now = time.time()  # OpenSSL looks at the real clock
    folder.init(["localhost", "*.home.local", "127.0.0.1", "::1"], now=now)
    folder.issue("alice", Kind.CLIENT, [], now=now)
    folder.issue("broker", Kind.SERVER, ["broker.home.local"], now=now)
    folder.renew("gateway", now=now)
    folder.renew("alice", now=now, new_key=True)
    ca = str(folder.path / "ca.pem")
    strict = ("verify", "-x509_strict", "-CAfile", ca)
    for name, kind, good, wrong in (
        ("gateway", Kind.SERVER, "sslserver", "sslclient"),
        ("broker", Kind.SERVER, "sslserver", "sslclient"),
        ("alice", Kind.CLIENT, "sslclient", "sslserver"),
    ):
        file = str(folder.files(name, kind).certificate)
        assert openssl(*strict, "-purpose", good, file) == (0, f"{file}: OK\n")
        assert openssl(*strict, "-purpose", wrong, file)[0]
    assert openssl(*strict, ca) == (0, f"{ca}: OK\n")
    gateway = str(folder.path / "server/gateway.pem")
    for option, reached in (
        *(("-verify_hostname", host) for host in ("localhost", "LOCALHOST", "lamp.home.local")),
        *(("-verify_ip", ip) for ip in ("127.0.0.1", "::1")),
    ):
        assert openssl(*strict, option, reached, gateway)[0] == 0
    for option, other in (("-verify_hostname", "home.local"), ("-verify_ip", "127.0.0.2")):
        assert openssl(*strict, option, other, gateway)[0]
    # No authority below this one.
    below, leaf = tmp_path / "below.pem", tmp_path / "leaf.pem"
    own = Folder(tmp_path / "own")
    own.init(["a"], now=now)
    shutil.copy(own.path / "ca.pem", below)
    shutil.copy(own.path / "server/gateway.pem", leaf)
    assert openssl(*strict, "-untrusted", str(below), str(leaf))[0]


# ---- a folder: making --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o022])
def test_keys_are_for_their_owner_only_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    folder = Folder(tmp_path / "site" / "tls")
    with umask(mask):
        folder.init(["a"], now=NOW)
        folder.issue("alice", Kind.CLIENT, [], now=NOW)
        folder.renew("alice", now=NOW, new_key=True)
        folder.init(["a"], now=NOW, force=True)
    modes = {name: mode for name, (mode, _) in files_in(folder.path).items()}
    assert modes == {
        **dict.fromkeys(("ca.key", "server/gateway.key", "client/alice.key"), 0o600),
        **dict.fromkeys(("ca.pem", "server/gateway.pem", "client/alice.pem"), 0o644),
    }
    for each in (folder.path, folder.path / "server", folder.path / "client"):
        assert stat.S_IMODE(each.stat().st_mode) & ~mask == 0o700 & ~mask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_whom_the_folder_belongs_to(tmp_path: Path) -> None:
    service = tmp_path / "state"
    service.mkdir()
    os.chown(service, 12_345, 23_456)
    folder = Folder(service / "tls")
    folder.init(["a"], now=NOW)
    folder.issue("alice", Kind.CLIENT, [], now=NOW)
    folder.renew("gateway", now=NOW, new_key=True)
    for each in (folder.path, *folder.path.rglob("*")):
        assert (each.stat().st_uid, each.stat().st_gid) == (12_345, 23_456), each


@pytest.mark.parametrize("there", ["ca.pem", "ca.key", "server/gateway.pem", "server/gateway.key"])
def test_nothing_is_replaced_and_nothing_left_behind_where_one_file_is_there(tmp_path: Path, there: str) -> None:
    folder = Folder(tmp_path / "tls")
    file = folder.path / there
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_text("mine")
    file.chmod(0o640)
    with pytest.raises(ThereAlreadyError, match=re.escape(f"{file} is there already")):
        folder.init(["a"], now=NOW)
    assert files_in(folder.path) == {there: (0o640, b"mine")}
    folder.init(["a"], now=NOW, force=True)
    assert fits(folder.authority_files)
    assert fits(folder.files("gateway", Kind.SERVER))


def test_force_makes_another_authority(folder: Folder) -> None:
    before = files_in(folder.path)
    with pytest.raises(ThereAlreadyError):
        folder.init(["a"], now=NOW)
    assert files_in(folder.path) == before
    folder.init(["a"], now=NOW, force=True)
    after = files_in(folder.path)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_a_second_certificate_of_a_name_is_refused_and_makes_no_key_for_the_first(folder: Folder) -> None:
    made = folder.issue("alice", Kind.CLIENT, [], now=NOW).files
    # It is where it belongs: on the device.
    made.key.unlink()
    before = files_in(folder.path)
    with pytest.raises(ThereAlreadyError, match=r"alice\.pem is there already"):
        folder.issue("alice", Kind.CLIENT, [], now=NOW)
    assert files_in(folder.path) == before
    folder.issue("alice", Kind.SERVER, ["a"], now=NOW)  # a server is another thing
    folder.issue("alice", Kind.CLIENT, [], now=NOW, force=True)
    assert fits(made)


@pytest.mark.parametrize("name", ["", ".", "..", "../ca", "a/b", ".hidden", "a b", "a\n", "ä", "x" * 65, "a\0"])
def test_a_name_that_is_no_file_of_the_folder_is_refused(folder: Folder, name: str) -> None:
    before = files_in(folder.path.parent)
    for act in (
        lambda: folder.issue(name, Kind.CLIENT, [], now=NOW),
        lambda: folder.issue(name, Kind.SERVER, ["a"], now=NOW),
        lambda: folder.renew(name, now=NOW),
    ):
        with pytest.raises(AddressError, match="cannot be the name of a certificate"):
            act()
    assert files_in(folder.path.parent) == before


def test_links_below_the_folder_lead_nowhere(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder.path / "client").symlink_to(elsewhere)
    with pytest.raises(FilesError, match="cannot write into"):
        folder.issue("alice", Kind.CLIENT, [], now=NOW)
    assert list(elsewhere.iterdir()) == []
    (folder.path / "client").unlink()
    (folder.path / "client").mkdir()

    precious = elsewhere / "precious"
    precious.write_text("mine")
    for name in ("alice.key", ".alice.key.new", "alice.pem", ".alice.pem.new"):
        (folder.path / "client" / name).symlink_to(precious)
    with pytest.raises(ThereAlreadyError):
        folder.issue("alice", Kind.CLIENT, [], now=NOW)
    made = folder.issue("alice", Kind.CLIENT, [], now=NOW, force=True).files
    assert precious.read_text() == "mine"
    assert not made.key.is_symlink()
    assert not made.certificate.is_symlink()
    assert fits(made)
    assert sorted(each.name for each in (folder.path / "client").iterdir()) == ["alice.key", "alice.pem"]


def test_a_folder_that_others_may_write_into_holds_no_authority(tmp_path: Path) -> None:
    for mode in (0o770, 0o707, 0o1777):
        place = tmp_path / f"{mode:o}"
        place.mkdir()
        place.chmod(mode)
        with pytest.raises(FilesError, match=f"chmod 700 {place}"):
            Folder(place).init(["a"], now=NOW)
        assert list(place.iterdir()) == []


def test_where_no_folder_can_be_is_said(tmp_path: Path) -> None:
    file, dangling = tmp_path / "file", tmp_path / "dangling"
    file.write_text("mine")
    dangling.symlink_to(tmp_path / "nowhere")
    for place in (file, file / "below", dangling):
        with pytest.raises(FilesError, match=f"cannot write into {place}"):
            Folder(place).init(["a"], now=NOW)
    assert file.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


# ---- a folder: the authority -------------------------------------------------------------------------------------------


def test_without_an_authority_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for act in (lambda: folder.issue("alice", Kind.CLIENT, [], now=NOW), lambda: folder.all(NOW)):
        with pytest.raises(NotThereError, match="`ctxt tls init"):
            act()


def test_an_authority_whose_key_is_away_signs_nothing_and_its_certificates_are_listed(folder: Folder) -> None:
    place = folder.authority_files
    away = place.key.rename(folder.path.parent / "safe.key")
    for act in (lambda: folder.issue("alice", Kind.CLIENT, [], now=NOW), lambda: folder.renew("gateway", now=NOW)):
        with pytest.raises(NotThereError, match=f"bring {place.key} back"):
            act()
    found, faults = folder.all(NOW)
    assert ([(each.kind, each.key) for each in found], faults) == (
        [(Kind.AUTHORITY, False), (Kind.SERVER, True)],
        [],
    )
    away.rename(place.key)
    folder.issue("alice", Kind.CLIENT, [], now=NOW)


def test_files_that_are_no_authority_are_named_with_what_is_wrong(folder: Folder, tmp_path: Path) -> None:
    place = folder.authority_files
    other = Folder(tmp_path / "other")
    other.init(["a"], now=NOW)
    old = Plain(tmp_path / "plain")  # has no key identifier: certificates by it would not be strictly right
    nobody = Authority.make(NOW).signed.certificate
    locked = serialization.load_pem_private_key(place.key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    key = old._key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = other.files("gateway", Kind.SERVER)
    own = place.certificate.read_bytes(), place.key.read_bytes()
    for certificate, private, said in (
        (own[0], other.authority_files.key.read_bytes(), "not that of its certificate"),
        (nobody, own[1], "not that of its certificate"),
        (server.certificate.read_bytes(), server.key.read_bytes(), "not one as `ctxt tls init` makes them"),
        (old.ca.read_bytes(), key, "not one as `ctxt tls init` makes them"),
        (own[0], locked, "without a password"),
        (own[0], b"", "without a password"),
        (own[1], own[0], "without a password"),
        (b"\xff" * (FILE_BYTES + 1), own[1], "without a password"),
    ):
        place.certificate.write_bytes(certificate)
        place.key.write_bytes(private)
        with pytest.raises(CertificateError, match=said) as caught:
            folder.issue("alice", Kind.CLIENT, [], now=NOW)
        assert str(place.certificate) in str(caught.value)
        assert str(place.key) in str(caught.value)
    assert not (folder.path / "client").exists()


# ---- a folder: what is in it -------------------------------------------------------------------------------------------


def test_all_are_listed_with_what_they_are_for(folder: Folder) -> None:
    assert Folder(folder.path).all(NOW) == folder.all(NOW)
    for name in ("zoe", "alice"):
        folder.issue(name, Kind.CLIENT, [], now=NOW, days=30)
    folder.issue("broker", Kind.SERVER, ["broker.local", "::1"], now=NOW)
    (folder.path / "client" / "zoe.key").unlink()
    (folder.path / "client" / "notes.txt").write_text("none of it")
    found, faults = folder.all(NOW)
    assert faults == []
    assert [(each.name, each.kind, each.addresses, each.key, each.fault) for each in found[1:]] == [
        ("broker", Kind.SERVER, ("broker.local", "::1"), True, None),
        ("gateway", Kind.SERVER, ("localhost", "127.0.0.1"), True, None),
        ("alice", Kind.CLIENT, (), True, None),
        ("zoe", Kind.CLIENT, (), False, None),
    ]
    assert found[0].kind is Kind.AUTHORITY
    assert found[0].name.startswith("ctxt-gateway authority ")
    assert [round((each.period.ends - NOW) / DAY) for each in found] == [AUTHORITY_DAYS, DAYS, DAYS, 30, 30]
    assert [each.serial for each in found] == [loaded(each.files.certificate).serial_number for each in found]


def test_what_is_over_not_good_yet_or_of_another_authority_is_told(folder: Folder) -> None:
    folder.issue("alice", Kind.CLIENT, [], now=NOW, days=30)

    def faults(now: float) -> list[str | None]:
        return [each.fault for each in folder.all(now)[0]]

    end = NOW + 30 * DAY
    assert faults(end - 1) == [None, None, None]
    assert faults(end) == [None, None, f"is over since {date(end)}"]
    assert date(end) == "2026-01-31 00:00 UTC"
    assert faults(NOW - 2 * DAY) == ["is not good before 2025-12-31 23:00 UTC: look at this machine's clock"] * 3
    folder.init(["a"], now=NOW, force=True)
    assert faults(NOW) == [None, None, "is of another authority"]
    shutil.copy(folder.path / "server" / "gateway.pem", folder.path / "client" / "alice.pem")
    assert faults(NOW) == [None, None, "is not for a client"]


def test_files_that_cannot_be_read_do_not_hide_the_others(folder: Folder, tmp_path: Path) -> None:
    folder.issue("alice", Kind.CLIENT, [], now=NOW)
    clients = folder.path / "client"
    (clients / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (clients / "folder.pem").mkdir()
    (clients / "large.pem").write_bytes(b"x" * (FILE_BYTES + 1))
    (clients / "link.pem").symlink_to(tmp_path / "nowhere")
    shutil.copy(Plain(tmp_path / "plain").issue("bob").certificate, clients / "plain.pem")
    found, faults = folder.all(NOW)
    assert [each.name for each in found[1:]] == ["gateway", "alice"]
    assert len(faults) == 5
    for name, fault, said in zip(
        ("broken", "folder", "large", "link", "plain"),
        faults,
        ("is no certificate", "cannot be read", "is no certificate", "is not there", "no certificate as `ctxt tls`"),
        strict=True,
    ):
        assert str(clients / f"{name}.pem") in fault
        assert said in fault


# ---- a folder: renewing ------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_has_the_same_key_and_addresses_and_a_period_as_long(folder: Folder) -> None:
    files = folder.files("gateway", Kind.SERVER)
    old, key = loaded(files.certificate), files.key.read_bytes()
    later = NOW + 300 * DAY
    made, kind = folder.renew("gateway", now=later)
    new = loaded(files.certificate)
    assert (made.files, made.ends, made.shortened, kind) == (files, later + DAYS * DAY, False, Kind.SERVER)
    assert new.public_key() == old.public_key()
    assert files.key.read_bytes() == key
    assert new.serial_number != old.serial_number
    assert subject_of(new) == subject_of(old)
    assert [each.fault for each in folder.all(later)[0]] == [None, None]
    assert folder.renew("gateway", now=later, days=7)[0].ends == later + 7 * DAY
    # Once more, as long as that.
    assert folder.renew("gateway", now=later + DAY)[0].ends == later + 8 * DAY


def test_a_certificate_that_is_over_can_be_renewed_and_get_another_key(folder: Folder) -> None:
    files = folder.issue("alice", Kind.CLIENT, [], now=NOW, days=30).files
    old, later = loaded(files.certificate), NOW + 1_000 * DAY
    assert folder.renew("alice", now=later, new_key=True)[0].ends == later + 30 * DAY
    assert loaded(files.certificate).public_key() != old.public_key()
    assert fits(files)


def test_a_renewal_without_the_key_at_hand_makes_none(folder: Folder) -> None:
    files = folder.issue("alice", Kind.CLIENT, [], now=NOW).files
    device = files.key.rename(folder.path.parent / "device.key")
    folder.renew("alice", now=NOW + DAY)
    assert not files.key.exists()
    assert fits(files._replace(key=device))


def test_a_key_that_does_not_fit_is_told_at_a_renewal(folder: Folder) -> None:
    files = folder.files("gateway", Kind.SERVER)
    alice = folder.issue("alice", Kind.CLIENT, [], now=NOW).files
    for content in (alice.key.read_bytes(), b"", b"\xff"):
        files.key.write_bytes(content)
        before = files_in(folder.path)
        with pytest.raises(CertificateError, match=f"{files.key} is not the key of {files.certificate}: --new-key"):
            folder.renew("gateway", now=NOW)
        assert files_in(folder.path) == before
    folder.renew("gateway", now=NOW, new_key=True)
    assert fits(files)


def test_what_cannot_be_renewed_is_said(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"no certificate of bob .* `ctxt tls ls`"):
        folder.renew("bob", now=NOW)
    folder.issue("gateway", Kind.CLIENT, [], now=NOW)
    with pytest.raises(ThereAlreadyError, match="--server or --client"):
        folder.renew("gateway", now=NOW)
    for kind in (Kind.SERVER, Kind.CLIENT):
        assert folder.renew("gateway", kind, now=NOW)[1] is kind
    with pytest.raises(NotThereError):
        folder.renew("ca", now=NOW)
    place = folder.path / "client"
    (place / "broken.pem").write_text("no certificate")
    shutil.copy(Plain(tmp_path / "plain").issue("bob").certificate, place / "plain.pem")
    shutil.copy(folder.path / "ca.pem", place / "signs.pem")
    for name, said in (
        ("broken", f"{place}/broken.pem is no certificate"),
        ("plain", f"{place}/plain.pem: it is no certificate as `ctxt tls` makes them"),
        ("signs", "is an authority"),
    ):
        for new_key in (False, True):
            with pytest.raises(CertificateError, match=re.escape(said)):
                folder.renew(name, now=NOW, new_key=new_key)


def test_a_certificate_of_another_authority_needs_a_new_key(folder: Folder) -> None:
    files = folder.issue("alice", Kind.CLIENT, [], now=NOW).files
    folder.init(["a"], now=NOW, force=True)
    with pytest.raises(CertificateError, match="alice is not of this authority: --new-key"):
        folder.renew("alice", now=NOW)
    folder.renew("alice", now=NOW, new_key=True)
    assert [each.fault for each in folder.all(NOW)[0]] == [None, None, None]
    assert fits(files)
