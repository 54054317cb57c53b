//! Why there was no response.

use std::io;
use std::sync::Arc;

use http::Request;
use hyper::client::conn::TrySendError;
use rustls::AlertDescription;

use super::body::{Body, BodyError, Chain};
use super::connect::ConnectError;
use crate::metrics::SendFault;

/// A request without a response.
pub(super) struct Unanswered {
    pub(super) error: SendError,
    /// The request, if nothing of it was written.
    pub(super) unsent: Option<Request<Body>>,
}

impl From<SendError> for Unanswered {
    fn from(error: SendError) -> Self {
        Self {
            error,
            unsent: None,
        }
    }
}

impl From<TrySendError<Request<Body>>> for Unanswered {
    fn from(mut error: TrySendError<Request<Body>>) -> Self {
        let unsent = error.take_message();
        let mut error = SendError::from(error.into_error());
        error.unprocessed |= unsent.is_some();
        Self { error, unsent }
    }
}

/// No response head, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}", Chain(&**.source))]
pub struct SendError {
    /// What happened.
    pub fault: SendFault,
    /// The application's body was larger than its limit.
    pub body_too_large: bool,
    /// Nothing of the request was written, or the server says that it did nothing about it (RFC 9113 §8.7): it may be
    /// sent again.
    pub unprocessed: bool,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl SendError {
    fn new(fault: SendFault, source: Arc<dyn std::error::Error + Send + Sync>) -> Self {
        Self {
            fault,
            body_too_large: false,
            unprocessed: false,
            source,
        }
    }

    /// There is no connection. Not `unprocessed`: to try again would be one more wait for the same.
    pub(super) fn connect(error: Arc<ConnectError>) -> Self {
        let fault = match *error {
            ConnectError::Dns(_) => SendFault::Dns,
            ConnectError::Tcp(_)
            | ConnectError::Http(_)
            | ConnectError::Http2(_)
            | ConnectError::Proxy(_) => SendFault::Connect,
            ConnectError::Timeout => SendFault::ConnectTimeout,
            ConnectError::Tls(_) => SendFault::Tls,
            ConnectError::Exhausted(_) => SendFault::Exhausted,
        };
        Self::new(fault, error)
    }

    /// The request's body broke off.
    fn downstream(body_too_large: bool, source: Arc<dyn std::error::Error + Send + Sync>) -> Self {
        Self {
            body_too_large,
            ..Self::new(SendFault::Downstream, source)
        }
    }

    /// A connection takes no more requests.
    pub(super) fn unsent(error: h2::Error) -> Self {
        Self {
            unprocessed: true,
            ..Self::from(error)
        }
    }

    pub(super) fn leads_nowhere() -> Self {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "no host to connect to");
        Self::connect(Arc::new(ConnectError::Dns(cause)))
    }
}

impl From<hyper::Error> for SendError {
    fn from(source: hyper::Error) -> Self {
        let mut fault = SendFault::Reset;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<BodyError>() {
                return Self::downstream(is_too_large(error), Arc::new(source));
            }
            if is_certificate_refused(error) {
                fault = SendFault::Tls;
            }
            if let Some(error) = error.downcast_ref::<hyper::Error>()
                && error.is_parse()
            {
                fault = SendFault::Protocol;
            }
            cause = error.source();
        }
        Self::new(fault, Arc::new(source))
    }
}

impl From<h2::Error> for SendError {
    fn from(source: h2::Error) -> Self {
        Self {
            unprocessed: is_unprocessed(&source),
            ..Self::new(SendFault::Reset, Arc::new(source))
        }
    }
}

/// The request broke off, and with it its stream.
impl From<BodyError> for SendError {
    fn from(source: BodyError) -> Self {
        Self::downstream(is_too_large(&source), Arc::new(source))
    }
}

fn is_too_large(error: &BodyError) -> bool {
    matches!(error, BodyError::TooLarge(_))
}

/// With TLS 1.3 a server looks at our certificate when the session exists for us already (RFC 8446 §4.4.2). It has not
/// looked at any request then.
fn is_certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    let error = error.and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = error else {
        return false;
    };
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

/// A refused stream, or one above the last that the server says it has seen: h2 ends no other stream with a GOAWAY of
/// the server's.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
