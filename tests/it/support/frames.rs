//! An upstream that speaks HTTP/2 behind TLS frame by frame, so that it can refuse, reset and say goodbye at any moment.
//! It knows requests by their order and their bodies; it does not decode their fields.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Gate;
use super::certificates::Authority;

pub const NO_ERROR: u32 = 0x0;
pub const INTERNAL_ERROR: u32 = 0x2;
pub const REFUSED_STREAM: u32 = 0x7;
pub const CANCEL: u32 = 0x8;
pub const ENHANCE_YOUR_CALM: u32 = 0xb;
pub const HTTP_1_1_REQUIRED: u32 = 0xd;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_FRAME: usize = 16 * 1024;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;

/// A request, as far as it has come.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Counts the requests to the upstream from 0.
    pub number: usize,
    /// Counts the connections from 0.
    pub connection: usize,
    pub stream: u32,
    pub body: Vec<u8>,
    /// Whether its end has come.
    pub whole: bool,
    /// Whether it was answered, so that money moved.
    pub executed: bool,
    /// The code with which the sidecar reset it.
    pub reset: Option<u32>,
}

/// What the upstream does.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// Answers 200 with the body of the request.
    Answer,
    /// Resets the stream with this code.
    Reset(u32),
    /// Sends GOAWAY: this is the last stream that it has looked at or will, and this is why.
    Goodbye { last: u32, code: u32 },
    /// Sends nothing more, and reads to the end. With bytes unread a close is a reset, which can overtake a goodbye.
    Close,
}

/// Says what is done when a head, or a piece of a body, has come.
type Script = dyn Fn(&Asked) -> Vec<Move> + Send + Sync;

/// The upstream.
pub struct FrameUpstream {
    pub address: SocketAddr,
    pub authority: Authority,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    script: Box<Script>,
    tls: Arc<ServerConfig>,
    max_streams: Option<u32>,
    gate: Option<Gate>,
    requests: Mutex<Vec<Asked>>,
    sockets: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

impl FrameUpstream {
    /// Does what `script` says.
    pub fn scripted(script: impl Fn(&Asked) -> Vec<Move> + Send + Sync + 'static) -> Self {
        Self::start(None, None, script)
    }

    /// The same, and no handshake is answered until the gate is opened.
    pub fn held_back(
        gate: &Gate,
        script: impl Fn(&Asked) -> Vec<Move> + Send + Sync + 'static,
    ) -> Self {
        Self::start(None, Some(gate.clone()), script)
    }

    /// The same with no more than so many streams at a time.
    pub fn with_max_streams(
        max_streams: u32,
        script: impl Fn(&Asked) -> Vec<Move> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(max_streams), None, script)
    }

    fn start(
        max_streams: Option<u32>,
        gate: Option<Gate>,
        script: impl Fn(&Asked) -> Vec<Move> + Send + Sync + 'static,
    ) -> Self {
        let authority = Authority::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            tls: authority.server("127.0.0.1", &["h2"]),
            max_streams,
            gate,
            requests: Mutex::default(),
            sockets: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let connection = {
                    let mut sockets = lock(&accepting.sockets);
                    sockets.push(stream.try_clone().unwrap());
                    sockets.len() - 1
                };
                let shared = accepting.clone();
                thread::spawn(move || {
                    // How the sidecar ends its connections is not the matter here.
                    let _ = shared.carry(&stream, connection);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self {
            address,
            authority,
            shared,
            thread: Some(thread),
        }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// All requests so far, in the order in which their heads came.
    pub fn requests(&self) -> Vec<Asked> {
        lock(&self.shared.requests).clone()
    }

    /// How many connections there have been so far.
    pub fn connections(&self) -> usize {
        lock(&self.shared.sockets).len()
    }
}

impl Drop for FrameUpstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let ended = self.thread.take().map(JoinHandle::join);
        for socket in lock(&self.shared.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking());
    }
}

impl Shared {
    fn carry(&self, stream: &TcpStream, connection: usize) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if let Some(gate) = &self.gate {
            gate.wait();
        }
        let session = ServerConnection::new(self.tls.clone()).map_err(io::Error::other)?;
        let mut wire = StreamOwned::new(session, stream);
        let mut preface = [0; PREFACE.len()];
        wire.read_exact(&mut preface)?;
        assert_eq!(preface, PREFACE);
        let mut settings = Vec::new();
        if let Some(max_streams) = self.max_streams {
            settings.extend_from_slice(&MAX_CONCURRENT_STREAMS.to_be_bytes());
            settings.extend_from_slice(&max_streams.to_be_bytes());
        }
        wire.write_all(&frame(SETTINGS, 0, 0, &settings))?;
        loop {
            let (kind, flags, stream, payload) = read_frame(&mut wire)?;
            match kind {
                SETTINGS if flags & ACK == 0 => wire.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
                PING if flags & ACK == 0 => wire.write_all(&frame(PING, ACK, 0, &payload))?,
                HEADERS => {
                    self.begin(connection, stream);
                    self.go_on(&mut wire, connection, stream, &[], flags)?;
                }
                DATA => {
                    if let Some(length) = u32::try_from(payload.len()).ok().filter(|n| *n > 0) {
                        for window in [0, stream] {
                            let more = frame(WINDOW_UPDATE, 0, window, &length.to_be_bytes());
                            wire.write_all(&more)?;
                        }
                    }
                    self.go_on(&mut wire, connection, stream, &payload, flags)?;
                }
                RST_STREAM => {
                    let code = payload.try_into().map(u32::from_be_bytes).ok();
                    self.with(connection, stream, |asked| asked.reset = code);
                }
                _ => {}
            }
        }
    }

    fn begin(&self, connection: usize, stream: u32) {
        let mut requests = lock(&self.requests);
        let number = requests.len();
        requests.push(Asked {
            number,
            connection,
            stream,
            body: Vec::new(),
            whole: false,
            executed: false,
            reset: None,
        });
    }

    fn with(
        &self,
        connection: usize,
        stream: u32,
        change: impl FnOnce(&mut Asked),
    ) -> Option<Asked> {
        let mut requests = lock(&self.requests);
        let asked = requests
            .iter_mut()
            .rev()
            .find(|asked| (asked.connection, asked.stream) == (connection, stream))?;
        change(asked);
        Some(asked.clone())
    }

    fn go_on(
        &self,
        wire: &mut StreamOwned<ServerConnection, &TcpStream>,
        connection: usize,
        stream: u32,
        payload: &[u8],
        flags: u8,
    ) -> io::Result<()> {
        let asked = self.with(connection, stream, |asked| {
            asked.body.extend_from_slice(payload);
            asked.whole = flags & END_STREAM != 0;
        });
        let asked = asked.expect("a body follows its head");
        for next in (self.script)(&asked) {
            match next {
                Move::Answer => {
                    self.with(connection, stream, |asked| asked.executed = true);
                    wire.write_all(&answer(stream, &asked.body))?;
                }
                Move::Reset(code) => {
                    wire.write_all(&frame(RST_STREAM, 0, stream, &code.to_be_bytes()))?;
                }
                Move::Goodbye { last, code } => {
                    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
                    wire.write_all(&frame(GOAWAY, 0, 0, &payload))?;
                }
                Move::Close => {
                    wire.conn.send_close_notify();
                    wire.flush()?;
                    wire.sock.shutdown(Shutdown::Write)?;
                    io::copy(&mut wire.sock, &mut io::sink())?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        wire.flush()
    }
}

/// `:status: 200`, `content-length`, and a body that fits into the window of its stream.
fn answer(stream: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len().to_string();
    // Indexed field 8; then a literal without indexing, its name that of field 28 (RFC 7541 §6).
    let mut fields = vec![0x88, 0x0f, 0x0d, u8::try_from(length.len()).unwrap()];
    fields.extend_from_slice(length.as_bytes());
    let mut answer = frame(HEADERS, END_HEADERS, stream, &fields);
    for piece in body.chunks(MAX_FRAME) {
        answer.extend_from_slice(&frame(DATA, 0, stream, piece));
    }
    answer.extend_from_slice(&frame(DATA, END_STREAM, stream, &[]));
    answer
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn read_frame(wire: &mut impl Read) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    wire.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; length as usize];
    wire.read_exact(&mut payload)?;
    Ok((head[3], head[4], stream, payload))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
