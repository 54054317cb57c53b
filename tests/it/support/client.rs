//! An application: sends exact bytes, and reads exact bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;

use super::PATIENCE;
use super::wire::{Body, Framing, Head, read_body, read_head};

/// The bytes of a request: the line without its version, the fields besides `Host: localhost`, the body as it is.
pub fn request(line: &str, fields: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

/// One connection to the sidecar.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("the sidecar takes connections")
    }

    /// Connects, if connections are taken.
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Some(Self(BufReader::new(stream)))
    }

    /// Sends `bytes` as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .expect("the sidecar takes what is sent");
    }

    /// The same where the sidecar may have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }

    /// Sends so much of `bytes` as the kernel takes without waiting.
    pub fn try_send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_ref().set_nonblocking(true)?;
        let sent = self.0.get_mut().write(bytes);
        self.0.get_ref().set_nonblocking(false)?;
        sent
    }

    /// Sends nothing more, and still reads.
    pub fn finish(&mut self) {
        // The sidecar may have closed already.
        let _ = self.0.get_mut().shutdown(Shutdown::Write);
    }

    /// The next response, which must be whole.
    pub fn receive(&mut self) -> Response {
        let response = self.receive_what_comes();
        assert!(response.body.complete, "it broke off: {response:?}");
        response
    }

    /// The next response, even if its body breaks off.
    pub fn receive_what_comes(&mut self) -> Response {
        let response = self.try_receive().expect("a response");
        response.expect("a response, not the end of the connection")
    }

    /// The same where the sidecar may close instead, in the orderly way (`None`) or not.
    pub fn try_receive(&mut self) -> io::Result<Option<Response>> {
        let Some(head) = self.try_receive_head()? else {
            return Ok(None);
        };
        let body = self.receive_body(&head);
        Ok(Some(Response { body, ..head }))
    }

    /// The body after a head that answers anything but HEAD.
    pub fn receive_body(&mut self, head: &Response) -> Body {
        let framing = match head.status() {
            100..200 | 204 | 304 => Framing::Length(0),
            _ => head.head.framing().unwrap_or(Framing::UntilClose),
        };
        read_body(&mut self.0, framing)
    }

    /// The next response, or `None` where the connection ends before it.
    pub fn next(&mut self) -> Option<Response> {
        (!self.is_over()).then(|| self.receive_what_comes())
    }

    /// The next head, with nothing after it.
    pub fn receive_head(&mut self) -> Response {
        let head = self.try_receive_head().expect("a response");
        head.expect("a response, not the end of the connection")
    }

    fn try_receive_head(&mut self) -> io::Result<Option<Response>> {
        let head = read_head(&mut self.0)?;
        Ok(head.map(|head| Response {
            head,
            body: Body {
                complete: true,
                ..Body::default()
            },
        }))
    }

    /// Reads exactly so many bytes.
    pub fn receive_bytes(&mut self, number: usize) -> Vec<u8> {
        let mut bytes = vec![0; number];
        self.0.read_exact(&mut bytes).expect("more bytes");
        bytes
    }

    /// Whether the next response has begun; looks for a moment.
    pub fn has_answer(&mut self) -> bool {
        let moment = Some(Duration::from_millis(10));
        self.0.get_ref().set_read_timeout(moment).unwrap();
        let begun = self.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        self.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        begun
    }

    /// Whether the sidecar closes, and says nothing before; waits for it.
    pub fn is_closed(&mut self) -> bool {
        match read_head(&mut self.0) {
            Ok(head) => head.is_none(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Whether there is an answer 4xx or 5xx and then the end, or the end alone; waits for it. A reset can destroy the
    /// answer where it came before the request was read.
    pub fn is_refused(&mut self) -> bool {
        match read_head(&mut self.0) {
            Ok(Some(head)) => {
                head.line.starts_with("HTTP/1.1 4") || head.line.starts_with("HTTP/1.1 5")
            }
            Ok(None) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Sends `request` and reads the answer.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request);
        self.receive()
    }

    /// Whether the connection ends before another byte; waits for either.
    pub fn is_over(&mut self) -> bool {
        !self.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }

    /// Reads bytes as they come.
    pub fn reader(&mut self) -> &mut (impl BufRead + use<>) {
        &mut self.0
    }

    /// Reads whatever comes until the end, which must be orderly.
    pub fn receive_rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("an orderly end");
        rest
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        let socket = SockRef::from(self.0.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// To write while another thread reads.
    pub fn writer(&self) -> TcpStream {
        self.0.get_ref().try_clone().unwrap()
    }

    /// Writes bytes as they are made.
    pub fn stream(&mut self) -> &mut impl Write {
        self.0.get_mut()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    pub head: Head,
    pub body: Body,
}

impl Response {
    /// The status code.
    pub fn status(&self) -> u16 {
        let (version, rest) = self.head.line.split_once(' ').expect("a status line");
        // hyper answers an HTTP/1.0 client in its own version. HTTP/2 has no status line; `H2Client` makes one up.
        assert!(
            matches!(version, "HTTP/1.1" | "HTTP/1.0" | "h2"),
            "{version}"
        );
        rest[..3].parse().expect("a status code")
    }

    /// The value of `name`, which must not come twice.
    pub fn value(&self, name: &str) -> Option<String> {
        self.head.value(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.data).into_owned()
    }

    /// The body, if the answer is a 200 of the upstream.
    pub fn ok(&self) -> String {
        assert_eq!(self.status(), 200, "{self:?}");
        self.text()
    }

    /// Status and code of an answer of the sidecar's own, which must be flawless.
    pub fn problem(&self) -> (u16, String) {
        let value = |name| self.value(name).unwrap_or_default();
        assert_eq!(
            value("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        assert_eq!(value("cache-control"), "no-store");
        assert!(value("proxy-status").starts_with("bearerd; error="));
        let problem: Value = serde_json::from_slice(&self.body.data).unwrap();
        let member = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        let code = member("code");
        assert_eq!(member("type"), format!("urn:bearerd:problem:{code}"));
        assert_eq!(problem["status"], self.status());
        assert_eq!(member("request_id"), value("x-request-id"));
        for name in ["title", "detail", "hint"] {
            assert!(!member(name).is_empty(), "{name} is empty");
        }
        assert_eq!(problem.as_object().unwrap().len(), 7, "{problem}");
        (self.status(), code)
    }

    /// Asserts that it is an answer of the sidecar's own.
    pub fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.problem(), (status, code.to_owned()));
    }
}
