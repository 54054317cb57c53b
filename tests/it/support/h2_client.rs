//! An application that speaks HTTP/2 with prior knowledge: sends exact frames, valid or not, and reads everything.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;
use super::client::Response;
use super::h2_frames::*;
use super::wire::{Body, Head};

/// The fields of a request: `line` is method and path, `more` come after the pseudo-fields.
pub fn fields<'a>(line: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let (method, path) = line.split_once(' ').expect("a method and a path");
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", path),
    ];
    fields.extend_from_slice(more);
    fields
}

/// One connection to the sidecar.
pub struct H2Client {
    wire: BufReader<TcpStream>,
    decoder: Decoder,
    streams: BTreeMap<u32, Stream>,
    next_stream: u32,
    /// What may still be sent, over all streams.
    window: i64,
    /// What the sidecar said of itself.
    pub settings: BTreeMap<u16, u32>,
    settings_acknowledged: bool,
    goaways: Vec<GoAway>,
    pongs: usize,
    pub closed: bool,
}

/// The end of a connection, announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway {
    pub last_stream: u32,
    pub code: ErrorCode,
}

/// One answer in the making.
struct Stream {
    head: Option<Head>,
    body: Vec<u8>,
    trailers: Option<Vec<Field>>,
    ended: bool,
    reset: Option<ErrorCode>,
    /// What may still be sent on it.
    window: i64,
    /// Whether what has come is left unread, so that the sidecar may send no more than the first window.
    held: bool,
    /// What has come since the last credit.
    unread: u32,
}

impl H2Client {
    /// Connects, and waits until both sides know each other's settings.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// The same with these settings of ours.
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).expect("the sidecar takes connections");
        let mut client = Self::over(stream);
        client.send_bytes([&PREFACE[..], &Frame::settings(settings).bytes()].concat());
        client.wait_for("settings", |client| client.settings_acknowledged);
        client
    }

    /// Connects, if connections are taken, and served so far as to tell settings.
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let mut client = Self::over(TcpStream::connect(address).ok()?);
        let begin = [&PREFACE[..], &Frame::settings(&[]).bytes()].concat();
        client.try_send_bytes(begin).ok()?;
        client.wait_for("settings", |client| {
            client.settings_acknowledged || client.closed
        });
        (!client.closed).then_some(client)
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            wire: BufReader::new(stream),
            decoder: Decoder::default(),
            streams: BTreeMap::new(),
            next_stream: 1,
            window: i64::from(DEFAULT_WINDOW),
            settings: BTreeMap::new(),
            settings_acknowledged: false,
            goaways: Vec::new(),
            pongs: 0,
            closed: false,
        }
    }

    /// Sends bytes that need not be frames.
    pub fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send_bytes(bytes)
            .expect("the sidecar takes what is sent");
    }

    /// The same where the sidecar may have closed already.
    pub fn try_send_bytes(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.wire.get_mut().write_all(bytes.as_ref())
    }

    /// Sends a frame as it is.
    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(frame.bytes());
    }

    /// Sends frames in one piece, where the sidecar may close before it has them all.
    pub fn try_send(&mut self, frames: &[Frame]) -> io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.try_send_bytes(bytes)
    }

    /// Sends a frame again and again without reading anything, until the sidecar takes no more of it for a moment.
    pub fn flood(&mut self, frame: &Frame) {
        let moment = Some(Duration::from_millis(100));
        self.wire.get_ref().set_write_timeout(moment).unwrap();
        let frames = vec![frame.clone(); 1000];
        for _ in 0..200 {
            if self.try_send(&frames).is_err() {
                break;
            }
        }
    }

    /// The identifier of the next stream.
    pub fn new_stream(&mut self) -> u32 {
        let id = self.next_stream;
        self.next_stream += 2;
        let window = self.settings.get(&INITIAL_WINDOW_SIZE);
        let stream = Stream {
            head: None,
            body: Vec::new(),
            trailers: None,
            ended: false,
            reset: None,
            window: i64::from(window.copied().unwrap_or(DEFAULT_WINDOW)),
            held: false,
            unread: 0,
        };
        self.streams.insert(id, stream);
        id
    }

    /// Sends the head of a request whose body or trailers follow.
    pub fn open(&mut self, fields: &[(&str, &str)]) -> u32 {
        let stream = self.new_stream();
        self.send(&Frame::headers(stream, fields, 0));
        stream
    }

    /// Sends a whole request without a body.
    pub fn ask(&mut self, fields: &[(&str, &str)]) -> u32 {
        let stream = self.new_stream();
        self.send(&Frame::headers(stream, fields, END_STREAM));
        stream
    }

    /// Sends a request without a body, and receives the answer.
    pub fn exchange(&mut self, fields: &[(&str, &str)]) -> Response {
        let stream = self.ask(fields);
        self.receive(stream)
    }

    /// A GET.
    pub fn get(&mut self, path: &str) -> Response {
        self.exchange(&fields(&format!("GET {path}"), &[]))
    }

    /// Sends data, and with it END_STREAM if there is no more, as the windows allow.
    pub fn send_data(&mut self, stream: u32, mut data: &[u8], flags: u8) {
        loop {
            let room = self.window.min(self.stream(stream).window);
            let room = usize::try_from(room).unwrap_or(0).min(DEFAULT_FRAME_SIZE);
            let (now, later) = data.split_at(room.min(data.len()));
            if now.is_empty() && !later.is_empty() {
                self.read_one("room in the windows");
                continue;
            }
            let flags = if later.is_empty() { flags } else { 0 };
            self.window -= now.len() as i64;
            self.stream(stream).window -= now.len() as i64;
            self.send(&Frame::data(stream, now, flags));
            data = later;
            if data.is_empty() {
                return;
            }
        }
    }

    /// Leaves what comes on a stream unread.
    pub fn hold(&mut self, stream: u32) {
        self.stream(stream).held = true;
    }

    /// Reads what comes on it again.
    pub fn release(&mut self, stream: u32) {
        let state = self.stream(stream);
        state.held = false;
        let unread = std::mem::take(&mut state.unread);
        if unread > 0 && !self.stream(stream).ended {
            self.send(&Frame::window_update(stream, unread));
        }
    }

    /// How many bytes of the body have come so far.
    pub fn received(&mut self, stream: u32) -> usize {
        self.stream(stream).body.len()
    }

    /// Waits until so many bytes of the body have come.
    pub fn wait_for_bytes(&mut self, stream: u32, number: usize) {
        self.wait_for("more bytes", |client| client.received(stream) >= number);
    }

    /// The whole answer on a stream, which must be whole.
    pub fn receive(&mut self, stream: u32) -> Response {
        let response = self.receive_what_comes(stream);
        let reset = self.stream(stream).reset;
        assert!(
            response.body.complete,
            "it broke off, {reset:?}: {response:?}"
        );
        response
    }

    /// The answer on a stream, even if its body breaks off.
    pub fn receive_what_comes(&mut self, stream: u32) -> Response {
        self.receive_head(stream);
        self.wait_for("the end of an answer", |client| {
            let closed = client.closed;
            let stream = client.stream(stream);
            stream.ended || stream.reset.is_some() || closed
        });
        let stream = self.stream(stream);
        let data = std::mem::take(&mut stream.body);
        Response {
            head: stream.head.clone().unwrap(),
            body: Body {
                raw: data.clone(),
                data,
                complete: stream.ended,
            },
        }
    }

    /// The head of an answer, with nothing after it.
    pub fn receive_head(&mut self, stream: u32) -> Response {
        self.wait_for("the head of an answer", |client| {
            let reset = client.stream(stream).reset;
            assert_eq!(reset, None, "a reset instead of an answer");
            assert!(!client.closed, "closed without an answer");
            client.stream(stream).head.is_some()
        });
        Response {
            head: self.stream(stream).head.clone().unwrap(),
            body: Body {
                complete: true,
                ..Body::default()
            },
        }
    }

    /// The trailers of an answer that has come whole; `None` if it had none.
    pub fn trailers(&mut self, stream: u32) -> Option<Vec<(String, String)>> {
        let trailers = self.stream(stream).trailers.take()?;
        let text = |value| String::from_utf8(value).unwrap();
        Some(trailers.into_iter().map(|(n, v)| (n, text(v))).collect())
    }

    /// Why the sidecar gave a stream up; waits for it.
    pub fn reset(&mut self, stream: u32) -> ErrorCode {
        self.wait_for("a reset", |client| {
            assert!(!client.closed, "closed without a reset");
            client.stream(stream).reset.is_some()
        });
        self.stream(stream).reset.unwrap()
    }

    /// The whole answer, or why there is none. A connection that is given up gives its streams up.
    pub fn answer_or_reset(&mut self, stream: u32) -> Result<Response, ErrorCode> {
        self.wait_for("an answer", |client| {
            let closed = client.closed;
            let stream = client.stream(stream);
            stream.head.is_some() || stream.reset.is_some() || closed
        });
        let state = self.stream(stream);
        match (&state.head, state.reset) {
            (Some(_), _) => Ok(self.receive(stream)),
            (None, Some(reset)) => Err(reset),
            (None, None) => Err(self
                .goaways
                .last()
                .map_or(ErrorCode::NoError, |end| end.code)),
        }
    }

    /// Whether the sidecar has said that it gives the connection up, as far as was read.
    pub fn is_told_to_go(&self) -> bool {
        !self.goaways.is_empty()
    }

    /// Why the sidecar gives the connection up; waits for it.
    pub fn goaway(&mut self) -> GoAway {
        self.wait_for("GOAWAY", |client| !client.goaways.is_empty());
        *self.goaways.last().unwrap()
    }

    /// Waits until the connection ends; returns what was announced last.
    pub fn end(&mut self) -> Option<GoAway> {
        self.wait_for("the end", |client| client.closed);
        self.goaways.last().copied()
    }

    /// Waits until the sidecar has seen all that was sent before.
    pub fn ping(&mut self) {
        let pongs = self.pongs;
        self.send(&Frame::new(PING, 0, 0, b"are you?"));
        self.wait_for("a pong", |client| {
            assert!(!client.closed, "closed without a pong");
            client.pongs > pongs
        });
    }

    /// The next frame as it came, unless the connection ends before it. What it means is remembered as ever.
    pub fn read(&mut self) -> Option<Frame> {
        let frame = match read_frame(&mut self.wire) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("nothing came: {error}"),
        };
        match &frame {
            None => self.closed = true,
            Some(frame) => self.take(frame),
        }
        frame
    }

    fn read_one(&mut self, what: &str) {
        assert!(
            !self.closed,
            "the connection is closed, {:?}: no {what}",
            self.goaways
        );
        self.read();
    }

    fn wait_for(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        while !condition(self) {
            self.read_one(what);
        }
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        let stream = self.streams.get_mut(&id);
        stream.unwrap_or_else(|| panic!("there is no stream {id}"))
    }

    fn take(&mut self, frame: &Frame) {
        match frame.kind {
            DATA => self.take_data(frame),
            HEADERS => self.take_headers(frame),
            RST_STREAM => {
                self.stream(frame.stream).reset = Some(ErrorCode::read(&frame.payload));
            }
            SETTINGS if frame.has(ACK) => self.settings_acknowledged = true,
            SETTINGS => {
                for setting in frame.payload.chunks(6) {
                    let id = u16::from_be_bytes(setting[..2].try_into().unwrap());
                    let value = u32::from_be_bytes(setting[2..].try_into().unwrap());
                    self.settings.insert(id, value);
                }
                // It may be closing.
                let _ = self.try_send(&[Frame::new(SETTINGS, ACK, 0, "")]);
            }
            PING if frame.has(ACK) => self.pongs += 1,
            PING => {
                let _ = self.try_send(&[Frame::new(PING, ACK, 0, &frame.payload)]);
            }
            GOAWAY => {
                let last_stream = u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
                let code = ErrorCode::read(&frame.payload[4..]);
                self.goaways.push(GoAway { last_stream, code });
            }
            WINDOW_UPDATE => {
                let increment = u32::from_be_bytes(frame.payload[..].try_into().unwrap());
                let window = match frame.stream {
                    0 => &mut self.window,
                    stream => &mut self.stream(stream).window,
                };
                *window += i64::from(increment);
            }
            _ => panic!("nobody asked for {frame:?}"),
        }
    }

    fn take_data(&mut self, frame: &Frame) {
        assert!(!frame.has(PADDED), "padding: {frame:?}");
        let length = u32::try_from(frame.payload.len()).unwrap();
        let stream = self.stream(frame.stream);
        assert!(stream.head.is_some() && !stream.ended, "{frame:?}");
        stream.body.extend_from_slice(&frame.payload);
        stream.ended |= frame.has(END_STREAM);
        stream.unread += length;
        let (held, ended) = (stream.held, stream.ended);
        let credit = if held || ended {
            0
        } else {
            std::mem::take(&mut stream.unread)
        };
        // The connection is never full because of one stream. It may be closing.
        for (stream, credit) in [(0, length), (frame.stream, credit)] {
            if credit > 0 {
                let _ = self.try_send(&[Frame::window_update(stream, credit)]);
            }
        }
    }

    fn take_headers(&mut self, frame: &Frame) {
        assert!(!frame.has(PADDED), "padding: {frame:?}");
        let mut block = frame.payload.clone();
        let mut whole = frame.has(END_HEADERS);
        while !whole {
            let next = read_frame(&mut self.wire).unwrap().expect("CONTINUATION");
            assert_eq!((next.kind, next.stream), (CONTINUATION, frame.stream));
            block.extend_from_slice(&next.payload);
            whole = next.has(END_HEADERS);
        }
        let fields = self.decoder.decode(&block);
        assert_fit_for_http2(&fields);
        let stream = self.stream(frame.stream);
        assert!(!stream.ended, "more after the end: {frame:?}");
        stream.ended = frame.has(END_STREAM);
        if stream.head.is_some() {
            assert!(stream.ended, "trailers are the end");
            stream.trailers = Some(fields);
            return;
        }
        let mut fields = fields.into_iter();
        let status = match fields.next() {
            Some((name, status)) if name == ":status" => String::from_utf8(status).unwrap(),
            other => panic!("an answer begins with its status: {other:?}"),
        };
        stream.head = Some(Head {
            line: format!("h2 {status}"),
            fields: fields.collect(),
        });
    }
}

/// RFC 9113 §8.2: names in lower case, no connection-specific fields.
fn assert_fit_for_http2(fields: &[Field]) {
    for (name, _) in fields {
        assert_eq!(*name, name.to_ascii_lowercase());
        let connection_specific = [
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "transfer-encoding",
            "upgrade",
        ];
        assert!(!connection_specific.contains(&&**name), "{name} came");
    }
}
