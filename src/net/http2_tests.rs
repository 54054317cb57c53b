//! The server is h2's, over memory, and time stands still until all wait for it.

use h2::server::{self, SendResponse};
use http_body_util::BodyExt as _;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::super::channel::Channel;
use super::*;

type Server = server::Connection<DuplexStream, Bytes>;
type Answer = Result<Response<Download>, Unanswered>;

async fn connected(streams: u32) -> (Http2, Server) {
    let (near, far) = duplex(64 * 1024);
    let connection = Http2::open(Stream::new(Channel::Memory(near), None));
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(streams);
    let (connection, server) = tokio::join!(connection, builder.handshake(far));
    (connection.ok().unwrap(), server.unwrap())
}

fn ask(connection: &Http2) -> JoinHandle<Answer> {
    ask_with(connection, "http://api.example/", Body::empty())
}

fn ask_with(connection: &Http2, uri: &str, body: Body) -> JoinHandle<Answer> {
    let request = Request::post(uri).body(body).unwrap();
    tokio::spawn(connection.clone().send(request))
}

async fn accepted(server: &mut Server) -> SendResponse<Bytes> {
    server.accept().await.unwrap().unwrap().1
}

/// A connection that has had one answer, with which it learned how many streams there may be.
async fn used(streams: u32) -> (Http2, Server) {
    let (connection, mut server) = connected(streams).await;
    let asked = ask(&connection);
    let mut unanswered = accepted(&mut server).await;
    unanswered.send_response(Response::new(()), true).unwrap();
    tokio::select! {
        _ = server.accept() => unreachable!("nobody asks"),
        answered = asked => answered.unwrap().ok().unwrap(),
    };
    (connection, server)
}

/// Reads and writes for a second, in which no other request comes.
async fn nobody_else_asks(server: &mut Server) {
    tokio::select! {
        _ = server.accept() => unreachable!("one at a time"),
        () = sleep(Duration::from_secs(1)) => {}
    }
}

/// Reads and writes until the other end has gone.
async fn carry_on(mut server: Server) {
    while let Some(Ok(_)) = server.accept().await {}
}

fn error_of(answer: Answer) -> SendError {
    answer.err().unwrap().error
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_unseen_is_given_up() {
    let (connection, mut server) = connected(9).await;
    let asked = ask(&connection);
    let _unanswered = accepted(&mut server).await;
    let silent = Instant::now();
    // Nobody reads any more, and nobody closes.
    let error = error_of(asked.await.unwrap());
    assert_eq!(silent.elapsed(), PING_INTERVAL + PING_TIMEOUT);
    assert_eq!(error.fault, SendFault::Reset);
    assert!(!error.unprocessed, "it was looked at");

    let next = ask(&connection).await.unwrap().err().unwrap();
    assert!(next.error.unprocessed && next.unsent.is_some());
    assert!(connection.is_closed());
}

/// Where none of the streams will say so, because nobody reads its answer.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_stream_learns_of_the_end() {
    let (connection, mut server) = used(1).await;
    let server = tokio::spawn(async move {
        let mut unanswered = accepted(&mut server).await;
        let body = unanswered.send_response(Response::new(()), false).unwrap();
        nobody_else_asks(&mut server).await;
        // Nobody reads any more, and nobody closes.
        (server, body)
    });
    let unread = ask(&connection).await.unwrap().ok().unwrap();
    let waits = timeout(2 * PING_INTERVAL, ask(&connection));
    let error = error_of(waits.await.unwrap().unwrap());
    assert!(error.unprocessed && connection.is_closed());
    drop((server, unread));
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_that_answers_pings_is_waited_for() {
    let (connection, mut server) = connected(9).await;
    let asked = ask(&connection);
    let mut unanswered = accepted(&mut server).await;
    tokio::spawn(carry_on(server));
    sleep(20 * PING_INTERVAL).await;
    unanswered.send_response(Response::new(()), true).unwrap();
    asked.await.unwrap().ok().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_left_alone_and_ends_with_its_last_handle() {
    let (connection, server) = used(9).await;
    let server = tokio::spawn(async move {
        // Reads nothing meanwhile: a PING would stay without an answer.
        sleep(10 * PING_INTERVAL).await;
        carry_on(server).await;
    });
    sleep(20 * PING_INTERVAL).await;
    assert!(!server.is_finished() && !connection.is_closed());
    drop(connection);
    server.await.unwrap();
}

/// Of three requests the server has seen one; which they are decides what may be sent again.
#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_stream_have_not_been_sent() {
    let (connection, mut server) = used(1).await;
    let server = tokio::spawn(async move {
        let _unanswered = accepted(&mut server).await;
        nobody_else_asks(&mut server).await;
    });
    let asked: Vec<_> = (0..3).map(|_| ask(&connection)).collect();
    server.await.unwrap();
    let mut unprocessed = Vec::new();
    for asked in asked {
        unprocessed.push(error_of(asked.await.unwrap()).unprocessed);
    }
    assert_eq!(unprocessed, [false, true, true]);
}

/// E-29: whoever gave it up may have asked elsewhere.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_while_it_waits_for_a_stream_is_never_sent() {
    let (connection, mut server) = used(1).await;
    let (seen, mut paths) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok((request, mut unanswered))) = server.accept().await {
            seen.send(request.uri().path().to_owned()).unwrap();
            tokio::spawn(async move {
                sleep(Duration::from_secs(9)).await;
                let _ = unanswered.send_response(Response::new(()), true);
            });
        }
    });
    let ask_for = |path| {
        let uri = format!("http://api.example{path}");
        ask_with(&connection, &uri, Body::empty())
    };
    let (first, given_up) = (ask_for("/first"), ask_for("/given-up"));
    assert_eq!(paths.recv().await.unwrap(), "/first");
    sleep(Duration::from_secs(1)).await;
    given_up.abort();
    let last = ask_for("/last");
    first.await.unwrap().ok().unwrap();
    last.await.unwrap().ok().unwrap();
    assert_eq!(paths.recv().await.unwrap(), "/last");
}

/// H-22, RFC 9113 §8.1: a server that has answered may refuse the rest of the request.
#[tokio::test(start_paused = true)]
async fn an_answer_to_a_request_that_the_server_does_not_want_to_the_end_is_whole() {
    let (connection, mut server) = connected(9).await;
    // More than the server makes room for.
    let asked = ask_with(
        &connection,
        "http://api.example/",
        Body::full(vec![0; 1 << 20]),
    );
    let (request, mut unanswered) = server.accept().await.unwrap().unwrap();
    let mut body = unanswered.send_response(Response::new(()), false).unwrap();
    body.send_data("whole".into(), true).unwrap();
    // With this the server resets the stream.
    drop((request, unanswered, body));
    tokio::spawn(carry_on(server));
    let answer = asked.await.unwrap().ok().unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(connection.0.streams.count(), 1, "only the answer is left");
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "whole"
    );
    assert_eq!(connection.0.streams.count(), 0);
}

/// hyper takes a stream that was cancelled for one that has ended.
#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_no_whole_answer() {
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR] {
        let (connection, mut server) = connected(9).await;
        let asked = ask(&connection);
        let mut unanswered = accepted(&mut server).await;
        let mut body = unanswered.send_response(Response::new(()), false).unwrap();
        tokio::spawn(carry_on(server));
        body.send_data("half".into(), false).unwrap();
        let mut answer = asked.await.unwrap().ok().unwrap().into_body();
        let half = answer.frame().await.unwrap().unwrap();
        assert_eq!(half.into_data().unwrap(), "half");
        body.send_reset(reason);
        let error = answer.frame().await.unwrap().unwrap_err();
        assert!(matches!(error, BodyError::Reset(_)), "{error:?}");
    }
}
