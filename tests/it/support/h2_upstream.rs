//! An upstream that speaks HTTP/2 behind TLS. It is made of hyper, so it records what was decoded, not bytes.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
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

/// The upstream. It answers `ok` to everything.
pub struct H2Upstream {
    pub address: SocketAddr,
    pub authority: Authority,
    requests: Arc<Mutex<Vec<H2Request>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl H2Upstream {
    /// Starts it.
    pub fn ok() -> Self {
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
                        tokio::spawn(carry(acceptor.clone(), stream, recorded.clone()));
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
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Its URL, without a path.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The one request there has been.
    pub fn request(&self) -> H2Request {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(requests.len(), 1, "requests: {requests:#?}");
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

async fn carry(acceptor: TlsAcceptor, stream: TcpStream, recorded: Arc<Mutex<Vec<H2Request>>>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let recorded = recorded.clone();
        async move {
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let request = H2Request {
                    method: head.method,
                    uri: head.uri,
                    headers: head.headers,
                    body: body.to_bytes(),
                };
                recorded
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(request);
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    // How the sidecar ends its connections is not the matter here.
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
