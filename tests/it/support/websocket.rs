//! What WebSockets need on both sides: a route, a handshake, and an upstream that grants it. The frames in them are
//! nobody's business here.

use std::io::{self, BufRead as _};

use super::client::request;
use super::server::Exchange;
use super::sidecar::Ports;
use super::upstream::OK;
use super::{AuthorizationServer, Client, Setup, Sidecar, Upstream};

/// Two routes, one of which allows WebSockets.
pub const ROUTES: &str = r#"
[[route]]
name = "socket"
path = "/socket"
upgrade = ["websocket"]

[[route]]
name = "rest"
path = "/"
"#;

/// The answer that makes a tunnel.
pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What every handshake says.
pub const ASK: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];

/// A handshake, with more fields and with bytes right after it.
pub fn handshake(more: &[&str], early: impl AsRef<[u8]>) -> Vec<u8> {
    request("GET /socket", &[&ASK[..], more].concat(), early)
}

/// A sidecar with those routes.
pub fn setup(upstream: &Upstream, auth: &AuthorizationServer) -> Setup {
    Setup::between(upstream, auth).tables(ROUTES)
}

/// A sidecar before an upstream that grants every handshake, does this with the tunnel, and closes it.
pub fn before(
    tunnel: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> (Sidecar, Upstream, AuthorizationServer) {
    let (upstream, auth) = (granting(tunnel), AuthorizationServer::new());
    (setup(&upstream, &auth).start(), upstream, auth)
}

/// An upstream that answers what is no handshake with [`OK`].
pub fn granting(
    tunnel: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> Upstream {
    Upstream::scripted(move |exchange| {
        if exchange.head.value("upgrade").is_none() {
            exchange.body();
            return exchange.send(OK);
        }
        exchange.send(SWITCH)?;
        let result = tunnel(exchange);
        exchange.close()?;
        result
    })
}

/// Gives back what comes until the end of it.
pub fn echo(exchange: &mut Exchange<'_>) -> io::Result<()> {
    loop {
        let piece = exchange.wire.fill_buf()?.to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        exchange.wire.consume(piece.len());
        exchange.send(piece)?;
    }
}

/// A tunnel of its own.
pub fn open(sidecar: &Ports) -> Client {
    let mut client = sidecar.client();
    client.send(handshake(&[], ""));
    let answer = client.receive_head();
    assert_eq!(answer.status(), 101, "{answer:?}");
    client
}

/// Asserts that what is sent comes back.
pub fn assert_echo(client: &mut Client, text: &str) {
    client.send(text);
    assert_eq!(client.receive_bytes(text.len()), text.as_bytes());
}

/// Waits until so many tunnels are open.
pub fn wait_for_tunnels(sidecar: &Ports, number: f64) {
    sidecar.wait_for_metric("bearerd_tunnels_open", number);
}
