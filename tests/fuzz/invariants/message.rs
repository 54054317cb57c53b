//! HTTP/1.1 messages, read as RFC 9112 defines them and with none of the leniency that it allows. What this accepts has
//! one reading; it judges what bearerd sends, and knows of what bearerd got which part of it is beyond doubt.

use std::fmt;

/// What the beginning of some bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    /// This, in so many bytes.
    Whole(T, usize),
    /// The beginning of something.
    Incomplete,
    /// Nothing that has one meaning.
    Broken(&'static str),
}

/// Hands on what is not whole.
macro_rules! whole {
    ($reading:expr) => {
        match $reading {
            Reading::Whole(value, length) => (value, length),
            Reading::Incomplete => return Reading::Incomplete,
            Reading::Broken(reason) => return Reading::Broken(reason),
        }
    };
}

/// A field, its name in lower case.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: Vec<u8>,
}

/// The fields of a message, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<Field>);

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
}

/// A body without its framing, and what was beside it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Body {
    pub data: Vec<u8>,
    pub trailers: Fields,
    pub has_extensions: bool,
}

/// A request line and its fields.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    pub target: Vec<u8>,
    pub fields: Fields,
    pub framing: Framing,
}

/// A status line and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub fields: Fields,
    pub framing: Framing,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value.escape_ascii())
    }
}

impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.escape_ascii();
        write!(f, "{} {target} {:?}", self.method, self.fields.0)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:?}",
            self.data.escape_ascii().to_string(),
            self.trailers.0
        )
    }
}

impl Fields {
    /// The values of `name`, which is in lower case.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        let fields = self.0.iter().filter(|field| field.name == name);
        fields.map(|field| field.value.as_slice()).collect()
    }

    /// The one value of `name`; `None` if it is missing or comes twice.
    pub fn the_one(&self, name: &str) -> Option<&[u8]> {
        match self.values(name)[..] {
            [value] => Some(value),
            _ => None,
        }
    }
}

/// The head of a request.
pub fn request_head(bytes: &[u8]) -> Reading<RequestHead> {
    let ((line, fields), length) = whole!(head(bytes));
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Reading::Broken("a request line that is not three words");
    };
    if !is_token(method) {
        return Reading::Broken("a method that is no token");
    }
    if target.is_empty() || target.iter().any(|byte| !is_visible(*byte)) {
        return Reading::Broken("a target with what no target holds");
    }
    if version != b"HTTP/1.1" {
        return Reading::Broken("a version other than HTTP/1.1");
    }
    match framing(&fields) {
        Ok(framing) => {
            let head = RequestHead {
                method: String::from_utf8_lossy(method).into_owned(),
                target: target.to_vec(),
                fields,
                framing,
            };
            Reading::Whole(head, length)
        }
        Err(reason) => Reading::Broken(reason),
    }
}

/// The head of a response.
pub fn response_head(bytes: &[u8]) -> Reading<ResponseHead> {
    let ((line, fields), length) = whole!(head(bytes));
    // The answer to HTTP/1.0 may say so.
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "));
    let Some((status, reason)) = rest.and_then(|rest| rest.split_at_checked(3)) else {
        return Reading::Broken("a status line of another version");
    };
    let Ok(Ok(status)) = std::str::from_utf8(status).map(str::parse) else {
        return Reading::Broken("a status that is no number");
    };
    if !(100..=999).contains(&status) || reason.first() != Some(&b' ') {
        return Reading::Broken("a malformed status line");
    }
    match framing(&fields) {
        Ok(framing) => {
            let head = ResponseHead {
                status,
                fields,
                framing,
            };
            Reading::Whole(head, length)
        }
        Err(reason) => Reading::Broken(reason),
    }
}

/// The body after a head.
pub fn body(framing: Framing, bytes: &[u8]) -> Reading<Body> {
    match framing {
        Framing::None => Reading::Whole(Body::default(), 0),
        Framing::Length(length) => match bytes.get(..length) {
            Some(data) => {
                let body = Body {
                    data: data.to_vec(),
                    ..Body::default()
                };
                Reading::Whole(body, length)
            }
            None => Reading::Incomplete,
        },
        Framing::Chunked => chunks(bytes),
    }
}

fn head(bytes: &[u8]) -> Reading<(Vec<u8>, Fields)> {
    let (line, length) = whole!(line(bytes));
    if line.is_empty() {
        return Reading::Broken("an empty first line");
    }
    let (fields, fields_length) = whole!(fields(&bytes[length..]));
    Reading::Whole((line.to_vec(), fields), length + fields_length)
}

/// Field lines and the empty line after them.
fn fields(bytes: &[u8]) -> Reading<Fields> {
    let mut fields = Fields::default();
    let mut at = 0;
    loop {
        let (line, length) = whole!(line(&bytes[at..]));
        at += length;
        if line.is_empty() {
            return Reading::Whole(fields, at);
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Reading::Broken("a field without a colon");
        };
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if !is_token(name) {
            return Reading::Broken("a field name that is no token");
        }
        if value.iter().any(|byte| !is_in_value(*byte)) {
            return Reading::Broken("a control byte in a field value");
        }
        fields.0.push(Field {
            name: String::from_utf8_lossy(name).to_ascii_lowercase(),
            value: value.to_vec(),
        });
    }
}

/// A line, without the CRLF that ends it.
fn line(bytes: &[u8]) -> Reading<&[u8]> {
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return Reading::Incomplete;
    };
    match &bytes[end..] {
        [b'\r'] => Reading::Incomplete,
        [b'\r', b'\n', ..] => Reading::Whole(&bytes[..end], end + 2),
        _ => Reading::Broken("a bare CR or LF"),
    }
}

fn framing(fields: &Fields) -> Result<Framing, &'static str> {
    match (
        &fields.values("content-length")[..],
        &fields.values("transfer-encoding")[..],
    ) {
        ([], []) => Ok(Framing::None),
        ([length], []) => match std::str::from_utf8(length).map(str::parse::<usize>) {
            // Written as it is read: no sign, no zeros in front.
            Ok(Ok(number)) if number.to_string().as_bytes() == *length => {
                Ok(Framing::Length(number))
            }
            _ => Err("a Content-Length that is no plain number"),
        },
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        ([], _) => Err("a Transfer-Encoding other than chunked"),
        _ => Err("two framings"),
    }
}

fn chunks(bytes: &[u8]) -> Reading<Body> {
    let mut body = Body::default();
    let mut at = 0;
    loop {
        let (line, length) = whole!(line(&bytes[at..]));
        at += length;
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        body.has_extensions |= size.len() < line.len();
        if line.iter().any(|byte| !is_in_value(*byte)) {
            return Reading::Broken("a control byte in a chunk extension");
        }
        let Some(size) = chunk_size(size) else {
            return Reading::Broken("a chunk size that is no plain number");
        };
        if size == 0 {
            let (trailers, length) = whole!(fields(&bytes[at..]));
            body.trailers = trailers;
            return Reading::Whole(body, at + length);
        }
        let Some(data) = bytes[at..].get(..size) else {
            return Reading::Incomplete;
        };
        body.data.extend_from_slice(data);
        at += size;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Reading::Incomplete,
            _ => return Reading::Broken("a chunk longer than its size"),
        }
    }
}

fn chunk_size(digits: &[u8]) -> Option<usize> {
    let is_plain = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
    usize::from_str_radix(digits, 16).ok()
}

fn trim(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_space(byte));
    let end = value.iter().rposition(|byte| !is_space(byte));
    match (start, end) {
        (Some(start), Some(end)) => &value[start..=end],
        _ => &[],
    }
}

fn is_token(bytes: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_tchar)
}

fn is_visible(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte >= 0x80
}

fn is_in_value(byte: u8) -> bool {
    is_visible(byte) || matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<(RequestHead, Body), &'static str> {
        let bytes = text.as_bytes();
        let (head, rest) = match request_head(bytes) {
            Reading::Whole(head, length) => (head, &bytes[length..]),
            Reading::Incomplete => return Err("incomplete"),
            Reading::Broken(reason) => return Err(reason),
        };
        match body(head.framing, rest) {
            Reading::Whole(body, length) if length == rest.len() => Ok((head, body)),
            Reading::Whole(..) => Err("more"),
            Reading::Incomplete => Err("incomplete"),
            Reading::Broken(reason) => Err(reason),
        }
    }

    #[test]
    fn what_has_one_meaning_is_read() {
        let text = "POST /a HTTP/1.1\r\nA:\t b \u{e9}\t\r\na:\r\ntransfer-encoding: Chunked\r\n\r\n\
                    5;x\r\nhello\r\n00A\r\n0123456789\r\n0\r\nT: 1\r\n\r\n";
        let (head, body) = request(text).unwrap();
        assert_eq!(
            (head.method.as_str(), &head.target[..]),
            ("POST", &b"/a"[..])
        );
        assert_eq!(head.fields.values("a"), ["b \u{e9}".as_bytes(), b""]);
        assert_eq!(head.fields.the_one("a"), None);
        assert_eq!(body.data, b"hello0123456789");
        assert_eq!(body.trailers.the_one("t"), Some(&b"1"[..]));
        assert!(body.has_extensions);

        let (head, body) = request("GET * HTTP/1.1\r\nContent-Length: 2\r\n\r\nok").unwrap();
        assert_eq!(
            (head.framing, &body.data[..]),
            (Framing::Length(2), &b"ok"[..])
        );
        for length in 0..text.len() {
            let Some(begin) = text.get(..length) else {
                continue;
            };
            assert_eq!(request(begin), Err("incomplete"), "{begin:?}");
        }
    }

    #[test]
    fn what_has_another_meaning_is_broken() {
        for head in [
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nA: 1\n",
            "GET / HTTP/1.1\r\nA: 1\rB: 2\r\n",
            "\r\nGET / HTTP/1.1\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "GET / HTTP/1.1 \r\n",
            "G(T / HTTP/1.1\r\n",
            "GET /\t HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\nA : 1\r\n",
            "GET / HTTP/1.1\r\n A: 1\r\n",
            "GET / HTTP/1.1\r\nA: 1\r\n 2\r\n",
            "GET / HTTP/1.1\r\n: 1\r\n",
            "GET / HTTP/1.1\r\nA\r\n",
            "GET / HTTP/1.1\r\nA: \0\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 05\r\n",
            "GET / HTTP/1.1\r\nContent-Length: +5\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5, 5\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let read = request_head(format!("{head}\r\n").as_bytes());
            assert!(matches!(read, Reading::Broken(_)), "{head:?}: {read:?}");
        }
        for chunks in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "0\r\nA : 1\r\n\r\n",
        ] {
            let read = body(Framing::Chunked, chunks.as_bytes());
            assert!(matches!(read, Reading::Broken(_)), "{chunks:?}: {read:?}");
        }
    }
}
