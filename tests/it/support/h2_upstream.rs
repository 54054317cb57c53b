//! An upstream that speaks HTTP/2 behind TLS. It is made of hyper, so it records what was decoded, not bytes.

use std::error::Error;
use std::future::ready;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsAcceptor;

use super::certificates::Authority;

/// What came.
#[derive(Clone, Debug)]
pub struct H2Request {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl H2Request {
    /// All values of `name`.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get_all(name);
        values.iter().map(|value| value.to_str().unwrap()).collect()
    }
}

type Recorded = Arc<Mutex<Vec<H2Request>>>;

/// What it does with a request.
#[derive(Clone)]
enum Conduct {
    /// Answers with the body, when it has come whole.
    Echo,
    /// Does so too, and resets the stream instead of ending it, when it is told to.
    Endless(Arc<Notify>),
    /// Answers at once with these fields, gives body and trailers back as they come, and then these trailers.
    Mirror(HeaderMap, HeaderMap),
}

/// The upstream.
pub struct H2Upstream {
    pub address: SocketAddr,
    pub authority: Authority,
    requests: Recorded,
    reset: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl H2Upstream {
    /// One that answers with the body of the request.
    pub fn echo() -> Self {
        Self::start(Conduct::Echo, Arc::default())
    }

    /// One that does so too, and does not end its answers.
    pub fn endless() -> Self {
        let reset = Arc::new(Notify::new());
        Self::start(Conduct::Endless(reset.clone()), reset)
    }

    /// One that answers at once with `fields`, gives body and trailers back as they come, and then `trailers`.
    pub fn mirror(fields: &[(&str, &str)], trailers: &[(&str, &str)]) -> Self {
        let conduct = Conduct::Mirror(header_map(fields), header_map(trailers));
        Self::start(conduct, Arc::default())
    }

    fn start(conduct: Conduct, reset: Arc<Notify>) -> Self {
        let authority = Authority::new();
        let acceptor = TlsAcceptor::from(authority.server("127.0.0.1", &["h2"]));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let recorded = requests.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let serving = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let (recorded, conduct) = (recorded.clone(), conduct.clone());
                        tokio::spawn(carry(acceptor.clone(), stream, recorded, conduct));
                    }
                };
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            authority,
            requests,
            reset,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Resets the stream of an answer that does not end.
    pub fn reset(&self) {
        self.reset.notify_one();
    }

    /// The one request there has been.
    pub fn request(&self) -> H2Request {
        let mut requests = lock(&self.requests);
        assert_eq!(requests.len(), 1, "requests: {}", requests.len());
        requests.remove(0)
    }
}

impl Drop for H2Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking());
    }
}

async fn carry(acceptor: TlsAcceptor, stream: TcpStream, recorded: Recorded, conduct: Conduct) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request| answer(request, recorded.clone(), conduct.clone()));
    // How the sidecar ends its connections is not the matter here.
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    recorded: Recorded,
    conduct: Conduct,
) -> Result<Response<Answer>, hyper::Error> {
    let (head, body) = request.into_parts();
    let mut request = H2Request {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body: Bytes::new(),
        trailers: None,
    };
    if let Conduct::Mirror(fields, trailers) = conduct {
        let number = lock(&recorded).len();
        lock(&recorded).push(request);
        let mut response = Response::new(mirror(body, recorded, number, trailers));
        *response.headers_mut() = fields;
        return Ok(response);
    }
    let body = body.collect().await?;
    request.trailers = body.trailers().cloned();
    request.body = body.to_bytes();
    let body = request.body.clone();
    lock(&recorded).push(request);
    let endless = match conduct {
        Conduct::Endless(reset) => Some(Box::pin(reset.notified_owned())),
        _ => None,
    };
    let answer = OneFrame {
        body,
        reset: endless,
    };
    Ok(Response::new(answer.map_err(Into::into).boxed_unsync()))
}

type Answer = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

fn mirror(body: Incoming, recorded: Recorded, number: usize, trailers: HeaderMap) -> Answer {
    if body.is_end_stream() && trailers.is_empty() {
        // So that the head is the end of the answer.
        return Empty::new().map_err(Into::into).boxed_unsync();
    }
    let recording = body.map_frame(move |frame| {
        let request = &mut lock(&recorded)[number];
        if let Some(data) = frame.data_ref() {
            request.body = [&request.body[..], data].concat().into();
        }
        if let Some(trailers) = frame.trailers_ref() {
            request.trailers = Some(trailers.clone());
        }
        frame
    });
    let trailers = (!trailers.is_empty()).then_some(Ok(trailers));
    recording
        .with_trailers(ready(trailers))
        .map_err(Into::into)
        .boxed_unsync()
}

fn header_map(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        (
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        )
    };
    fields.iter().map(field).collect()
}

/// A body of one frame, and then its end, or an error when it is told to.
struct OneFrame {
    body: Bytes,
    reset: Option<Pin<Box<OwnedNotified>>>,
}

impl http_body::Body for OneFrame {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = mem::take(&mut self.body);
        if !body.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(body))));
        }
        match &mut self.reset {
            None => Poll::Ready(None),
            Some(reset) => {
                std::task::ready!(reset.as_mut().poll(cx));
                Poll::Ready(Some(Err(io::ErrorKind::Other.into())))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.reset {
            None => SizeHint::with_exact(self.body.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }
}

fn lock(requests: &Mutex<Vec<H2Request>>) -> MutexGuard<'_, Vec<H2Request>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}
