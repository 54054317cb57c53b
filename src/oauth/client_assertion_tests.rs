//! Signatures that others can verify, and keys that cannot sign.

use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;

/// An RSA key of 1024 bits, PKCS#1, made for this test.
const SMALL_KEY: &str = "MIICWwIBAAKBgQCqMdzMp0wZRUgpfTJO91nCYhqjKyQJD07ta+xDcZHZoWBb5ylCPcbIqf5sDQlQzenYx3c4gOddgL/lTIwJHuh6\
    NftIM6DAmqs6Ovje2AlcQnID6wQj0+NpGf+aWEnGVGrw9MncpYWkUmG5iLfc+YeqQKo3pmzTkwvycSlOykAQeQIDAQABAoGAZHT4\
    Cgg5f7UIKg0O09NmNLkpVeRR6dMSWEtaclinqRh6wuRH0ySZn7nPRcHQHNTd0amysjRL3EHxgovTIFMRDpKvlL99uK1XbTaKkJQ2\
    H06w3sC/PDw4ru8jMx4WKLPmn+Kte0aJPVudruwxa/NPiuC8/aVnwTJh9Uzi24ejCYECQQDfe4OL6W92nWfMLibBS4cOPx93ZFva\
    ZX/k8FqNfV80Cv3/8xu22ZsT61OHImU+dpee6W77loLRHtXzfaVy/DZRAkEAwvVwJpkNXdc74554l3R2oquNs0FZvL8pkUW9Puak\
    6SV0dA8QzARumRZxKi6vKfq1rM/7jLkdAuSfZNUiEV6lqQJAGtqZpP9I4ITrixJkn8d2lBSrsEoD64tUwerLxsKw5O0JNm88/kzJ\
    oKwfXlaYudfAQl0kc+DTGVPOO7L2ZYm+8QJAZ5E5DdgaqLJRR18FEvg0mb/m28YopMMsktbobMTb8FsMXScvtiHYmwy3+z+nn/Zm\
    krI+IIiqJ8JKBqfOnEmaWQJAFMyYV4zOoLjCQJ5gag/Pw+5rL0aBKPUwQFerdCPqPAv7KShQYnug8kwAZmZ4lmx0Xo/4fY9iMbxv\
    7f4hiiPK/A==";

fn pem(label: &str, der: &[u8]) -> Secret {
    let text = STANDARD.encode(der);
    Secret::new(format!(
        "-----BEGIN {label}-----\n{text}\n-----END {label}-----\n"
    ))
}

fn pkcs8(pair: &impl AsDer<Pkcs8V1Der<'static>>) -> Secret {
    pem("PRIVATE KEY", pair.as_der().unwrap().as_ref())
}

fn ecdsa_pkcs8(pair: &EcdsaKeyPair) -> Secret {
    pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref())
}

fn key(algorithm: Option<SigningAlgorithm>, key_id: Option<&str>) -> PrivateKey {
    PrivateKey {
        file: SecretSource::File("/run/key.pem".into()),
        key_id: key_id.map(str::to_owned),
        algorithm,
    }
}

/// Header, claims, what is signed, and the signature.
fn parts(jwt: &str) -> (Value, Value, &str, Vec<u8>) {
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let json = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    (json(header), json(claims), signed, signature)
}

/// Signs with `pem`, and verifies as a server would that has the public key.
fn verify(
    key: &PrivateKey,
    pem: &Secret,
    verifier: &'static dyn VerificationAlgorithm,
    public: &[u8],
) -> Value {
    let jwt = key
        .assertion(pem, "shop", "https://as.example/token")
        .unwrap();
    let (header, _, signed, signature) = parts(&jwt);
    UnparsedPublicKey::new(verifier, public)
        .verify(signed.as_bytes(), &signature)
        .unwrap();
    header
}

/// C-14
#[test]
fn rsa_signs_what_its_verifiers_accept() {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = pair.public_key().as_ref();
    let pkcs8_pem = pkcs8(&pair);
    // PKCS#1 stands in PKCS#8 after 26 bytes that say that it is RSA.
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    let pkcs1_pem = pem("RSA PRIVATE KEY", &der.as_ref()[26..]);
    for pem in [&pkcs8_pem, &pkcs1_pem] {
        for algorithm in [None, Some(SigningAlgorithm::Rs256)] {
            let key = key(algorithm, None);
            let header = verify(&key, pem, &RSA_PKCS1_2048_8192_SHA256, public);
            assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT" }));
        }
        let key = key(Some(SigningAlgorithm::Ps256), Some("k 1"));
        let header = verify(&key, pem, &RSA_PSS_2048_8192_SHA256, public);
        assert_eq!(
            header,
            json!({ "alg": "PS256", "typ": "JWT", "kid": "k 1" })
        );
    }
}

/// C-14
#[test]
fn elliptic_curves_sign_what_their_verifiers_accept() {
    let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = p256.public_key().as_ref();
    let pkcs8_pem = ecdsa_pkcs8(&p256);
    let sec1: EcPrivateKeyRfc5915Der<'_> = p256.private_key().as_der().unwrap();
    let sec1_pem = pem("EC PRIVATE KEY", sec1.as_ref());
    // Tools write the parameters of the curve before it.
    let parameters = pem("EC PARAMETERS", b"\x06\x08*\x86H\xce=\x03\x01\x07");
    let with_parameters = format!("{}{}", parameters.expose(), sec1_pem.expose());
    for pem in [&pkcs8_pem, &sec1_pem, &Secret::new(with_parameters)] {
        for algorithm in [None, Some(SigningAlgorithm::Es256)] {
            let header = verify(&key(algorithm, None), pem, &ECDSA_P256_SHA256_FIXED, public);
            assert_eq!(header, json!({ "alg": "ES256", "typ": "JWT" }));
        }
    }
    let ed25519 = Ed25519KeyPair::generate().unwrap();
    for algorithm in [None, Some(SigningAlgorithm::EdDsa)] {
        let public = ed25519.public_key().as_ref();
        let header = verify(&key(algorithm, None), &pkcs8(&ed25519), &ED25519, public);
        assert_eq!(header, json!({ "alg": "EdDSA", "typ": "JWT" }));
    }
}

/// C-14: the vectors of RFC 7515 A.1 and RFC 8037 A.4.
#[test]
fn signatures_are_those_of_the_rfcs() {
    let key =
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let key = hmac::Key::new(hmac::HMAC_SHA256, &URL_SAFE_NO_PAD.decode(key).unwrap());
    let message = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQo\
                   gImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = URL_SAFE_NO_PAD.encode(hs256(&key, message.as_bytes()));
    assert_eq!(signature, "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");

    let seed = URL_SAFE_NO_PAD
        .decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
        .unwrap();
    let der = [
        b"\x30\x2e\x02\x01\0\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20",
        &*seed,
    ]
    .concat();
    let key = SigningKey::parse(&pem("PRIVATE KEY", &der), None)
        .ok()
        .unwrap();
    let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    assert_eq!(
        URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).unwrap()),
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    );
}

/// C-14
#[test]
fn an_assertion_is_for_one_server_one_minute_and_one_use() {
    let secret = Secret::new("a secret of 32 bytes or more, please".into());
    let audience = "https://as.example/token";
    let unix_now = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let before = unix_now();
    let jwt = by_client_secret(&secret, "shop \"ä", audience).unwrap();
    let after = unix_now();
    let (header, claims, signed, signature) = parts(&jwt);
    assert_eq!(header, json!({ "alg": "HS256", "typ": "JWT" }));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    hmac::verify(&key, signed.as_bytes(), &signature).unwrap();

    let issued_at = claims["iat"].as_u64().unwrap();
    assert!((before..=after).contains(&issued_at));
    let id = claims["jti"].as_str().unwrap();
    assert_eq!(URL_SAFE_NO_PAD.decode(id).unwrap().len(), 16, "128 bits");
    let expected = json!({
        "iss": "shop \"ä",
        "sub": "shop \"ä",
        "aud": audience,
        "jti": id,
        "iat": issued_at,
        "exp": issued_at + 60,
    });
    assert_eq!(claims, expected);

    let again = by_client_secret(&secret, "shop \"ä", audience).unwrap();
    assert_ne!(parts(&again).1["jti"], claims["jti"]);
}

/// C-14, C-70: what is wrong is told, at start and at run time, and nothing of the key.
#[test]
fn a_key_that_cannot_be_read_is_told() {
    let no_key = "holds no private key as PEM";
    let other = "is a key of a kind that cannot be used";
    let encrypted = "is encrypted";
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
                  YzRuNHJ5\n-----END RSA PRIVATE KEY-----\n";
    let small = STANDARD.decode(SMALL_KEY).unwrap();
    for (pem, told) in [
        (Secret::new("c4n4ry".into()), no_key),
        (pem("CERTIFICATE", b"c4n4ry"), no_key),
        (pem("PRIVATE KEY", b"c4n4ry"), other),
        (pem("EC PRIVATE KEY", b"c4n4ry"), other),
        (pem("RSA PRIVATE KEY", b"c4n4ry"), other),
        (ecdsa_pkcs8(&p384), other),
        (pem("ENCRYPTED PRIVATE KEY", b"c4n4ry"), encrypted),
        (Secret::new(legacy.into()), encrypted),
        (
            pem("RSA PRIVATE KEY", &small),
            "is an RSA key of less than 2048 bits",
        ),
    ] {
        let key = key(None, None);
        let error = key.check(&pem).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("private key file /run/key.pem: {told}")
        );
        assert_eq!(key.assertion(&pem, "shop", "as"), Err(error.clone()));
        let shown = format!("{error:?} {}", error.hint());
        assert!(
            !shown.contains("c4n4ry") && !shown.contains("YzRuNHJ5"),
            "{shown}"
        );
    }
}

#[test]
fn a_key_signs_only_with_the_algorithms_made_for_it() {
    use SigningAlgorithm::{EdDsa, Es256, Ps256, Rs256};
    let rsa = pkcs8(&RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let p256 = ecdsa_pkcs8(&EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    let ed25519 = pkcs8(&Ed25519KeyPair::generate().unwrap());
    for (pem, name, own) in [
        (rsa, "an RSA key", &[Rs256, Ps256][..]),
        (p256, "a P-256 key", &[Es256]),
        (ed25519, "an Ed25519 key", &[EdDsa]),
    ] {
        for algorithm in [Rs256, Ps256, Es256, EdDsa] {
            let checked = key(Some(algorithm), None).check(&pem);
            let expected = (!own.contains(&algorithm))
                .then(|| format!("{name}, which cannot sign {}", algorithm.as_str()));
            let told = checked.err().map(|error| error.to_string());
            let told = told.map(|told| told.replace("private key file /run/key.pem: is ", ""));
            assert_eq!(told, expected);
        }
    }
}

fn check(assertion: &str) -> Result<(), AssertionError> {
    let file = SecretSource::File("/run/token".into());
    check_assertion(&file, &Secret::new(assertion.into()))
}

#[test]
fn an_assertion_of_the_platform_is_a_jwt_on_one_line() {
    assert_eq!(check("eyJhbGciOiJSUzI1NiJ9.e30.c2ln_-"), Ok(()));
    for wrong in [
        "c4n4ry",
        "a.b",
        "a..c",
        ".b.c",
        "a.b.",
        "a.b.c.d.e",
        "a.b.c\n",
        " a.b.c",
        "a.b=.c",
        "a.b.c+",
        "{\"token\":\"a.b.c\"}",
        "é.b.c",
    ] {
        let error = check(wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            "client assertion file /run/token: is not a JWT"
        );
    }
}

#[test]
fn the_expiry_of_an_assertion_is_read_where_there_is_one() {
    let expiry_of = |claims: &str| {
        let claims = URL_SAFE_NO_PAD.encode(claims);
        expiry(&Secret::new(format!("e30.{claims}.c2ln")))
    };
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds));
    assert_eq!(expiry_of(r#"{"exp":1700000000}"#), at(1_700_000_000_000));
    assert_eq!(expiry_of(r#"{"aud":["x"],"exp":1.5,"z":{}}"#), at(1_500));
    for claims in [
        "",
        "{}",
        "[1]",
        r#"{"exp":"1"}"#,
        r#"{"exp":-1}"#,
        r#"{"exp":1e300}"#,
    ] {
        assert_eq!(expiry_of(claims), None, "{claims}");
    }
    assert_eq!(expiry(&Secret::new("opaque".into())), None);
}
