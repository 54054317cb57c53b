//! HTTP/2 as bytes: frames (RFC 9113 §4) and field blocks (RFC 7541). What is written is whatever a test says; what is
//! read comes from the sidecar and must be flawless, so a malformed field block is a panic, not an error.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead};

/// What a client says first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags of frames.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;

/// Settings.
pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The window of a stream and of a connection, and the payload of a frame, unless settings say otherwise.
pub const DEFAULT_WINDOW: u32 = 65_535;
pub const DEFAULT_FRAME_SIZE: usize = 16_384;

/// Why a stream or a connection was given up (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    NoError,
    ProtocolError,
    InternalError,
    FlowControlError,
    SettingsTimeout,
    StreamClosed,
    FrameSizeError,
    RefusedStream,
    Cancel,
    CompressionError,
    ConnectError,
    EnhanceYourCalm,
    InadequateSecurity,
    Http11Required,
}

impl ErrorCode {
    const ALL: [Self; 14] = [
        Self::NoError,
        Self::ProtocolError,
        Self::InternalError,
        Self::FlowControlError,
        Self::SettingsTimeout,
        Self::StreamClosed,
        Self::FrameSizeError,
        Self::RefusedStream,
        Self::Cancel,
        Self::CompressionError,
        Self::ConnectError,
        Self::EnhanceYourCalm,
        Self::InadequateSecurity,
        Self::Http11Required,
    ];

    /// The first four bytes of `payload`.
    pub fn read(payload: &[u8]) -> Self {
        let number = u32::from_be_bytes(payload[..4].try_into().unwrap());
        Self::ALL[number as usize]
    }
}

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = &self.payload[..self.payload.len().min(32)];
        write!(
            f,
            "type {}, flags {:#x}, stream {}, {} bytes: {}",
            self.kind,
            self.flags,
            self.stream,
            self.payload.len(),
            begin.escape_ascii()
        )
    }
}

impl Frame {
    /// Any frame, valid or not.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.as_ref().to_vec(),
        }
    }

    /// The whole field block of a message in one frame.
    pub fn headers(stream: u32, fields: &[(&str, &str)], flags: u8) -> Self {
        Self::new(HEADERS, END_HEADERS | flags, stream, encode(fields))
    }

    pub fn data(stream: u32, data: impl AsRef<[u8]>, flags: u8) -> Self {
        Self::new(DATA, flags, stream, data)
    }

    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        Self::new(SETTINGS, 0, 0, payload)
    }

    pub fn reset(stream: u32, code: ErrorCode) -> Self {
        Self::new(RST_STREAM, 0, stream, (code as u32).to_be_bytes())
    }

    pub fn goaway(last_stream: u32, code: ErrorCode) -> Self {
        let payload = [last_stream.to_be_bytes(), (code as u32).to_be_bytes()].concat();
        Self::new(GOAWAY, 0, 0, payload)
    }

    pub fn window_update(stream: u32, increment: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
    }

    /// Whether all bits of `flag` are set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag == flag
    }

    /// As it goes onto the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap();
        let head = [
            &length.to_be_bytes()[1..],
            &[self.kind, self.flags],
            &self.stream.to_be_bytes(),
        ];
        [&head.concat(), &self.payload[..]].concat()
    }
}

/// The next frame; `None` if the peer closed before its first byte.
pub fn read_frame(wire: &mut impl BufRead) -> io::Result<Option<Frame>> {
    if wire.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut head = [0; 9];
    wire.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
    assert!(
        length <= DEFAULT_FRAME_SIZE,
        "a frame of {length} bytes, and nobody allowed it"
    );
    let mut payload = vec![0; length];
    wire.read_exact(&mut payload)?;
    Ok(Some(Frame {
        kind: head[3],
        flags: head[4],
        stream,
        payload,
    }))
}

/// A field block of literals, which touches no dynamic table.
pub fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        encode_string(&mut block, name);
        encode_string(&mut block, value);
    }
    block
}

fn encode_string(block: &mut Vec<u8>, text: &str) {
    encode_integer(block, 0, 7, text.len());
    block.extend_from_slice(text.as_bytes());
}

/// An integer in the low `bits` of its first byte and in whatever follows it (RFC 7541 §5.1).
pub fn encode_integer(block: &mut Vec<u8>, pattern: u8, bits: u32, mut value: usize) {
    let max = (1 << bits) - 1;
    if value < max {
        block.push(pattern | u8::try_from(value).unwrap());
        return;
    }
    block.push(pattern | u8::try_from(max).unwrap());
    value -= max;
    while value >= 0x80 {
        block.push(u8::try_from(value % 0x80).unwrap() | 0x80);
        value /= 0x80;
    }
    block.push(u8::try_from(value).unwrap());
}

/// A field as it was decoded.
pub type Field = (String, Vec<u8>);

/// Decodes the field blocks of one direction of one connection.
pub struct Decoder {
    /// The newest first.
    dynamic: VecDeque<Field>,
    capacity: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            dynamic: VecDeque::new(),
            capacity: 4096,
        }
    }
}

impl Decoder {
    /// The fields of a whole block.
    pub fn decode(&mut self, mut block: &[u8]) -> Vec<Field> {
        let mut fields = Vec::new();
        while let Some(&first) = block.first() {
            match first {
                0x80.. => {
                    let index = read_integer(&mut block, 7);
                    fields.push(self.field(index));
                }
                0x40.. => {
                    let field = self.read_literal(&mut block, 6);
                    self.dynamic.push_front(field.clone());
                    self.evict();
                    fields.push(field);
                }
                0x20.. => {
                    self.capacity = read_integer(&mut block, 5);
                    assert!(self.capacity <= 4096, "more than was allowed");
                    self.evict();
                }
                _ => fields.push(self.read_literal(&mut block, 4)),
            }
        }
        fields
    }

    fn read_literal(&self, block: &mut &[u8], bits: u32) -> Field {
        let name = match read_integer(block, bits) {
            0 => String::from_utf8(read_string(block)).expect("a field name is ASCII"),
            index => self.field(index).0,
        };
        (name, read_string(block))
    }

    fn field(&self, index: usize) -> Field {
        let index = index.checked_sub(1).expect("an index counts from 1");
        match STATIC_TABLE.get(index) {
            Some((name, value)) => ((*name).to_owned(), value.as_bytes().to_vec()),
            None => self.dynamic[index - STATIC_TABLE.len()].clone(),
        }
    }

    fn evict(&mut self) {
        let size = |(name, value): &Field| name.len() + value.len() + 32;
        while self.dynamic.iter().map(size).sum::<usize>() > self.capacity {
            self.dynamic.pop_back();
        }
    }
}

fn take<'a>(block: &mut &'a [u8], number: usize) -> &'a [u8] {
    let (taken, rest) = block.split_at(number);
    *block = rest;
    taken
}

fn read_integer(block: &mut &[u8], bits: u32) -> usize {
    let max = (1 << bits) - 1;
    let mut value = take(block, 1)[0] as usize & max;
    if value < max {
        return value;
    }
    for shift in (0..).step_by(7) {
        let byte = take(block, 1)[0] as usize;
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn read_string(block: &mut &[u8]) -> Vec<u8> {
    let huffman = block[0] >= 0x80;
    let length = read_integer(block, 7);
    let bytes = take(block, length);
    if huffman {
        decode_huffman(bytes)
    } else {
        bytes.to_vec()
    }
}

/// The Huffman code of RFC 7541 is canonical, so lengths are all there is to know: the symbols of each length, in the
/// order of their codes. Those of more than 15 bits, which no field of ours needs, are left out.
const HUFFMAN: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

fn decode_huffman(bytes: &[u8]) -> Vec<u8> {
    let bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    let (mut text, mut code, mut length) = (Vec::new(), 0, 0);
    for bit in bits {
        code = code << 1 | bit;
        length += 1;
        if let Some(symbol) = huffman_symbol(code, length) {
            text.push(symbol);
            (code, length) = (0, 0);
        }
    }
    assert!(
        length < 8 && code == (1 << length) - 1,
        "padding that is none, or a rare symbol"
    );
    text
}

fn huffman_symbol(code: usize, length: u32) -> Option<u8> {
    let (mut first, mut reached) = (0, 0);
    for (symbol_length, symbols) in HUFFMAN {
        first <<= symbol_length - reached;
        reached = symbol_length;
        if length == symbol_length {
            return symbols.get(code.checked_sub(first)?).copied();
        }
        first += symbols.len();
    }
    None
}

/// RFC 7541, appendix A.
#[rustfmt::skip]
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// The examples of RFC 7541, appendix C, that use what bearerd uses.
#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
        let pairs = digits
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap());
        pairs
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect()
    }

    fn shown(fields: &[Field]) -> Vec<String> {
        let line = |(name, value): &Field| format!("{name}: {}", value.escape_ascii());
        fields.iter().map(line).collect()
    }

    #[test]
    fn responses_with_huffman_codes_and_a_dynamic_table() {
        let mut decoder = Decoder {
            capacity: 256,
            ..Decoder::default()
        };
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
                     29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        let expected = [
            ":status: 302",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:21 GMT",
            "location: https://www.example.com",
        ];
        assert_eq!(shown(&decoder.decode(&bytes(first))), expected);
        let second = decoder.decode(&bytes("4883 640e ffc1 c0bf"));
        assert_eq!(shown(&second)[0], ":status: 307");
        assert_eq!(shown(&second)[1..], expected[1..]);
        assert_eq!(decoder.dynamic.len(), 4, "one had to go");
    }

    #[test]
    fn integers_and_literals_come_back() {
        let long = "x".repeat(1337);
        let fields = [(":path", "/"), ("x-long", &long)];
        let decoded = Decoder::default().decode(&encode(&fields));
        assert_eq!(shown(&decoded), [":path: /", &format!("x-long: {long}")]);
        let mut integer = Vec::new();
        encode_integer(&mut integer, 0, 5, 1337);
        assert_eq!(integer, [31, 154, 10]);
    }
}
