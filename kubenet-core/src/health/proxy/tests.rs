use std::time::UNIX_EPOCH;

use super::*;

const PERIOD: Duration = Duration::from_secs(30);
const V4: IpFamily = IpFamily::V4;
const V6: IpFamily = IpFamily::V6;

/// 2026-01-02T03:04:05Z, and moments this many seconds later.
fn clock() -> impl Fn(u64) -> Moment {
    let start = Moment { instant: Instant::now(), time: UNIX_EPOCH + Duration::from_secs(1_767_323_045) };
    move |seconds| start.after(Duration::from_secs(seconds))
}

fn body(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

#[test]
fn h2_healthy_at_the_start() {
    let at = clock();
    let health = ProxyHealth::new(PERIOD);
    for answer in [health.livez(at(1000)), health.livez(at(0))] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    }
    assert_eq!(
        body(&health.livez(at(1))),
        json!({ "lastUpdated": "2026-01-02T03:04:06Z", "currentTime": "2026-01-02T03:04:06Z", "healthy": true }),
    );
}

#[test]
fn h2_an_update_that_waits_for_twice_the_sync_period_is_late() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    health.update_queued(V4, at(0).instant);
    health.updated(V4, at(0).instant, at(1));
    health.update_queued(V4, at(10).instant);
    // Later ones do not make the oldest younger, nor does one that is told of late.
    health.update_queued(V4, at(50).instant);
    health.update_queued(V4, at(20).instant);
    assert!(health.is_healthy(at(69).instant));
    assert!(!health.is_healthy(at(70).instant));
    health.updated(V4, at(70).instant, at(71));
    assert!(health.is_healthy(at(1000).instant));
}

#[test]
fn h2_an_update_before_the_first_success_counts_from_when_it_was_queued() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    health.update_queued(V4, at(5).instant);
    assert_eq!(health.livez(at(64)).status, 200);
    let late = health.livez(at(65));
    assert_eq!(late.status, 503);
    assert_eq!(
        body(&late),
        json!({
            "lastUpdated": "0001-01-01T00:00:00Z",
            "currentTime": "2026-01-02T03:05:10Z",
            "healthy": false,
            "status": { "IPv4": { "lastUpdated": "0001-01-01T00:00:00Z", "healthy": false } },
        }),
    );
}

#[test]
fn h2_an_update_queued_while_another_is_applied_still_waits() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    health.update_queued(V4, at(0).instant);
    health.update_queued(V4, at(3).instant);
    // The update that began at 2 ends at 4: what was queued at 3 is not in it.
    health.updated(V4, at(2).instant, at(4));
    assert!(health.is_healthy(at(61).instant));
    assert!(!health.is_healthy(at(63).instant));
    // One that covers nothing new leaves it as late as it was.
    health.updated(V4, at(1).instant, at(64));
    assert!(!health.is_healthy(at(64).instant));
    health.updated(V4, at(3).instant, at(65));
    assert!(health.is_healthy(at(1000).instant));
}

#[test]
fn h2_one_late_family_makes_the_whole_unhealthy() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    for family in [V4, V6] {
        health.update_queued(family, at(0).instant);
    }
    health.updated(V6, at(0).instant, at(2));
    health.updated(V4, at(0).instant, at(1));
    health.update_queued(V6, at(10).instant);
    assert_eq!(health.livez(at(69)).status, 200);
    let answer = health.livez(at(70));
    assert_eq!(answer.status, 503);
    assert_eq!(
        body(&answer),
        json!({
            "lastUpdated": "2026-01-02T03:04:07Z",
            "currentTime": "2026-01-02T03:05:15Z",
            "healthy": false,
            "status": {
                "IPv4": { "lastUpdated": "2026-01-02T03:04:06Z", "healthy": true },
                "IPv6": { "lastUpdated": "2026-01-02T03:04:07Z", "healthy": false },
            },
        }),
    );
}

#[test]
fn h2_only_healthz_asks_for_the_node() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    health.updated(V4, at(0).instant, at(0));
    for (node, status) in [
        (NodeEligibility::Eligible, 200),
        (NodeEligibility::Missing, 503),
        (NodeEligibility::BeingDeleted, 503),
        (NodeEligibility::Tainted, 503),
    ] {
        let answer = health.healthz(node, at(9));
        assert_eq!(answer.status, status, "{node:?}");
        let last_updated = if status == 200 { "2026-01-02T03:04:14Z" } else { "2026-01-02T03:04:05Z" };
        assert_eq!(
            body(&answer),
            json!({
                "lastUpdated": last_updated,
                "currentTime": "2026-01-02T03:04:14Z",
                "nodeEligible": status == 200,
                "healthy": true,
                "status": { "IPv4": { "lastUpdated": "2026-01-02T03:04:05Z", "healthy": true } },
            }),
        );
    }
    assert_eq!(health.livez(at(9)).status, 200);
    assert_eq!(body(&health.livez(at(9))).get("nodeEligible"), None);
    health.update_queued(V4, at(10).instant);
    assert_eq!(health.healthz(NodeEligibility::Eligible, at(70)).status, 503);
}

#[test]
fn h2_a_wall_clock_that_jumps_changes_no_status() {
    let at = clock();
    let mut health = ProxyHealth::new(PERIOD);
    health.updated(V4, at(0).instant, at(0));
    health.update_queued(V4, at(1).instant);
    let day = Duration::from_secs(86400);
    let ahead = Moment { time: at(2).time + day, ..at(2) };
    assert_eq!(health.livez(ahead).status, 200);
    let back = Moment { time: at(61).time - day, ..at(61) };
    let answer = body(&health.livez(back));
    assert_eq!(answer["healthy"], false);
    // Never an update in the future.
    assert_eq!(answer["lastUpdated"], "2026-01-01T03:05:06Z");
    assert_eq!(answer["lastUpdated"], answer["currentTime"]);
    // Queued after "now", as another thread may have read its clock later.
    let mut health = ProxyHealth::new(Duration::ZERO);
    health.update_queued(V4, at(5).instant);
    assert!(!health.is_healthy(at(5).instant));
    let mut health = ProxyHealth::new(PERIOD);
    health.update_queued(V4, at(5).instant);
    assert!(health.is_healthy(at(1).instant));
}

#[test]
fn h2_times_that_no_calendar_holds_are_no_panic() {
    let at = clock();
    let health = ProxyHealth::new(Duration::MAX);
    for time in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1 << 50)] {
        let answer = health.livez(Moment { time, ..at(0) });
        assert!(body(&answer)["currentTime"].is_string());
    }
    assert_eq!(at(0).after(Duration::MAX), at(0));
}
