"""A certificate authority for one test run: a certificate for `localhost`, and such for clients."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NO_PASSWORD = serialization.NoEncryption()


class Authority:
    """Writes ca.pem into the folder; its own key is in memory only."""

    def __init__(self, folder):
        self.folder = folder
        self.name = name("Interop CA")
        self.key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            builder(self.name, self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        write_certificate(folder / "ca.pem", certificate)

    def server(self):
        """Writes server.pem and server.key, for `localhost`."""
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        key = ec.generate_private_key(ec.SECP256R1())
        self.sign("server", name("localhost"), key, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, file, subject):
        """Writes FILE.pem and FILE.key, for a client of that name; returns the certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.sign(file, subject, key, ExtendedKeyUsageOID.CLIENT_AUTH)

    def sign(self, file, subject, key, usage, names=()):
        unsigned = (
            builder(subject, self.name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names:
            unsigned = unsigned.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = unsigned.sign(self.key, hashes.SHA256())
        write_certificate(self.folder / f"{file}.pem", certificate)
        write_key(self.folder / f"{file}.key", key)
        return certificate


def self_signed(folder, file):
    """Writes FILE.pem and FILE.key, for a client that nobody vouches for; returns the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = name("self-signed")
    certificate = builder(own, own, key.public_key()).sign(key, hashes.SHA256())
    write_certificate(folder / f"{file}.pem", certificate)
    write_key(folder / f"{file}.key", key)
    return certificate


def builder(subject, issuer, public_key):
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def write_certificate(file, certificate):
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_key(file, key, form=serialization.PrivateFormat.PKCS8):
    """Writes a private key as PEM, for its owner only."""
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, NO_PASSWORD))


def name(common_name, organization=None):
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def key_usage(**used):
    fields = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    ).split()
    return x509.KeyUsage(**{field: used.get(field, False) for field in fields})
