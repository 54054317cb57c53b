//! `[[route]]`, and what routes name.

use http::uri::Authority;

use super::*;

#[test]
fn routes_are_checked() {
    let secret = secret();
    let routes = |lines: &str, upstream: &str| {
        let text = minimal(&secret, "", upstream, "");
        load(&format!("{text}\n{lines}")).map(|config| config.routes)
    };
    let route = routes(
        "[[route]]\npath = \"/pay/\"\nmethods = [\"GET\", \"POST\"]\nupgrade = \"websocket\"\n\
         strip_prefix = true\nresponse_timeout = \"5s\"\nupstream = \"payments\"\n",
        "",
    );
    let expected = RouteConfig {
        name: "route 1".to_owned(),
        path: "/pay".to_owned(),
        methods: vec![http::Method::GET, http::Method::POST],
        upstream: 0,
        authority: Authority::from_static("api.payments.example"),
        tokens: 0,
        strip_prefix: true,
        websocket: true,
        response_timeout: Some(Duration::from_secs(5)),
    };
    assert_eq!(route.unwrap(), [expected]);
    let everything = RouteConfig::everything(Authority::from_static("api.payments.example"));
    assert_eq!(routes("", "").unwrap(), [everything]);
    for (lines, upstream, expected) in [
        ("", "", "missing `path`"),
        ("path = \"pay\"", "", "not a path of plain segments"),
        ("path = \"/a/../b\"", "", "not a path of plain segments"),
        ("path = \"/a%20b\"", "", "not a path of plain segments"),
        ("path = \"/a//b\"", "", "not a path of plain segments"),
        ("path = \"/\"\nmethods = [\"get\"]", "", "is not a method"),
        ("path = \"/\"\nmethods = []", "", "no method"),
        (
            "path = \"/\"\nupgrade = [\"h2c\"]",
            "",
            "no upgrade that can be allowed",
        ),
        (
            "path = \"/\"\nupstream = \"payment\"",
            "",
            "did you mean \"payments\"?",
        ),
        (
            "path = \"/\"\ncredential = \"x\"",
            "",
            "there is no [credential.x]",
        ),
        (
            "path = \"/\"\n[[route]]\npath = \"/\"",
            "",
            "cover the same path",
        ),
        (
            "path = \"/\"\nupgrade = \"websocket\"",
            "http = \"2\"",
            "an upgrade needs HTTP/1.1",
        ),
    ] {
        let error = routes(&format!("[[route]]\n{lines}\n"), upstream).unwrap_err();
        assert!(error.contains(expected), "{lines}: {error}");
    }
}

/// Two upstreams, two credentials with the scopes given, and `lines`.
fn several(secret: &NamedTempFile, lines: &str) -> String {
    let credential = |name: &str, scope: &str| {
        format!(
            "[credential.{name}]\ntoken_url = \"https://auth.example/\"\nclient_id = \"x\"\n\
             client_secret_file = {:?}\n{scope}\n",
            secret.path()
        )
    };
    format!(
        "[upstream.a]\nurl = \"https://a.example\"\n[upstream.b]\nurl = \"https://b.example\"\n{}{}{lines}",
        credential("narrow", "scope = \"read write admin\""),
        credential("wide", "")
    )
}

#[test]
fn routes_name_upstreams_and_tokens() {
    let secret = secret();
    let config = load(&several(
        &secret,
        r#"
        [[route]]
        path = "/"
        methods = ["GET"]
        upstream = "a"
        credential = "narrow"
        scope = "read"
        [[route]]
        path = "/"
        upstream = "a"
        credential = "narrow"
        scope = "read  write"
        [[route]]
        path = "/admin"
        upstream = "b"
        credential = "narrow"
        [[route]]
        path = "/reports"
        upstream = "b"
        credential = "narrow"
        scope = "read"
        [[route]]
        path = "/other"
        upstream = "b"
        credential = "wide"
        scope = "anything"
        "#,
    ))
    .unwrap();
    let upstreams: Vec<_> = config.routes.iter().map(|route| route.upstream).collect();
    assert_eq!(upstreams, [0, 0, 1, 1, 1]);
    assert_eq!(config.routes[2].authority, "b.example");
    let tokens: Vec<_> = config.routes.iter().map(|route| route.tokens).collect();
    assert_eq!(tokens, [0, 1, 2, 0, 3], "each token once");
    let tokens: Vec<_> = config
        .tokens
        .iter()
        .map(|token| {
            (
                &*token.label,
                token.scope.as_deref().unwrap(),
                token.renew_unused,
            )
        })
        .collect();
    assert_eq!(
        tokens,
        [
            ("narrow:read", "read", true),
            ("narrow:read write", "read write", false),
            ("narrow", "read write admin", false),
            ("wide:anything", "anything", true),
        ]
    );
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn routes_say_which_of_several_they_mean() {
    let secret = secret();
    for (lines, expected) in [
        ("", "several upstreams or credentials, and no route"),
        (
            "[[route]]\npath = \"/\"\ncredential = \"wide\"",
            "missing `upstream` in the route \"route 1\"\n  hint: there are a, b",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"a\"",
            "missing `credential` in the route",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"c\"\ncredential = \"wide\"",
            "there is no [upstream.c]",
        ),
        (
            "[[route]]\npath = \"/\"\nupstream = \"a\"\ncredential = \"narrow\"\nscope = \"read delete\"",
            "the scope of a route is a part of its credential's, and \"delete\" is none",
        ),
    ] {
        let error = load(&several(&secret, lines)).unwrap_err();
        assert!(error.contains(expected), "{lines}: {error}");
    }
}

#[test]
fn what_no_route_uses_is_told() {
    let secret = secret();
    let route = "[[route]]\npath = \"/\"\nupstream = \"b\"\ncredential = \"wide\"";
    let config = load(&several(&secret, route)).unwrap();
    assert_eq!(
        config.warnings,
        [
            "no route leads to [upstream.a]",
            "no route uses [credential.narrow]"
        ]
    );
}
