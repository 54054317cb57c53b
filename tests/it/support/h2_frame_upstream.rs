//! An upstream that speaks HTTP/2 behind TLS frame by frame, so that it can refuse, reset and say goodbye at any moment.
//! It knows requests by their order and their bodies; it does not decode their fields.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::Gate;
use super::certificates::Authority;
use super::h2_frames::*;

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
    pub reset: Option<ErrorCode>,
}

/// What the upstream does.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// Answers 200 with the body of the request.
    Answer,
    /// Resets the stream with this code.
    Reset(ErrorCode),
    /// Sends GOAWAY: this is the last stream that it has looked at or will, and this is why.
    Goodbye { last: u32, code: ErrorCode },
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
        let mut wire = BufReader::new(StreamOwned::new(session, stream));
        let mut preface = [0; PREFACE.len()];
        wire.read_exact(&mut preface)?;
        assert_eq!(preface, *PREFACE);
        let max_streams = self.max_streams.map(|max| (MAX_CONCURRENT_STREAMS, max));
        send(&mut wire, &Frame::settings(max_streams.as_slice()))?;
        while let Some(frame) = read_frame(&mut wire)? {
            let stream = frame.stream;
            match frame.kind {
                SETTINGS if !frame.has(ACK) => send(&mut wire, &Frame::new(SETTINGS, ACK, 0, ""))?,
                PING if !frame.has(ACK) => {
                    send(&mut wire, &Frame::new(PING, ACK, 0, &frame.payload))?;
                }
                HEADERS => {
                    self.begin(connection, stream);
                    self.go_on(&mut wire, connection, &frame, &[])?;
                }
                DATA => {
                    let length = u32::try_from(frame.payload.len()).unwrap();
                    for window in [0, stream].into_iter().filter(|_| length > 0) {
                        send(&mut wire, &Frame::window_update(window, length))?;
                    }
                    self.go_on(&mut wire, connection, &frame, &frame.payload)?;
                }
                RST_STREAM => {
                    let code = ErrorCode::read(&frame.payload);
                    self.with(connection, stream, |asked| asked.reset = Some(code));
                }
                _ => {}
            }
        }
        Ok(())
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
        wire: &mut Wire<'_>,
        connection: usize,
        frame: &Frame,
        piece: &[u8],
    ) -> io::Result<()> {
        let stream = frame.stream;
        let asked = self.with(connection, stream, |asked| {
            asked.body.extend_from_slice(piece);
            asked.whole = frame.has(END_STREAM);
        });
        let asked = asked.expect("a body follows its head");
        for next in (self.script)(&asked) {
            match next {
                Move::Answer => {
                    self.with(connection, stream, |asked| asked.executed = true);
                    for frame in answer(stream, &asked.body) {
                        send(wire, &frame)?;
                    }
                }
                Move::Reset(code) => send(wire, &Frame::reset(stream, code))?,
                Move::Goodbye { last, code } => send(wire, &Frame::goaway(last, code))?,
                Move::Close => {
                    let wire = wire.get_mut();
                    wire.conn.send_close_notify();
                    wire.flush()?;
                    wire.sock.shutdown(Shutdown::Write)?;
                    io::copy(&mut wire.sock, &mut io::sink())?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        wire.get_mut().flush()
    }
}

type Wire<'a> = BufReader<StreamOwned<ServerConnection, &'a TcpStream>>;

fn send(wire: &mut Wire<'_>, frame: &Frame) -> io::Result<()> {
    wire.get_mut().write_all(&frame.bytes())
}

/// A 200 with this body, which fits into the window of its stream.
fn answer(stream: u32, body: &[u8]) -> Vec<Frame> {
    let length = body.len().to_string();
    let fields = [(":status", "200"), ("content-length", &*length)];
    let mut frames = vec![Frame::headers(stream, &fields, 0)];
    let pieces = body.chunks(DEFAULT_FRAME_SIZE);
    frames.extend(pieces.map(|piece| Frame::data(stream, piece, 0)));
    frames.push(Frame::data(stream, "", END_STREAM));
    frames
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
