//! D2: what routes grant, and that nothing gets around them.

use super::{Entry, check_with, forwarded, get, refused};
use crate::support::client::request;

const ROUTES: &str = r#"
[[route]]
path = "/pay"

[[route]]
path = "/pay/admin"

[[route]]
path = "/status"

[[route]]
path = "/probe"
"#;

/// Where a path decides, one that a server could read in another way is refused, never normalized: what was decided on
/// is what is sent.
#[test]
fn a_path_means_one_thing_where_it_decides() {
    let post_to = |path: &str| request(&format!("POST {path}"), &["Content-Length: 0"], "");
    let mut table: Vec<Entry> = [
        "/pay/../admin",
        "/pay/%2e%2e/admin",
        "/pay/.%2e/",
        "/pay/%2E./",
        "/pay%2f..%2fadmin",
        "/pay%2Fadmin",
        "/pay\\..\\admin",
        "/pay/\\admin",
        "/pay%5cadmin",
        "//admin",
        "//pay",
        "/pay//admin",
        "/pay/./x",
        "/pay/.",
        "/%70ay",
        "/pay/%61dmin",
        "/pay;x/..;/admin",
        "/pay/..;a=b/admin",
        "/pay/x;y",
        "/pay/x%3by",
        "/pay%00",
        "/pay/x%0d%0ax",
        "/pay/%7f",
        "/pay/%252e%252e/admin",
        "/pay%252fadmin",
        "/pay/%25%32%65",
        "/pay/%",
        "/pay/%zz",
        "/pay/%u002e",
    ]
    .into_iter()
    .map(|path| refused("D-25", post_to(path), "400 forbidden_path, open"))
    .collect();
    table.push(refused(
        "A-121 D-25",
        post_to("/../x"),
        "400 forbidden_path, open",
    ));
    for path in [
        "/admin",
        "/PAY",
        "/payx",
        "/pay.",
        "/",
        "/?/pay",
        "/?/pay/../pay",
        "/statuses",
    ] {
        table.push(refused("D-25", post_to(path), "404 no_route, open"));
    }
    for path in [
        "/pay",
        "/pay/",
        "/pay?/../admin",
        "/pay/x?a=%2e%2e&b=//c",
        "/pay/a%20b/",
        "/pay/%C3%A9",
        "/pay/100%25",
        "/pay/x.",
        "/pay/..x/...",
        "/pay/adminx",
        "/status",
    ] {
        let wire = format!("POST {path} HTTP/1.1\ncontent-length: 0\n\n");
        table.push(forwarded("D-25", post_to(path), wire));
    }
    check_with(ROUTES, &table);
}

/// A route that grants WebSockets grants nothing else.
#[test]
fn only_a_handshake_is_an_upgrade() {
    let route = "[[route]]\npath = \"/\"\nupgrade = [\"websocket\"]";
    let handshake = ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket"];
    let passed = "GET / HTTP/1.1\nconnection: upgrade\nupgrade: websocket\n\n";
    let mut table: Vec<Entry> = [
        ("A-097", &["Upgrade: websocket"][..]),
        ("A-097", &["Connection: upgrade"]),
        ("A-097", &["Connection: Upgrade", "Upgrade: other"]),
        (
            "A-096 D-38",
            &[
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAAQAAP__",
            ],
        ),
    ]
    .into_iter()
    .map(|(row, fields)| forwarded(row, get(fields), super::GET))
    .collect();
    let with_a_body = [&handshake[..], &["Content-Length: 0"]].concat();
    let posted = "POST / HTTP/1.1\ncontent-length: 0\n\n";
    let framed = "GET / HTTP/1.1\ncontent-length: 0\n\n";
    table.extend([
        forwarded("A-097", get(&handshake), passed),
        forwarded("A-097", request("POST /", &with_a_body, ""), posted),
        forwarded("A-097", get(&with_a_body), framed),
    ]);
    check_with(route, &table);
}
