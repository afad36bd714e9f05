"""Certificates for servers on loopback, and an authority that signs them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """Signs certificates; ``path`` is the file by which others trust it."""

    path: Path
    _key: ec.EllipticCurvePrivateKey
    _name: x509.Name

    @classmethod
    def create(cls, folder: Path) -> Authority:
        authority = cls(folder / "authority.pem", ec.generate_private_key(ec.SECP256R1()), _name())
        certificate = authority._builder(authority._name, authority._key, 1)
        basic = x509.BasicConstraints(ca=True, path_length=0)
        signed = certificate.add_extension(basic, True).sign(authority._key, hashes.SHA256())
        authority.path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return authority

    def certificate(self, host: str = "127.0.0.1", days: int = 1, signed: bool = True) -> Path:
        """Return a file of a key and its certificate, which ends in ``days`` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        builder = self._builder(_name(host), key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), False)
        certificate = builder.sign(self._key if signed else key, hashes.SHA256())
        path = self.path.with_name(f"{host}_{days}_{signed}.pem")
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def context(
        self, host: str = "127.0.0.1", days: int = 1, signed: bool = True
    ) -> ssl.SSLContext:
        """Return what a server needs to be ``host``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate(host, days, signed))
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
        )


def _name(text: str = "an authority of the tests") -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
