//! An HTTP proxy as networks have them on the way out: it makes tunnels, passes requests on, and records what it gets to
//! see.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::PATIENCE;
use super::server::{Exchange, Server};
use super::wire::{read_body, read_head};

/// The proxy.
pub struct ForwardProxy {
    server: Server,
    tunneled: Arc<Mutex<Vec<u8>>>,
}

impl ForwardProxy {
    /// One that takes everybody everywhere.
    pub fn open() -> Self {
        Self::to(None)
    }

    /// One whose tunnels lead there, whatever it is asked for.
    pub fn misleading(address: SocketAddr) -> Self {
        Self::to(Some(address))
    }

    fn to(address: Option<SocketAddr>) -> Self {
        let tunneled = Arc::default();
        let record = Arc::clone(&tunneled);
        let server = Server::start(None, move |exchange| {
            let line = exchange.head.line.clone();
            match line.strip_prefix("CONNECT ") {
                Some(rest) => {
                    let (target, _) = rest.split_once(' ').unwrap();
                    let target = address.unwrap_or_else(|| target.parse().unwrap());
                    tunnel(exchange, target, &record)
                }
                None => pass_on(exchange),
            }
        });
        Self { server, tunneled }
    }

    /// One that does this with every request instead.
    pub fn scripted(
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            server: Server::start(None, script),
            tunneled: Arc::default(),
        }
    }

    /// One that answers so, and closes.
    pub fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::scripted(move |exchange| {
            exchange.send(&answer)?;
            exchange.close()
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The line of a configuration that names it.
    pub fn setting(&self) -> String {
        format!("proxy_url = {:?}", self.url())
    }

    /// The first line of each request so far.
    pub fn lines(&self) -> Vec<String> {
        let requests = self.requests().into_iter();
        requests.map(|request| request.head.line).collect()
    }

    /// What clients have sent through tunnels so far.
    pub fn tunneled(&self) -> Vec<u8> {
        let tunneled = self.tunneled.lock();
        tunneled.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Deref for ForwardProxy {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

fn tunnel(
    exchange: &mut Exchange<'_>,
    target: SocketAddr,
    record: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let Ok(mut upstream) = TcpStream::connect(target) else {
        return exchange.send("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
    };
    upstream.set_read_timeout(Some(PATIENCE))?;
    exchange.send("HTTP/1.1 200 Connection established\r\nvia: 1.1 proxy\r\n\r\n")?;
    let (mut back, mut client) = (upstream.try_clone()?, exchange.socket().try_clone()?);
    let backwards = thread::spawn(move || {
        let _ = io::copy(&mut back, &mut client);
        let _ = client.shutdown(Shutdown::Write);
    });
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = exchange.wire.read(&mut buffer) {
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        record.extend(&buffer[..read]);
        drop(record);
        upstream.write_all(&buffer[..read])?;
    }
    let _ = upstream.shutdown(Shutdown::Both);
    let _ = backwards.join();
    exchange.body_is_read();
    exchange.close()
}

/// To the host of an absolute-form target (RFC 9112 §3.2.2), once.
fn pass_on(exchange: &mut Exchange<'_>) -> io::Result<()> {
    let body = exchange.body();
    let (method, rest) = exchange.head.line.split_once(" http://").unwrap();
    let (authority, rest) = rest.split_once('/').unwrap();
    let head = message(&format!("{method} /{rest}"), &exchange.head.fields);
    let mut upstream = TcpStream::connect(authority)?;
    upstream.set_read_timeout(Some(PATIENCE))?;
    upstream.write_all(&[head, body.raw].concat())?;
    let mut answer = BufReader::new(upstream);
    let head = read_head(&mut answer)?.unwrap();
    let body = read_body(&mut answer, head.framing().unwrap());
    exchange.send([message(&head.line, &head.fields), body.raw].concat())
}

fn message(line: &str, fields: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut head = format!("{line}\r\n").into_bytes();
    for (name, value) in fields {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    [head, b"\r\n".to_vec()].concat()
}
