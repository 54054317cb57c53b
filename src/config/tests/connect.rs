//! Settings about connecting: files, proxies, names.

use super::*;

/// A certificate and its key, and the key of another.
fn client_identity() -> [NamedTempFile; 3] {
    let (key, other) = (
        rcgen::KeyPair::generate().unwrap(),
        rcgen::KeyPair::generate().unwrap(),
    );
    let params = rcgen::CertificateParams::new(vec!["shop".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    [
        certificate.pem(),
        key.serialize_pem(),
        other.serialize_pem(),
    ]
    .map(|pem| file(&pem))
}

#[test]
fn how_to_connect_is_set_for_each_server() {
    let secret = secret();
    let [cert, key, _] = client_identity();
    let identity = format!(
        "client_cert_file = {:?}\nclient_key_file = {:?}\n",
        cert.path(),
        key.path()
    );
    let upstream = format!(
        "{identity}server_name = \"10.0.0.7\"\nproxy_url = \"http://[::1]:3128/\"\ndns_refresh = \"0s\"\n\
         no_proxy = [\"internal.example\", \"10.0.0.0/8\"]\nconnect_timeout = \"1s\"\nca_file = {:?}",
        cert.path()
    );
    let credential = format!("{identity}proxy_url = \"http://proxy\"\nno_proxy = \"*\"");
    let config = load(&minimal(&secret, "", &upstream, &credential)).unwrap();
    let connect = config.upstreams[0].connect.clone();
    let files: Vec<_> = connect.files().collect();
    assert_eq!(files, [cert.path(), cert.path(), key.path()]);
    assert_eq!(
        connect.tls.server_name.as_ref().unwrap().to_str(),
        "10.0.0.7"
    );
    assert_eq!(connect.timeout, Duration::from_secs(1));
    assert_eq!(connect.dns_refresh, Duration::ZERO);
    let proxy = connect.proxy.unwrap();
    assert_eq!(proxy.url.authority().unwrap(), "[::1]:3128");
    assert!(proxy.is_for("api.payments.example") && !proxy.is_for("x.internal.example"));
    let connect = config.credentials[0].connect.clone();
    let files: Vec<_> = connect.files().collect();
    assert_eq!(files, [cert.path(), key.path()]);
    assert!(!connect.proxy.unwrap().is_for("auth.payments.example"));
    assert!(config.warnings.is_empty());
    let config = load(&minimal(&secret, "", "", "")).unwrap();
    let (upstream, credential) = (&config.upstreams[0].connect, &config.credentials[0].connect);
    assert_eq!(upstream.dns_refresh, Duration::from_secs(30));
    assert_eq!(credential.dns_refresh, Duration::ZERO);
    assert_eq!((upstream.files().count(), &credential.proxy), (0, &None));
}

/// Asserts that each of these lines, in either table, is refused so, at this key.
fn assert_refused<const N: usize>(wrong: [(String, &str, &str); N]) {
    for (lines, key, told) in wrong {
        for error in [error("", &lines, ""), error("", "", &lines)] {
            assert!(error.contains(told), "{lines}: {error}");
            assert!(error.contains(&format!(" | {key} = ")), "{lines}: {error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}

#[test]
fn certificate_and_key_are_proven_at_start() {
    let (cert_file, key_file) = ("client_cert_file", "client_key_file");
    let [cert, key, other] = client_identity();
    let set = |cert: &str, key: &str| format!("{cert_file} = {cert:?}\n{key_file} = {key:?}");
    let identity = |cert: &NamedTempFile, key: &NamedTempFile| {
        set(cert.path().to_str().unwrap(), key.path().to_str().unwrap())
    };
    assert_refused([
        (
            format!("{cert_file} = \"x\""),
            cert_file,
            "client_cert_file without client_key_file",
        ),
        (
            format!("{key_file} = \"x\""),
            key_file,
            "client_key_file without client_cert_file",
        ),
        (
            identity(&cert, &other),
            key_file,
            "is not the key of the certificate",
        ),
        (
            identity(&cert, &file("hello")),
            key_file,
            "holds no private key",
        ),
        (identity(&key, &key), cert_file, "holds no certificate"),
        (
            set("x", "-----BEGIN PRIVATE KEY-----\ncanary"),
            key_file,
            "PEM where the path of a file belongs",
        ),
        (
            set("/none", "/none"),
            cert_file,
            "/none: cannot be read (entity not found)\n",
        ),
    ]);
}

#[test]
fn a_proxy_is_an_http_proxy_without_credentials() {
    let proxy = |url: &str| format!("proxy_url = \"{url}\"");
    let no_proxy = |rules: &str| format!("proxy_url = \"http://proxy:3128\"\nno_proxy = {rules}");
    let (url, rules) = ("proxy_url", "no_proxy");
    assert_refused([
        (
            proxy("https://proxy:3128"),
            url,
            "a proxy is spoken to without TLS",
        ),
        (
            proxy("socks5://proxy:1080"),
            url,
            "unknown scheme \"socks5\"",
        ),
        (proxy("http://proxy:3128/path"), url, "without a path"),
        (
            proxy("http://user:canary@proxy:3128"),
            url,
            "must not contain user information",
        ),
        (proxy("proxy"), url, "not a URL"),
        (
            "no_proxy = \"*\"".to_owned(),
            rules,
            "no_proxy without proxy_url",
        ),
        (
            no_proxy("\"a.example,b.example\""),
            rules,
            "hint: several are a list",
        ),
        (
            no_proxy("[\"a.example:443\"]"),
            rules,
            "hint: without scheme and port",
        ),
        (
            no_proxy("\"http://user:canary@proxy\""),
            rules,
            "\"proxy\" is not a host name",
        ),
    ]);
}

#[test]
fn names_and_refresh_times_are_checked() {
    for (lines, told) in [
        (
            "server_name = \"a b\"",
            "neither a DNS name nor an IP address",
        ),
        ("server_name = \"\"", "neither a DNS name nor an IP address"),
        ("dns_refresh = \"often\"", "is not a duration"),
    ] {
        let error = error("", lines, "");
        assert!(error.contains(told), "{lines}: {error}");
    }
    let error = error("", "", "server_name = \"x\"");
    assert!(error.contains("unknown key"), "{error}");
}

/// What a proxy would see, and what would not work.
#[test]
fn plain_http_through_a_proxy_is_told() {
    let secret = secret();
    let with = |upstream_url: &str, upstream: &str, token_url: &str, credential: &str| {
        let text = minimal(&secret, "", upstream, credential)
            .replace("https://api.payments.example", upstream_url)
            .replace("https://auth.payments.example/o/token/", token_url);
        load(&text).map(|config| config.warnings)
    };
    let (tls, plain) = ("https://api.example", "http://api.example");
    let proxy = "proxy_url = \"http://proxy:3128\"";
    let warnings = with(plain, proxy, tls, proxy).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("upstream payments: the proxy can read"));
    let around = format!("{proxy}\nno_proxy = \"api.example\"");
    assert!(with(plain, &around, tls, "").unwrap().is_empty());
    let http2 = format!("{proxy}\nhttp = \"2\"");
    assert!(with(tls, &http2, tls, "").is_ok());
    let error = with(plain, &http2, tls, "").unwrap_err();
    assert!(error.contains("HTTP/2 without TLS does not go through a proxy"));
    let error = with(plain, "server_name = \"x.example\"", tls, "").unwrap_err();
    assert!(
        error.contains("server_name is of no use without TLS"),
        "{error}"
    );
    // A loopback address of this machine, but who knows whose for the proxy.
    let loopback = "http://127.0.0.1:8000/";
    let error = with(tls, "", loopback, proxy).unwrap_err();
    assert!(
        error.contains("would get the client secret unencrypted"),
        "{error}"
    );
    for more in [
        "no_proxy = \"127.0.0.1\"",
        "allow_insecure_token_url = true",
    ] {
        assert!(with(tls, "", loopback, &format!("{proxy}\n{more}")).is_ok());
    }
}
