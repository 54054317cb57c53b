//! A server made of raw sockets and a script: it records what it gets, and answers with whatever bytes the script likes,
//! at whatever moment. Upstream and authorization server stand on it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::PATIENCE;
use super::wire::{Body, Framing, Head, read_body, read_head};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: Head,
    /// Empty until it was read.
    pub body: Body,
    /// Whether nothing more comes of it.
    pub is_over: bool,
}

impl Request {
    /// The method.
    pub fn method(&self) -> &str {
        self.head.line.split(' ').next().unwrap()
    }

    /// The target.
    pub fn target(&self) -> &str {
        self.head.line.split(' ').nth(1).unwrap()
    }

    /// The whole request as it came, but for the order of its fields: they are sorted.
    pub fn wire(&self) -> String {
        let mut fields: Vec<String> = self
            .head
            .fields
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value)))
            .collect();
        fields.sort();
        let body = String::from_utf8_lossy(&self.body.raw);
        format!("{}\n{}\n{body}", self.head.line, fields.concat())
    }
}

/// What a server does with a request.
pub type Script = dyn Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync;

/// The server. Dropping it ends its connections, and fails the test if its script panicked.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
    /// Keeps the port ours while the server is stopped. It is bound and does not listen, so connections are refused.
    _port: Socket,
}

struct Shared {
    script: Box<Script>,
    tls: Mutex<Option<Arc<ServerConfig>>>,
    requests: Mutex<Vec<Request>>,
    connections: AtomicUsize,
    received: Arc<AtomicUsize>,
    sockets: Mutex<Vec<Weak<TcpStream>>>,
    panicked: AtomicBool,
}

struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Runs `script` for each request, once its head has come.
    pub fn start(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let mut server = Self::stopped(tls, script);
        server.restart();
        server
    }

    /// A server that refuses connections until [`restart`](Self::restart).
    pub fn stopped(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Exchange<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let port = reusable_socket((Ipv4Addr::LOCALHOST, 0).into());
        Self {
            address: port.local_addr().unwrap().as_socket().unwrap(),
            shared: Arc::new(Shared {
                script: Box::new(script),
                tls: Mutex::new(tls),
                requests: Mutex::default(),
                connections: AtomicUsize::new(0),
                received: Arc::default(),
                sockets: Mutex::default(),
                panicked: AtomicBool::new(false),
            }),
            acceptor: None,
            _port: port,
        }
    }

    /// Refuses connections, and closes those there are.
    pub fn stop(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            acceptor.thread.join().unwrap();
        }
        self.close_connections();
    }

    /// Accepts connections again, on the same port.
    pub fn restart(&mut self) {
        assert!(self.acceptor.is_none(), "it is running");
        let socket = reusable_socket(self.address);
        socket.listen(1024).unwrap();
        let (listener, shared) = (TcpListener::from(socket), self.shared.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = shared.clone();
                thread::spawn(move || shared.carry(stream));
            }
        });
        self.acceptor = Some(Acceptor { stop, thread });
    }

    /// Ends the open connections, idle ones too, in the orderly way.
    pub fn close_connections(&self) {
        for socket in lock(&self.shared.sockets).drain(..) {
            if let Some(socket) = socket.upgrade() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Has this TLS on the connections that come from now on.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        *lock(&self.shared.tls) = Some(tls);
    }

    /// All requests so far, in the order in which their heads came.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many connections there have been so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes have come so far, without those of TLS.
    pub fn received(&self) -> usize {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let panicked = self.shared.panicked.load(Ordering::SeqCst);
        assert!(
            !panicked || thread::panicking(),
            "the script of a server panicked, see above"
        );
    }
}

/// A socket that several may bind to one port, so that a port can be kept.
fn reusable_socket(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SockAddr::from(address)).unwrap();
    socket
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn carry(&self, stream: TcpStream) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = Arc::new(stream);
        lock(&self.sockets).push(Arc::downgrade(&socket));
        let wire = BufReader::new(self.wire(Arc::clone(&socket)));
        if catch_unwind(AssertUnwindSafe(|| self.serve(wire, &socket))).is_err() {
            self.panicked.store(true, Ordering::SeqCst);
        }
    }

    fn wire(&self, socket: Arc<TcpStream>) -> Wire {
        let channel = match lock(&self.tls).clone() {
            None => Channel::Plain(Plain(socket)),
            Some(config) => {
                let session = ServerConnection::new(config).unwrap();
                Channel::Tls(Box::new(StreamOwned::new(session, Plain(socket))))
            }
        };
        Wire {
            channel,
            received: self.received.clone(),
        }
    }

    /// Peers go away; that ends a connection and is no failure of the server.
    fn serve(&self, mut wire: BufReader<Wire>, socket: &Arc<TcpStream>) {
        if wire.get_mut().is_refused() {
            // A reset would destroy the alert before the peer has read it.
            let _ = socket.shutdown(Shutdown::Write);
            let _ = io::copy(&mut Plain(socket.clone()), &mut io::sink());
            return;
        }
        while let Ok(Some(head)) = read_head(&mut wire) {
            let number = {
                let mut requests = lock(&self.requests);
                requests.push(Request {
                    head: head.clone(),
                    body: Body::default(),
                    is_over: false,
                });
                requests.len() - 1
            };
            let mut exchange = Exchange {
                head,
                number,
                wire: &mut wire,
                socket,
                shared: self,
                body_read: false,
                closed: false,
            };
            let goes_on = (self.script)(&mut exchange).is_ok()
                && !exchange.closed
                && exchange.body().complete;
            lock(&self.requests)[number].is_over = true;
            if !goes_on {
                return;
            }
        }
    }
}

/// One request, and everything a script can do about it.
pub struct Exchange<'a> {
    pub head: Head,
    /// Counts the requests to the server from 0.
    pub number: usize,
    /// What comes after the head, for scripts that read it by themselves.
    pub wire: &'a mut BufReader<Wire>,
    socket: &'a Arc<TcpStream>,
    shared: &'a Shared,
    body_read: bool,
    closed: bool,
}

impl Exchange<'_> {
    /// Reads the body, records it, and returns it.
    pub fn body(&mut self) -> Body {
        if !self.body_read {
            self.body_read = true;
            // A request without framing has no body (RFC 9112 §6.3).
            let framing = self.head.framing().unwrap_or(Framing::Length(0));
            let body = read_body(self.wire, framing);
            lock(&self.shared.requests)[self.number].body = body;
        }
        lock(&self.shared.requests)[self.number].body.clone()
    }

    /// The body was read by the script, through `wire`.
    pub fn body_is_read(&mut self) {
        self.body_read = true;
        lock(&self.shared.requests)[self.number].body.complete = true;
    }

    /// What carries the connection, for scripts that maltreat it by themselves.
    pub fn socket(&self) -> &TcpStream {
        self.socket
    }

    /// Sends `bytes` at once.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.get_mut().write_all(bytes.as_ref())?;
        self.wire.get_mut().flush()
    }

    /// Closes in the orderly way.
    pub fn close(&mut self) -> io::Result<()> {
        self.closed = true;
        if let Channel::Tls(tls) = &mut self.wire.get_mut().channel {
            tls.conn.send_close_notify();
            tls.flush()?;
        }
        self.socket.shutdown(Shutdown::Both)
    }

    /// Closes with a TCP reset.
    pub fn reset(&mut self) -> io::Result<()> {
        self.closed = true;
        SockRef::from(&**self.socket).set_linger(Some(Duration::ZERO))
    }

    /// Says nothing more until the peer closes.
    pub fn stall(&mut self) -> io::Result<()> {
        self.closed = true;
        while !self.wire.fill_buf()?.is_empty() {
            let length = self.wire.buffer().len();
            self.wire.consume(length);
        }
        Ok(())
    }
}

/// A connection, with or without TLS.
pub struct Wire {
    channel: Channel,
    received: Arc<AtomicUsize>,
}

impl Wire {
    /// The certificate by which the client showed who it is.
    pub fn client_certificate(&self) -> Option<Vec<u8>> {
        match &self.channel {
            Channel::Plain(_) => None,
            Channel::Tls(tls) => Some(tls.conn.peer_certificates()?.first()?.to_vec()),
        }
    }

    /// Whether there is no TLS session with the peer, although there should be.
    fn is_refused(&mut self) -> bool {
        let Channel::Tls(tls) = &mut self.channel else {
            return false;
        };
        let mut refused = false;
        while tls.conn.is_handshaking() && !refused {
            refused = tls.conn.complete_io(&mut tls.sock).is_err();
        }
        refused
    }
}

enum Channel {
    Plain(Plain),
    Tls(Box<StreamOwned<ServerConnection, Plain>>),
}

/// A socket that others may shut down.
struct Plain(Arc<TcpStream>);

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for Plain {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.channel {
            Channel::Plain(wire) => wire.read(buffer),
            Channel::Tls(wire) => wire.read(buffer),
        }?;
        self.received.fetch_add(read, Ordering::SeqCst);
        Ok(read)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.channel {
            Channel::Plain(wire) => wire.write(buffer),
            Channel::Tls(wire) => wire.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.channel {
            Channel::Plain(wire) => wire.flush(),
            Channel::Tls(wire) => wire.flush(),
        }
    }
}
