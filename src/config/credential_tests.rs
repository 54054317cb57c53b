//! `[credential.NAME]`: who we are and how we prove it, and where.

use super::*;
use crate::oauth::client_assertion::{PrivateKey, SigningAlgorithm};
use crate::oauth::token_endpoint::{Location, ScopeDowngrade};

const TOKEN_URL: &str = "token_url = \"https://as.example/t\"\n";

/// A configuration whose credential has these lines and a `client_id`.
fn with(lines: &str) -> Result<Config, String> {
    load(&format!(
        "[upstream.payments]\nurl = \"https://api.payments.example\"\n\
         [credential.payments]\nclient_id = \"shop\"\n{lines}\n"
    ))
}

/// The same with a token URL.
fn client_auth(lines: &str) -> Result<ClientAuth, String> {
    let config = with(&format!("{TOKEN_URL}{lines}"))?;
    Ok(config.credentials[0].endpoint.client_auth.clone())
}

/// With a client secret and these lines, or the message that tells what is wrong.
fn credential(lines: &str) -> Result<CredentialConfig, String> {
    let secret = secret();
    let secret = secret.path().display();
    let config = with(&format!("client_secret_file = \"{secret}\"\n{lines}"))?;
    Ok(config.credentials[0].clone())
}

/// A private key of P-256.
fn private_key() -> NamedTempFile {
    file(&rcgen::KeyPair::generate().unwrap().serialize_pem())
}

fn assertion() -> NamedTempFile {
    file("e30.e30.c2ln\n")
}

/// A client certificate and its key, and the lines that name them.
fn certificate() -> ([NamedTempFile; 2], String) {
    let names = vec!["shop".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (file(&cert.pem()), file(&signing_key.serialize_pem()));
    let lines = line("client_cert_file", &certificate) + &line("client_key_file", &key);
    ([certificate, key], lines)
}

/// A line that names a file.
fn line(key: &str, file: &NamedTempFile) -> String {
    format!("{key} = \"{}\"\n", file.path().display())
}

fn source(file: &NamedTempFile) -> SecretSource {
    SecretSource::File(file.path().into())
}

/// C-14
#[test]
fn each_method_takes_the_settings_that_are_its_own() {
    let (secret, key, assertion) = (secret(), private_key(), assertion());
    let secret_line = line("client_secret_file", &secret);
    for (word, method) in [
        (
            "client_secret_basic",
            SecretMethod::Basic(BasicEncoding::Form),
        ),
        ("client_secret_post", SecretMethod::Post),
        ("client_secret_jwt", SecretMethod::Jwt),
    ] {
        let found = client_auth(&format!("client_auth = \"{word}\"\n{secret_line}")).unwrap();
        assert_eq!(found.name(), word);
        assert_eq!(found, ClientAuth::Secrets(method, vec![source(&secret)]));
    }
    let key_line = line("private_key_file", &key);
    let private_key = |key_id: Option<&str>, algorithm| {
        ClientAuth::PrivateKeyJwt(PrivateKey {
            file: source(&key),
            key_id: key_id.map(str::to_owned),
            algorithm,
        })
    };
    let lines = format!("client_auth = \"private_key_jwt\"\n{key_line}");
    assert_eq!(client_auth(&lines).unwrap(), private_key(None, None));
    let lines = format!("{lines}key_id = \"k\"\nsigning_algorithm = \"ES256\"\n");
    assert_eq!(
        client_auth(&lines).unwrap(),
        private_key(Some("k"), Some(SigningAlgorithm::Es256))
    );
    let assertion_line = line("client_assertion_file", &assertion);
    let lines = format!("client_auth = \"client_assertion_file\"\n{assertion_line}");
    assert_eq!(
        client_auth(&lines).unwrap(),
        ClientAuth::AssertionFile(source(&assertion))
    );
    let (_files, certificate) = certificate();
    for (word, method) in [
        ("tls_client_auth", ClientAuth::TlsClientAuth),
        (
            "self_signed_tls_client_auth",
            ClientAuth::SelfSignedTlsClientAuth,
        ),
    ] {
        let lines = format!("client_auth = \"{word}\"\n{certificate}");
        assert_eq!(client_auth(&lines), Ok(method));
    }
}

/// C-04, C-05: no method is guessed from what is there.
#[test]
fn two_proofs_are_a_mistake_and_so_is_the_proof_of_another_method() {
    let (secret, key, assertion) = (secret(), private_key(), assertion());
    let secret = line("client_secret_file", &secret);
    let key = line("private_key_file", &key);
    let assertion = line("client_assertion_file", &assertion);
    let (_files, certificate) = certificate();
    let basic = "client_auth = \"client_secret_basic\"";
    for (lines, told, hint) in [
        (
            key.clone(),
            format!("private_key_file is not for {basic}"),
            "private_key_jwt",
        ),
        (
            format!("{secret}{key}"),
            format!("private_key_file is not for {basic}"),
            "private_key_jwt",
        ),
        (
            format!("client_auth = \"private_key_jwt\"\n{secret}{key}"),
            "client_secret_file is not for client_auth = \"private_key_jwt\"".to_owned(),
            "client_secret_basic",
        ),
        (
            format!("client_auth = \"private_key_jwt\"\n{assertion}"),
            "client_assertion_file is not for client_auth = \"private_key_jwt\"".to_owned(),
            "client_assertion_file",
        ),
        (
            format!("client_auth = \"tls_client_auth\"\n{certificate}client_secret_env = \"X\""),
            "client_secret_env is not for client_auth = \"tls_client_auth\"".to_owned(),
            "client_secret_basic",
        ),
        (
            format!("client_auth = \"client_secret_post\"\n{secret}basic_encoding = \"raw\""),
            "basic_encoding is not for client_auth = \"client_secret_post\"".to_owned(),
            "client_secret_basic",
        ),
        (
            format!("{secret}key_id = \"k\""),
            format!("key_id is not for {basic}"),
            "private_key_jwt",
        ),
        (
            format!("client_auth = \"client_secret_jwt\"\n{secret}signing_algorithm = \"RS256\""),
            "signing_algorithm is not for client_auth = \"client_secret_jwt\"".to_owned(),
            "private_key_jwt",
        ),
    ] {
        let error = client_auth(&lines).unwrap_err();
        assert!(error.contains(&told), "{lines}: {error}");
        let hint = format!("never two: remove it, or set client_auth = \"{hint}\"");
        assert!(error.contains(&hint), "{error}");
        assert_eq!(error.matches("hint: ").count(), 1, "told once: {error}");
    }
}

#[test]
fn a_proof_that_is_missing_or_cannot_be_used_is_told() {
    let key = private_key();
    let key = line("private_key_file", &key);
    let neither = file("c4n4ry");
    let no_key = line("private_key_file", &neither);
    let no_assertion = line("client_assertion_file", &neither);
    let by_key = "client_auth = \"private_key_jwt\"\n";
    let by_file = "client_auth = \"client_assertion_file\"\n";
    for (lines, told, hint) in [
        (
            "client_auth = \"client_secret_post\"".to_owned(),
            "missing `client_secret_file` in [credential.payments]",
            "BEARERD_CLIENT_SECRET_FILE",
        ),
        (
            "client_auth = \"tls_client_auth\"".to_owned(),
            "missing `client_cert_file` and `client_key_file` in",
            "client certificate",
        ),
        (
            by_key.to_owned(),
            "missing `private_key_file` in",
            "\"private_key_jwt\" needs it",
        ),
        (
            by_file.to_owned(),
            "missing `client_assertion_file` in",
            "needs it",
        ),
        (
            format!("{by_key}{no_key}"),
            "holds no private key as PEM",
            "openssl genpkey",
        ),
        (
            format!("{by_key}private_key_file = \"/nonexistent\""),
            "secret file /nonexistent: does not exist",
            "before bearerd starts",
        ),
        (
            format!("{by_key}{key}signing_algorithm = \"RS256\""),
            "is a P-256 key, which cannot sign RS256",
            "leave it out",
        ),
        (
            format!("{by_key}{key}signing_algorithm = \"HS256\""),
            "\"HS256\" is none of RS256, PS256, ES256, EdDSA",
            "did you mean",
        ),
        (
            format!("{by_key}{key}key_id = \"\""),
            "key_id is empty",
            "leave it out",
        ),
        (
            format!("{by_file}{no_assertion}"),
            "is not a JWT",
            "one JWT on one line",
        ),
        (
            format!("client_auth = \"private_key_jtw\"\n{key}"),
            "\"private_key_jtw\" is none of client_secret_basic, client_secret_post,",
            "did you mean \"private_key_jwt\"?",
        ),
    ] {
        let error = client_auth(&lines).unwrap_err();
        assert!(error.contains(told), "{lines}: {error}");
        assert!(error.contains(hint), "{hint}: {error}");
        assert!(!error.contains("c4n4ry"), "{error}");
        assert_eq!(error.matches("hint: ").count(), 1, "told once: {error}");
    }
}

/// C-43: each of a list is there at the start.
#[test]
fn a_list_of_secrets_has_one_to_eight_of_them() {
    let files: Vec<_> = (0..9).map(|_| secret()).collect();
    let list = |number: usize| {
        let paths = files[..number].iter().map(|file| file.path());
        format!("client_secret_file = {:?}", paths.collect::<Vec<_>>())
    };
    for number in [1, 2, 8] {
        let ClientAuth::Secrets(_, secrets) = client_auth(&list(number)).unwrap() else {
            panic!("no secrets");
        };
        let expected: Vec<_> = files[..number].iter().map(source).collect();
        assert_eq!(secrets, expected);
    }
    for number in [0, 9] {
        let error = client_auth(&list(number)).unwrap_err();
        assert!(
            error.contains("client_secret_file names 1 to 8 files"),
            "{error}"
        );
    }
    let broken = list(2).replace(']', ", \"/nonexistent/a\", \"/nonexistent/b\"]");
    let error = client_auth(&broken).unwrap_err();
    for path in ["/nonexistent/a", "/nonexistent/b"] {
        assert!(
            error.contains(&format!("secret file {path}: does not exist")),
            "{error}"
        );
    }
}

/// C-09, C-10, C-15
#[test]
fn an_issuer_stands_instead_of_a_token_url() {
    let insecure = "allow_insecure_token_url = true";
    for (issuer, more) in [
        ("https://as.example/tenant/", ""),
        ("http://localhost:8000", ""),
        ("http://as.internal", insecure),
    ] {
        let config = credential(&format!("issuer = \"{issuer}\"\n{more}")).unwrap();
        let Location::Issuer(found) = &config.endpoint.location else {
            panic!("{:?}", config.endpoint.location);
        };
        assert_eq!(found.identifier(), issuer, "to the last byte");
        let shown = config.endpoint.location.to_string();
        assert_eq!(shown, format!("the token endpoint of {issuer}"));
    }
    for (lines, told) in [
        ("", "missing `token_url`"),
        (
            "token_url = \"https://as.example/t\"\nissuer = \"https://as.example\"",
            "issuer together with token_url",
        ),
        (
            "issuer = \"http://as.example\"",
            "metadata without TLS can be forged",
        ),
        (
            "issuer = \"https://as.example?tenant=1\"",
            "not an issuer identifier",
        ),
        (
            "issuer = \"https://as.example/#x\"",
            "must not have a fragment",
        ),
        (
            "issuer = \"https://u:c4n4ry@as.example\"",
            "must not contain user information",
        ),
        ("issuer = \"as.example\"", "not a URL"),
    ] {
        let error = credential(lines).unwrap_err();
        assert!(error.contains(told), "{lines}: {error}");
        assert!(!error.contains("c4n4ry"), "{error}");
    }
}

/// A variable speaks of the whole choice, as with the client id.
#[test]
fn a_variable_for_the_token_url_replaces_the_issuer_of_the_file() {
    let secret = secret();
    let text = minimal(&secret, "", "", "").replace("token_url", "issuer");
    assert!(load(&text).is_ok());
    let variables = [("BEARERD_TOKEN_URL", "https://other.example/t")];
    let config = load_with(&text, Flags::default(), &variables).unwrap();
    let url = Location::Url("https://other.example/t".parse().unwrap());
    assert_eq!(config.credentials[0].endpoint.location, url);
}

#[test]
fn revocation_needs_an_endpoint() {
    let url = "revoke_url = \"https://as.example/r\"\n";
    let issuer = "issuer = \"https://as.example\"\n";
    let on = "revoke_on_shutdown = true";
    let config = credential(&format!("{TOKEN_URL}{url}{on}")).unwrap();
    assert!(config.policy.revoke_at_end);
    let expected = Some("https://as.example/r".parse().unwrap());
    assert_eq!(config.endpoint.revoke_url, expected);
    assert!(
        credential(&format!("{issuer}{on}"))
            .unwrap()
            .policy
            .revoke_at_end
    );
    assert!(
        !credential(&format!("{TOKEN_URL}{url}"))
            .unwrap()
            .policy
            .revoke_at_end
    );
    for (lines, told) in [
        (on, "revoke_on_shutdown without a revocation endpoint"),
        (
            "revoke_url = \"http://as.example/r\"",
            "the revocation endpoint would get the client secret unencrypted",
        ),
        (
            "revoke_url = \"https://as.example/r#x\"",
            "must not have a fragment",
        ),
    ] {
        let error = credential(&format!("{TOKEN_URL}{lines}")).unwrap_err();
        assert!(error.contains(told), "{lines}: {error}");
    }
}

/// C-38, C-57
#[test]
fn what_to_do_about_a_refused_token_and_a_smaller_scope() {
    let config = |lines: &str| credential(&format!("{TOKEN_URL}{lines}"));
    let defaults = config("").unwrap();
    assert!(defaults.replay_on_401 && !defaults.policy.revoke_at_end);
    assert_eq!(
        defaults.invalidate_on_status,
        [http::StatusCode::UNAUTHORIZED]
    );
    assert_eq!(defaults.endpoint.on_scope_downgrade, ScopeDowngrade::Warn);
    let others = config(
        "replay_on_401 = false\ninvalidate_on_status = [401, 419, 498]\non_scope_downgrade = \"fail\"",
    );
    let others = others.unwrap();
    assert!(!others.replay_on_401);
    assert_eq!(others.invalidate_on_status, [401_u16, 419, 498]);
    assert_eq!(others.endpoint.on_scope_downgrade, ScopeDowngrade::Fail);
    let none = config("invalidate_on_status = []").unwrap();
    assert!(none.invalidate_on_status.is_empty());
    for (lines, told) in [
        (
            "invalidate_on_status = [401, 500]",
            "500 is not a status from 400 to 499",
        ),
        ("invalidate_on_status = [399]", "399 is not a status"),
        ("invalidate_on_status = [70001]", "70001 is not a status"),
        (
            "invalidate_on_status = 401",
            "wrong type, expected a sequence",
        ),
        (
            "invalidate_on_status = [\"401\"]",
            "wrong type, expected u64",
        ),
        ("on_scope_downgrade = \"warm\"", "did you mean \"warn\"?"),
    ] {
        let error = config(lines).unwrap_err();
        assert!(error.contains(told), "{lines}: {error}");
    }
}
