//! Bodies in motion: streamed, never collected, each wait for the next bytes under a deadline.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tracing::warn;

use super::download::Download;
use super::progress::Progress;
use super::resend::{Attempt, Resendable};
use super::upload::Upload;
use super::uptake::Uptake;

/// The body of every message the sidecar sends.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Relay(Box<Relay>),
    Attempt(Attempt),
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body of known bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Full(bytes.into()))
    }

    /// A body passed on as it arrives.
    pub fn relay(relay: Relay) -> Self {
        Self(Kind::Relay(Box::new(relay)))
    }

    /// The same, and it may be asked for [again](Self::again).
    pub fn resendable(relay: Relay) -> Self {
        Self(Kind::Attempt(Resendable::new(relay).attempt()))
    }

    /// What makes this body once more, for a request that was refused before anything was done about it.
    pub fn again(&self) -> Again {
        match &self.0 {
            Kind::Empty => Again(Some(Kept::Bytes(Bytes::new()))),
            Kind::Full(bytes) => Again(Some(Kept::Bytes(bytes.clone()))),
            Kind::Relay(_) => Again(None),
            Kind::Attempt(attempt) => Again(Some(Kept::Shared(attempt.shared()))),
        }
    }

    /// Keeps `guard` until the last byte was passed on, or nobody wants the body any more. Only a relayed body takes its
    /// time; for any other the guard ends now.
    pub fn holding(mut self, guard: impl Send + 'static) -> Self {
        if let Kind::Relay(relay) = &mut self.0 {
            relay.hold(guard);
        }
        self
    }

    /// Tells `uptake` how it is taken.
    pub(super) fn watched(mut self, uptake: Arc<Uptake>) -> Self {
        uptake.given();
        if let Kind::Relay(relay) = &mut self.0 {
            relay.uptake = Some(uptake);
        }
        self
    }
}

/// A body that may be needed a second time.
pub struct Again(Option<Kept>);

enum Kept {
    Bytes(Bytes),
    Shared(Resendable),
}

impl Again {
    /// The body from its first byte on. `None` when more of it went out than is kept. The one before it is worth nothing
    /// from now on.
    pub fn body(&self) -> Option<Body> {
        match self.0.as_ref()? {
            Kept::Bytes(bytes) if bytes.is_empty() => Some(Body::empty()),
            Kept::Bytes(bytes) => Some(Body::full(bytes.clone())),
            Kept::Shared(shared) => Some(Body(Kind::Attempt(shared.again()?))),
        }
    }

    /// Whether all of it is here: nothing of it is still to come from where it comes from.
    pub fn is_whole(&self) -> bool {
        match &self.0 {
            None => false,
            Some(Kept::Bytes(_)) => true,
            Some(Kept::Shared(shared)) => shared.is_whole(),
        }
    }
}

/// Why a relayed body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender sent nothing for the idle timeout.
    #[error("no bytes for {} s", .0.as_secs_f64())]
    Idle(Duration),
    /// More bytes than the limit.
    #[error("more than {0} bytes")]
    TooLarge(u64),
    /// The sender broke off, or framed it wrongly.
    #[error("broke off")]
    Broken(#[from] hyper::Error),
    /// The same, of a stream of HTTP/2.
    #[error("broke off")]
    Reset(#[from] h2::Error),
    /// The request is being sent again, with another body.
    #[error("superseded")]
    Superseded,
}

/// Where a body comes from.
enum Source {
    /// The application.
    Upload(Upload),
    /// The upstream.
    Download(Download),
}

impl Source {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Upload(upload) => upload.poll_frame(cx).map_err(BodyError::from),
            Self::Download(download) => Pin::new(download).poll_frame(cx),
        }
    }

    fn direction(&self) -> &'static str {
        match self {
            Self::Upload(_) => "request",
            Self::Download(_) => "response",
        }
    }
}

/// Takes out of trailers what must not stand there.
pub type TrailerFilter = fn(&mut HeaderMap);

/// One body on its way through. Trailers end here unless somebody says what may be in them: HTTP/1.1 peers cannot be
/// trusted to treat them as anything but more headers (RFC 9110 §6.5.1).
pub struct Relay {
    source: Source,
    idle: IdleTimer,
    limit: Option<u64>,
    passed: u64,
    progress: Option<Arc<Progress>>,
    uptake: Option<Arc<Uptake>>,
    trailers: Option<TrailerFilter>,
    /// Dropped with the body: whatever must last until its last byte.
    held: Option<Box<dyn Send>>,
}

impl Relay {
    /// Passes the body of a request on; each wait for its next bytes ends after `idle_timeout` with
    /// [`BodyError::Idle`].
    pub fn upload(upload: Upload, idle_timeout: Duration) -> Self {
        Self::new(Source::Upload(upload), idle_timeout)
    }

    /// The same with the body of a response.
    pub fn download(download: Download, idle_timeout: Duration) -> Self {
        Self::new(Source::Download(download), idle_timeout)
    }

    fn new(source: Source, idle_timeout: Duration) -> Self {
        Self {
            source,
            idle: IdleTimer::new(idle_timeout),
            limit: None,
            passed: 0,
            progress: None,
            uptake: None,
            trailers: None,
            held: None,
        }
    }

    /// Breaks off with [`BodyError::TooLarge`] after `limit` bytes.
    pub fn limited(mut self, limit: Option<u64>) -> Self {
        self.limit = limit;
        self
    }

    /// Tells `progress` of every frame.
    pub fn reporting(mut self, progress: Arc<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Passes trailers too, if there is a `filter`, and as it leaves them. The encoder for HTTP/1.1 drops them all the
    /// same, because no `Trailer` field announces them.
    pub fn with_trailers(mut self, filter: Option<TrailerFilter>) -> Self {
        self.trailers = filter;
        self
    }

    fn hold(&mut self, guard: impl Send + 'static) {
        self.held = Some(Box::new((self.held.take(), guard)));
    }

    /// How much of it is still to come, as far as is known.
    pub(super) fn left(&self) -> SizeHint {
        match &self.source {
            Source::Upload(upload) => upload.left(),
            Source::Download(download) => download.size_hint(),
        }
    }

    /// Whether nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        match &self.source {
            Source::Upload(upload) => upload.is_over(),
            Source::Download(download) => download.is_end_stream(),
        }
    }

    /// The next piece; what went wrong with it is logged.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = ready!(self.poll_incoming(cx));
        if let Some(Err(error)) = &piece {
            warn!(
                direction = self.source.direction(),
                bytes = self.passed,
                error = %Chain(error),
                "body broke off"
            );
        }
        Poll::Ready(piece)
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.source.poll_frame(cx) {
                Poll::Pending => {
                    ready!(self.idle.poll_elapsed(cx));
                    return Poll::Ready(Some(Err(BodyError::Idle(self.idle.timeout))));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle.disarm();
                    match (frame.into_data(), self.trailers) {
                        (Ok(data), _) => {
                            return Poll::Ready(Some(self.count(data).map(Frame::data)));
                        }
                        (Err(frame), Some(filter)) => {
                            if let Ok(mut trailers) = frame.into_trailers() {
                                filter(&mut trailers);
                                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                            }
                        }
                        (Err(_), None) => {}
                    }
                }
            }
        }
    }

    fn count(&mut self, data: Bytes) -> Result<Bytes, BodyError> {
        self.passed = self.passed.saturating_add(data.len() as u64);
        if let Some(progress) = &self.progress {
            progress.touch();
        }
        match self.limit {
            Some(limit) if self.passed > limit => Err(BodyError::TooLarge(limit)),
            _ => Ok(data),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Relay(relay) => {
                if let Some(uptake) = &relay.uptake {
                    uptake.asked();
                }
                let piece = ready!(relay.poll_piece(cx));
                if let Some(uptake) = &relay.uptake {
                    uptake.given();
                }
                Poll::Ready(piece)
            }
            Kind::Attempt(attempt) => attempt.poll_piece(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Relay(relay) => relay.is_over(),
            Kind::Attempt(attempt) => attempt.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Relay(relay) => relay.left(),
            Kind::Attempt(attempt) => attempt.left(),
        }
    }
}

/// A deadline that is armed by waiting and disarmed by bytes; it allocates only when there is a wait.
struct IdleTimer {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl IdleTimer {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            sleep: None,
            armed: false,
        }
    }

    fn disarm(&mut self) {
        self.armed = false;
    }

    fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = Instant::now() + self.timeout;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.armed {
            sleep.as_mut().reset(deadline);
            self.armed = true;
        }
        sleep.as_mut().poll(cx)
    }
}

/// An error with its causes, for the log.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::sleep;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Slow is not idle: a body may take for ever, as long as it moves.
    #[tokio::test(start_paused = true)]
    async fn the_idle_time_begins_anew_with_each_wait() {
        let mut timer = IdleTimer::new(TIMEOUT);
        for _ in 0..100 {
            let wait = poll_fn(|cx| timer.poll_elapsed(cx));
            let waited = tokio::time::timeout(TIMEOUT - Duration::from_secs(1), wait).await;
            waited.unwrap_err();
            timer.disarm();
        }
        // Whoever takes the bytes may take his time too.
        sleep(2 * TIMEOUT).await;
        let started = Instant::now();
        poll_fn(|cx| timer.poll_elapsed(cx)).await;
        assert_eq!(started.elapsed(), TIMEOUT);
    }

    /// A wait is one wait, however often it is looked at.
    #[tokio::test(start_paused = true)]
    async fn polling_again_does_not_extend_the_idle_time() {
        let mut timer = IdleTimer::new(TIMEOUT);
        let started = Instant::now();
        for _ in 0..8 {
            let look = poll_fn(|cx| timer.poll_elapsed(cx));
            let looked = tokio::time::timeout(Duration::from_secs(7), look).await;
            looked.unwrap_err();
        }
        poll_fn(|cx| timer.poll_elapsed(cx)).await;
        assert_eq!(started.elapsed(), TIMEOUT);
    }
}
