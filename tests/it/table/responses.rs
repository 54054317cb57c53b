//! A3, D2: answers of upstreams, broken and hostile ones too.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Setup, Upstream, wait_until};

/// One answer of an upstream, and all that comes of it.
struct Entry {
    /// The rows it covers.
    rows: &'static str,
    /// Of the request.
    method: &'static str,
    sent: Vec<u8>,
    then: Then,
    /// What the application gets, see [`received`].
    received: String,
    /// What becomes of the connection to the upstream.
    connection: Connection,
}

/// What the upstream does after its answer.
#[derive(Clone, Copy)]
enum Then {
    Waits,
    Closes,
    Resets,
}

#[derive(Clone, Copy)]
enum Connection {
    /// It carries the next request.
    Kept,
    Ended,
}

/// An answer that the application gets so.
fn passed(rows: &'static str, sent: impl Into<Vec<u8>>, received: impl Into<String>) -> Entry {
    Entry {
        rows,
        method: "GET",
        sent: sent.into(),
        then: Then::Waits,
        received: received.into(),
        connection: Connection::Kept,
    }
}

/// An answer of which the application gets nothing.
fn refused(rows: &'static str, sent: impl Into<Vec<u8>>) -> Entry {
    passed(rows, sent, "502 upstream_protocol_error").ended()
}

impl Entry {
    /// It answers HEAD.
    fn for_head(mut self) -> Self {
        self.method = "HEAD";
        self
    }

    /// What comes after it.
    fn then(mut self, then: Then) -> Self {
        self.then = then;
        self.ended()
    }

    /// The connection to the upstream is not used again.
    fn ended(mut self) -> Self {
        self.connection = Connection::Ended;
        self
    }
}

fn check(table: Vec<Entry>) {
    let (table, auth) = (Arc::new(table), AuthorizationServer::new());
    let entries = table.clone();
    let upstream = Upstream::scripted(move |exchange| {
        let target = exchange.head.line.split(' ').nth(1).unwrap().to_owned();
        let Ok(number) = target[1..].parse::<usize>() else {
            return exchange.send(OK);
        };
        exchange.send(&entries[number].sent)?;
        match entries[number].then {
            Then::Waits => Ok(()),
            Then::Closes => exchange.close(),
            Then::Resets => exchange.reset(),
        }
    });
    // One worker has one pool, and an answer to a second try would not be the one in the table.
    let sidecar = Setup::between(&upstream, &auth)
        .credential("replay_on_401 = false")
        .tables("[runtime]\nworkers = 1")
        .start();
    let mut wrong = String::new();
    for (number, entry) in table.iter().enumerate() {
        let mut client = sidecar.client();
        client.send(request(&format!("{} /{number}", entry.method), &[], ""));
        let received = received(&mut client, entry);
        let shown = entry.sent[..entry.sent.len().min(300)].escape_ascii();
        if received != entry.received {
            let expected = &entry.received;
            let _ = writeln!(
                wrong,
                "{}: {shown}\n{received:?}\n{expected:?}\n",
                entry.rows
            );
        }
        if matches!(entry.connection, Connection::Ended) {
            let open = || sidecar.metric("bearerd_upstream_connections_open");
            wait_until(&format!("{}: {shown}: its end", entry.rows), || {
                open() == 0.0
            });
        }
        // The two sides live apart: the application's connection ends only where its answer broke off.
        let before = upstream.connections();
        if received.ends_with(BROKEN_OFF) {
            assert!(client.is_closed());
            client = sidecar.client();
        }
        assert_eq!(client.exchange(request("GET /next", &[], "")).ok(), "ok");
        let new = upstream.connections() - before;
        match entry.connection {
            Connection::Kept => assert_eq!(new, 0, "{}: {shown}", entry.rows),
            Connection::Ended => assert_eq!(new, 1, "{}: {shown}", entry.rows),
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert_eq!(upstream.requests().len(), 2 * table.len(), "sent twice");
    sidecar.stop();
}

/// Status and code of a problem; otherwise the answer as it came, a character for each byte, but for the order of its
/// fields, and without `X-Request-Id` and a new `Date`.
fn received(client: &mut Client, entry: &Entry) -> String {
    let mut answer = client.receive_head();
    if entry.method != "HEAD" {
        answer.body = client.receive_body(&answer);
    }
    if answer.value("proxy-status").is_some() {
        let (status, code) = answer.problem();
        return format!("{status} {code}");
    }
    assert!(answer.value("x-request-id").is_some());
    assert!(answer.value("date").is_some());
    let latin_1 = |bytes: &[u8]| -> String { bytes.iter().copied().map(char::from).collect() };
    let mut fields = answer.head.fields;
    fields.retain(|(name, value)| {
        name != "x-request-id" && (name != "date" || latin_1(value) == EPOCH)
    });
    // The sort is stable: fields of one name stay in their order.
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", latin_1(value)))
        .collect();
    let body = latin_1(&answer.body.raw);
    let end = if answer.body.complete { "" } else { BROKEN_OFF };
    format!("{}\n{fields}\n{body}{end}", answer.head.line)
}

const BROKEN_OFF: &str = " (broken off)";
const EPOCH: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

/// A 200 with these lines.
fn ok(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}")
}

/// The same at the application.
fn got(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\n{fields}\n{body}")
}

#[test]
fn an_answer_has_one_framing_or_is_refused() {
    let mut table: Vec<Entry> = [
        (
            "A-060 H-16 H-21",
            "Content-Length: 30\r\nTransfer-Encoding: chunked",
        ),
        ("A-060", "Content-Length: 15\r\nTransfer-Encoding: chunked"),
        ("A-060", "Transfer-Encoding: chunked\r\nContent-Length: 30"),
        ("A-063", "Transfer-Encoding: gzip, chunked"),
        ("A-064", "Transfer-Encoding: chunked, chunked"),
        (
            "A-064",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
    ]
    .into_iter()
    .map(|(row, framing)| refused(row, ok(framing, CHUNKS)))
    .collect();
    for length in ["5\r\nContent-Length: 6", "5, 6", "+5", "5 5", "0x5"] {
        let answer = ok(&format!("Content-Length: {length}"), "hello");
        table.push(refused("A-061", answer));
    }
    // Bodies that only the end of the connection ends.
    for coding in ["gzip", "chunked, gzip"] {
        let answer = ok(&format!("Transfer-Encoding: {coding}"), CHUNKS);
        table.push(refused("A-063", answer));
    }
    let http_1_0 = ok("Transfer-Encoding: chunked", CHUNKS).replacen("1.1", "1.0", 1);
    table.push(refused("A-062", http_1_0));
    check(table);
}

#[test]
fn an_answer_that_is_not_http_is_refused() {
    let mut table: Vec<Entry> = [
        (
            "A-072",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x",
        ),
        ("A-075", "HTTP/1.1 200 OK\r\nX: a\r\n b"),
        ("A-076", "HTTP/1.1 200 OK\r\nX : 1"),
        ("A-076", "HTTP/1.1 200 OK\r\nX: \0"),
        ("A-076", "HTTP/1.1 200 OK\r\n: 1"),
        ("A-076", "HTTP/1.1 200 OK\r\nno colon"),
        (
            "A-076 D-33",
            "HTTP/1.1 200 OK\r\nLocation: /a\rSet-Cookie: a=1",
        ),
        (
            "A-076 D-33",
            "HTTP/1.1 200 OK\r\nLocation: /a\nSet-Cookie : a=1",
        ),
        ("A-077", "HTTP/1.1 099 No"),
        ("A-077", "HTTP/1.1 99 No"),
        ("A-077", "HTTP/1.1 1000 No"),
        ("A-082", "SSH-2.0-OpenSSH"),
    ]
    .into_iter()
    .map(|(row, head)| refused(row, format!("{head}\r\nContent-Length: 0\r\n\r\n")))
    .collect();
    let giant = ok(&format!("X: {}", "x".repeat(500_000)), "");
    table.push(refused("A-074", giant));
    for half in ["HT", "HTTP/1.1 200 OK\r\nContent-Le"] {
        table.push(passed("A-082", half, "502 upstream_reset").then(Then::Closes));
    }
    check(table);
}

#[test]
fn an_answer_that_breaks_off_never_looks_complete() {
    let half = "x".repeat(50);
    let mut table = Vec::new();
    for then in [Then::Closes, Then::Resets] {
        for (rows, framing, canonical, body) in [
            (
                "A-065 E-16 H-16",
                "Content-Length: 100",
                "content-length: 100\n",
                half.as_str(),
            ),
            (
                "A-066 E-16",
                "Transfer-Encoding: chunked",
                "transfer-encoding: chunked\n",
                "5\r\nhello\r\n",
            ),
        ] {
            let received = got(canonical, &format!("{body}{BROKEN_OFF}"));
            table.push(passed(rows, ok(framing, body), received).then(then));
        }
    }
    check(table);
}

#[test]
fn bodies_pass_with_a_framing_made_anew() {
    let extended = "5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 0\r\n\r\n";
    let trailed = ok("Transfer-Encoding: chunked\r\nTrailer: X-Sum", extended);
    let http_1_0 = "HTTP/1.0 200 Fine\r\nX: 1\r\n\r\nhello";
    let two = format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    let gzip =
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0";
    let gzipped = "content-encoding: gzip\ncontent-length: 4\n";
    let chunked = "transfer-encoding: chunked\n";
    let no_content = "HTTP/1.1 204 No Content\r\n";
    let reset_content = "HTTP/1.1 205 Reset Content\r\nContent-Length: ";
    let not_modified = "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: \"1\"\r\n\r\n";
    check(vec![
        passed("A-067", two, got("content-length: 2\n", "ok")).ended(),
        passed(
            "A-069",
            ok("Content-Length: 12345", ""),
            got("content-length: 12345\n", ""),
        )
        .for_head(),
        passed(
            "A-069",
            ok("Content-Length: 5", "hello"),
            got("content-length: 5\n", ""),
        )
        .for_head()
        .ended(),
        passed("A-069", ok("Transfer-Encoding: chunked", ""), got("", "")).for_head(),
        passed(
            "A-070",
            format!("{no_content}X: 1\r\n\r\n"),
            "HTTP/1.1 204 No Content\nx: 1\n\n",
        ),
        passed(
            "A-070",
            format!("{no_content}Content-Length: 5\r\n\r\nhello"),
            "HTTP/1.1 204 No Content\n\n",
        )
        .ended(),
        passed(
            "A-070",
            format!("{reset_content}0\r\n\r\n"),
            "HTTP/1.1 205 Reset Content\ncontent-length: 0\n\n",
        ),
        passed(
            "A-070",
            format!("{reset_content}5\r\n\r\nhello"),
            "HTTP/1.1 205 Reset Content\ncontent-length: 5\n\nhello",
        ),
        passed(
            "A-070",
            not_modified,
            "HTTP/1.1 304 Not Modified\netag: \"1\"\n\n",
        ),
        passed(
            "A-078 A-080 H-15",
            http_1_0,
            got("transfer-encoding: chunked\nx: 1\n", CHUNKS),
        )
        .then(Then::Closes),
        passed("A-090 H-23", trailed, got(chunked, CHUNKS)),
        passed("D-59", gzip.as_slice(), got(gzipped, "\u{1f}\u{8b}\u{8}\0")),
    ]);
}

#[test]
fn statuses_and_fields_pass() {
    let lines = |number: usize| "X: 1\r\n".repeat(number - 1) + "Content-Length: 2";
    let many = |number: usize| {
        passed(
            "A-074",
            ok(&lines(number), "ok"),
            got(
                &format!("content-length: 2\n{}", "x: 1\n".repeat(number - 1)),
                "ok",
            ),
        )
    };
    let status = |rows, sent: &str, received: &str| {
        passed(
            rows,
            format!("HTTP/1.1 {sent}\r\nContent-Length: 2\r\n\r\nok"),
            format!("HTTP/1.1 {received}\ncontent-length: 2\n\nok"),
        )
    };
    let several = "Set-Cookie: a=1\r\nVary: A\r\nSet-Cookie: b=2\r\nSet-Cookie: a=3\r\nVary: B\r\nContent-Length: 0";
    let in_order =
        "content-length: 0\nset-cookie: a=1\nset-cookie: b=2\nset-cookie: a=3\nvary: A\nvary: B\n";
    let challenge = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
    let challenged =
        "HTTP/1.1 401 Unauthorized\ncontent-length: 0\nwww-authenticate: Basic realm=\"x\"\n\n";
    let proxy_challenge = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
    check(vec![
        many(150),
        many(256),
        refused("A-074", ok(&lines(257), "ok")),
        status("A-077", "600 Odd", "600 "),
        status("A-077", "999 Odd", "999 "),
        status("A-077", "200", "200 OK"),
        status("A-077", "200 ", "200 OK"),
        status("A-080", "200 Gone To Lunch", "200 OK"),
        passed("A-079", ok(several, ""), got(in_order, "")),
        passed(
            "A-107",
            ok(&format!("Date: {EPOCH}\r\nContent-Length: 0"), ""),
            got(&format!("content-length: 0\ndate: {EPOCH}\n"), ""),
        ),
        passed(
            "A-107",
            ok("Content-Length: 0", ""),
            got("content-length: 0\n", ""),
        ),
        passed("D-32", challenge, challenged),
        passed("D-32", proxy_challenge, "502 upstream_protocol_error"),
    ]);
}

#[test]
fn what_the_upstream_says_to_us_alone_goes_no_further() {
    let body = "GET / HTTP/1.1\r\nauthorization: Bearer token-1\r\n";
    let length = format!("content-length: {}\n", body.len());
    let echo = format!(
        "Authorization: Bearer token-1\r\nContent-Length: {}",
        body.len()
    );
    let mut table: Vec<Entry> = [
        (
            "A-090",
            "Connection: X-Foo\r\nX-Foo: 1\r\nX-Bar: 2\r\nConnection: , x-BAR",
        ),
        (
            "A-091",
            "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers",
        ),
        (
            "A-091",
            "Upgrade: h2\r\nTrailer: X-Sum\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        (
            "D-31",
            "Proxy-Authenticate: Basic\r\nProxy-Authorization: Basic ZXZpbDo=",
        ),
        (
            "D-31",
            "Authorization: Bearer token-1\r\nAlt-Svc: h3=\":443\"",
        ),
    ]
    .into_iter()
    .map(|(row, fields)| {
        let answer = ok(&format!("{fields}\r\nContent-Length: 0"), "");
        passed(row, answer, got("content-length: 0\n", ""))
    })
    .collect();
    let others = "Server: django\r\nStrict-Transport-Security: max-age=1\r\nAccess-Control-Allow-Origin: *\r\n\
        Via: 1.1 p.example\r\nContent-Length: 0";
    let passed_on = "access-control-allow-origin: *\ncontent-length: 0\nserver: django\n\
        strict-transport-security: max-age=1\nvia: 1.1 p.example\n";
    table.extend([
        passed(
            "A-099",
            ok("Connection: close\r\nContent-Length: 0", ""),
            got("content-length: 0\n", ""),
        )
        .ended(),
        passed("D-30", ok(&echo, body), got(&length, body)),
        passed("D-31", ok(others, ""), got(passed_on, "")),
    ]);
    check(table);
}
