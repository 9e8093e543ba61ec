"""TLS, as the URL of a server asks for it."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from bus.errors import Misconfigured

__all__ = ["MAY_WANT", "TLS_OPTIONS", "refuse_tls_options", "tls_context"]

TLS_OPTIONS = ("ca", "cert", "key", "verify")
MAY_WANT = "it may want a certificate of ours, cert= and key= of the URL"  # where it breaks the connection off


def refuse_tls_options(options: Mapping[str, str], secure: str, setting: str = "bus") -> None:
    """For a URL without TLS; `secure` is the scheme that has it. Raises `Misconfigured`."""
    for name in TLS_OPTIONS:
        if name in options:
            raise Misconfigured.of(setting, f"the URL has {name}=, which is of use with {secure}:// only: write {secure}://")


def tls_context(options: Mapping[str, str], setting: str = "bus") -> ssl.SSLContext:
    """`ca`: a file of certificates to trust, instead of the system's; `cert` and `key`: our own; all PEM.

    The server's certificate and its host name are checked, unless `verify=0`. Raises `Misconfigured`.
    """
    if (verify := options.get("verify", "1")) not in ("0", "1"):
        found = f"verify={verify!r} of the URL is neither 1 (check the certificate, as always) nor 0"
        raise Misconfigured.of(setting, found)
    if "key" in options and "cert" not in options:
        raise Misconfigured.of(setting, "the URL has key= without cert=: give both")
    names: tuple[str, ...] = ("ca",)
    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
        names = ("cert", "key")
        if "cert" in options:
            context.load_cert_chain(options["cert"], options.get("key"), password=lambda: _encrypted(setting))
    except OSError as error:
        files = " and ".join(f"{name}={options[name]}" for name in names if name in options)
        raise Misconfigured.of(setting, f"{files} of the URL cannot be used: {error.strerror or error}") from None
    if verify == "0":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _encrypted(setting: str) -> str:
    raise Misconfigured.of(setting, "the file of key= of the URL is encrypted: give one without a passphrase")
