use tokio::time::sleep;

use super::*;
use crate::oauth::test_server::{Answer, POLICY, Rig, TICK, basic, secs};

/// C-52: nobody waits for a renewal.
#[tokio::test(start_paused = true)]
async fn renewal_comes_at_70_to_80_percent_and_the_old_token_serves_until_the_new_one_is_there() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(2)));
    assert_eq!(rig.token().await.unwrap(), "1");
    for n in 2..20 {
        let asked = rig.server.request(n).await.at;
        assert_eq!(rig.token_at_once().await.unwrap(), (n - 1).to_string());
        sleep(asked + secs(2) + TICK - Instant::now()).await;
        assert_eq!(rig.token_at_once().await.unwrap(), n.to_string());
    }
    for gap in rig.server.gaps() {
        assert!((secs(2520)..=secs(2880) + TICK).contains(&gap), "{gap:?}");
    }
}

/// E-03: an answer of half a minute, and a token that is good meanwhile.
#[tokio::test(start_paused = true)]
async fn a_slow_server_holds_up_nobody() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(if n == 1 { 0 } else { 30 })));
    rig.token().await.unwrap();
    let asked = rig.server.request(2).await.at;
    while asked.elapsed() < secs(30) {
        assert_eq!(rig.token_at_once().await.unwrap(), "1");
        sleep(secs(1)).await;
    }
    sleep(TICK).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "2");
}

/// E-04: half of its answers are failures, for ten hours.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_half_of_the_time_holds_up_nobody() {
    fastrand::seed(4);
    let rig = Rig::start(|n| match n > 1 && fastrand::bool() {
        true => Answer::status([500, 502, 503, 429][n % 4]),
        false => Answer::token(n, 3600),
    });
    rig.token().await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < secs(36_000) {
        rig.token_at_once().await.unwrap();
        sleep(secs(20)).await;
    }
    // Ten hours hold at most 15 lives; half of the attempts fail.
    assert!(
        (11..60).contains(&rig.server.count()),
        "{}",
        rig.server.count()
    );
}

/// C-53, C-54
#[tokio::test(start_paused = true)]
async fn failed_renewals_keep_the_old_token_to_its_usable_end_and_no_longer() {
    let rig = Rig::start(|n| match n {
        1 => Answer::token("old", 3600),
        _ => Answer::status(503),
    });
    let start = rig.server.request(1).await.at;
    rig.token().await.unwrap();
    let end = start + secs(3570);
    while Instant::now() < end {
        assert_eq!(rig.token_at_once().await.unwrap(), "old");
        sleep(secs(1).min(end - Instant::now())).await;
    }
    let over = start + secs(3700);
    while Instant::now() < over {
        let error = rig.token().await.unwrap_err();
        assert!(error.ends_with("status 503"), "{error}");
        sleep(secs(1)).await;
    }
    let times = rig.server.times();
    for pair in times.windows(2).skip(1) {
        let [before, after] = [pair[0], pair[1]];
        assert!(after - before <= secs(60) + TICK);
        assert!(after - before.max(end) <= secs(10) + TICK, "while empty");
    }
    let failures = (times.len() - 1) as f64;
    let counted = rig.metric(r#"bearerd_token_consecutive_failures{token="payments"}"#);
    assert_eq!(counted, failures);
}

/// C-28
#[tokio::test(start_paused = true)]
async fn a_token_without_a_lifetime_is_renewed_by_the_default_one() {
    let rig = Rig::start(|n| Answer::token(n, "null"));
    let [first, second] = [rig.server.request(1).await, rig.server.request(2).await];
    let gap = second.at - first.at;
    assert!((secs(210)..=secs(240) + TICK).contains(&gap), "{gap:?}");
}

/// C-29: it may be good for one request, and more often than once a second nobody is asked.
#[tokio::test(start_paused = true)]
async fn a_token_that_was_over_when_it_came_serves_one_request_and_causes_no_loop() {
    for expires_in in [0, -1] {
        let rig = Rig::start(move |n| Answer::token(n, expires_in));
        let tokens = tokio::join!(rig.token(), rig.token(), rig.token());
        let mut tokens = [tokens.0, tokens.1, tokens.2].map(Result::unwrap);
        tokens.sort();
        assert!(
            tokens.windows(2).all(|pair| pair[0] != pair[1]),
            "{tokens:?}"
        );
        assert!(rig.server.gaps().iter().all(|gap| *gap >= secs(1)));
        let count = rig.server.count();
        sleep(secs(3600)).await;
        assert_eq!(rig.server.count(), count, "nobody wants one");
    }
}

/// C-31: no lifetime makes a loop.
#[tokio::test(start_paused = true)]
async fn a_short_token_is_renewed_at_most_once_a_second() {
    let rig = Rig::start(|n| Answer::token(n, 1));
    sleep(secs(60)).await;
    assert!(rig.server.count() > 1);
    assert!(rig.server.gaps().iter().all(|gap| *gap >= secs(1)));
}

/// An authorization server with a cache of its own: asking it more often brings nothing.
#[tokio::test(start_paused = true)]
async fn the_same_token_again_is_left_alone_for_half_of_what_is_left() {
    let issued = Instant::now();
    let left = move |at: Instant| secs(3600).saturating_sub(at - issued);
    let rig = Rig::start(move |_| Answer::token("same", left(Instant::now()).as_secs_f64()));
    rig.server.request(8).await;
    let times = rig.server.times();
    for pair in times.windows(2).skip(1) {
        let asked = secs(30).max(left(pair[0]) / 2);
        let gap = pair[1] - pair[0];
        assert!((asked..=asked + TICK).contains(&gap), "{gap:?}");
    }
    sleep(TICK).await;
    let same = rig.metric(r#"bearerd_token_same_total{token="payments"}"#);
    assert_eq!(same, 7.0, "all but the first");
}

/// C-42: asking often with a wrong secret can lock an account.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_tried_again_after_30_s_doubling_to_5_min() {
    let rig = Rig::start(|_| Answer::refusal(401, "invalid_client"));
    rig.server.request(7).await;
    let seconds: Vec<u64> = rig.server.gaps().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [30, 60, 120, 240, 300, 300]);
}

/// C-43: the secret is read for each attempt, and a new one ends the backoff.
#[tokio::test(start_paused = true)]
async fn a_changed_secret_is_tried_at_once() {
    let rig = Rig::start(|n| match n {
        1..=4 => Answer::refusal(401, "invalid_client"),
        _ => Answer::token("new", 3600),
    });
    let third = rig.server.request(3).await;
    sleep(secs(10)).await;
    rig.write_secret("r0tated\n");
    let changed = Instant::now();
    let fourth = rig.server.request(4).await;
    assert!(fourth.at - changed <= TICK);
    assert_ne!(fourth.text, third.text);
    let fifth = rig.server.request(5).await;
    assert_eq!(
        (fifth.at - fourth.at).as_secs(),
        30,
        "the new one has its own backoff"
    );
    assert_eq!(rig.token().await.unwrap(), "new");
}

/// A secret can be mounted after the start.
#[tokio::test(start_paused = true)]
async fn a_secret_that_appears_is_tried_at_once() {
    let rig = Rig::start(|_| Answer::token("t", 3600));
    std::fs::write(rig.secret.path(), "").unwrap();
    sleep(secs(100)).await;
    assert_eq!(rig.server.count(), 0, "nothing is asked without a secret");
    let error = rig.handle.token().await.unwrap_err();
    assert!(error.to_string().ends_with("is empty"), "{error}");
    rig.write_secret("s3cret");
    let appeared = Instant::now();
    let first = rig.server.request(1).await;
    assert!(first.at - appeared <= TICK);
}

/// C-45, E-07
#[tokio::test(start_paused = true)]
async fn the_server_says_when_to_ask_again() {
    let rig = Rig::start(|n| {
        let asked = ["7", "999999", "0", "120"];
        Answer::retry_after(if n % 2 == 0 { 429 } else { 503 }, asked[n - 1])
    });
    rig.server.request(4).await;
    let seconds: Vec<u64> = rig.server.gaps().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [7, 300, 1]);
}

/// C-43: made before broken.
#[tokio::test(start_paused = true)]
async fn a_changed_secret_is_tried_while_the_old_token_serves() {
    let rig = Rig::start(|n| Answer::token(n, 3600).after(secs(2)));
    let first = rig.server.request(1).await;
    sleep(secs(60)).await;
    rig.write_secret("r0tated");
    let second = rig.server.request(2).await;
    assert_ne!(second.text, first.text);
    assert_eq!(rig.token_at_once().await.unwrap(), "1", "meanwhile");
    sleep(secs(3)).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "2");
    assert_eq!(rig.metric(&reloads("accepted")), 1.0);
    let reloads =
        r#"bearerd_token_requests_total{outcome="success",token="payments",trigger="reload"}"#;
    assert_eq!(rig.metric(reloads), 1.0);
}

/// Without any news of it, as on a file system that tells none.
#[tokio::test(start_paused = true)]
async fn a_changed_secret_is_noticed_by_looking() {
    let rig = Rig::start(|n| Answer::token(n, 3600));
    sleep(secs(60)).await;
    std::fs::write(rig.secret.path(), "r0tated").unwrap();
    let changed = Instant::now();
    assert!(rig.server.request(2).await.at - changed <= secs(10) + TICK);
}

/// C-43: neither the old token nor the old secret is given up for one that is refused.
#[tokio::test(start_paused = true)]
async fn a_changed_secret_that_is_refused_leaves_the_old_one_in_use() {
    let rig = Rig::start_by(|n, request| match request.contains(&basic("s3cret")) {
        true => Answer::token(n, 3600),
        false => Answer::refusal(401, "invalid_client"),
    });
    rig.token().await.unwrap();
    sleep(secs(60)).await;
    rig.write_secret("wr0ng");
    rig.server.request(3).await;
    sleep(TICK).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "3", "by the old secret");
    assert_eq!(rig.metric(&reloads("refused")), 1.0);
    let Standing::Holding { refused, .. } = rig.handle.standing() else {
        panic!("{:?}", rig.handle.standing());
    };
    assert_eq!(refused.unwrap().name(), "invalid_client");
    // The next renewal asks with both again, and counts no further change.
    rig.server.request(5).await;
    sleep(TICK).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "5");
    assert_eq!(rig.metric(&reloads("refused")), 1.0);
    std::fs::remove_file(rig.secret.path()).unwrap();
    rig.server.request(6).await;
    sleep(TICK).await;
    assert_eq!(
        rig.token_at_once().await.unwrap(),
        "6",
        "what was known is used"
    );
    assert_eq!(rig.metric(&reloads("unreadable")), 1.0);
    std::fs::write(rig.secret.path(), "s3cret").unwrap();
    sleep(secs(3600)).await;
    let Standing::Holding { refused, .. } = rig.handle.standing() else {
        panic!("{:?}", rig.handle.standing());
    };
    assert!(refused.is_none(), "all is well again");
}

/// The server is told of a change just as we try the old secret after the new one.
#[tokio::test(start_paused = true)]
async fn a_server_that_changes_between_two_tries_is_asked_again_soon() {
    let rig = Rig::start(|n| match n {
        2 | 3 => Answer::refusal(401, "invalid_client"),
        _ => Answer::token(n, 3600),
    });
    rig.token().await.unwrap();
    rig.write_secret("r0tated");
    let refused = rig.server.request(3).await;
    assert!(refused.text.contains(&basic("s3cret")), "the old one, last");
    let again = rig.server.request(4).await;
    assert!(again.at - refused.at <= secs(1) + TICK);
    assert!(again.text.contains(&basic("r0tated")));
    sleep(TICK).await;
    assert_eq!(rig.token_at_once().await.unwrap(), "4");
    assert_eq!(rig.metric(&reloads("refused")), 1.0);
}

/// A file that is changed before the server is told: the new secret is found good at a later renewal.
#[tokio::test(start_paused = true)]
async fn a_secret_that_is_accepted_later_is_counted_then() {
    let rig = Rig::start_by(
        |n, request| match n < 6 && request.contains(&basic("r0tated")) {
            true => Answer::refusal(401, "invalid_client"),
            false => Answer::token(n, 3600),
        },
    );
    rig.token().await.unwrap();
    rig.write_secret("r0tated");
    rig.server.request(6).await;
    sleep(TICK).await;
    assert_eq!(rig.metric(&reloads("refused")), 1.0);
    assert_eq!(rig.metric(&reloads("accepted")), 1.0);
}

fn reloads(outcome: &str) -> String {
    format!("bearerd_secret_reloads_total{{outcome=\"{outcome}\"}}")
}

/// A token that was fetched ahead and that nobody wants is not renewed, until somebody wants it.
#[tokio::test(start_paused = true)]
async fn an_unused_token_lapses_and_comes_back_on_demand() {
    let policy = RefreshPolicy {
        renew_unused: false,
        ..POLICY
    };
    let rig = Rig::with(policy, |n| Answer::token(n, 3600));
    sleep(secs(20_000)).await;
    assert_eq!(rig.server.count(), 1, "left to its end");
    assert!(matches!(rig.handle.standing(), Standing::Unused));
    assert_eq!(rig.token().await.unwrap(), "2");
    rig.server.request(3).await;
    sleep(TICK).await;
    assert_eq!(rig.server.count(), 3, "it was used, so it was renewed");
    // Used in the last part of its life, it is renewed at once.
    sleep(secs(3000)).await;
    assert!(matches!(rig.handle.standing(), Standing::Unused));
    assert_eq!(rig.token_at_once().await.unwrap(), "3");
    let now = Instant::now();
    assert!(rig.server.request(4).await.at - now <= TICK);
}

/// Nobody holds a handle any more.
#[tokio::test(start_paused = true)]
async fn a_refresher_ends_with_its_last_handle() {
    let mut rig = Rig::start(|n| Answer::token(n, 3600));
    rig.token().await.unwrap();
    let server = rig.server.clone();
    let ended = rig.take_ended();
    drop(rig);
    sleep(secs(10_000)).await;
    assert_eq!(server.count(), 1);
    assert!(ended.is_empty(), "which is no defect");
}
