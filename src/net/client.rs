//! The HTTP client: a connection to a server, and a request on it.

use std::sync::Arc;

use http::header;
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper::client::conn::http1;
use tokio_util::either::Either;

use super::body::Body;
use super::channel::carry;
use super::connect::{ConnectError, Connector};
use super::download::Download;
use super::http2::Http2;
use super::send_error::{SendError, Unanswered};
use super::tls::HttpVersions;

/// Sends each request on a connection of its own. What sends many keeps its connections in a
/// [`Pool`](super::pool::Pool).
#[derive(Clone)]
pub struct HttpClient(Connector);

impl HttpClient {
    /// Its connections run on the tokio runtime that sends the request.
    pub fn new(connector: Connector) -> Self {
        Self(connector)
    }

    /// Sends `request` to the authority of its URI and waits for the response head; the deadline is the caller's.
    ///
    /// # Errors
    /// When there is no response head. The request may have reached the server unless the fault says otherwise.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Download>, SendError> {
        let origin = Origin::of(request.uri()).ok_or_else(SendError::leads_nowhere)?;
        let connection = Connection::open(&self.0, &origin).await;
        let mut connection = connection.map_err(|error| SendError::connect(Arc::new(error)))?;
        let response = connection.send(&origin, request).await;
        response.map_err(|unanswered| unanswered.error)
    }
}

/// Where requests go: scheme, host and port.
#[derive(Clone)]
pub struct Origin {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
}

impl Origin {
    /// `http` or `https`, and an authority without user information.
    pub fn new(scheme: Scheme, authority: Authority) -> Self {
        let host = match authority.port_u16() {
            Some(port) if port != default_port(&scheme) => format!("{}:{port}", authority.host()),
            _ => authority.host().to_owned(),
        };
        Self {
            // An authority has no byte that a field must not have.
            host: HeaderValue::try_from(host).unwrap_or_else(|_| HeaderValue::from_static("")),
            scheme,
            authority,
        }
    }

    /// That of a URL with scheme and authority.
    pub fn of(url: &Uri) -> Option<Self> {
        let (scheme, authority) = (url.scheme()?, url.authority()?);
        Some(Self::new(scheme.clone(), authority.clone()))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Host and port, as they were given.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A URI here, of what path it may be.
    fn uri(&self, path: Option<PathAndQuery>) -> Uri {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        // Its parts were valid before.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// Gives `request` the form of its connection: HTTP/2 has the authority in the URI (RFC 9113 §8.3.1), HTTP/1.1 in
    /// `Host`, and to a proxy in both (RFC 9112 §3.2.2).
    fn address(&self, request: &mut Request<Body>, connection: &Connection) {
        let (in_host, in_uri) = match connection {
            Connection::Http1(connection) => (true, connection.is_proxied),
            Connection::Http2(_) => (false, true),
        };
        if in_host {
            request
                .headers_mut()
                .insert(header::HOST, self.host.clone());
        } else {
            request.headers_mut().remove(header::HOST);
        }
        if request.uri().scheme().is_some() != in_uri {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = match path {
                path if in_uri => self.uri(path),
                Some(path) => path.into(),
                None => Uri::default(),
            };
        }
    }
}

/// The port of a URL that names none (RFC 9110 §4.2): 443 for `https`, 80 for `http`.
pub fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

/// An open connection to a server; its other end is a task of its own, which ends with it, and after the last response.
pub(super) enum Connection {
    Http1(Http1),
    Http2(Http2),
}

/// A connection that takes one request after the other.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    /// A proxy, which has to be told the authority, reads the requests.
    is_proxied: bool,
}

/// hyper's default of 400 KiB for each connection would be the largest part of the memory under load.
const MAX_READ_BUFFER: usize = 64 * 1024;
/// Fields of a response head; above it the response is refused.
const MAX_RESPONSE_FIELDS: usize = 256;

impl Connection {
    /// Connects, within the connector's timeout.
    pub(super) async fn open(connector: &Connector, origin: &Origin) -> Result<Self, ConnectError> {
        let stream = connector.connect(&origin.uri(None)).await?;
        let channel = stream.inner();
        if channel.speaks_http2() || connector.versions() == HttpVersions::Http2 {
            let connection = connector.in_time(Http2::open(stream.into_inner())).await?;
            Ok(Self::Http2(connection))
        } else {
            let is_proxied = channel.is_proxied();
            let handshake = http1::Builder::new()
                .max_buf_size(MAX_READ_BUFFER)
                .max_headers(MAX_RESPONSE_FIELDS)
                .handshake(stream);
            let (sender, connection) = connector.in_time(handshake).await?;
            carry(connection.with_upgrades());
            Ok(Self::Http1(Http1 { sender, is_proxied }))
        }
    }

    /// Sends `request`, whose URI may be a path alone, and waits for the response head. Dropping the future ends the
    /// connection, or with HTTP/2 the stream.
    pub(super) fn send(
        &mut self,
        origin: &Origin,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Download>, Unanswered>> + use<> {
        origin.address(&mut request, self);
        match self {
            Self::Http1(connection) => {
                let response = connection.sender.try_send_request(request);
                Either::Left(async { Ok(response.await?.map(Download::from)) })
            }
            Self::Http2(connection) => Either::Right(connection.clone().send(request)),
        }
    }
}
