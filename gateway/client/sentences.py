"""What is said of a connection that did not come about, or was lost. Pure."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from gateway.client.errors import NotConnectedError

if TYPE_CHECKING:
    from gateway.client.target import Target


def lost_connection(target: Target) -> NotConnectedError:
    """The sentence for a connection that has gone."""
    return NotConnectedError(f"the connection to {target.where} was lost")


def refused_connection(target: Target, error: BaseException, reason: int | None, seconds: float) -> NotConnectedError:
    """The sentence for a connection that did not come about. `reason` is the CONNACK's reason code, where there was one."""
    where = target.where
    if reason in (0x86, 0x87, 0x8A):
        if target.name is None:
            return NotConnectedError(
                f"{where} admits nobody without a name: connect to {target.scheme}://NAME:PASSWORD@{target.host}; "
                "`ctxt client add NAME` makes one",
                reason,
            )
        return NotConnectedError(
            f"{where} does not admit {target.name!r} with this password: "
            f"`ctxt client ls` lists who may connect, `ctxt client passwd {target.name}` gives another password",
            reason,
        )
    if reason in (0x84, 0x01):
        return NotConnectedError(f"{where} does not speak this version of MQTT: connect with protocol='3.1.1'", reason)
    if reason is not None:
        return NotConnectedError(f"{where} refuses the connection: {error}", reason)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NotConnectedError(
                f"{where} shows a certificate that does not hold: {cause.verify_message}. "
                "Give ca= (`ctxt`: SSL_CERT_FILE) the certificate of the authority that signed it, and connect to the name that it is made out to"
            )
        if isinstance(cause, ssl.SSLError):
            return NotConnectedError(
                f"{where} does not speak TLS as asked for ({cause.reason or cause}): is it the port for "
                f"{target.scheme}://, and does it want a client certificate (certificate=, key=)?"
            )
        cause = cause.__cause__ or cause.__context__
    plain = plainly(error, seconds)
    if plain in ("timed out", "connection closed"):
        return NotConnectedError(
            f"{where} does not answer as an MQTT broker ({plain}): is it the right port, and {target.scheme}:// the right way?"
        )
    return NotConnectedError(f"cannot connect to {where} ({plain}): is the gateway running? start it with `ctxt run`")


def plainly(error: BaseException, seconds: float) -> str:
    """What is wrong with a connection in few words."""
    text = str(error)
    if "before it was answered" in text:
        return "connection closed"
    for known in (
        "Connection refused",
        "timed out",
        "Name or service not known",
        "No address associated with hostname",
        "Temporary failure in name resolution",
        "No route to host",
        "Network is unreachable",
    ):
        if known in text:
            return known.lower()
    return text or f"no answer within {seconds:g} s"
