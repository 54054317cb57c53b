//! Which fields cross a hop, said a second time and independently of what bearerd does about it.

/// Never reach the upstream, whether a `Connection` line names them or not (RFC 9110 §7.6.1, §11.7), or are the
/// sidecar's to write.
const STOP_AT_THE_SIDECAR: [&str; 18] = [
    "authorization",
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// Never reach the application.
const STOP_ON_THE_WAY_BACK: [&str; 13] = [
    "alt-svc",
    "authorization",
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a field of a request goes on. Its name is in lower case, as are those that `Connection` names.
pub fn reaches_the_upstream(name: &str, named: &[String]) -> bool {
    !STOP_AT_THE_SIDECAR.contains(&name)
        && !name.contains('_')
        && !name.starts_with("x-forwarded-")
        && !is_named(name, named)
}

/// Whether a field of a response goes on.
pub fn reaches_the_application(name: &str, named: &[String]) -> bool {
    !STOP_ON_THE_WAY_BACK.contains(&name) && !is_named(name, named)
}

fn is_named(name: &str, named: &[String]) -> bool {
    named.iter().any(|option| option == name)
}

/// The elements of a list that may come in several lines (RFC 9110 §5.6.1), in lower case, none of them empty.
pub fn elements<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut elements = Vec::new();
    for line in lines {
        for element in line.split(|byte| *byte == b',') {
            // Latin-1 keeps every byte apart.
            let element: String = element.iter().copied().map(char::from).collect();
            let element = element.trim_matches([' ', '\t']);
            if !element.is_empty() {
                elements.push(element.to_ascii_lowercase());
            }
        }
    }
    elements
}
