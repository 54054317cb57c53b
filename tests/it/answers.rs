//! What comes back from the upstream, beside what the tables say.

use crate::support::client::request;
use crate::support::upstream::OK;
use crate::support::{AuthorizationServer, Client, Setup, Sidecar, Upstream};

/// RFC 9110 §15.2 wants a proxy to forward them; hyper's server cannot send them.
#[test]
fn interim_answers_are_absorbed() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let upstream = Upstream::answering_once(format!("{interim}{OK}"));
    let auth = AuthorizationServer::new();
    let sidecar = Sidecar::between(&upstream, &auth);
    let answer = sidecar.get("/");
    assert_eq!(answer.ok(), "ok");
    assert_eq!(answer.value("link"), None);
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
