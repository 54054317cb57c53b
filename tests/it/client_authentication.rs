//! How the sidecar proves who it is to the authorization server, and finds out where its endpoints are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::support::authorization_server::{CLIENT_ID, grant, json as answer};
use crate::support::certificates::Authority;
use crate::support::process::Ended;
use crate::support::server::Request;
use crate::support::{AuthorizationServer, Process, Setup, Upstream, eventually, wait_until};

/// The parameters of a form, none of which may come twice.
fn form(request: &Request) -> BTreeMap<String, String> {
    let mut form = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(&request.body.data) {
        let before = form.insert(name.into_owned(), value.into_owned());
        assert_eq!(before, None, "{request:?}");
    }
    form
}

/// The claims of the assertion in a request, if `key` is what signed it.
fn claims(request: &Request, key: &KeyPair) -> Option<Value> {
    let form = form(request);
    assert_eq!(form["client_id"], CLIENT_ID);
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    let (signed, signature) = form["client_assertion"].rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.der_bytes());
    public.verify(signed.as_bytes(), &signature).ok()?;
    let claims = signed.split('.').nth(1).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
    serde_json::from_slice(&claims).unwrap()
}

fn line(key: &str, path: &Path) -> String {
    format!("{key} = {:?}\n", path.display().to_string())
}

/// Writes a file as Kubernetes and every careful tool does: whole, or not at all.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

/// How many proofs of who asks are in a request.
fn proofs(request: &Request) -> usize {
    let form = form(request);
    let in_form = ["client_secret", "client_assertion"];
    let in_form = in_form.iter().filter(|name| form.contains_key(**name));
    in_form.count() + request.head.values("authorization").len()
}

fn run(setup: &Setup, arguments: &[&str]) -> Ended {
    let config = setup.config_file().display().to_string();
    Process::run(&[&["--config", &config], arguments].concat(), &[])
}

/// C-14, C-43: each request has an assertion of its own, signed with the key that is there at that moment.
#[test]
fn a_private_key_signs_each_request_and_can_be_replaced() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(2.0));
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("key.pem");
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    replace(&path, &first.serialize_pem());
    let token_url = format!("token_url = {:?}\n", auth.url());
    let key = line("private_key_file", &path);
    let lines = format!("{token_url}{key}client_auth = \"private_key_jwt\"\nkey_id = \"k\"");
    let sidecar = setup.credential_instead(&lines).start();
    replace(&path, &second.serialize_pem());
    wait_until("a request signed with the new key", || {
        let last = auth.requests().pop().unwrap();
        last.is_over && claims(&last, &second).is_some()
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
    let mut ids = Vec::new();
    for request in auth.requests().iter().filter(|request| request.is_over) {
        assert_eq!(proofs(request), 1, "C-04: {request:?}");
        let claims = claims(request, &first).or_else(|| claims(request, &second));
        let claims = claims.unwrap_or_else(|| panic!("a wrong signature: {request:?}"));
        assert_eq!(claims["aud"], json!(auth.url()));
        assert_eq!(
            (&claims["iss"], &claims["sub"]),
            (&json!("shop"), &json!("shop"))
        );
        ids.push(claims["jti"].as_str().unwrap().to_owned());
    }
    assert!(ids.len() >= 2);
    assert!(claims(&auth.requests()[0], &first).is_some());
    ids.sort_unstable();
    let number = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), number, "no assertion is used twice");
}

/// A projected service account token, renewed by the platform.
#[test]
fn an_assertion_file_is_read_for_each_request() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(2.0));
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("assertion");
    replace(&path, "e30.e30.Zmlyc3Q\n");
    let token_url = format!("token_url = {:?}\n", auth.url());
    let assertion = line("client_assertion_file", &path);
    let lines = format!("{token_url}{assertion}client_auth = \"client_assertion_file\"");
    let sidecar = setup.credential_instead(&lines).start();
    let sent = |request: &Request| form(request)["client_assertion"].clone();
    assert_eq!(sent(&auth.requests()[0]), "e30.e30.Zmlyc3Q");
    assert_eq!(proofs(&auth.requests()[0]), 1, "C-04");
    replace(&path, "e30.e30.c2Vjb25k\n");
    wait_until("a request with the new assertion", || {
        let last = auth.requests().pop().unwrap();
        last.is_over && sent(&last) == "e30.e30.c2Vjb25k"
    });
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// C-04, C-05
#[test]
fn no_request_proves_it_in_two_ways() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.refuses("invalid_client");
    let setup = Setup::between(&upstream, &auth);
    let (key, assertion) = (setup.path("key.pem"), setup.path("assertion"));
    replace(&key, &KeyPair::generate().unwrap().serialize_pem());
    replace(&assertion, "e30.e30.c2ln");
    let secret = line("client_secret_file", &setup.secret_file());
    let key = line("private_key_file", &key);
    let assertion = line("client_assertion_file", &assertion);
    let mut setup = setup;
    for (number, (method, proof)) in [
        ("client_secret_basic", &secret),
        ("client_secret_post", &secret),
        ("client_secret_jwt", &secret),
        ("private_key_jwt", &key),
        ("client_assertion_file", &assertion),
    ]
    .into_iter()
    .enumerate()
    {
        let url = auth.url();
        let lines = format!("token_url = {url:?}\nclient_auth = {method:?}\n{proof}");
        setup = setup.credential_instead(&lines);
        assert_eq!(run(&setup, &["token"]).code, 77, "{method}");
        let requests = auth.requests();
        assert_eq!(requests.len(), number + 1, "nothing is probed: {method}");
        assert_eq!(proofs(&requests[number]), 1, "{method}");
    }
}

/// An authorization server that describes itself as `issuer` of its own address; and what it says of its endpoints.
fn self_describing(well_known: &'static str) -> AuthorizationServer {
    AuthorizationServer::scripted(move |exchange| {
        let issuer = format!("http://{}/tenant", exchange.head.value("host").unwrap());
        let line = exchange.head.line.clone();
        if line == format!("GET {well_known} HTTP/1.1") {
            let document = json!({
                "issuer": issuer,
                "token_endpoint": format!("{issuer}/discovered"),
                "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            });
            exchange.send(answer("200 OK", &document.to_string()))
        } else if line == "POST /tenant/discovered HTTP/1.1" {
            exchange.send(grant("discovered", 3600.0))
        } else {
            exchange.send(answer("404 Not Found", "{}"))
        }
    })
}

/// C-15, C-14: an assertion is for the issuer where that is known.
#[test]
fn the_token_endpoint_of_an_issuer_is_found() {
    for (well_known, number) in [
        ("/.well-known/oauth-authorization-server/tenant", 2),
        ("/tenant/.well-known/openid-configuration", 3),
    ] {
        let (upstream, auth) = (Upstream::ok(), self_describing(well_known));
        let setup = Setup::between(&upstream, &auth);
        let path = setup.path("key.pem");
        let key_pair = KeyPair::generate().unwrap();
        replace(&path, &key_pair.serialize_pem());
        let issuer = format!("http://{}/tenant", auth.address);
        let key = line("private_key_file", &path);
        let lines = format!("issuer = {issuer:?}\nclient_auth = \"private_key_jwt\"\n{key}");
        let sidecar = setup.credential_instead(&lines).start();
        assert_eq!(sidecar.get("/").ok(), "ok");
        let last = upstream.requests().pop().unwrap();
        assert_eq!(
            last.head.value("authorization").unwrap(),
            "Bearer discovered"
        );
        let requests = auth.requests();
        assert_eq!(requests.len(), number);
        for metadata in &requests[..number - 1] {
            assert_eq!(metadata.method(), "GET");
            assert_eq!(metadata.head.values("authorization").len(), 0);
            assert!(metadata.body.data.is_empty());
        }
        let claims = claims(&requests[number - 1], &key_pair).unwrap();
        assert_eq!(claims["aud"], json!(issuer));
    }
}

/// C-15: the secret goes to no endpoint of an issuer that is not the configured one.
#[test]
fn an_issuer_that_calls_itself_otherwise_gets_no_secret() {
    // The document is at the same place with and without the last slash.
    let auth = self_describing("/.well-known/oauth-authorization-server/tenant");
    let upstream = Upstream::ok();
    let setup = Setup::between(&upstream, &auth);
    let secret = line("client_secret_file", &setup.secret_file());
    let issuer = format!("http://{}/tenant/", auth.address);
    let setup = setup.credential_instead(&format!("issuer = {issuer:?}\n{secret}"));
    for (command, code) in [(&["token"][..], 69), (&["check", "--online"], 69)] {
        let ended = run(&setup, command);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.code, code, "{said}");
        let told = format!("it is of the issuer http://{}/tenant", auth.address);
        assert!(said.contains(&told), "{said}");
        assert!(said.contains("hint: issuer must be exactly what the server calls itself"));
    }
    let requests = auth.requests();
    assert!(requests.iter().all(|request| request.method() == "GET"));
}

/// C-43: the commands try a list in its order, until one is not refused.
#[test]
fn a_list_of_secrets_is_tried_in_its_order() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    auth.issues_to("second");
    let setup = Setup::between(&upstream, &auth);
    let secrets = ["first", "second", "third"].map(|secret| {
        let path = setup.path(secret);
        fs::write(&path, secret).unwrap();
        path.display().to_string()
    });
    let url = auth.url();
    let setup = setup.credential_instead(&format!(
        "token_url = {url:?}\nclient_secret_file = {secrets:?}"
    ));
    let ended = run(&setup, &["token"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(auth.requests().len(), 2);
    auth.issues_to("another");
    assert_eq!(run(&setup, &["check", "--online"]).code, 77);
    assert_eq!(auth.requests().len(), 5);
    auth.refuses("invalid_scope");
    assert_eq!(run(&setup, &["token"]).code, 77);
    assert_eq!(auth.requests().len(), 6, "which is not about the secret");
}

/// C-14, C-70: exit 78, with a hint, and nothing of the key.
#[test]
fn a_key_that_cannot_sign_stops_the_start() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("key.pem");
    let pem = KeyPair::generate().unwrap().serialize_pem();
    fs::write(&path, &pem).unwrap();
    let (url, key) = (auth.url(), line("private_key_file", &path));
    let lines = format!(
        "token_url = {url:?}\nclient_auth = \"private_key_jwt\"\n{key}signing_algorithm = \"RS256\""
    );
    let setup = setup.credential_instead(&lines);
    for command in [&["check"][..], &["run"]] {
        let ended = run(&setup, command);
        assert_eq!(ended.code, 78);
        let told = "is a P-256 key, which cannot sign RS256";
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
        assert!(ended.stderr.contains("hint: signing_algorithm is"));
        assert!(!ended.stderr.contains(pem.lines().nth(1).unwrap()));
    }
    assert_eq!(auth.requests().len(), 0);
}

/// A key that is broken while it is replaced costs nothing: the one before it signs on.
#[test]
fn a_key_that_is_broken_at_run_time_is_told_and_can_be_mended() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::issuing_for(3.0));
    let setup = Setup::between(&upstream, &auth);
    let path = setup.path("key.pem");
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    replace(&path, &first.serialize_pem());
    let (url, key) = (auth.url(), line("private_key_file", &path));
    let lines = format!("token_url = {url:?}\nclient_auth = \"private_key_jwt\"\n{key}");
    let sidecar = setup.credential_instead(&lines).start();
    replace(&path, "-----BEGIN PRIVATE KEY-----\n");
    wait_until("it is told", || {
        let ready = sidecar.admin("/readyz?verbose").text();
        ready.contains("for credentials before the present ones: secret_error")
    });
    let before = auth.requests().len();
    auth.wait_for_requests(before + 1);
    assert!(claims(&auth.requests()[before - 1], &first).is_some());
    replace(&path, &second.serialize_pem());
    eventually("a request signed with the new key", || {
        let requests = auth.requests();
        let last = requests.iter().rfind(|request| request.is_over)?;
        claims(last, &second)
    });
    sidecar.wait_until_ready();
    assert_eq!(sidecar.get("/").ok(), "ok");
}

/// C-38
#[test]
fn a_smaller_scope_is_told_or_refused() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let body = r#"{"access_token":"t","token_type":"Bearer","scope":"read"}"#;
    auth.answers(answer("200 OK", body));
    let setup = Setup::between(&upstream, &auth).credential("scope = \"write read\"");
    let ended = run(&setup, &["check", "--online"]);
    assert_eq!(ended.code, 0);
    let told = "warn  token payments: asked for and not granted: write";
    assert!(ended.stdout.contains(told), "{}", ended.stdout);
    let setup = setup.credential("on_scope_downgrade = \"fail\"");
    let ended = run(&setup, &["token"]);
    assert_eq!(ended.code, 77);
    assert!(
        ended
            .stderr
            .contains("lacks what was asked for: scope write"),
        "{}",
        ended.stderr
    );
    let sidecar = setup.start_unready();
    wait_until("a refusal", || {
        sidecar
            .admin("/readyz")
            .text()
            .contains("invalid_scope, attempt 1")
    });
    sidecar.get("/").assert_problem(503, "token_unavailable");
}

/// C-13: the connection proves it, with the key pair that is there when it is made; the form has the id alone.
#[test]
fn a_client_certificate_proves_it_and_can_be_replaced() {
    let authority = Authority::new();
    let (first, second) = (authority.client("first"), authority.client("second"));
    let presented: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let seen = presented.clone();
    let auth = AuthorizationServer::scripted_for_clients_of(authority, move |exchange| {
        let certificate = exchange.wire.get_ref().client_certificate();
        seen.lock()
            .unwrap()
            .push(certificate.expect("a client certificate"));
        exchange.send(grant(&format!("token-{}", exchange.number), 2.0))
    });
    let upstream = Upstream::ok();
    let setup = Setup::between(&upstream, &auth);
    let (certificate_file, key_file) = (setup.path("client.pem"), setup.path("client.key"));
    fs::copy(&first.0, &certificate_file).unwrap();
    fs::copy(&first.1, &key_file).unwrap();
    let token_url = format!("token_url = {:?}\n", auth.url());
    let ca = line("ca_file", &auth.authority().unwrap().ca_file());
    let certificate = line("client_cert_file", &certificate_file);
    let key = line("client_key_file", &key_file);
    let method = "client_auth = \"tls_client_auth\"";
    let sidecar = setup
        .credential_instead(&format!("{token_url}{ca}{certificate}{key}{method}"))
        .start();
    fs::copy(&second.0, &certificate_file).unwrap();
    fs::copy(&second.1, &key_file).unwrap();
    wait_until("the new certificate", || {
        let presented = presented.lock().unwrap();
        presented.last().is_some_and(|last| *last == der(&second.0))
    });
    assert_eq!(presented.lock().unwrap()[0], der(&first.0));
    assert_eq!(sidecar.get("/").ok(), "ok");
    for request in auth.requests().iter().filter(|request| request.is_over) {
        assert_eq!(proofs(request), 0);
        let body = String::from_utf8_lossy(&request.body.data);
        assert_eq!(body, "grant_type=client_credentials&client_id=shop");
    }
}

/// What stands in a PEM file.
fn der(file: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(file).unwrap().to_vec()
}
