//! Plain HTTP on loopback: health, readiness, metrics, status.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::{Lab, wait_for};

/// Gets a path from a host's daemon; returns status code, head and body.
fn get(lab: &Lab, host: &str, path: &str) -> (u16, String, String) {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/7480; printf 'GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3; cat <&3"
    );
    let answer = lab.run(host, &["bash", "-c", &script]);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).expect("a status code").parse().expect("a number");
    (code, head.to_lowercase(), body.to_owned())
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn readiness_ends_with_the_quorum_and_health_does_not() {
    let Some(lab) = Lab::up("health", 1, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    for host in ["n1", "n2"] {
        assert_eq!(get(&lab, host, "/healthz").0, 200);
        wait_for(&format!("{host} is ready"), 10, || {
            let (code, _, body) = get(&lab, host, "/readyz");
            if (code, body.as_str()) == (200, "ok\n") { Ok(()) } else { Err(body) }
        });
    }
    assert_eq!(get(&lab, "n1", "/other").0, 404);
    lab.must(&["kill", "n1"]);
    let why = wait_for("n2 is ready no more", 15, || {
        let (code, _, body) = get(&lab, "n2", "/readyz");
        if code == 503 { Ok(body) } else { Err(body) }
    });
    assert!(why.contains("no leader"), "{why}");
    assert_eq!(get(&lab, "n2", "/healthz").0, 200, "the daemon itself is well");
    lab.must(&["start", "n1"]);
    wait_for("n2 is ready again", 20, || {
        let (code, _, body) = get(&lab, "n2", "/readyz");
        if code == 200 { Ok(()) } else { Err(body) }
    });
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn status_over_http_is_what_the_command_line_prints() {
    let Some(lab) = Lab::rehearsal("statuses", 1, 1) else { return };
    for host in ["n1", "n2"] {
        // The log may grow between the two questions.
        wait_for("both say the same", 10, || {
            let (code, head, body) = get(&lab, host, "/v1/status");
            assert_eq!(code, 200);
            assert!(head.contains("content-type: application/json"), "{head}");
            let http: Value = serde_json::from_str(&body).expect("JSON");
            let printed = lab.ask(host, &["status"])?;
            if http == printed { Ok(()) } else { Err(format!("{http}\n{printed}")) }
        });
    }
    lab.down();
}

/// Takes a name as Prometheus' text format writes it off the front: `[a-zA-Z_:][a-zA-Z0-9_:]*`.
fn name(text: &str) -> Option<(&str, &str)> {
    let fits = |(i, c): (usize, char)| {
        c.is_ascii_alphabetic() || c == '_' || c == ':' || i > 0 && c.is_ascii_digit()
    };
    let end = text.char_indices().position(|x| !fits(x)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Takes labels off the front: `{a="b",c="d"}`, in which a backslash escapes.
fn labels(text: &str) -> Option<&str> {
    let Some(mut rest) = text.strip_prefix('{') else { return Some(text) };
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        rest = name(rest)?.1.strip_prefix("=\"")?;
        let mut escaped = false;
        let close = rest.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        rest = &rest[close?.0 + 1..];
        rest = rest.strip_prefix(',').or_else(|| rest.starts_with('}').then_some(rest))?;
    }
}

/// The name of a sample, if the line is one.
fn sample(line: &str) -> Option<&str> {
    let (name, rest) = name(line)?;
    let value = labels(rest)?.strip_prefix(' ')?;
    value.parse::<f64>().ok().map(|_| name)
}

#[test]
fn what_is_no_sample_is_told_from_one() {
    let good = ["a 1", "a_b{c=\"d\"} 2.5", "a{b=\"\\\"}\",c=\"\"} NaN", "a:b -1e3"];
    let bad = ["a", "1a 2", "a{b=c} 1", "a{b=\"c\" 1", "a{b=\"c\"}1", "a{b=\"c\"} x", "a 1 \n"];
    assert!(good.iter().all(|line| sample(line).is_some()));
    assert!(bad.iter().all(|line| sample(line).is_none()));
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn metrics_are_prometheus_text() {
    let Some(lab) = Lab::rehearsal("metrics", 1, 1) else { return };
    for host in ["n1", "n2"] {
        let (code, head, body) = get(&lab, host, "/metrics");
        assert_eq!(code, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.ends_with('\n'));
        for line in body.lines() {
            let comment = line.strip_prefix("# ").map(|c| c.splitn(3, ' ').collect::<Vec<_>>());
            let fine = match comment.as_deref() {
                Some(["HELP", metric, _] | ["TYPE", metric, "gauge" | "counter"]) => {
                    name(metric).is_some_and(|(_, rest)| rest.is_empty())
                }
                Some(_) => false,
                None => sample(line).is_some(),
            };
            assert!(fine, "{host}: {line:?}");
        }
        let one = |sample: &str| body.lines().any(|line| line == sample);
        for node in ["n1", "n2"] {
            assert!(one(&format!("skein_node_up{{node=\"{node}\"}} 1")), "{body}");
        }
        assert!(one("skein_raft_quorum 1"), "{body}");
        assert!(one(&format!("skein_raft_leader {}", u8::from(host == "n1"))), "{body}");
        assert!(one("skein_vip_generation{vip=\"lab-api\",holder=\"n1\"} 1"), "{body}");
        assert!(body.contains("\nskein_peer_sent_bytes{"), "the data plane counts, too: {body}");
    }
    lab.down();
}

/// The text format wants all lines of a metric in one group, what it is before its samples.
#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn the_lines_of_a_metric_stand_together() {
    let Some(lab) = Lab::up("grouped", 1, 2, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let (_, _, body) = wait_for("n1 has two peers", 20, || {
        let got = get(&lab, "n1", "/metrics");
        let peers = got.2.matches("skein_peer_sent_bytes{").count();
        if peers == 2 { Ok(got) } else { Err(got.2) }
    });
    let (mut told, mut seen, mut last) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let metric = comment.split(' ').nth(1).unwrap_or_default();
            assert!(told.insert(comment) && !seen.contains(metric), "{line:?}");
            continue;
        }
        let metric = sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"));
        assert!(seen.insert(metric) || metric == last, "apart from its like: {line:?}\n{body}");
        last = metric;
    }
    lab.down();
}
