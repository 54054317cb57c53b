//! What comes back from the upstream, byte for byte.

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Response, Setup, Sidecar, Upstream};

/// What the application gets when the upstream answers a GET with these bytes and closes.
fn answered(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Response {
    let (upstream, auth) = (Upstream::answering_once(answer), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let answer = sidecar.get("/");
    sidecar.stop();
    answer
}

///
#[test]
fn fields_that_come_several_times_stay_apart_and_in_order() {
    let cookies = "Set-Cookie: a=1\r\nVary: A\r\nSet-Cookie: b=2\r\nSet-Cookie: a=3\r\nVary: B\r\n";
    let answer = answered(format!(
        "HTTP/1.1 200 OK\r\n{cookies}Content-Length: 0\r\n\r\n"
    ));
    assert_eq!(answer.head.values("set-cookie"), ["a=1", "b=2", "a=3"]);
    assert_eq!(answer.head.values("vary"), ["A", "B"]);
}

/// the upstream's version and reason phrase stay behind, statuses pass.
#[test]
fn answers_without_a_body_have_none() {
    let no_content = answered("HTTP/1.1 204 Gone To Lunch\r\nX: 1\r\n\r\n");
    assert_eq!(no_content.head.line, "HTTP/1.1 204 No Content");
    assert_eq!(no_content.value("content-length"), None);
    assert_eq!(no_content.value("x").unwrap(), "1");
    let not_modified =
        answered("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 7\r\n\r\n");
    assert_eq!(not_modified.status(), 304);
    assert_eq!(not_modified.value("etag").unwrap(), "\"1\"");
}

///
#[test]
fn the_answer_to_head_keeps_its_length_and_has_no_body() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n";
    let (upstream, auth) = (Upstream::answering(answer), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    for _ in 0..2 {
        client.send(request("HEAD /report", &[], ""));
        let head = client.receive_head();
        assert_eq!(head.status(), 200);
        assert_eq!(head.value("content-length").unwrap(), "12345");
    }
    assert_eq!(upstream.connections(), 1, "the connection was used again");
}

///
#[test]
fn a_body_that_ends_with_the_connection_becomes_chunked() {
    let answer = answered("HTTP/1.0 200 Fine\r\nX: 1\r\n\r\nhello");
    assert_eq!(answer.head.line, "HTTP/1.1 200 OK");
    assert_eq!(answer.value("transfer-encoding").unwrap(), "chunked");
    assert_eq!(answer.ok(), "hello");
}

/// 1xx answers are absorbed; hyper's server cannot send them.
#[test]
fn interim_answers_are_absorbed() {
    let answer = answered(format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{OK}"
    ));
    assert_eq!(answer.ok(), "ok");
    assert_eq!(answer.value("link"), None);
}

/// D-31
#[test]
fn what_the_upstream_says_to_us_alone_goes_no_further() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: close, X-Foo\r\nX-Foo: 1\r\nKeep-Alive: timeout=5\r\n\
        Alt-Svc: h3=\":443\"\r\nAuthorization: Bearer x\r\nProxy-Authenticate: Basic\r\nUpgrade: h2\r\n\
        Server: django\r\nContent-Length: 2\r\n\r\nok";
    let (upstream, auth) = (Upstream::answering_once(answer), AuthorizationServer::new());
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    for _ in 0..2 {
        let answer = client.exchange(request("GET /", &[], ""));
        assert_eq!(answer.ok(), "ok");
        let mut names: Vec<_> = answer
            .head
            .fields
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "date", "server", "x-request-id"]);
    }
}

/// D-27, D-28
#[test]
fn redirects_are_passed_and_lead_through_the_sidecar() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        let host = exchange.head.value("host").unwrap();
        exchange.send(format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{host}/v1/p/3?x#y\r\nContent-Location: /v1/p\r\n\
             Content-Length: 0\r\n\r\n"
        ))
    });
    let sidecar = Setup::new(&format!("{}/v1", upstream.url()), &auth).start();
    let get = format!("GET /p HTTP/1.1\r\nHost: {}\r\n\r\n", sidecar.proxy);
    let answer = Client::connect(sidecar.proxy).exchange(get);
    assert_eq!(answer.status(), 302);
    let location = format!("http://{}/p/3?x#y", sidecar.proxy);
    assert_eq!(answer.value("location").unwrap(), location);
    assert_eq!(answer.value("content-location").unwrap(), "/p");
    assert_eq!(upstream.request().target(), "/v1/p");
}

///
#[test]
fn pipelined_requests_are_answered_in_order() {
    let auth = AuthorizationServer::new();
    let upstream = Upstream::scripted(|exchange| {
        let target = exchange.head.line.split(' ').nth(1).unwrap().to_owned();
        let length = target.len();
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{target}"
        ))
    });
    let sidecar = Sidecar::between(&upstream, &auth);
    let mut client = sidecar.client();
    client.send([request("GET /1", &[], ""), request("GET /2", &[], "")].concat());
    assert_eq!([client.receive().ok(), client.receive().ok()], ["/1", "/2"]);
}
