//! An upstream that speaks HTTP/2 behind TLS. It is made of hyper, so it records what was decoded, not bytes.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
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
}

impl H2Request {
    /// All values of `name`.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let values = self.headers.get_all(name);
        values.iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// The upstream.
pub struct H2Upstream {
    pub address: SocketAddr,
    pub authority: Authority,
    requests: Arc<Mutex<Vec<H2Request>>>,
    reset: Option<Arc<Notify>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl H2Upstream {
    /// One that answers with the body of the request.
    pub fn echo() -> Self {
        Self::start(false)
    }

    /// One that does so too, and does not end its answers.
    pub fn endless() -> Self {
        Self::start(true)
    }

    fn start(endless: bool) -> Self {
        let reset = endless.then(Arc::<Notify>::default);
        let resets = reset.clone();
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
                        let recorded = recorded.clone();
                        tokio::spawn(carry(acceptor.clone(), stream, recorded, resets.clone()));
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
        self.reset.as_ref().unwrap().notify_one();
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

async fn carry(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    recorded: Arc<Mutex<Vec<H2Request>>>,
    reset: Option<Arc<Notify>>,
) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (recorded, reset) = (recorded.clone(), reset.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Err(error),
            };
            let request = H2Request {
                method: head.method,
                uri: head.uri,
                headers: head.headers,
                body: body.clone(),
            };
            lock(&recorded).push(request);
            let reset = reset.map(|reset| Box::pin(reset.notified_owned()));
            Ok(Response::new(Answer { body, reset }))
        }
    });
    // How the sidecar ends its connections is not the matter here.
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A body of one frame, and then its end, or an error when it is told to.
struct Answer {
    body: Bytes,
    reset: Option<Pin<Box<OwnedNotified>>>,
}

impl http_body::Body for Answer {
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
                ready!(reset.as_mut().poll(cx));
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
