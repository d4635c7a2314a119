"""The root and the issuer: what they give out, for how long, and what of a request they read."""

import hashlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.channel.authority import LEAF_LIFETIME, SCRYPT_COST, IssuingAuthority, RootAuthority, key_in_csr
from privet.privacy.channel.identities import Identity, IdentityKey, Role, verified
from privet.privacy.errors import ChannelError

NOW = datetime.now(UTC).replace(microsecond=0)
ROOT = RootAuthority.create("hearts", NOW)
ISSUING = ROOT.issuer(NOW)
NODE = Identity("hearts", Role.NODE, "st-marys")


def leaf_of(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def test_issuer_can_make_no_further_issuers() -> None:
    limits = ISSUING.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical
    assert limits.value.ca
    assert limits.value.path_length == 0


def test_party_lives_a_day_and_is_no_authority() -> None:
    leaf = leaf_of(ISSUING.issue(NODE, IdentityKey.generate().csr(), NOW))
    assert leaf.not_valid_after_utc == NOW + LEAF_LIFETIME == NOW + timedelta(hours=24)
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign


def test_csr_that_asks_for_another_name() -> None:
    """Of a request only the key is read: its names, its role and its wish to be an authority are not."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hearts/operator/coordinator")]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    chain = ISSUING.issue(NODE, request, NOW)
    assert verified(chain, ROOT.pem, NOW, Role.NODE).identity == NODE
    assert b"coordinator" not in leaf_of(chain).public_bytes(Encoding.DER)


def test_csr_whose_sender_does_not_hold_the_key() -> None:
    der = bytearray(IdentityKey.generate().csr())
    der[-1] ^= 1
    with pytest.raises(ChannelError, match="not a request"):
        key_in_csr(bytes(der))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_csr_for_a_key_of_another_kind(key: ec.EllipticCurvePrivateKey) -> None:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(ChannelError, match="not ECDSA P-256"):
        ISSUING.issue(NODE, request.public_bytes(Encoding.DER), NOW)


def test_csr_that_is_very_long() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "a" * 60)] * 80)
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with pytest.raises(ChannelError, match="not a request"):
        key_in_csr(signed.public_bytes(Encoding.DER))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_request(content: bytes) -> None:
    with pytest.raises(ChannelError):
        key_in_csr(content)


def test_servers_certificate_bears_its_names_and_addresses() -> None:
    server = Identity("hearts", Role.SERVER, "server")
    leaf = leaf_of(
        ISSUING.issue(server, IdentityKey.generate().csr(), NOW, hosts=("fl.example.org", "192.0.2.1", "::1"))
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "::1"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


def test_serials_are_random() -> None:
    csr = IdentityKey.generate().csr()
    serials = {leaf_of(ISSUING.issue(NODE, csr, NOW)).serial_number for _ in range(50)}
    assert len(serials) == 50
    assert min(serials) > 1 << 100  # a false alarm once in 10^15 runs


def test_root_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    files = tmp_path / "root.pem", tmp_path / "root-key.pem"
    ROOT.save(*files, b"right", cost=16)
    assert files[1].stat().st_mode & 0o777 == 0o600
    assert RootAuthority.load(*files, b"right").federation == "hearts"
    for wrong in (b"wrong", b"", None):
        with pytest.raises(ChannelError):
            RootAuthority.load(*files, wrong)


def test_root_key_is_never_written_in_the_clear(tmp_path: Path) -> None:
    for nothing in (b"", None):
        with pytest.raises(ValueError, match="encrypted"):
            ROOT.save(tmp_path / "root.pem", tmp_path / "root-key.pem", nothing)
    assert not list(tmp_path.iterdir())


def test_passphrase_of_the_root_is_hardened(tmp_path: Path) -> None:
    """By scrypt, as Python's own hashlib computes it; what comes out opens the key in openssl, without privet."""
    ROOT.save(tmp_path / "root.pem", tmp_path / "root-key.pem", b"right")
    head = (tmp_path / "root-key.pem").read_text().splitlines()[0].split()
    assert head[:2] == ["scrypt", str(SCRYPT_COST)]
    salt = bytes.fromhex(head[2])
    password = hashlib.scrypt(b"right", salt=salt, n=SCRYPT_COST, r=8, p=1, maxmem=1 << 28, dklen=32).hex()
    command = ["openssl", "pkey", "-in", "root-key.pem", "-passin", f"pass:{password}", "-noout"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_root_key_that_asks_for_much_memory(tmp_path: Path) -> None:
    """2 GiB: refused before any is taken."""
    files = tmp_path / "root.pem", tmp_path / "root-key.pem"
    ROOT.save(*files, b"right", cost=16)
    files[1].write_text(files[1].read_text().replace("scrypt 16", "scrypt 2097152", 1))
    with pytest.raises(ChannelError, match="not a root's key"):
        RootAuthority.load(*files, b"right")


@pytest.mark.parametrize("head", ["scrypt 17", "scrypt 0", "other 16", ""])
def test_root_key_that_asks_for_what_no_privet_wrote(tmp_path: Path, head: str) -> None:
    files = tmp_path / "root.pem", tmp_path / "root-key.pem"
    ROOT.save(*files, b"right", cost=16)
    files[1].write_text(files[1].read_text().replace("scrypt 16", head, 1))
    with pytest.raises(ChannelError):
        RootAuthority.load(*files, b"right")


def test_key_of_another_authority(tmp_path: Path) -> None:
    ISSUING.save(tmp_path / "issuing.pem", tmp_path / "issuing-key.pem")
    IdentityKey.generate().save(tmp_path / "issuing-key.pem")
    with pytest.raises(ChannelError, match="not a pair"):
        IssuingAuthority.load(tmp_path / "issuing.pem", tmp_path / "issuing-key.pem")


def test_federation_that_has_no_name_of_an_identity() -> None:
    with pytest.raises(ChannelError):
        RootAuthority.create("Hearts and Lungs", NOW)
