//! Requests that are almost right.

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::{almost, any_bytes, cases, invariants, word};

const METHODS: &[&str] = &[
    "HEAD", "PUT", "DELETE", "OPTIONS", "get", "FOO", "CONNECT", "TRACE", "TRACK",
];
const TARGETS: &[&str] = &[
    "/",
    "/a/b?c=d",
    "/a%2Fb%20c%zz?x=%0d%0a&y=a+b?z",
    "/a#/../admin",
    "//evil.example/x",
    "/../%2e%2e/;x\\",
    "/\u{e9}\"{<",
    "*",
    "admin",
    "h:80",
    "?q=1",
    "http://upstream.test/x?y",
    "http://upstream.test?y",
    "http://u:p@upstream.test/",
    "http://other.example/x",
];
const HOSTS: &[&str] = &[
    "localhost",
    "localhost:8080",
    "127.0.0.1",
    "[::1]:1",
    "upstream.test",
    "evil.example",
    "",
    "u@localhost",
    "localhost, a",
    "localhost:0",
    "localhost:99999",
    "[::1",
];
/// Names of fields that go on if nothing names them.
const CROSSING: &[&str] = &[
    "Accept",
    "cookie",
    "X-Foo",
    "x-foo",
    "X-Bar",
    "Via",
    "X-Request-Id",
];
pub const NAMES: &[&str] = &[
    "Accept",
    "Authorization",
    "Connection",
    "Content-Length",
    "Content_Length",
    "Cookie",
    "Expect",
    "Forwarded",
    "HTTP2-Settings",
    "Host",
    "Idempotency-Key",
    "Keep-Alive",
    "Max-Forwards",
    "Origin",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Sec-Fetch-Site",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Via",
    "X-Foo",
    "X-Forwarded-For",
    "X-Request-Id",
    "X_Foo",
];
pub const VALUES: &[&str] = &[
    "1",
    "",
    "0",
    "5",
    "close",
    "keep-alive",
    "upgrade",
    "x-foo",
    "100-continue",
    "chunked",
    "gzip",
    "trailers",
    "websocket",
    "h2c",
    "Bearer evil",
    "a=1; b=2",
    "1.1 bearerd",
    "1.0 fred",
    "none",
    "cross-site",
    "http://localhost",
    "null",
    "\u{e9}\u{20ac}",
    "a\tb",
];
pub const CODINGS: &[&str] = &[
    "chunked",
    "chunked",
    "Chunked",
    "gzip, chunked",
    "chunked, chunked",
    "chunked,",
    "identity",
    "",
    "\u{b}chunked",
    "xchunked",
    "chunked;q=1",
];
pub const LENGTHS: &[&str] = &[
    "+5",
    "-1",
    "005",
    "5, 5",
    "5,6",
    "0x5",
    "",
    "5 5",
    "18446744073709551616",
];
const SIZES: &[&str] = &[
    "5",
    "5",
    "5",
    "05",
    "5;a=b",
    "5 ",
    " 5",
    "+5",
    "0x5",
    "-1",
    "1_0",
    "6",
    "4",
    "5;\n",
    "",
    "10000000000000005",
];

/// Options as `Connection` lists them.
pub fn options() -> impl Strategy<Value = String> {
    let option =
        prop_oneof![2 => select(CROSSING).prop_map(str::to_owned), 1 => word(NAMES, "[!-~]{0,4}")];
    let separator = select(vec![",", ", ", " ,\t", ",,", " "]);
    vec((option, separator), 0..6).prop_map(|options| {
        let options = options.into_iter();
        options
            .map(|(option, separator)| option + separator)
            .collect()
    })
}

fn fields() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        10 => (select(CROSSING), "[!-~\u{e9}]{0,4}").prop_map(|(name, value)| format!("{name}: {value}\r\n")),
        6 => options().prop_map(|options| format!("Connection: {options}\r\n")),
        4 => (word(NAMES, "[a-zA-Z_-]{1,4}"), word(VALUES, "[ -~]{0,8}"))
            .prop_map(|(name, value)| format!("{name}: {value}\r\n")),
        1 => select(vec!["X: a\r\n b\r\n", ": x\r\n", "no colon\r\n", "X : 1\r\n", "\tX: 1\r\n", "X: \r1\r\n"])
            .prop_map(str::to_owned),
    ];
    // Much of what is odd ends a request early, so it is rare.
    vec(line, 0..4).prop_map(|lines| lines.concat())
}

fn chunks() -> impl Strategy<Value = String> {
    let size = prop_oneof![4 => Just("5"), 1 => select(SIZES)];
    let end = select(vec![
        "0\r\n\r\n",
        "0\r\n\r\n",
        "0\r\n\r\n",
        "0\r\nX: 1\r\n\r\n",
        "0\r\n",
        "",
        "000\r\n\r\n",
    ]);
    (vec(size, 0..3), end).prop_map(|(sizes, end)| {
        let chunks = sizes.iter().map(|size| format!("{size}\r\nhello\r\n"));
        chunks.collect::<String>() + end
    })
}

/// The fields of the framing, and the body.
fn body() -> impl Strategy<Value = (String, String)> {
    let length = |length: String, body: String| (format!("Content-Length: {length}\r\n"), body);
    let coding = |coding: &str, body: String| (format!("Transfer-Encoding: {coding}\r\n"), body);
    let both = move |chunks: String, turned: bool| {
        let (one, body) = coding("chunked", chunks);
        let (other, _) = length("6".to_owned(), String::new());
        let fields = if turned { other + &one } else { one + &other };
        (fields, body)
    };
    prop_oneof![
        6 => Just((String::new(), String::new())),
        4 => "[a-z\r\n]{0,12}".prop_map(move |body| length(body.len().to_string(), body)),
        1 => select(LENGTHS).prop_map(move |text| length(text.to_owned(), "hello".to_owned())),
        1 => (0..9_usize).prop_map(move |number| length(number.to_string(), "hello".to_owned())),
        5 => chunks().prop_map(move |chunks| coding("chunked", chunks)),
        1 => (select(CODINGS), chunks()).prop_map(move |(text, chunks)| coding(text, chunks)),
        1 => (chunks(), any::<bool>()).prop_map(move |(chunks, turned)| both(chunks, turned)),
    ]
}

fn request() -> impl Strategy<Value = String> {
    let usual = "HTTP/1.1".to_owned();
    let version = prop_oneof![29 => Just(usual), 1 => "(HTTP|http)/[0-9]\\.[0-9]{1,2}"];
    let target =
        prop_oneof![12 => word(&["/", "/a?b"], "/[!-~]{0,9}"), 1 => word(TARGETS, "[ -~]{1,9}")];
    let host = prop_oneof![19 => Just("localhost".to_owned()), 1 => word(HOSTS, "[ -~]{0,9}")];
    let lines_end_in_lf = weighted(0.03);
    let usual = select(&["GET", "POST", "HEAD", "PUT"][..]).prop_map(str::to_owned);
    let method = prop_oneof![4 => usual, 1 => word(METHODS, "[!-~]{1,5}")];
    (
        method,
        target,
        version,
        host,
        fields(),
        body(),
        lines_end_in_lf,
    )
        .prop_map(
            |(method, target, version, host, fields, (framing, body), lf)| {
                let head =
                    format!("{method} {target} {version}\r\nHost: {host}\r\n{fields}{framing}\r\n");
                let head = if lf { head.replace("\r\n", "\n") } else { head };
                head + &body
            },
        )
}

fn requests() -> impl Strategy<Value = String> {
    vec(request(), 1..4).prop_map(|requests| requests.concat())
}

proptest! {
    #![proptest_config(cases(64))]

    /// F-03: no bytes at all make a request that the upstream could read in two ways.
    #[test]
    fn any_bytes_are_requests_with_one_meaning_or_none(bytes in any_bytes()) {
        invariants::request_head(&bytes.0);
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// A-001… … … … … …A-122, D-20…D-24, F-04:
    /// odd requests reach the upstream with one meaning, the one that they had, or not at all; and nobody gets an answer
    /// that is not his.
    #[test]
    fn requests_have_one_meaning_at_the_upstream(text in requests()) {
        invariants::request_head(text.as_bytes());
    }

    /// The same of what is almost HTTP.
    #[test]
    fn what_is_almost_a_request_has_one_meaning_or_none(bytes in almost(requests())) {
        invariants::request_head(&bytes.0);
    }
}
