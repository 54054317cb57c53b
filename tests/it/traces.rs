//! Spans as a collector gets them from the real program.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Setup, Upstream, wait_until};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Every span that a collector got.
fn spans(collector: &Upstream) -> Vec<Value> {
    let requests = collector.requests();
    let batches = requests.iter().map(|request| {
        assert_eq!(request.head.line, "POST /v1/traces HTTP/1.1");
        let batch: Value = serde_json::from_slice(&request.body.data).unwrap();
        let resource = &batch["resourceSpans"][0];
        assert_eq!(attribute(&resource["resource"], "service.name"), "shop");
        let spans = &resource["scopeSpans"][0]["spans"];
        spans.as_array().unwrap().clone()
    });
    batches.flatten().collect()
}

fn attribute<'a>(of: &'a Value, key: &str) -> &'a str {
    let attributes = of["attributes"].as_array().unwrap();
    let value = attributes.iter().find(|attribute| attribute["key"] == key);
    value
        .and_then(|attribute| attribute["value"].as_object()?.values().next()?.as_str())
        .unwrap_or_else(|| panic!("no {key} in {of}"))
}

/// What it was asked with, `fields`, and the spans that came of it.
fn traced(upstream: &Upstream, fields: &[&str], status: u16) -> Vec<Value> {
    let auth = AuthorizationServer::new();
    let collector = Upstream::ok();
    let sidecar = Setup::between(upstream, &auth).start_process_with(&[
        (ENDPOINT, &collector.url()),
        ("OTEL_SERVICE_NAME", "shop"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-key=collectors%20secret,x-other=1",
        ),
    ]);
    sidecar.wait_until_ready();
    let answer = sidecar.send(request("GET /hidden-path?hidden-query", fields, ""));
    assert_eq!(answer.status(), status);
    // The last batch is sent at the end.
    sidecar.process.signal("INT");
    let ended = sidecar.ended();
    assert_eq!(ended.code, 0);
    assert!(!ended.stderr.contains("collectors"), "{}", ended.stderr);
    let exported = &collector.requests()[0];
    assert_eq!(exported.head.value("x-key").unwrap(), "collectors secret");
    assert!(!exported.wire().contains("hidden"), "{}", exported.wire());
    spans(&collector)
}

fn of_kind(spans: &[Value], kind: u8) -> &Value {
    let mut of_kind = spans
        .iter()
        .filter(|span| span["kind"] == kind && span["name"] == "GET");
    let span = of_kind.next().expect("a span of this kind");
    assert!(of_kind.next().is_none(), "one of this kind: {spans:#?}");
    span
}

#[test]
fn a_request_is_two_spans_and_the_upstream_hears_of_the_second() {
    let upstream = Upstream::ok();
    let spans = traced(&upstream, &[PARENT, "tracestate: a=1"], 200);
    let (server, client) = (of_kind(&spans, 2), of_kind(&spans, 3));
    assert_eq!(server["traceId"], TRACE);
    assert_eq!(server["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(attribute(server, "http.response.status_code"), "200");
    assert_eq!(client["traceId"], TRACE);
    assert_eq!(client["parentSpanId"], server["spanId"]);
    assert_eq!(attribute(client, "server.address"), "127.0.0.1");
    let head = upstream.request().head;
    let id = client["spanId"].as_str().unwrap();
    assert_eq!(
        head.values("traceparent"),
        [format!("00-{TRACE}-{id}-01")],
        "the application's is replaced"
    );
    assert_eq!(head.values("tracestate"), ["a=1"]);

    let token = spans.iter().find(|span| span["name"] == "token request");
    let token = token.expect("the token was asked for");
    assert_eq!(attribute(token, "bearerd.trigger"), "startup");
    assert_eq!(attribute(token, "bearerd.outcome"), "success");
}

#[test]
fn failures_are_told_by_their_kind() {
    let spans = traced(&Upstream::down(), &[], 502);
    let (server, client) = (of_kind(&spans, 2), of_kind(&spans, 3));
    for span in [server, client] {
        assert_eq!(attribute(span, "error.type"), "upstream_unreachable");
        assert_eq!(span["status"]["code"], 2);
    }
    assert!(server.get("parentSpanId").is_none(), "it begins a trace");
}

#[test]
fn a_trace_that_is_not_valid_or_not_kept_is_not_gone_on_with() {
    let upstream = Upstream::ok();
    let fields = ["traceparent: 00-0-0-01", "tracestate: a=1"];
    let spans = traced(&upstream, &fields, 200);
    let head = upstream.request().head;
    let sent = head.value("traceparent").unwrap();
    assert!(sent.contains(of_kind(&spans, 2)["traceId"].as_str().unwrap()));
    assert_eq!(head.value("tracestate"), None);

    let upstream = Upstream::ok();
    let unsampled = format!("{}00", PARENT.strip_suffix("01").unwrap());
    let spans = traced(&upstream, &[&unsampled, "tracestate: a=1"], 200);
    assert!(spans.iter().all(|span| span["name"] != "GET"), "{spans:#?}");
    let wire = upstream.request().wire();
    assert!(wire.contains(&format!("\n{unsampled}\n")), "{wire}");
}

#[test]
fn a_collector_that_does_not_answer_holds_nothing_up() {
    let (upstream, auth) = (Upstream::ok(), AuthorizationServer::new());
    let gate = crate::support::Gate::default();
    let held = gate.clone();
    let collector = Upstream::scripted(move |exchange| {
        held.wait();
        exchange.send(OK)
    });
    let sidecar =
        Setup::between(&upstream, &auth).start_process_with(&[(ENDPOINT, &collector.url())]);
    sidecar.wait_until_ready();
    collector.wait_for_requests(1);
    // More than there is room for.
    let mut client = sidecar.client();
    for _ in 0..1200 {
        client.send(request("GET /", &[], ""));
        assert_eq!(client.receive().ok(), "ok");
    }
    let began = Instant::now();
    sidecar.process.signal("INT");
    wait_until("the last line", || {
        let stderr = sidecar.process.stderr();
        stderr.contains("the last spans were not sent")
    });
    assert_eq!(sidecar.ended().code, 0);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "2 s, and a margin"
    );
    gate.open();
}
