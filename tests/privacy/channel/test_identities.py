"""Identities and the path from a certificate to the root: what is let through, and each attack that is not."""

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.channel.authority import IssuingAuthority, RootAuthority
from privet.privacy.channel.identities import Certificate, Identity, IdentityKey, Role, verified
from privet.privacy.errors import ChannelError, PrivetError
from privet.privacy.signed import certificate_in

NOW = datetime.now(UTC).replace(microsecond=0)
ROOT = RootAuthority.create("hearts", NOW)
ISSUING = ROOT.issuer(NOW)
KEY = IdentityKey.generate()
NODE = Identity("hearts", Role.NODE, "st-marys")


def chain_of(identity: Identity = NODE, issuing: IssuingAuthority = ISSUING) -> bytes:
    return issuing.issue(identity, KEY.csr(), NOW)


def leaf_signed_by(signer: ec.EllipticCurvePrivateKey, issuer: x509.Name, *extensions: x509.ExtensionType) -> bytes:
    """A leaf that an attacker, or a careless authority, made by hand."""
    builder = x509.CertificateBuilder(issuer, x509.Name([]), KEY.private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(minutes=5)).not_valid_after(NOW + timedelta(hours=1))
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    for extension in (key_id, x509.BasicConstraints(ca=False, path_length=None), *extensions):
        builder = builder.add_extension(
            extension, critical=isinstance(extension, x509.BasicConstraints | x509.SubjectAlternativeName)
        )
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def names(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
ANY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])


def by_hand(*extensions: x509.ExtensionType) -> bytes:
    return leaf_signed_by(ISSUING._key.private, ISSUING.certificate.subject, *extensions) + ISSUING.pem


@pytest.mark.parametrize("role", list(Role))
def test_certificate_names_one_party_and_is_let_through_for_its_role_alone(role: Role) -> None:
    chain = chain_of(Identity("hearts", role, "st-marys"))
    certificate = verified(chain, ROOT.pem, NOW, role)
    assert certificate.identity.uri == f"spiffe://hearts/{role}/st-marys"
    assert certificate.key_fingerprint == KEY.fingerprint
    for other in set(Role) - {role}:
        with pytest.raises(ChannelError, match=f"not of role {other}"):
            verified(chain, ROOT.pem, NOW, other)


def test_openssl_finds_the_same_path(tmp_path: Path) -> None:
    for role, purpose in ((Role.NODE, "sslclient"), (Role.SERVER, "sslserver")):
        (tmp_path / "root.pem").write_bytes(ROOT.pem)
        (tmp_path / "issuer.pem").write_bytes(ISSUING.pem)
        (tmp_path / "leaf.pem").write_bytes(chain_of(Identity("hearts", role, "x")))
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem"]
        done = subprocess.run(
            [*command, "-untrusted", "issuer.pem", "leaf.pem"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.strip() == "leaf.pem: OK", done.stderr


def test_fingerprint_is_what_openssl_computes(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key.pem")
    public = subprocess.run(
        ["openssl", "pkey", "-in", "key.pem", "-pubout", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public)
    assert digest.finalize().hex() == KEY.fingerprint


def test_expired_certificate() -> None:
    with pytest.raises(ChannelError, match="expired on"):
        verified(chain_of(), ROOT.pem, NOW + timedelta(hours=25))


def test_certificate_of_tomorrow_asks_for_the_clock() -> None:
    with pytest.raises(ChannelError, match="is the clock right"):
        verified(chain_of(), ROOT.pem, NOW - timedelta(hours=1))


def test_clock_that_is_a_little_behind_is_no_harm() -> None:
    assert verified(chain_of(), ROOT.pem, NOW - timedelta(minutes=9)).identity == NODE


def test_issuer_that_expired() -> None:
    short = ROOT.issuer(NOW, timedelta(hours=1))
    chain = chain_of(issuing=short)
    assert verified(chain, ROOT.pem, NOW).not_after == short.not_after  # none outlives its issuer's
    with pytest.raises(ChannelError):
        verified(chain, ROOT.pem, NOW + timedelta(hours=2))
    with pytest.raises(ChannelError, match="expired"):
        short.issue(NODE, KEY.csr(), NOW + timedelta(hours=2))


def test_self_signed() -> None:
    name = x509.Name([])
    leaf = leaf_signed_by(KEY.private, name, names(NODE.uri), CLIENT)
    for chain in (leaf, leaf + leaf, leaf + ISSUING.pem):
        with pytest.raises(ChannelError):
            verified(chain, ROOT.pem, NOW)


def test_member_of_another_federation_of_the_same_name() -> None:
    other = RootAuthority.create("hearts", NOW)
    with pytest.raises(ChannelError, match="does not lead to the federation's root"):
        verified(chain_of(issuing=other.issuer(NOW)), ROOT.pem, NOW)


def test_issuer_that_names_a_party_of_another_federation() -> None:
    with pytest.raises(ChannelError, match="not of federation hearts"):
        verified(by_hand(names("spiffe://lungs/node/st-marys"), CLIENT), ROOT.pem, NOW)


def test_issuer_refuses_to_name_a_party_of_another_federation() -> None:
    with pytest.raises(ValueError, match="not of federation"):
        ISSUING.issue(Identity("lungs", Role.NODE, "st-marys"), KEY.csr(), NOW)


def test_certificate_by_hand_is_let_through_where_nothing_is_wrong() -> None:
    """Else the tests beside this one would prove nothing."""
    assert verified(by_hand(names(NODE.uri), CLIENT), ROOT.pem, NOW).identity == NODE


@pytest.mark.parametrize(
    "uris", [(), ("spiffe://hearts/node/a", "spiffe://hearts/operator/b"), ("spiffe://hearts/node/a", "https://a.b")]
)
def test_certificate_with_no_uri_or_with_two(uris: tuple[str, ...]) -> None:
    extension = names(*uris) if uris else x509.SubjectAlternativeName([x509.DNSName("st-marys")])
    with pytest.raises(ChannelError, match="URIs; it has one"):
        verified(by_hand(extension, CLIENT), ROOT.pem, NOW)


def test_certificate_without_a_name() -> None:
    with pytest.raises(ChannelError, match="not a certificate of a party"):
        verified(by_hand(CLIENT), ROOT.pem, NOW)


@pytest.mark.parametrize("usage", [ANY, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), None])
def test_node_that_could_play_the_server(usage: x509.ExtendedKeyUsage | None) -> None:
    with pytest.raises(ChannelError):
        verified(by_hand(names(NODE.uri), *([usage] if usage else [])), ROOT.pem, NOW)


def test_server_that_could_play_a_node() -> None:
    with pytest.raises(ChannelError):
        verified(by_hand(names("spiffe://hearts/server/server"), CLIENT), ROOT.pem, NOW)


def test_member_that_plays_issuer() -> None:
    """A leaf signs another leaf: it is no authority."""
    leaf = leaf_signed_by(KEY.private, x509.Name([]), names(NODE.uri), CLIENT)
    with pytest.raises(ChannelError):
        verified(leaf + chain_of(), ROOT.pem, NOW)
    with pytest.raises(ChannelError):
        verified(leaf + chain_of()[: -len(ISSUING.pem)], ROOT.pem, NOW)


def test_root_that_certifies_a_party_itself() -> None:
    leaf = leaf_signed_by(ROOT._key.private, ROOT.certificate.subject, names(NODE.uri), CLIENT)
    with pytest.raises(ChannelError, match="not certified by an issuer"):
        verified(leaf + ISSUING.pem, ROOT.pem, NOW)


@pytest.mark.parametrize("length", [None, 1])
def test_issuer_without_a_limit_on_its_path(length: int | None) -> None:
    """Whoever steals such a key could make authorities with it."""
    made = ISSUING.certificate
    builder = x509.CertificateBuilder(ROOT.certificate.subject, made.subject, made.public_key(), 7)
    builder = builder.not_valid_before(NOW - timedelta(hours=1)).not_valid_after(NOW + timedelta(days=1))
    for extension in made.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            value = x509.BasicConstraints(ca=True, path_length=length)
        builder = builder.add_extension(value, extension.critical)
    wide = builder.sign(ROOT._key.private, hashes.SHA256()).public_bytes(Encoding.PEM)
    leaf = chain_of()[: -len(ISSUING.pem)]
    with pytest.raises(ChannelError, match="path length"):
        verified(leaf + wide, ROOT.pem, NOW)


def test_chain_of_three() -> None:
    with pytest.raises(ChannelError, match="a chain of 3"):
        verified(chain_of() + ROOT.pem, ROOT.pem, NOW)


def test_certificate_without_end() -> None:
    long = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.2.3.4"), b"\x04\x84" + (70_000).to_bytes(4) + bytes(70_000)
    )
    der = x509.load_pem_x509_certificates(by_hand(names(NODE.uri), CLIENT, long))[0].public_bytes(Encoding.DER)
    with pytest.raises(ChannelError, match="not a certificate of a party"):
        Certificate.of_der(der)


def test_chain_without_end() -> None:
    with pytest.raises(ChannelError, match="not a chain"):
        verified(chain_of() * 100, ROOT.pem, NOW)


@given(st.binary(max_size=400))
def test_random_bytes_are_no_certificate(content: bytes) -> None:
    with pytest.raises(ChannelError):
        Certificate.of_der(content)
    with pytest.raises(ChannelError):
        verified(content, ROOT.pem, NOW)


def test_certificate_of_an_unknown_version() -> None:
    """What the library raises for it is no ValueError."""
    der = bytearray(x509.load_pem_x509_certificates(chain_of())[0].public_bytes(Encoding.DER))
    der[der.index(b"\xa0\x03\x02\x01\x02") + 4] = 5
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
    with pytest.raises(ChannelError):
        Certificate.of_der(bytes(der))
    with pytest.raises(ChannelError):
        verified(pem + ISSUING.pem, ROOT.pem, NOW)
    with pytest.raises(ChannelError):
        certificate_in(pem + ISSUING.pem)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_altered_certificate(place: int, change: int) -> None:
    """Whatever byte is changed, it is not let through as somebody else's."""
    der = bytearray(x509.load_pem_x509_certificates(chain_of())[0].public_bytes(Encoding.DER))
    der[place % len(der)] ^= change
    try:
        pem = x509.load_der_x509_certificate(bytes(der)).public_bytes(Encoding.PEM)
        found = verified(pem + ISSUING.pem, ROOT.pem, NOW)
    except (ValueError, x509.InvalidVersion, PrivetError):
        return
    pytest.fail(f"an altered certificate was let through as {found.identity.uri}")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://hearts/node",
        "spiffe://hearts/node/a/b",
        "spiffe://hearts/king/a",
        "spiffe://hearts/node/A",
        "spiffe://hearts/node/a%2fb",
        "spiffe://hearts/node/",
        "spiffe://hearts/node/-a",
        "spiffe://hearts/node/" + "a" * 64,
        "spiffe://hearts/node/a\n",
        "https://hearts/node/a",
        "spiffe:///node/a",
        "spiffe://hearts/NODE/a",
    ],
)
def test_uri_that_names_no_party(uri: str) -> None:
    with pytest.raises(ChannelError):
        Identity.of_uri(uri)


@given(st.sampled_from(list(Role)), st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
def test_uri_and_identity_are_one(role: Role, name: str) -> None:
    identity = Identity("hearts", role, name)
    assert Identity.of_uri(identity.uri) == identity


def test_signature_for_one_purpose_is_none_for_another() -> None:
    certificate = verified(chain_of(), ROOT.pem, NOW)
    signature = KEY.sign("submission", b"plan")
    assert certificate.has_signed("submission", b"plan", signature)
    assert not certificate.has_signed("return", b"plan", signature)
    assert not certificate.has_signed("submission", b"another plan", signature)
    assert not certificate.has_signed("submission", b"plan", IdentityKey.generate().sign("submission", b"plan"))
    assert not certificate.has_signed("submission", b"plan", b"no signature")


def test_key_in_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "identity" / "key.pem"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert IdentityKey.load(path).fingerprint == KEY.fingerprint
    path.chmod(0o640)
    with pytest.raises(ChannelError, match="others may read"):
        IdentityKey.load(path)


def test_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    KEY.save(path, b"right")
    assert IdentityKey.load(path, b"right").fingerprint == KEY.fingerprint
    with pytest.raises(ChannelError, match="is encrypted"):
        IdentityKey.load(path)
    with pytest.raises(ChannelError, match="opens with this passphrase"):
        IdentityKey.load(path, b"wrong")


def test_passphrase_of_another_key_does_no_harm(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key.pem")
    assert IdentityKey.load(tmp_path / "key.pem", b"of the ledger's key").fingerprint == KEY.fingerprint


@pytest.mark.parametrize("other", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_key_of_another_kind(other: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    """TLS 1.2 is refused by the kind of key: see credentials.py."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    path = tmp_path / "key.pem"
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(ChannelError, match="not an ECDSA P-256 key"):
        IdentityKey.load(path)
