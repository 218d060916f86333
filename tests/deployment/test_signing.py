"""Signed bundles: what was changed, removed or added is refused by name; nothing is read before."""

import datetime
import json
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import jaxaccel as ja
from jaxaccel.deployment.signing import sign_bundle, verify_bundle
from jaxaccel.errors import UserError
from jaxaccel.export import main as export
from jaxaccel.predict import main as predict
from jaxaccel.verify import main as verify

PLAIN = serialization.NoEncryption()


def write_pair(folder, name, key, encryption=PLAIN):
    """Writes NAME.key and NAME.pub."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        write_pair(folder, name, ec.generate_private_key(ec.SECP256R1()))
    return folder


@pytest.fixture(scope="module")
def signed_once(digits_run, keys, tmp_path_factory):
    place = tmp_path_factory.mktemp("signed") / "digits"
    words = [
        str(digits_run.directory),
        "--output",
        str(place),
        "--batch",
        "1",
        "--sign",
        str(keys / "ours.key"),
    ]
    assert export(words) == 0
    return place


@pytest.fixture
def signed(signed_once, tmp_path):
    return Path(shutil.copytree(signed_once, tmp_path / "moved"))


def test_a_signed_bundle_verifies_wherever_it_lies(signed, keys, capsys, monkeypatch):
    assert verify([str(signed), "--key", str(keys / "ours.pub")]) == 0
    assert "moved is as it was signed" in capsys.readouterr().out
    monkeypatch.chdir(signed.parent)
    verify_bundle("moved", keys / "ours.pub")
    sign_bundle("moved", keys / "theirs.key")
    verify_bundle("moved", keys / "theirs.pub")


def test_another_key_is_refused(signed, keys):
    with pytest.raises(UserError, match="is not what was signed, or somebody else signed it"):
        verify_bundle(signed, keys / "theirs.pub")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves_sign(signed, curve, tmp_path):
    private, public = write_pair(tmp_path, "other", ec.generate_private_key(curve))
    sign_bundle(signed, private)
    verify_bundle(signed, public)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "manifest.json", "README.md", "programs/cpu-batch1.jax"]
)
def test_each_file_is_protected(signed, keys, name):
    content = (signed / name).read_bytes()
    (signed / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} was changed"):
        verify_bundle(signed, keys / "ours.pub")
    (signed / name).unlink()
    with pytest.raises(UserError, match=f"{name} was removed"):
        verify_bundle(signed, keys / "ours.pub")


@pytest.mark.parametrize(
    "name", ["more.bin", ".hidden", ".git/config", ".gitattributes", "programs/more.jax"]
)
def test_what_was_added_is_refused(signed, keys, name):
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_bytes(b"more")
    with pytest.raises(UserError, match=f"{name} was added"):
        verify_bundle(signed, keys / "ours.pub")


def test_a_link_is_refused(signed, keys, tmp_path):
    shutil.move(signed / "README.md", tmp_path / "README.md")
    (signed / "README.md").symlink_to(tmp_path / "README.md")
    with pytest.raises(UserError, match="symlink"):
        verify_bundle(signed, keys / "ours.pub")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"dsseEnvelope": {}}', b"[" * 100_000])
def test_a_damaged_signature_is_one_line(signed, keys, content):
    (signed / "model.sig").write_bytes(content)
    with pytest.raises(UserError, match="the signature is damaged, or is made in another way"):
        verify_bundle(signed, keys / "ours.pub")


def test_a_forged_signature_is_refused(signed, keys):
    """The list of files is replaced, and the old signature kept."""
    ours = (signed / "model.sig").read_bytes()
    sign_bundle(signed, keys / "theirs.key")
    theirs = (signed / "model.sig").read_bytes()
    forged = json.loads(ours)
    forged["dsseEnvelope"]["signatures"] = json.loads(theirs)["dsseEnvelope"]["signatures"]
    (signed / "model.sig").write_text(json.dumps(forged))
    with pytest.raises(UserError, match="somebody else signed it"):
        verify_bundle(signed, keys / "ours.pub")


def test_an_unsigned_bundle_says_how_to_sign(signed, keys):
    (signed / "model.sig").unlink()
    with pytest.raises(UserError, match=r"is not signed: there is no .*model.sig; .*--sign KEY"):
        verify_bundle(signed, keys / "ours.pub")


def test_a_zip_is_signed_beside_it(digits_run, keys, tmp_path):
    place = tmp_path / "digits.zip"
    ja.export(digits_run.directory, place, batch=(), timed=False)
    assert sign_bundle(place, keys / "ours.key") == tmp_path / "digits.zip.sig"
    verify_bundle(place, keys / "ours.pub")
    content = place.read_bytes()
    place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="the file was changed"):
        verify_bundle(place, keys / "ours.pub")


# ---- keys and certificates --------------------------------------------------------------------------------------


def test_an_encrypted_key_needs_its_password(signed, tmp_path, monkeypatch):
    encryption = serialization.BestAvailableEncryption(b"secret")
    private, public = write_pair(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), encryption)
    with pytest.raises(UserError, match="is encrypted, or not encrypted: set or unset JAXACCEL_KEY_PASSWORD"):
        sign_bundle(signed, private)
    monkeypatch.setenv("JAXACCEL_KEY_PASSWORD", "wrong")
    with pytest.raises(UserError, match="JAXACCEL_KEY_PASSWORD is not its password"):
        sign_bundle(signed, private)
    monkeypatch.setenv("JAXACCEL_KEY_PASSWORD", "secret")
    sign_bundle(signed, private)
    verify_bundle(signed, public)


def test_what_is_no_key_is_one_line(signed, keys, tmp_path):
    private, public = write_pair(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    with pytest.raises(UserError, match="is no key of an elliptic curve: make one with openssl"):
        sign_bundle(signed, private)
    with pytest.raises(UserError, match="is no key of an elliptic curve"):
        verify_bundle(signed, public)
    with pytest.raises(UserError, match=r"README.md is no public key in PEM"):
        verify_bundle(signed, signed / "README.md")
    with pytest.raises(UserError, match="No such file"):
        verify_bundle(signed, keys / "none.pub")
    with pytest.raises(UserError, match=r"is no private key in PEM"):
        sign_bundle(signed, keys / "ours.pub")


def make_certificate(folder, name, issuer=None):
    """Writes NAME.key and NAME.pem, signed by `issuer`, (key, certificate), or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_pair(folder, name, key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issued_by = (issuer[0], issuer[1].subject) if issuer else (key, subject)
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issued_by).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=issuer is None, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .sign(signer, hashes.SHA256())
    )  # fmt: skip
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, made


def test_a_certificate_signs_and_its_root_verifies(signed, keys, tmp_path):
    root = make_certificate(tmp_path, "root")
    make_certificate(tmp_path, "leaf", root)
    make_certificate(tmp_path, "stranger")
    sign_bundle(
        signed, tmp_path / "leaf.key", certificate=tmp_path / "leaf.pem", chain=[tmp_path / "root.pem"]
    )
    assert verify([str(signed), "--chain", str(tmp_path / "root.pem")]) == 0
    with pytest.raises(UserError, match="somebody else signed it"):
        verify_bundle(signed, chain=[tmp_path / "stranger.pem"])
    with pytest.raises(UserError, match="is made in another way"):
        verify_bundle(signed, keys / "ours.pub")
    with pytest.raises(UserError, match="cannot be signed with"):
        sign_bundle(signed, keys / "ours.key", certificate=tmp_path / "leaf.pem")


# ---- commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "name a bundle"),
        (["BUNDLE"], "name the key of whoever signed it: --key FILE, or --chain FILE"),
        (["BUNDLE", "--key", "a", "--chain", "b"], "--key and --chain exclude each other"),
        (["none", "--key", "OURS"], "none is not there"),
        (["BUNDLE", "--kay", "OURS"], "--kay"),
    ],
)
def test_bad_words_are_one_line(signed_once, keys, words, says):
    names = {"BUNDLE": str(signed_once), "OURS": str(keys / "ours.pub")}
    with pytest.raises(UserError) as raised:
        verify([names.get(word, word) for word in words])
    assert says in raised.value.as_flags()


def test_predictions_wait_for_the_signature(signed, keys, monkeypatch):
    (signed / "README.md").write_text("changed")
    monkeypatch.setattr("jaxaccel.predict.load", lambda *args, **kwargs: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"README.md was changed"):
        predict([str(signed), str(signed / "README.md"), "--key", str(keys / "ours.pub")])
    with pytest.raises(UserError) as raised:
        predict([str(signed), str(signed / "README.md"), "--require-signature"])
    assert raised.value.as_flags() == "--require-signature needs the public key: --key FILE"


def test_a_certificate_needs_its_key(digits_run):
    with pytest.raises(UserError) as raised:
        export([str(digits_run.directory), "--certificate", "leaf.pem"])
    assert raised.value.as_flags() == "--certificate signs together with its key: --sign KEY"
