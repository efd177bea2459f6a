"""Certificates: until when they are good, and making them: an authority of a site's own, and what it signs.

What is made follows RFC 5280, so that strict programs take it: ECDSA on P-256, random serial numbers, key identifiers.
"""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DAY = 86_400.0
"""Seconds."""

AUTHORITY_DAYS = 3_650
DAYS = 397
"""Days that a certificate is good where nothing else is said: programs of some makers refuse more."""

EARLIER = timedelta(hours=1)
"""A certificate is good a little before it is made: clocks of devices differ."""

ADDRESSES = 100
"""Addresses that one certificate may have."""

FILE_BYTES = 1 << 20
FILES = 10_000
"""What is read of a file, and how many of a folder are looked at."""

AUTHORITY, GATEWAY = "ca", "gateway"
"""The names of the authority's files, and of the first server's."""

_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class CertificateError(CtxtError):
    """Root of what can be wrong with certificates."""


class AddressError(CertificateError):
    """What no certificate can be made for."""


class ThereAlreadyError(CertificateError):
    """A file would be replaced."""


class NotThereError(CertificateError):
    """What was named is not in the folder."""


class FilesError(CertificateError):
    """A file or a folder cannot be read or written."""


# ---- until when they are good ------------------------------------------------------------------------------------------


class Period(NamedTuple):
    """From when until when a certificate is good, in Unix seconds."""

    begins: float
    ends: float

    def fault(self, now: float) -> str | None:
        """Why it is not good at this moment."""
        if now < self.begins:
            return f"is not good before {date(self.begins)}: look at this machine's clock"
        return f"is over since {date(self.ends)}" if now >= self.ends else None


def period(pem: bytes, *, authorities: bool = False) -> Period | None:
    """That of the first certificate in a PEM file, the one that a server or client shows; None where it cannot be read.

    `authorities`: of all in it the one that ends last. A file of authorities often has some that are over.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return None
    periods = [_period(each) for each in found]
    return max(periods, key=lambda each: each.ends) if authorities else periods[0]


def _period(certificate: x509.Certificate) -> Period:
    return Period(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def date(seconds: float) -> str:
    """A time for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


# ---- making them -------------------------------------------------------------------------------------------------------


class Kind(StrEnum):
    """What a certificate is for."""

    AUTHORITY = "authority"
    SERVER = "server"
    CLIENT = "client"


class Signed(NamedTuple):
    """A certificate, and its key where that is here. PEM."""

    certificate: bytes
    key: bytes | None
    ends: float


Address = x509.DNSName | x509.IPAddress


def address(text: str) -> Address:
    """A host name (`*.` may stand before it) or an IP address as a certificate has it. Raises AddressError."""
    shown = repr(text[:80])
    try:
        found = ipaddress.ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    except ValueError:
        pass
    else:
        if "%" in text:
            raise AddressError(f"{shown} names an interface, which no certificate can: leave out % and what follows")
        return x509.IPAddress(found)
    if not text.isascii():
        raise AddressError(f"{shown} is no host name for a certificate: write it as DNS has it, with xn--")
    labels = text.removeprefix("*.").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise AddressError(f"{shown} is neither a host name nor an IP address")
    return x509.DNSName(text.lower())


def _now(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), UTC)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """Signs. It has one kind of descendant: certificates of servers and of clients, no further authorities."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def make(cls, now: float, days: int = AUTHORITY_DAYS) -> Authority:
        """A new one, under a name that no other has."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        name = _name(f"ctxt-gateway authority {serial >> 120:010x}")
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder(name, name, public, serial)
            .not_valid_before(_now(now) - EARLIER)
            .not_valid_after(_now(now) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises CertificateError."""
        try:
            found = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, None)
            public = found.public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CertificateError(
                "the authority's files are no certificate and key in PEM without a password"
            ) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or public != private.public_key():
            raise CertificateError("the authority's key is not that of its certificate")
        if not _may_sign(found):
            raise CertificateError("the authority's certificate is not one as `ctxt tls init` makes them")
        return cls(found, private)

    @property
    def signed(self) -> Signed:
        """Its own files."""
        pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        return Signed(pem, _key_pem(self._key), self.certificate.not_valid_after_utc.timestamp())

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is of this very authority."""
        return _is_of(certificate, self.certificate)

    def issue(self, name: str, kind: Kind, addresses: Sequence[Address], *, now: float, days: float) -> Signed:
        """A certificate with a new key, that ends with the authority at the latest. Raises CertificateError."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._issue(name, kind, addresses, key.public_key(), _key_pem(key), now, days)

    def renew(self, old: x509.Certificate, *, now: float, days: float | None = None, new_key: bool = False) -> Signed:
        """The same with a new period, as long as the old one where `days` is left out; by default for the same key.

        Raises CertificateError.
        """
        name, kind, addresses = subject_of(old)
        if kind is Kind.AUTHORITY:
            raise CertificateError(f"{name} is an authority: `ctxt tls init --force` makes another one")
        if days is None:
            days = (old.not_valid_after_utc - old.not_valid_before_utc - EARLIER) / timedelta(days=1)
        if new_key:
            return self.issue(name, kind, addresses, now=now, days=days)
        public = old.public_key()
        if not self.has_signed(old) or not isinstance(public, ec.EllipticCurvePublicKey):
            raise CertificateError(f"the certificate of {name} is not of this authority: --new-key makes one that is")
        return self._issue(name, kind, addresses, public, None, now, days)

    def _issue(
        self,
        name: str,
        kind: Kind,
        addresses: Sequence[Address],
        public: ec.EllipticCurvePublicKey,
        key: bytes | None,
        now: float,
        days: float,
    ) -> Signed:
        own = self.certificate
        fault = _period(own).fault(now)
        if fault is not None:
            raise CertificateError(f"the authority {fault}: make another one with `ctxt tls init --force`")
        if days <= 0:
            raise CertificateError("a certificate has to be good for some time: give the days")
        left = (own.not_valid_after_utc - _now(now)) / timedelta(days=1)
        ends = own.not_valid_after_utc if days >= left else _now(now) + timedelta(days=days)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if kind is Kind.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        identifier = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder(own.subject, _name(name), public, x509.random_serial_number())
            .not_valid_before(max(_now(now) - EARLIER, own.not_valid_before_utc))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        if addresses:
            builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        return Signed(made.public_bytes(serialization.Encoding.PEM), key, ends.timestamp())


def _is_of(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _may_sign(certificate: x509.Certificate) -> bool:
    """Whether it is that of an authority, and has what certificates name it by."""
    try:
        extensions = certificate.extensions
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False


def subject_of(certificate: x509.Certificate) -> tuple[str, Kind, list[Address]]:
    """Common name, purpose, addresses. Raises CertificateError where it is not one as they are made here."""
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        extensions = certificate.extensions
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            kind = Kind.AUTHORITY
        else:
            usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            kind = Kind.SERVER if ExtendedKeyUsageOID.SERVER_AUTH in usage else Kind.CLIENT
        found: list[Address] = []
        with suppress(x509.ExtensionNotFound):
            listed = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            found = [each for each in listed if isinstance(each, x509.DNSName | x509.IPAddress)]
        name = str(names[0].value)
        x509.NameAttribute(NameOID.COMMON_NAME, name)  # one that is too long can be read and not be made
        return name, kind, found
    except (
        ValueError,
        IndexError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise CertificateError("it is no certificate as `ctxt tls` makes them") from error


# ---- a folder of them --------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """Where a certificate and its key are."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate in the folder. `key`: whether its key is there too. `fault`: why it cannot be used now."""

    name: str
    kind: Kind
    addresses: tuple[str, ...]
    serial: int
    period: Period
    files: Files
    key: bool
    fault: str | None


@dataclass(frozen=True, slots=True)
class Made:
    """What has been written."""

    files: Files
    ends: float
    shortened: bool = False
    """Whether it ends earlier than asked for, with its authority."""


class Folder:
    """`ca.pem` and `ca.key`, and below `server/` and `client/` a pair `NAME.pem` and `NAME.key` of each.

    Keys are for their owner only. Where root writes, files belong to whoever the folder belongs to: the gateway has to read them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def files(self, name: str, kind: Kind) -> Files:
        """Where they are, or would be. Raises AddressError for a name that no file can have."""
        if not _FILE.fullmatch(name):
            raise AddressError(f"{name[:80]!r} cannot be the name of a certificate: use 1 to 64 of A-Z a-z 0-9 . _ -")
        folder = self.path if kind is Kind.AUTHORITY else self.path / kind.value
        return Files(folder / f"{name}.pem", folder / f"{name}.key")

    @property
    def authority_files(self) -> Files:
        """The authority's."""
        return self.files(AUTHORITY, Kind.AUTHORITY)

    def init(self, addresses: Sequence[str], *, now: float, days: int = DAYS, force: bool = False) -> tuple[Made, Made]:
        """A new authority and the gateway's certificate. Raises CertificateError; nothing has been written then."""
        found = _addresses(addresses)
        authority = Authority.make(now)
        server = authority.issue(GATEWAY, Kind.SERVER, found, now=now, days=days)
        places = self.authority_files, self.files(GATEWAY, Kind.SERVER)
        signed = authority.signed, server
        self._write(tuple(zip(places, signed, strict=True)), replace=force)
        return Made(places[0], signed[0].ends), Made(places[1], server.ends)

    def issue(
        self, name: str, kind: Kind, addresses: Sequence[str], *, now: float, days: int = DAYS, force: bool = False
    ) -> Made:
        """A certificate with a key. Raises CertificateError."""
        place = self.files(name, kind)
        found = _addresses(addresses) if addresses or kind is Kind.SERVER else []
        signed = self._authority().issue(name, kind, found, now=now, days=days)
        self._write(((place, signed),), replace=force)
        return Made(place, signed.ends, shortened=_shortened(signed, now, days))

    def renew(
        self, name: str, kind: Kind | None = None, *, now: float, days: int | None = None, new_key: bool = False
    ) -> tuple[Made, Kind]:
        """A new certificate in the place of one. `kind` is needed where a server and a client have that name. Raises CertificateError."""
        kinds = [each for each in (Kind.SERVER, Kind.CLIENT) if kind in (None, each)]
        there = [each for each in kinds if self.files(name, each).certificate.exists()]
        if not there:
            raise NotThereError(
                f"there is no certificate of {name} in {self.path}: `ctxt tls ls` lists those that there are"
            )
        if len(there) > 1:
            raise ThereAlreadyError(
                f"there is a server's and a client's certificate of {name}: say --server or --client"
            )
        place = self.files(name, there[0])
        old = _loaded(place.certificate)
        _subject(place.certificate, old)
        signed = self._authority().renew(old, now=now, days=days, new_key=new_key)
        if signed.key is None and place.key.exists() and not _fits(old, _read(place.key)):
            raise CertificateError(f"{place.key} is not the key of {place.certificate}: --new-key makes another one")
        self._write(((place, signed),), replace=True)
        return Made(place, signed.ends, shortened=days is not None and _shortened(signed, now, days)), there[0]

    def all(self, now: float) -> tuple[list[Held], list[str]]:
        """What is there: the authority, servers, clients, each by name; and of each file that cannot be read why. Raises FilesError."""
        found: list[Held] = []
        faults: list[str] = []
        try:
            authority = _loaded(self.authority_files.certificate)
        except NotThereError:
            raise self._none() from None
        for kind in Kind:
            folder = self.path if kind is Kind.AUTHORITY else self.path / kind.value
            try:
                names = sorted(folder.glob("*.pem"))[:FILES]
            except OSError as error:
                raise FilesError(f"{folder} cannot be read: {error.strerror or error}") from error
            for file in [self.authority_files.certificate] if kind is Kind.AUTHORITY else names:
                try:
                    found.append(_held(file, authority, kind, now))
                except CertificateError as error:
                    faults.append(str(error))
        return found, faults

    def _none(self) -> NotThereError:
        return NotThereError(f"there is no authority in {self.path}: `ctxt tls init NAME_OR_ADDRESS...` makes one")

    def _authority(self) -> Authority:
        place = self.authority_files
        try:
            certificate, key = _read(place.certificate), _read(place.key)
        except NotThereError as error:
            if place.certificate.exists():
                raise NotThereError(f"the authority's key is not in {self.path}: bring {place.key} back") from error
            raise self._none() from error
        try:
            return Authority.read(certificate, key)
        except CertificateError as error:
            raise CertificateError(f"{error}: see {place.certificate} and {place.key}") from error

    # ---- writing -------------------------------------------------------------------------------------------------------

    def _write(self, files: Sequence[tuple[Files, Signed]], *, replace: bool) -> None:
        """All of them, or none where something is there already. Raises ThereAlreadyError, FilesError."""
        contents: list[tuple[Path, bytes, int]] = []
        for place, signed in files:
            if signed.key is not None:
                contents.append((place.key, signed.key, 0o600))
            contents.append((place.certificate, signed.certificate, 0o644))
        try:
            self._make_folder()
        except OSError as error:
            raise self._not_written(error) from error
        made: list[Path] = []
        try:
            for file, content, mode in contents:
                with _opened(file.parent, below=self.path) as folder:
                    if _put(folder, file.name, content, mode, replace=replace):
                        made.append(file)
        except FileExistsError as error:
            _remove(made)
            raise ThereAlreadyError(
                f"{file} is there already: `ctxt tls renew` renews a certificate, --force replaces it and its key"
            ) from error
        except OSError as error:
            _remove(made)
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> FilesError:
        return FilesError(f"cannot write into {self.path}: {error.strerror or error}")

    def _make_folder(self) -> None:
        path = self.path
        if not os.path.lexists(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                owner = path.parent.stat()
                os.chown(path, owner.st_uid, owner.st_gid)
        if path.stat().st_mode & 0o022:
            raise FilesError(
                f"others may write into {path}, and so put an authority of theirs there: chmod 700 {path}, or take another folder"
            )


def _addresses(texts: Sequence[str]) -> list[Address]:
    if not texts:
        raise AddressError("a server's certificate needs a host name or an IP address that clients reach it by")
    if len(texts) > ADDRESSES:
        raise AddressError(f"a certificate can have {ADDRESSES} addresses: make several")
    return list(dict.fromkeys(address(text) for text in texts))


def _shortened(signed: Signed, now: float, days: float) -> bool:
    return (signed.ends - int(now)) / DAY < days


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(FILE_BYTES)
    except FileNotFoundError as error:
        raise NotThereError(f"{file} is not there") from error
    except OSError as error:
        raise FilesError(f"{file} cannot be read: {error.strerror or error}") from error


def _loaded(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(file))
    except ValueError as error:
        raise CertificateError(f"{file} is no certificate") from error


def _fits(certificate: x509.Certificate, key: bytes) -> bool:
    try:
        return serialization.load_pem_private_key(key, None).public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _subject(file: Path, certificate: x509.Certificate) -> tuple[str, Kind, list[Address]]:
    """As `subject_of`, with the file in the error."""
    try:
        return subject_of(certificate)
    except CertificateError as error:
        raise CertificateError(f"{file}: {error}") from error


def _held(file: Path, authority: x509.Certificate, kind: Kind, now: float) -> Held:
    certificate = _loaded(file)
    name, purpose, addresses = _subject(file, certificate)
    files = Files(file, file.with_suffix(".key"))
    period = _period(certificate)
    fault = period.fault(now)
    if kind is not Kind.AUTHORITY and not _is_of(certificate, authority):
        fault = "is of another authority"
    elif purpose is not kind:
        fault = f"is not for a {kind.value}"
    texts = tuple(str(each.value) for each in addresses)
    shown = file.stem if kind is not Kind.AUTHORITY else name
    return Held(shown, kind, texts, certificate.serial_number, period, files, files.key.exists(), fault)


@contextmanager
def _opened(folder: Path, *, below: Path) -> Iterator[int]:
    """A descriptor of the folder, or of one below it that is made where it is not there; a link below it is not followed."""
    top = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
    descriptor = top
    try:
        if folder != below:
            with suppress(FileExistsError):
                os.mkdir(folder.name, 0o700, dir_fd=top)
            descriptor = os.open(folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
            _give(descriptor, top)
        yield descriptor
    finally:
        os.close(top)
        if descriptor != top:
            os.close(descriptor)


def _give(descriptor: int, folder: int) -> None:
    """What root has made belongs to the folder's owner."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _put(folder: int, name: str, content: bytes, mode: int, *, replace: bool) -> bool:
    """Write a whole file; whether it was not there before. Raises FileExistsError, OSError."""
    there = replace and name in os.listdir(folder)
    target = f".{name}.new" if there else name
    if there:
        with suppress(FileNotFoundError):
            os.unlink(target, dir_fd=folder)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            _give(file.fileno(), folder)
            os.fsync(file.fileno())
        if there:
            os.rename(target, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(target, dir_fd=folder)
        raise
    os.fsync(folder)
    return not there


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()
