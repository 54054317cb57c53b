//! HTTP/1.1 messages as bytes. What the sidecar writes must be flawless, so a malformed message is a panic, not an error.

use std::fmt;
use std::io::{self, BufRead, Read};

/// The head of a message, exactly as it came.
#[derive(Clone)]
pub struct Head {
    /// The request line or the status line.
    pub line: String,
    /// Name and value of each field, in order, names as they came.
    pub fields: Vec<(String, Vec<u8>)>,
}

/// The body of a message.
#[derive(Clone, Default)]
pub struct Body {
    /// As it came, with its framing.
    pub raw: Vec<u8>,
    /// Without its framing.
    pub data: Vec<u8>,
    /// Whether it ended as its framing says, rather than broke off.
    pub complete: bool,
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.line)?;
        for (name, value) in &self.fields {
            writeln!(f, "{name}: {}", value.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = &self.raw[..self.raw.len().min(1024)];
        let end = if self.complete { "" } else { " (broken off)" };
        write!(f, "{} bytes: {}{end}", self.raw.len(), begin.escape_ascii())
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// The next head; `None` if the peer closed before its first byte.
pub fn read_head(wire: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        wire.read_until(b'\n', &mut line)?;
        if line.is_empty() && lines.is_empty() {
            return Ok(None);
        }
        if !line.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let shown = String::from_utf8_lossy(&line).into_owned();
        let Some(content) = line.strip_suffix(b"\r\n") else {
            panic!("a line that does not end in CRLF: {shown:?}");
        };
        assert!(!content.contains(&b'\r'), "a bare CR: {shown:?}");
        if content.is_empty() {
            break;
        }
        lines.push(content.to_vec());
    }
    let mut lines = lines.into_iter();
    let line = String::from_utf8(lines.next().expect("a head has a first line"));
    Ok(Some(Head {
        line: line.expect("a first line is ASCII"),
        fields: lines.map(|line| field(&line)).collect(),
    }))
}

fn field(line: &[u8]) -> (String, Vec<u8>) {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.expect("a field has a colon"));
    let name = String::from_utf8(name.to_vec()).expect("a field name is ASCII");
    assert!(
        !name.is_empty() && !name.contains([' ', '\t']),
        "a field name: {name:?}"
    );
    (name, value[1..].trim_ascii().to_vec())
}

impl Head {
    /// The values of `name`, in order; what is not UTF-8 is shown as such.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    /// The value of `name`, which must not come twice.
    pub fn value(&self, name: &str) -> Option<String> {
        let mut values = self.values(name);
        assert!(values.len() <= 1, "{name} came more than once: {values:?}");
        values.pop()
    }

    /// How the body is framed, if the head says so.
    pub fn framing(&self) -> Option<Framing> {
        match (
            self.value("transfer-encoding"),
            self.value("content-length"),
        ) {
            (Some(coding), None) => {
                assert_eq!(coding, "chunked");
                Some(Framing::Chunked)
            }
            (None, Some(length)) => {
                assert_eq!(length, length.parse::<usize>().unwrap().to_string());
                Some(Framing::Length(length.parse().unwrap()))
            }
            (None, None) => None,
            (Some(_), Some(_)) => panic!("two framings: {self:?}"),
        }
    }
}

/// The body after a head, to its end or to where it broke off.
pub fn read_body(wire: &mut impl BufRead, framing: Framing) -> Body {
    let mut body = Body::default();
    body.complete = match framing {
        Framing::Length(length) => {
            let read = wire.take(length as u64).read_to_end(&mut body.raw);
            body.data = body.raw.clone();
            read.is_ok() && body.data.len() == length
        }
        Framing::UntilClose => {
            let read = wire.read_to_end(&mut body.raw);
            body.data = body.raw.clone();
            read.is_ok()
        }
        Framing::Chunked => read_chunks(wire, &mut body).is_ok(),
    };
    body
}

fn read_chunks(wire: &mut impl BufRead, body: &mut Body) -> io::Result<()> {
    loop {
        let size = read_line(wire, &mut body.raw)?;
        let size = usize::from_str_radix(&size, 16).expect("a chunk begins with its size alone");
        if size == 0 {
            let trailer = read_line(wire, &mut body.raw)?;
            assert_eq!(trailer, "", "no trailers are sent");
            return Ok(());
        }
        let start = body.raw.len();
        let read = wire.take(size as u64).read_to_end(&mut body.raw);
        body.data.extend_from_slice(&body.raw[start..]);
        if read? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        assert_eq!(read_line(wire, &mut body.raw)?, "", "the end of a chunk");
    }
}

fn read_line(wire: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<String> {
    let mut line = Vec::new();
    wire.read_until(b'\n', &mut line)?;
    raw.extend_from_slice(&line);
    let Some(content) = line.strip_suffix(b"\r\n") else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    Ok(String::from_utf8(content.to_vec()).expect("framing is ASCII"))
}
