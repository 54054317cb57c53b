//! Rows of `tests/catalogue.md` as tables: raw bytes in, exact bytes out, on both sides. One sidecar serves a whole
//! table.

mod framing;
mod heads;
mod hops;
mod responses;
mod routes;
mod targets;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem;

use http::StatusCode;

use crate::support::client::request;
use crate::support::server::Request;
use crate::support::{AuthorizationServer, Client, Response, Setup, Sidecar, Upstream, wait_until};

/// One input of an application, and all that comes of it.
struct Entry {
    /// The rows it covers.
    rows: &'static str,
    sent: Vec<u8>,
    /// Whether the application sends nothing after it; otherwise it goes on with [`PROBE`].
    finishes: bool,
    /// Whether the answer can be destroyed by a reset, because the sidecar closes before it has read everything.
    may_be_reset: bool,
    /// What the upstream gets: each request as [`Request::wire`] shows it, without the fields that every request carries.
    forwarded: Vec<String>,
    /// What the application gets, see [`Seen::answered`].
    answered: String,
}

/// An input that is forwarded: the upstream gets this, and the application the upstream's answer.
fn forwarded(rows: &'static str, sent: impl Into<Vec<u8>>, request: impl Into<String>) -> Entry {
    Entry {
        forwarded: vec![request.into()],
        ..refused(rows, sent, "200 ok, open")
    }
}

/// An input of which the upstream gets nothing, and the application this.
fn refused(rows: &'static str, sent: impl Into<Vec<u8>>, answered: &str) -> Entry {
    Entry {
        rows,
        sent: sent.into(),
        finishes: false,
        may_be_reset: false,
        forwarded: Vec::new(),
        answered: answered.to_owned(),
    }
}

impl Entry {
    /// The application gets this instead.
    fn answered(mut self, answered: &str) -> Self {
        self.answered = answered.to_owned();
        self
    }

    /// The upstream gets this too.
    fn and_forwarded(mut self, request: &str) -> Self {
        self.forwarded.push(request.to_owned());
        self
    }

    /// The application sends nothing after it.
    fn finishing(mut self) -> Self {
        self.finishes = true;
        self
    }

    /// A reset can destroy the answer.
    fn or_reset(mut self) -> Self {
        self.may_be_reset = true;
        self
    }
}

/// A GET of `/` with these lines after its Host.
fn get(fields: &[&str]) -> Vec<u8> {
    request("GET /", fields, "")
}

/// A POST to `/` with these lines after its Host.
fn post(fields: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    request("POST /", fields, body)
}

/// What [`get`] becomes at the upstream.
const GET: &str = "GET / HTTP/1.1\n\n";

/// Sent after an input on the same connection. Its answer shows that the connection is still open, and that nothing was
/// left there which would be taken for a request or for a part of one.
const PROBE: &[u8] =
    b"GET /probe HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: probe\r\nConnection: close\r\n\r\n";

/// What came of an input.
struct Seen {
    forwarded: Vec<String>,
    /// Each answer: its status, and its problem code or the upstream's body; hyper's own answers to what it cannot
    /// parse have neither. Then `open`, `closed` as the last answer said, or `dropped` where it said nothing of it.
    answered: String,
    /// The codes of the problems, and "" for what could not be parsed.
    refusals: Vec<String>,
}

/// Runs the table, and asserts that each refusal was counted once.
fn check(table: &[Entry]) {
    check_with("", table);
}

/// The same with these tables in the configuration.
fn check_with(tables: &str, table: &[Entry]) {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let sidecar = Setup::between(&upstream, &auth).tables(tables).start();
    let mut wrong = String::new();
    let mut refusals: BTreeMap<String, f64> = BTreeMap::new();
    for entry in table {
        let seen = exchange(entry, &sidecar, &upstream);
        let was_reset = entry.may_be_reset && seen.answered == "dropped";
        if seen.answered != entry.answered && !was_reset || seen.forwarded != entry.forwarded {
            let _ = writeln!(
                wrong,
                "{}: {}\n  answered: {:?}\n  expected: {:?}\n forwarded: {:#?}\n  expected: {:#?}\n",
                entry.rows,
                entry.sent[..entry.sent.len().min(300)].escape_ascii(),
                seen.answered,
                entry.answered,
                seen.forwarded,
                entry.forwarded
            );
        }
        for code in seen.refusals {
            *refusals.entry(code).or_default() += 1.0;
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    for (code, number) in refusals {
        match code.as_str() {
            // Counted when the connection has ended.
            "" => sidecar.wait_for_metric("bearerd_downstream_parse_errors_total", number),
            code => assert_eq!(sidecar.refused(code), number, "{code}"),
        }
    }
    sidecar.stop();
}

fn exchange(entry: &Entry, sidecar: &Sidecar, upstream: &Upstream) -> Seen {
    let before = upstream.requests().len();
    let mut client = sidecar.client();
    let sent = client.try_send(&entry.sent);
    assert!(sent.is_ok() || entry.may_be_reset, "{}", entry.rows);
    if entry.finishes {
        client.finish();
    }
    let mut seen = read_answers(&mut client, !entry.finishes);
    wait_until("the end of what was forwarded", || {
        let requests = upstream.requests();
        requests[before..].iter().all(|request| request.is_over)
    });
    seen.forwarded = upstream.requests()[before..]
        .iter()
        .filter(|request| request.head.line != "GET /probe HTTP/1.1")
        .map(|request| own_part(request, upstream))
        .collect();
    seen
}

/// Reads all answers there are, with a probe after the first one that leaves the connection open.
fn read_answers(client: &mut Client, mut probes: bool) -> Seen {
    let mut answers = Vec::new();
    let mut refusals = Vec::new();
    let mut end = "dropped";
    while let Some(answer) = client.next() {
        if answer.value("x-request-id").as_deref() == Some("probe") {
            assert_eq!(answer.ok(), "ok");
            end = "open";
            continue;
        }
        answers.push(shown(&answer, &mut refusals));
        if let Some(option) = answer.value("connection") {
            assert_eq!(option, "close");
            end = "closed";
        } else if mem::take(&mut probes) {
            // Where it was closed without a word there is no answer.
            let _ = client.try_send(PROBE);
        }
    }
    if answers.is_empty() {
        refusals.push(String::new());
    }
    answers.push(end.to_owned());
    Seen {
        forwarded: Vec::new(),
        answered: answers.join(", "),
        refusals,
    }
}

fn shown(answer: &Response, refusals: &mut Vec<String>) -> String {
    let status = answer.status();
    let reason = StatusCode::from_u16(status).unwrap().canonical_reason();
    let line = format!("{status} {}", reason.unwrap());
    assert_eq!(answer.head.line.split_once(' ').unwrap().1, line);
    assert!(answer.body.complete, "it broke off: {answer:?}");
    if status == 100 {
        return status.to_string();
    }
    let mut fields: Vec<_> = answer
        .head
        .fields
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| !matches!(*name, "allow" | "connection" | "content-length" | "date"))
        .collect();
    fields.sort_unstable();
    if answer.value("proxy-status").is_some() {
        let (_, code) = answer.problem();
        let own = [
            "cache-control",
            "content-type",
            "proxy-status",
            "x-request-id",
        ];
        assert_eq!(fields, own);
        assert_eq!(answer.value("allow").is_some(), status == 405);
        refusals.push(code.clone());
        return format!("{status} {code}");
    }
    if fields == ["x-request-id"] {
        let shown = format!("{status} {}", answer.text());
        return shown.trim_end().to_owned();
    }
    assert!(
        fields.is_empty() && answer.body.raw.is_empty(),
        "{answer:?}"
    );
    refusals.push(String::new());
    status.to_string()
}

/// The request as it came, without the four fields that every request carries, and which it must carry once.
fn own_part(request: &Request, upstream: &Upstream) -> String {
    let mut wire = request.wire();
    let id = request.head.value("x-request-id").expect("X-Request-Id");
    for field in [
        "authorization: Bearer token-1",
        &format!("host: {}", upstream.address),
        "via: 1.1 bearerd",
        &format!("x-request-id: {id}"),
    ] {
        let line = format!("\n{field}\n");
        assert!(wire.contains(&line), "no {field} in {wire}");
        wire = wire.replacen(&line, "\n", 1);
    }
    if !request.body.complete {
        wire.push_str(" (broken off)");
    }
    wire
}
