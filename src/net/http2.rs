//! An HTTP/2 connection to a server, which many requests share: a stream for each, and a PING when nothing comes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::{Method, Request, Response, header};
use http_body::Body as _;
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::body::{Body, BodyError};
use super::channel::{Stream, Traffic, carry};
use super::download::Download;
use super::send_error::{SendError, Unanswered};
use crate::metrics::SendFault;

/// A connection. Clones are the same one; without them, and with its last stream, it ends.
#[derive(Clone)]
pub(super) struct Http2(Arc<Shared>);

struct Shared {
    /// Whose turn it is to open a stream. Those who wait for it have their request still, whole.
    sender: Mutex<SendRequest<Bytes>>,
    is_closed: AtomicBool,
    streams: Arc<Streams>,
    traffic: Arc<Traffic>,
}

/// How many streams are under way, and that one has ended.
#[derive(Default)]
struct Streams {
    count: AtomicUsize,
    ended: Notify,
}

/// A stream under way.
pub(super) struct Busy(Arc<Streams>);

/// The end of the connection: whoever waits for a stream learns that there will be none.
struct End(Arc<Streams>);

impl Streams {
    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn begin(self: &Arc<Self>) -> Arc<Busy> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Busy(self.clone()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.ended.notify_one();
    }
}

/// Bytes of one answer that may wait here for its application.
const STREAM_WINDOW: u32 = 256 * 1024;
/// As many as the requests in flight can add up to. In a smaller window a few answers that nobody reads would hold up all
/// others on the connection.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of one request body that wait for the server.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Bytes of the fields of a response, as RFC 9113 §6.5.2 counts them.
const MAX_RESPONSE_HEAD: u32 = 16 * 1024;
/// Streams that may be open before the server has said how many it allows.
const STREAMS_AT_FIRST: usize = 100;
/// So long nothing comes before the server is asked whether it is still there, and so long it has for the answer. One
/// that died unseen would take every request along until its deadline.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl Http2 {
    /// Begins to speak HTTP/2 over `stream`. Its connection is a task of its own.
    ///
    /// # Errors
    /// When the first bytes cannot be written.
    pub(super) async fn open(mut stream: Stream) -> Result<Self, h2::Error> {
        let traffic = stream.traffic();
        let handshake = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .max_header_list_size(MAX_RESPONSE_HEAD)
            .enable_push(false)
            .handshake(stream);
        let (sender, mut connection) = handshake.await?;
        let shared = Arc::new(Shared {
            sender: Mutex::new(sender),
            is_closed: AtomicBool::new(false),
            streams: Arc::default(),
            traffic: traffic.clone(),
        });
        let pings = connection.ping_pong();
        let end = End(shared.streams.clone());
        let connection = carry(async {
            let _end = end;
            connection.await
        });
        if let Some(pings) = pings {
            let streams = shared.streams.clone();
            tokio::spawn(watch(pings, traffic, streams, connection));
        }
        Ok(Self(shared))
    }

    /// Whether it is known to take no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Relaxed)
    }

    /// Sends `request`, whose URI has scheme and authority, and waits for the response head. Dropping the future ends the
    /// stream.
    pub(super) fn send(
        self,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Download>, Unanswered>> {
        let shared = self.0;
        // An async fn would have room for its argument twice.
        async move {
            let mut sender = shared.sender.lock().await;
            let busy = match shared.stream(&mut sender).await {
                Ok(busy) => busy,
                Err(error) => {
                    shared.is_closed.store(true, Ordering::Relaxed);
                    let error = SendError::unsent(error);
                    let unsent = Some(request);
                    return Err(Unanswered { error, unsent });
                }
            };
            frame(&mut request);
            let body = std::mem::take(request.body_mut());
            let is_over = body.is_end_stream();
            let before = shared.traffic.writes();
            let sent = sender.send_request(request.map(drop), is_over);
            let (response, stream) = sent.map_err(SendError::unsent)?;
            // Where the server allows fewer streams than it did, its turn lasts until it has one. What goes wrong
            // meanwhile, the response knows better.
            let _ = poll_fn(|cx| sender.poll_ready(cx)).await;
            drop(sender);
            let upload = (!is_over).then(|| Box::pin(upload(stream, body, busy.clone())));
            match (Exchange { response, upload }).await {
                Ok(response) => {
                    let (head, stream) = response.into_parts();
                    let body = Download::of_stream(&head.headers, stream, busy);
                    Ok(Response::from_parts(head, body))
                }
                Err(mut error) => {
                    // The connection had come to its end before.
                    let is_reset = error.fault == SendFault::Reset;
                    error.unprocessed |= is_reset && shared.traffic.writes() == before;
                    Err(error.into())
                }
            }
        }
    }
}

impl Shared {
    /// Waits until the server allows one more stream (RFC 9113 §5.1.2). h2 would wait too, and send the request even when
    /// it was given up meanwhile.
    async fn stream(&self, sender: &mut SendRequest<Bytes>) -> Result<Arc<Busy>, h2::Error> {
        loop {
            poll_fn(|cx| sender.poll_ready(cx)).await?;
            let count = self.streams.count();
            // Where none is allowed yet, none will end.
            if count == 0 || count < sender.current_max_send_streams() {
                return Ok(self.streams.begin());
            }
            self.streams.ended.notified().await;
        }
    }
}

/// Says how long the body is (RFC 9113 §8.1.1), where that is known and means something (RFC 9110 §8.6); HTTP/2 has no
/// other framing (RFC 9113 §8.2.2).
fn frame(request: &mut Request<Body>) {
    request.headers_mut().remove(header::TRANSFER_ENCODING);
    let means_something = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH
    );
    if let Some(length) = request.body().size_hint().exact()
        && (length > 0 || means_something)
    {
        let given = request.headers_mut().entry(header::CONTENT_LENGTH);
        given.or_insert_with(|| length.into());
    }
}

/// A request whose stream is open: its body goes out until the response head comes in, and then by itself.
struct Exchange<U> {
    response: ResponseFuture,
    upload: Option<Pin<Box<U>>>,
}

impl<U> Future for Exchange<U>
where
    U: Future<Output = Result<(), BodyError>> + Send + 'static,
{
    type Output = Result<Response<h2::RecvStream>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(response) = Pin::new(&mut self.response).poll(cx) {
            if let (Ok(_), Some(upload)) = (&response, self.upload.take()) {
                tokio::spawn(upload);
            }
            return Poll::Ready(response.map_err(SendError::from));
        }
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(result) = upload.as_mut().poll(cx)
        {
            self.upload = None;
            if let Err(error) = result {
                return Poll::Ready(Err(error.into()));
            }
        }
        Poll::Pending
    }
}

/// Sends `body`, for as long as the server wants it: if it does not, the response tells more.
///
/// # Errors
/// When the body breaks off. Then the stream does too.
async fn upload(
    mut stream: SendStream<Bytes>,
    mut body: Body,
    _busy: Arc<Busy>,
) -> Result<(), BodyError> {
    loop {
        let piece = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Some),
        });
        let piece = match piece.await {
            None => return Ok(()),
            Some(None) => {
                let _ = stream.send_data(Bytes::new(), true);
                return Ok(());
            }
            Some(Some(Err(error))) => {
                stream.send_reset(h2::Reason::CANCEL);
                return Err(error);
            }
            Some(Some(Ok(piece))) => piece,
        };
        let is_last = body.is_end_stream();
        let sent = match piece.into_data() {
            Ok(data) => {
                has_room(&mut stream, &data).await && stream.send_data(data, is_last).is_ok()
            }
            Err(piece) => match piece.into_trailers() {
                Ok(trailers) => {
                    let _ = stream.send_trailers(trailers);
                    return Ok(());
                }
                Err(_) => continue,
            },
        };
        if !sent || is_last {
            return Ok(());
        }
    }
}

/// Waits until a part of `data` may go; `false` if none will. Only with the data at hand: room that is set aside for a
/// body that does not come is lost for all others on the connection.
async fn has_room(stream: &mut SendStream<Bytes>, data: &Bytes) -> bool {
    if data.is_empty() {
        return true;
    }
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
        if !matches!(room, Some(Ok(_))) {
            return false;
        }
    }
    true
}

/// Ends the connection when it has died unseen. One without a stream is left alone: servers count such PINGs against it.
async fn watch(
    mut pings: PingPong,
    traffic: Arc<Traffic>,
    streams: Arc<Streams>,
    connection: AbortHandle,
) {
    while !connection.is_finished() {
        let due = traffic.last_read() + PING_INTERVAL;
        let now = Instant::now();
        if due > now {
            sleep_until(due).await;
        } else if streams.count() == 0 {
            sleep_until(now + PING_INTERVAL).await;
        } else if !is_alive(&mut pings, &traffic).await {
            debug!("connection to a server ended: no answer to a PING");
            return connection.abort();
        }
    }
}

/// Whether the server answers, or something else comes: an answer may be behind much else.
async fn is_alive(pings: &mut PingPong, traffic: &Traffic) -> bool {
    let sent = Instant::now();
    let mut pong = pin!(pings.ping(Ping::opaque()));
    loop {
        let last = traffic.last_read().max(sent);
        match timeout_at(last + PING_TIMEOUT, pong.as_mut()).await {
            Ok(answered) => return answered.is_ok(),
            Err(_) if traffic.last_read() > last => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;
