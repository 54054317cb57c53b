use proptest::prelude::*;

use super::*;
use crate::metrics::Code;

/// Fields in the order given; values may hold any byte that hyper lets through.
fn fields(list: &[(&str, &[u8])]) -> HeaderMap {
    let list = list.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        (name, HeaderValue::from_bytes(value).unwrap())
    });
    list.collect()
}

/// The names that are left of a request, besides `Connection` lines made of `connection`.
fn left(connection: &[&[u8]], others: &[&str]) -> Vec<String> {
    let lines = connection.iter().map(|line| ("connection", *line));
    let others = others.iter().map(|name| (*name, b"1".as_slice()));
    let list: Vec<_> = lines.chain(others).collect();
    let mut headers = fields(&list);
    strip_request(&mut headers).unwrap();
    names(&headers)
}

fn names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<_> = headers.keys().map(|name| name.to_string()).collect();
    names.sort();
    names
}

///
#[test]
fn what_any_connection_line_names_is_removed() {
    let lines: &[&[u8]] = &[
        b"close",
        b"X-Foo, close,\t x-BAR ,",
        b",, ,",
        b"",
        b"\xff, x-baz\xff, x-baz",
        b"a b, \"q\", @, x-qux;q=1",
        b"x-last",
    ];
    let others = ["x-foo", "x-bar", "x-baz", "x-qux", "x-last", "x-kept"];
    assert_eq!(left(lines, &others), ["x-kept", "x-qux"]);
}

/// known ones need no `Connection`.
#[test]
fn connection_specific_fields_are_removed_unnamed() {
    let others = [
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "HTTP2-Settings",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Content-Length",
        "Expect",
        "Host",
        "Accept",
    ];
    assert_eq!(left(&[], &others), ["accept"]);
}

/// named or not, none is left that ours would be merged with, and no `Connection` that ours would be named by.
#[test]
fn connection_cannot_name_what_we_set() {
    for lines in [
        [b"Authorization".as_slice(), b"close"],
        [b"close", b"\t AUTHORIZATION ,Host"],
    ] {
        assert!(left(&lines, &["authorization", "host"]).is_empty());
    }
}

/// the sender says that it is for the next hop alone, and so it ends here (RFC 9110 §7.6.1).
#[test]
fn end_to_end_fields_that_are_named_are_removed_too() {
    let line: &[u8] = b"Content-Type, Cookie, X-Request-Id, Idempotency-Key, Content-Length";
    let others = ["content-type", "cookie", "accept"];
    assert_eq!(left(&[line], &others), ["accept"]);
}

/// but a payment must not lose what keeps it from being made twice.
#[test]
fn an_idempotency_key_that_is_named_is_refused() {
    let mut headers = fields(&[
        ("connection", b"close, IDEMPOTENCY-key"),
        ("idempotency-key", b"1"),
    ]);
    let error = strip_request(&mut headers).unwrap_err();
    assert_eq!(error.code(), Code::BadRequest);
}

///
#[test]
fn max_forwards_counts_down_for_options_alone() {
    let counted = |method: Method, value: &str| {
        let mut headers = fields(&[("max-forwards", value.as_bytes())]);
        let passes = may_be_forwarded(&method, &mut headers);
        (passes, headers["max-forwards"].to_str().unwrap().to_owned())
    };
    for (method, value, passes, left) in [
        (Method::OPTIONS, "5", true, "4"),
        (Method::OPTIONS, "1", true, "0"),
        (Method::OPTIONS, "0", false, "0"),
        (Method::OPTIONS, "x", true, "x"),
        (Method::OPTIONS, "-1", true, "-1"),
        (Method::GET, "0", true, "0"),
    ] {
        assert_eq!(counted(method, value), (passes, left.to_owned()));
    }
}

///
#[test]
fn cookies_become_one() {
    let joined = |lines: &[&[u8]]| {
        let list: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
        let mut headers = fields(&list);
        join_cookies(&mut headers);
        let left: Vec<_> = headers.get_all("cookie").iter().cloned().collect();
        left.iter()
            .map(|v| v.as_bytes().to_vec())
            .collect::<Vec<_>>()
    };
    assert!(joined(&[]).is_empty());
    assert_eq!(joined(&[b"a=1; b=2"]), [b"a=1; b=2"]);
    assert_eq!(joined(&[b"a=1", b"b=\xff", b"c=3"]), [b"a=1; b=\xff; c=3"]);
    assert_eq!(joined(&[b"", b"a=1", b"", b"b=2", b""]), [b"a=1; b=2"]);
    assert_eq!(joined(&[b"", b""]), [b""]);
}

///
#[test]
fn trailers_carry_nothing_that_belongs_to_a_head() {
    let mut trailers = fields(&[
        ("authorization", b"Bearer evil"),
        ("content-length", b"0"),
        ("transfer-encoding", b"chunked"),
        ("host", b"evil"),
        ("connection", b"close"),
        ("content-type", b"text/html"),
        ("set-cookie", b"a=1"),
        ("x_under", b"1"),
        ("x-forwarded-for", b"1"),
        ("grpc-status", b"0"),
        ("x-checksum", b"1"),
    ]);
    strip_trailers(&mut trailers);
    assert_eq!(names(&trailers), ["grpc-status", "x-checksum"]);
}

///
#[test]
fn too_many_options_are_refused_in_a_request_and_survived_in_a_response() {
    let options = |count: usize| {
        let names: Vec<_> = (0..count).map(|n| format!("x-{n}")).collect();
        names.join(", ")
    };
    let check = |line: &str| {
        let mut headers = fields(&[("connection", line.as_bytes()), ("x-1", b"1")]);
        strip_request(&mut headers).map(|()| names(&headers))
    };
    assert!(check(&options(64)).unwrap().is_empty());
    assert!(
        check(&format!("{},,\u{ff}", options(64)))
            .unwrap()
            .is_empty()
    );
    for count in [65, 500] {
        assert_eq!(check(&options(count)).unwrap_err().code(), Code::BadRequest);
    }

    let line = options(500);
    let mut headers = fields(&[
        ("connection", line.as_bytes()),
        ("keep-alive", b"timeout=5"),
        ("x-kept", b"1"),
    ]);
    strip_response(&mut headers, &Method::GET, StatusCode::OK);
    assert_eq!(names(&headers), ["x-kept"]);
}

/// D-20, D-21
#[test]
fn no_credential_of_the_application_is_left() {
    let mut headers = fields(&[
        ("authorization", b"Bearer one"),
        ("AUTHORIZATION", b"Basic two"),
        ("authorization", b""),
        ("proxy-authorization", b"Basic three"),
        ("cookie", b"a=b"),
    ]);
    strip_request(&mut headers).unwrap();
    assert_eq!(names(&headers), ["cookie"]);
}

/// D-22, D-24, A-041: nobody verified them, and `_` is read as `-` by some servers.
#[test]
fn claims_and_their_underscore_twins_are_removed() {
    let others = [
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Anything",
        "X-Real-IP",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X_Forwarded_For",
        "X_Real-IP",
        "Transfer_Encoding",
        "Content_Length",
        "_",
        "x-forwarded",
        "Idempotency-Key",
    ];
    assert_eq!(left(&[], &others), ["idempotency-key", "x-forwarded"]);
}

#[test]
fn end_to_end_fields_keep_all_their_lines_and_bytes() {
    let list: [(&str, &[u8]); 4] = [
        ("accept", b"a"),
        ("accept", b"b"),
        ("x-latin1", b"caf\xe9"),
        ("x-empty", b""),
    ];
    let mut headers = fields(&list);
    strip_request(&mut headers).unwrap();
    assert_eq!(headers, fields(&list));
    strip_response(&mut headers, &Method::GET, StatusCode::OK);
    assert_eq!(headers, fields(&list));
}

/// D-31
#[test]
fn a_response_is_stripped_of_what_is_between_us_and_the_upstream() {
    let mut headers = fields(&[
        ("connection", b"X-Foo, close"),
        ("connection", b"content-type"),
        ("x-foo", b"1"),
        ("content-type", b"text/plain"),
        ("keep-alive", b"timeout=5"),
        ("transfer-encoding", b"chunked"),
        ("content-length", b"5"),
        ("trailer", b"x-sum"),
        ("upgrade", b"h2c"),
        ("proxy-authenticate", b"Basic"),
        ("authorization", b"Bearer echoed"),
        ("alt-svc", b"h2=\":443\""),
        ("www-authenticate", b"Bearer"),
        ("x_kept", b"1"),
    ]);
    strip_response(&mut headers, &Method::GET, StatusCode::OK);
    assert_eq!(names(&headers), ["www-authenticate", "x_kept"]);
}

/// RFC 9110 §8.6: the length that a GET would have had.
#[test]
fn a_length_is_kept_where_it_describes_a_body_that_is_not_sent() {
    let kept = |method: Method, status| {
        let list: [(&str, &[u8]); 2] =
            [("connection", b"content-length"), ("content-length", b"7")];
        let mut headers = fields(&list);
        strip_response(&mut headers, &method, status);
        headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length == "7")
    };
    assert!(kept(Method::HEAD, StatusCode::OK));
    assert!(kept(Method::GET, StatusCode::NOT_MODIFIED));
    assert!(!kept(Method::GET, StatusCode::OK));
    assert!(!kept(Method::POST, StatusCode::NO_CONTENT));
}

/// A-035…
#[test]
fn framing_is_that_of_the_decoded_body() {
    let framing = |list: &[(&str, &[u8])]| {
        let mut headers = fields(list);
        let framing = Framing::of_request(&headers).map_err(|error| error.code())?;
        strip_request(&mut headers).unwrap();
        framing.apply(&mut headers);
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    };
    let te = |line: &'static str| ("transfer-encoding", line.as_bytes());
    let length = |text: &'static str| ("content-length", text.as_bytes());
    let chunked = Ok("transfer-encoding: chunked".to_owned());
    let nothing = Ok(String::new());

    assert_eq!(framing(&[]), nothing, "A-050");
    for text in ["5", "005", "0200"] {
        assert_eq!(framing(&[length(text)]), nothing, "A-035: hyper writes it");
    }
    for text in ["0", "000"] {
        assert_eq!(
            framing(&[length(text)]),
            Ok("content-length: 0".to_owned()),
            "A-049"
        );
    }
    for line in ["chunked", "Chunked", " CHUNKED ", "chunked,", ", chunked"] {
        assert_eq!(framing(&[te(line)]), chunked, "A-047: {line:?}");
    }
    assert_eq!(framing(&[length("0"), te("chunked")]), chunked, "A-030");
    for lines in [
        vec![te("gzip, chunked")],
        vec![te("chunked, gzip")],
        vec![te("gzip"), te("chunked")],
        vec![te("chunked"), te("chunked, identity")],
        vec![te("chunked;q=1")],
        vec![te("xchunked")],
    ] {
        assert_eq!(
            framing(&lines),
            Err(Code::UnsupportedTransferCoding),
            "A-037"
        );
    }
    for lines in [
        vec![te("chunked, chunked")],
        vec![te("chunked"), te("CHUNKED")],
        vec![te("")],
        vec![te(" ,"), length("5")],
    ] {
        assert_eq!(framing(&lines), Err(Code::BadRequest), "A-038");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// for any lines of any bytes.
    #[test]
    fn nothing_connection_specific_is_left(
        lines in prop::collection::vec(
            prop_oneof![
                "([ ,\t]{0,3}([a-cA-C-]{1,3}|te|Upgrade|Authorization)[ ,\t]){0,6}".prop_map(String::into_bytes),
                prop::collection::vec(prop_oneof![0x20..=0x7e_u8, 0x80..=0xff_u8], 0..40),
            ],
            0..5,
        ),
        others in prop::collection::vec("[a-cA-C-]{1,3}|te|upgrade|authorization", 0..20),
    ) {
        let lines = lines.iter().map(|line| ("connection", line.as_slice()));
        let others = others.iter().map(|name| (name.as_str(), b"1".as_slice()));
        let list: Vec<_> = lines.clone().chain(others).collect();
        let [mut request, mut response] = [fields(&list), fields(&list)];
        prop_assert!(strip_request(&mut request).is_ok(), "at most 64 options");
        strip_response(&mut response, &Method::GET, StatusCode::OK);
        let named = lines.flat_map(|(_, line)| line.split(|byte| *byte == b','));
        let named = named.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
        for name in named {
            prop_assert!(!request.contains_key(&name), "{name} in the request");
            prop_assert!(!response.contains_key(&name), "{name} in the response");
        }
        for name in request.keys().chain(response.keys()) {
            prop_assert!(!is_of_the_connection(name.as_str()), "{name}");
        }
    }
}
