//! One request to the authorization server and its answer, within bounds. Redirects are not followed, nothing is sent
//! twice.

use bytes::Bytes;
use http::response::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};

use super::token_error::{RedirectTarget, TokenError, printable};
use crate::net::body::Body;
use crate::net::client::HttpClient;

/// The largest answer read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A request for JSON.
pub(super) fn request(method: Method, url: &Uri, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = url.clone();
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("bearerd/", env!("CARGO_PKG_VERSION"))),
    );
    request
}

/// Sends it, and reads the whole answer: head and body of a 200, and of anything else the head and so much of the body as
/// could be read. The deadline is the caller's.
///
/// # Errors
/// When there is no answer, or one that must not be used.
pub(super) async fn round_trip(
    client: &HttpClient,
    request: Request<Body>,
) -> Result<(Parts, Bytes), TokenError> {
    let asked = request.uri().clone();
    let response = client.send(request).await.map_err(TokenError::Send)?;
    let (head, body) = response.into_parts();
    if head.status.is_redirection() {
        return Err(TokenError::Redirect {
            status: head.status,
            target: redirect_target(&asked, &head.headers),
        });
    }
    let answer = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    if head.status != StatusCode::OK {
        // The status tells the class, whatever can be read of the body.
        let answer = answer.map(Collected::to_bytes).unwrap_or_default();
        return Ok((head, answer));
    }
    let answer = match answer {
        Ok(answer) => answer.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(TokenError::TooLarge),
        Err(_) => return Err(TokenError::BrokenOff),
    };
    let encoding = head.headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(TokenError::Encoded);
    }
    Ok((head, answer))
}

/// Where a redirect of `asked` leads, as far as it may be told.
fn redirect_target(asked: &Uri, headers: &HeaderMap) -> RedirectTarget {
    let location = headers.get(header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok()?.parse::<Uri>().ok());
    let Some(location) = location else {
        return RedirectTarget::SameHost;
    };
    if let Some(host) = location.host()
        && !asked
            .host()
            .is_some_and(|own| own.eq_ignore_ascii_case(host))
    {
        return RedirectTarget::Host(printable(host));
    }
    let with_slash = location.path().strip_suffix('/');
    if asked.scheme() == Some(&Scheme::HTTP) && location.scheme() == Some(&Scheme::HTTPS) {
        RedirectTarget::Https
    } else if with_slash == Some(asked.path()) {
        RedirectTarget::TrailingSlash
    } else {
        RedirectTarget::SameHost
    }
}
