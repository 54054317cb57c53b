use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::oauth::refresher::RefreshPolicy;
use crate::oauth::test_server::{Answer, POLICY, Rig, TICK, secs, sent};

/// `count` requests at once, and what they got.
async fn crowd(rig: &Rig, count: usize) -> Vec<Result<String, String>> {
    let mut requests = JoinSet::new();
    for _ in 0..count {
        let handle = rig.handle.clone();
        requests.spawn(async move { sent(&handle).await });
    }
    requests.join_all().await
}

/// C-50
#[tokio::test(start_paused = true)]
async fn a_thousand_requests_at_a_cold_start_share_one_token_request() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(1)));
    let got = crowd(&rig, 1000).await;
    assert!(got.iter().all(|token| token.as_deref() == Ok("1")));
    assert_eq!(rig.server.count(), 1);
    let waited = r#"bearerd_token_lookups_total{result="waited",token="payments"}"#;
    assert_eq!(rig.metric(waited), 1000.0);
}

/// C-51
#[tokio::test(start_paused = true)]
async fn requests_that_go_away_cancel_nothing() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(4)));
    for _ in 0..500 {
        let handle = rig.handle.clone();
        let request = tokio::spawn(async move { sent(&handle).await });
        sleep(TICK).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
    }
    assert_eq!(rig.token().await.unwrap(), "1");
    assert_eq!(rig.server.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_requests_wait_and_one_that_goes_away_makes_room() {
    let policy = RefreshPolicy {
        max_waiting: 3,
        ..POLICY
    };
    let rig = Rig::with(policy, |n| Answer::token(n, 3600).after(secs(4)));
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        let handle = rig.handle.clone();
        waiting.spawn(async move { sent(&handle).await });
    }
    sleep(TICK).await;
    assert!(rig.token_at_once().await.is_err());
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    assert!(crowd(&rig, 3).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_no_longer_than_the_timeout() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(6)));
    let started = Instant::now();
    let error = rig.handle.token().await.unwrap_err();
    let waited = started.elapsed();
    assert!((secs(5)..=secs(5) + TICK).contains(&waited), "{waited:?}");
    assert!(!error.permanent);
    assert_eq!(error.retry_after, secs(1));
    assert_eq!(
        error.to_string(),
        "no usable token: no answer from the authorization server yet"
    );
    assert_eq!(rig.token().await.unwrap(), "1", "the attempt went on");
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_an_attempt_that_comes_in_time() {
    let rig = Rig::start(|n| match n {
        1 => Answer::retry_after(503, "4"),
        _ => Answer::token(n, 3600),
    });
    assert_eq!(rig.token().await.unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_request_fails_at_once_when_the_next_attempt_comes_too_late() {
    let check = async |answer: fn() -> Answer, permanent, retry_after: u64| {
        let rig = Rig::start(move |_| answer());
        rig.handle.token().await.unwrap_err();
        sleep(secs(10)).await;
        let before = Instant::now();
        let error = rig.handle.token().await.unwrap_err();
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert_eq!(error.permanent, permanent);
        assert_eq!(error.retry_after, secs(retry_after - 10));
        assert_eq!(rig.server.count(), 1);
    };
    check(|| Answer::refusal(400, "invalid_scope"), true, 30).await;
    check(|| Answer::retry_after(503, "60"), false, 60).await;
}

/// C-55, E-09
#[tokio::test(start_paused = true)]
async fn after_an_outage_one_token_request_serves_all_who_wait() {
    let policy = RefreshPolicy {
        wait_timeout: secs(15),
        ..POLICY
    };
    let is_back = Arc::new(AtomicBool::new(false));
    let answers = is_back.clone();
    let rig = Rig::with(policy, move |n| match answers.load(Ordering::Relaxed) {
        true => Answer::token(n, 3600),
        false => Answer::status(503),
    });
    sleep(secs(600)).await;
    let before = rig.server.count();
    is_back.store(true, Ordering::Relaxed);
    let back = Instant::now();
    let got = crowd(&rig, 5000).await;
    assert!(back.elapsed() <= secs(10) + TICK, "{:?}", back.elapsed());
    assert_eq!(got.iter().filter(|token| token.is_ok()).count(), 1024);
    assert_eq!(rig.server.count(), before + 1);
}

fn is_renewed(rejection: &Rejection) -> bool {
    matches!(rejection, Rejection::Renewed)
}

/// C-59
#[tokio::test(start_paused = true)]
async fn many_rejects_of_one_token_cause_one_renewal() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(1)));
    let rejected = rig.handle.token().await.unwrap();
    sleep(secs(60)).await;
    let mut rejects = JoinSet::new();
    for _ in 0..500 {
        let (handle, token) = (rig.handle.clone(), rejected.clone());
        rejects.spawn(async move {
            let rejection = handle.reject(&token).await;
            (rejection, sent(&handle).await)
        });
    }
    for (rejection, token) in rejects.join_all().await {
        assert!(is_renewed(&rejection));
        assert_eq!(token.unwrap(), "2", "all have the new one");
    }
    sleep(secs(60)).await;
    assert_eq!(rig.server.count(), 2);
    let renewals = r#"bearerd_token_requests_total{outcome="success",token="payments",trigger="upstream_401"}"#;
    assert_eq!(rig.metric(renewals), 1.0);
}

/// C-57: the 401 of a slow request can be about a token that was replaced meanwhile.
#[tokio::test(start_paused = true)]
async fn a_late_reject_of_an_older_token_renews_nothing() {
    let rig = Rig::start(|n| Answer::token(n, 3600));
    let old = rig.handle.token().await.unwrap();
    rig.server.request(2).await;
    sleep(TICK).await;
    assert!(is_renewed(&rig.handle.reject(&old).await), "long since");
    assert_eq!(rig.token_at_once().await.unwrap(), "2");
    sleep(secs(60)).await;
    assert_eq!(rig.server.count(), 2);
}

/// C-58: each renewed token is refused as soon as it comes, and after each the next is asked for later.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_rejects_everything_causes_few_renewals() {
    let rig = Rig::start(|n| Answer::token(n, 86_400));
    sleep(secs(60)).await;
    let start = Instant::now();
    while start.elapsed() < secs(600) {
        let token = rig.handle.token().await.unwrap();
        rig.handle.reject(&token).await;
        sleep(secs(1)).await;
    }
    // The breaker opens a second after each, for 30, 60, 120 and 240 s.
    let seconds: Vec<u64> = rig.server.gaps().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [60, 31, 61, 121, 241]);
    rig.handle.refresh_metrics().await;
    let open = rig.metric(r#"bearerd_token_breaker_open{token="payments"}"#);
    assert_eq!(open, 1.0);
}

/// A replica of the upstream that lags does not know the fresh token yet, and knows the one before it.
#[tokio::test(start_paused = true)]
async fn the_token_before_a_fresh_one_is_tried_and_stands_in_for_it() {
    let rig = Rig::start(|n| Answer::token(n, 3600));
    rig.token().await.unwrap();
    rig.server.request(2).await;
    sleep(TICK).await;
    let fresh = rig.handle.token().await.unwrap();
    let Rejection::Previous(stand_in) = rig.handle.reject(&fresh).await else {
        panic!("there is one before it");
    };
    assert_eq!(stand_in.token().authorization(), "Bearer 1");
    let again = rig.handle.reject(&fresh).await;
    assert!(matches!(again, Rejection::BreakerOpen), "it is tried once");
    stand_in.is_accepted();
    assert_eq!(rig.token_at_once().await.unwrap(), "1");
    sleep(secs(31)).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "2", "it is due again");
    assert_eq!(rig.server.count(), 2);
}

/// The one before it was revoked too.
#[tokio::test(start_paused = true)]
async fn a_token_that_stands_in_and_is_refused_stands_back() {
    let rig = Rig::start(|n| Answer::token(n, 3600));
    let first = rig.handle.token().await.unwrap();
    rig.server.request(2).await;
    sleep(TICK).await;
    let fresh = rig.handle.token().await.unwrap();
    let Rejection::Previous(stand_in) = rig.handle.reject(&fresh).await else {
        panic!("there is one before it");
    };
    stand_in.is_accepted();
    assert_eq!(rig.token_at_once().await.unwrap(), "1");
    assert!(is_renewed(&rig.handle.reject(&first).await));
    assert_eq!(rig.token_at_once().await.unwrap(), "2");
}

/// C-57
#[tokio::test(start_paused = true)]
async fn a_failed_renewal_after_a_reject_puts_the_old_token_back() {
    let rig = Rig::start(|n| match n {
        1 => Answer::token("old", 3600),
        _ => Answer::refusal(401, "invalid_client").after(secs(1)),
    });
    let old = rig.handle.token().await.unwrap();
    sleep(secs(60)).await;
    assert!(is_renewed(&rig.handle.reject(&old).await));
    assert!(rig.handle.held().await.is_none(), "set aside");
    let rejected = Instant::now();
    assert_eq!(rig.token().await.unwrap(), "old");
    assert!(rejected.elapsed() >= secs(1), "not while it is renewed");
    sleep(secs(20)).await;
    let rejection = rig.handle.reject(&old).await;
    assert!(matches!(rejection, Rejection::Limited), "while backing off");
    assert_eq!(rig.token_at_once().await.unwrap(), "old");
}

/// The refresher runs on a thread of its own: a request can pass the check for a backoff just before it begins.
#[tokio::test(start_paused = true)]
async fn a_token_set_aside_as_the_backoff_begins_is_put_back() {
    let rig = Rig::start(|n| match n {
        1 => Answer::token("old", 3600),
        _ => Answer::refusal(401, "invalid_client"),
    });
    let old = rig.handle.token().await.unwrap();
    rig.server.request(2).await;
    sleep(TICK).await;
    old.set_aside();
    rig.handle.exchange.rejection.notify_one();
    sleep(TICK).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "old");
    assert_eq!(rig.server.count(), 2);
}
