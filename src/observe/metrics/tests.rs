use super::*;

fn metrics() -> Arc<Metrics> {
    Metrics::new(&["get_public_rooms", "get_profile"])
}

/// The lines of one metric, without its head.
fn lines(metrics: &Metrics, name: &str) -> Vec<String> {
    let ours = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    metrics.render().lines().filter(ours).map(str::to_owned).collect()
}

#[test]
fn tells_the_version_and_the_uptime() {
    let metrics = metrics();
    let version = format!("mantlet_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    assert_eq!(lines(&metrics, "mantlet_build_info"), [version]);
    assert_eq!(lines(&metrics, "mantlet_uptime_seconds").len(), 1);
}

#[test]
fn an_endpoint_has_a_series_from_its_first_request_on() {
    let metrics = metrics();
    assert_eq!(lines(&metrics, "mantlet_endpoint_requests_total"), [""; 0]);
    metrics.endpoint_request(1, 200);
    metrics.endpoint_request(1, 204);
    metrics.endpoint_request(1, 0);
    metrics.endpoint_request(0, 401);
    metrics.endpoint_request(2, 200);
    assert_eq!(
        lines(&metrics, "mantlet_endpoint_requests_total"),
        [
            r#"mantlet_endpoint_requests_total{code="2xx",endpoint="get_profile"} 2"#,
            r#"mantlet_endpoint_requests_total{code="4xx",endpoint="get_public_rooms"} 1"#,
            r#"mantlet_endpoint_requests_total{code="none",endpoint="get_profile"} 1"#,
        ]
    );
}

#[test]
fn no_two_endpoints_codes_or_flows_share_a_cell() {
    let metrics = metrics();
    let listener = metrics.listener("public");
    for status in [0, 101, 200, 302, 404, 500] {
        (0..2).for_each(|endpoint| metrics.endpoint_request(endpoint, status));
        Flow::ALL.iter().for_each(|flow| listener.request(*flow, status));
    }
    for (name, series) in [("endpoint_requests_total", 2 * Code::ALL.len()), ("requests_total", 3 * Code::ALL.len())] {
        let lines = lines(&metrics, &format!("mantlet_{name}"));
        assert_eq!(lines.len(), series, "{lines:?}");
        assert!(lines.iter().all(|line| line.ends_with(" 1")), "{lines:?}");
    }
}

#[test]
fn each_listener_counts_for_itself() {
    let metrics = metrics();
    let (public, private) = (metrics.listener("public"), metrics.listener("pri\"vate\n"));
    public.request(Flow::Client, 200);
    public.clone().request(Flow::Client, 201);
    public.request(Flow::Federation, 502);
    private.refused_by_parser(Refusal::HeadTooLarge);
    private.tls_handshake_failure();
    public.certificate_not_after(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000));
    assert_eq!(
        lines(&metrics, "mantlet_requests_total"),
        [
            r#"mantlet_requests_total{code="2xx",flow="client",listener="public"} 2"#,
            r#"mantlet_requests_total{code="5xx",flow="federation",listener="public"} 1"#,
        ]
    );
    let refused = lines(&metrics, "mantlet_refused_by_parser_total");
    assert!(
        refused.contains(&r#"mantlet_refused_by_parser_total{listener="pri\"vate\n",reason="431"} 1"#.to_owned()),
        "{refused:?}"
    );
    assert_eq!(
        lines(&metrics, "mantlet_tls_handshake_failures_total"),
        [
            r#"mantlet_tls_handshake_failures_total{listener="pri\"vate\n"} 1"#,
            r#"mantlet_tls_handshake_failures_total{listener="public"} 0"#,
        ]
    );
    // A listener without TLS has no certificate that could end.
    assert_eq!(
        lines(&metrics, "mantlet_tls_certificate_not_after_timestamp_seconds"),
        [r#"mantlet_tls_certificate_not_after_timestamp_seconds{listener="public"} 1900000000"#]
    );
}

#[test]
fn what_is_open_is_counted_until_it_is_dropped() {
    let metrics = metrics();
    let listener = metrics.listener("public");
    let held = (
        listener.connection(),
        listener.connection(),
        metrics.request_in_flight(),
        metrics.upstream("synapse").connection(PoolState::Idle),
    );
    assert_eq!(lines(&metrics, "mantlet_connections"), [r#"mantlet_connections{listener="public"} 2"#]);
    assert_eq!(lines(&metrics, "mantlet_requests_in_flight"), ["mantlet_requests_in_flight 1"]);
    let pool = |idle| {
        let open = r#"mantlet_upstream_connections{state="open",upstream="synapse"} 0"#.to_owned();
        [format!(r#"mantlet_upstream_connections{{state="idle",upstream="synapse"}} {idle}"#), open]
    };
    assert_eq!(lines(&metrics, "mantlet_upstream_connections"), pool(1));
    drop(held);
    assert_eq!(lines(&metrics, "mantlet_connections"), [r#"mantlet_connections{listener="public"} 0"#]);
    assert_eq!(lines(&metrics, "mantlet_requests_in_flight"), ["mantlet_requests_in_flight 0"]);
    assert_eq!(lines(&metrics, "mantlet_upstream_connections"), pool(0));
}

#[test]
fn a_rule_resolved_twice_counts_into_one_series() {
    let metrics = metrics();
    metrics.rule_counter("profiles", Action::Deny, Mode::Report).inc();
    metrics.rule_counter("profiles", Action::Deny, Mode::Report).inc();
    assert_eq!(
        lines(&metrics, "mantlet_rule_decisions_total"),
        [r#"mantlet_rule_decisions_total{action="deny",mode="report",rule="profiles"} 2"#]
    );
}

#[test]
fn a_failed_reload_shows_and_keeps_the_time_of_the_last_good_one() {
    let metrics = metrics();
    metrics.policy_reload(Reload::Success);
    let time = lines(&metrics, "mantlet_policy_last_reload_success_timestamp_seconds");
    assert_ne!(time, ["mantlet_policy_last_reload_success_timestamp_seconds 0"]);
    assert_eq!(lines(&metrics, "mantlet_policy_last_reload_successful"), ["mantlet_policy_last_reload_successful 1"]);
    metrics.policy_reload(Reload::Failure);
    assert_eq!(lines(&metrics, "mantlet_policy_last_reload_successful"), ["mantlet_policy_last_reload_successful 0"]);
    assert_eq!(lines(&metrics, "mantlet_policy_last_reload_success_timestamp_seconds"), time);
    assert_eq!(
        lines(&metrics, "mantlet_policy_reloads_total"),
        [r#"mantlet_policy_reloads_total{result="failure"} 1"#, r#"mantlet_policy_reloads_total{result="success"} 1"#,]
    );
}

#[test]
fn each_word_counts_into_its_own_series() {
    let metrics = metrics();
    for class in Token::ALL {
        metrics.token_verdict(*class);
    }
    for result in CacheResult::ALL {
        metrics.token_cache(*result);
    }
    for flow in Flow::ALL {
        metrics.unknown_endpoint(flow);
        metrics.request_duration(flow, Duration::from_millis(3));
    }
    metrics.upstream("media").error("connect");
    metrics.upstream("synapse");
    let names = ["token_verdicts_total", "token_cache_total", "unknown_endpoint_requests_total"];
    for (name, series) in names.into_iter().zip([Token::ALL.len(), CacheResult::ALL.len(), Flow::ALL.len()]) {
        let lines = lines(&metrics, &format!("mantlet_{name}"));
        assert_eq!(lines.len(), series, "{lines:?}");
        assert!(lines.iter().all(|line| line.ends_with(" 1")), "{lines:?}");
    }
    let durations = lines(&metrics, "mantlet_request_duration_seconds_count");
    assert_eq!(durations.len(), 3);
    assert!(durations.iter().all(|line| line.ends_with(" 1")), "{durations:?}");
    assert_eq!(
        lines(&metrics, "mantlet_upstream_errors_total"),
        [r#"mantlet_upstream_errors_total{kind="connect",upstream="media"} 1"#]
    );
}

#[test]
fn every_metric_has_a_help_and_our_name() {
    let metrics = metrics();
    let text = metrics.render();
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(name.starts_with("mantlet_"), "{line}");
        assert!(text.contains(&format!("# HELP {name} ")), "{line}");
    }
}
