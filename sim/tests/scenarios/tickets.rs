//! Tickets that are good for nothing: each is refused with its own reason, and admits nobody.

use api::ticket::JoinTicket;
use serde_json::Value;

use crate::common::{Lab, number, refused, wait_for};

fn two(name: &str) -> Option<Lab> {
    Lab::up(name, 1, 1, &["--k3s", "rehearsal", "--no-cluster"])
}

/// Makes a ticket; returns its text and number.
fn make(lab: &Lab, options: &[&str]) -> (String, String) {
    let made = lab.ask("n1", &[&["ticket", "create"], options].concat()).unwrap();
    (made["ticket"].as_str().unwrap().to_owned(), number(&made["id"]).to_string())
}

/// Tries to make a machine called `name` a member, in a host but with a state folder of its own.
fn join(lab: &Lab, host: &str, ticket: &str, name: &str) -> std::process::Output {
    let script = format!(
        "exec timeout 8 skein join '{ticket}' --name {name} --foreground --state-dir /run/{name} --config /dev/null"
    );
    lab.exec(host, &["sh", "-c", &script])
}

/// Expects a refusal; returns the why. Whoever is refused has no papers and is no member.
fn refusal(lab: &Lab, ticket: &str, name: &str, code: i32) -> String {
    let why = refused(&join(lab, "n2", ticket, name), code);
    println!("    {name}: {why}");
    let papers = lab.exec("n2", &["ls", &format!("/run/{name}/node.crt")]);
    assert!(!papers.status.success(), "{name} got a certificate");
    let status = lab.ask("n1", &["status"]).unwrap();
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(2), "{name} came in: {status}");
    why
}

fn standing(lab: &Lab, id: &str) -> Value {
    let list = lab.ask("n1", &["ticket", "ls"]).unwrap();
    let tickets = list["tickets"].as_array().cloned().unwrap();
    let found = tickets.iter().find(|t| number(&t["id"]).to_string() == id);
    found.unwrap_or_else(|| panic!("{id} in {list}"))["standing"].clone()
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn each_bad_ticket_is_refused_with_its_own_reason() {
    let Some(lab) = two("badticket") else { return };
    let (good, good_id) = make(&lab, &[]);

    let (expired, id) = make(&lab, &["--expires", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let why = refusal(&lab, &expired, "late", 1);
    assert!(why.contains("expired"), "{why}");
    assert_eq!(standing(&lab, &id), "expired");

    let (revoked, id) = make(&lab, &[]);
    lab.run("n1", &["skein", "ticket", "revoke", &id]);
    let why = refusal(&lab, &revoked, "revoked", 1);
    assert!(why.contains("revoked"), "{why}");
    assert_eq!(standing(&lab, &id), "revoked");

    let why = refusal(&lab, &good[..good.len() - 5], "cut", 2);
    assert!(why.contains("not whole"), "{why}");
    let why = refusal(&lab, "hello", "foreign", 2);
    assert!(why.contains("skein1."), "{why}");

    let mut guessed: JoinTicket = good.parse().unwrap();
    guessed.secret[31] ^= 1;
    let why = refusal(&lab, &guessed.to_string(), "guess", 1);
    assert!(why.contains("no ticket has this id and secret"), "{why}");
    let mut guessed: JoinTicket = good.parse().unwrap();
    guessed.id += 1_000;
    let why = refusal(&lab, &guessed.to_string(), "number", 1);
    assert!(why.contains("no ticket has this id and secret"), "{why}");

    // Whom to trust is in the ticket, too: with another fingerprint not even the secret is sent.
    let mut misled: JoinTicket = good.parse().unwrap();
    misled.fingerprint[0] ^= 1;
    let why = refusal(&lab, &misled.to_string(), "misled", 1);
    assert!(why.contains("another fleet"), "{why}");
    assert_eq!(standing(&lab, &good_id), "valid", "failed attempts use nothing up");

    let why = refused(&lab.exec("n2", &["skein", "join", &good, "--name", "other"]), 1);
    assert!(why.contains("n2 in this fleet already"), "{why}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_ticket_of_another_fleet_is_refused() {
    let Some(lab) = two("otherfleet") else { return };
    // The other fleet lives where n2 will answer afterwards, so that its ticket leads to this one.
    lab.run("n2", &["pkill", "-9", "-x", "skein"]);
    let init = "exec setsid skein --socket /run/other.sock init --name other --foreground \
        --state-dir /run/otherfleet --config /dev/null </dev/null >/run/other.log 2>&1 &";
    lab.run("n2", &["sh", "-c", init]);
    let ticket = wait_for("the other fleet gives a ticket", 20, || {
        let out =
            lab.exec("n2", &["skein", "--socket", "/run/other.sock", "ticket", "create", "-q"]);
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(String::from_utf8(out.stdout).unwrap()) } else { Err(words) }
    });
    let ticket = ticket.trim();
    let endpoint = format!("{}:7443", lab.host("n2")["underlay"].as_str().unwrap());
    let parsed: JoinTicket = ticket.parse().unwrap();
    let named: Vec<String> = parsed.endpoints.iter().map(ToString::to_string).collect();
    assert!(named.contains(&endpoint), "{named:?}");
    lab.run("n2", &["pkill", "-9", "-x", "skein"]);
    lab.must(&["start", "n2"]);
    wait_for("n2 is back in its own fleet", 30, || {
        let status = lab.ask("n1", &["node", "show", "n2"])?;
        if status["state"] == "ready" { Ok(()) } else { Err(status.to_string()) }
    });

    let why = refusal(&lab, ticket, "stray", 1);
    assert!(why.contains("belongs to another fleet"), "{why}");
    let why = refused(&lab.exec("n2", &["skein", "join", ticket]), 1);
    assert!(why.contains("n2 in another fleet already"), "{why}");
    lab.down();
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_used_up_ticket_does_not_admit_a_second_machine() {
    let Some(lab) = two("usedup") else { return };
    let (ticket, id) = make(&lab, &[]);
    lab.run("n2", &["pkill", "-9", "-x", "skein"]);
    let is_down = |name: &str| {
        let node = lab.ask("n1", &["node", "show", name])?;
        if node["state"] == "down" { Ok(()) } else { Err(node.to_string()) }
    };
    // While it counts as there, three could vote, of whom two would be gone in the end.
    wait_for("n2 is down", 20, || is_down("n2"));
    let names = || -> Vec<String> {
        let status = lab.ask("n1", &["status"]).unwrap();
        let nodes = status["nodes"].as_array().cloned().unwrap();
        nodes.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect()
    };
    // Who is let in runs until its time is over; a next one at the same moment could make both vote.
    let admit = |ticket: &str, name: &str| {
        join(&lab, "n2", ticket, name);
        wait_for(&format!("{name} came and went"), 20, || is_down(name));
    };
    admit(&ticket, "first");
    assert_eq!(names(), ["n1", "n2", "first"]);
    assert_eq!(standing(&lab, &id), "used");
    let why = refused(&join(&lab, "n2", &ticket, "second"), 1);
    assert!(why.contains("used up"), "{why}");
    assert_eq!(names(), ["n1", "n2", "first"]);
    assert!(!lab.exec("n2", &["ls", "/run/second/node.crt"]).status.success());

    let (twice, id) = make(&lab, &["--uses", "2"]);
    assert_eq!(standing(&lab, &id), "valid");
    admit(&twice, "third");
    assert_eq!(standing(&lab, &id), "valid", "one use is left");
    admit(&twice, "fourth");
    let why = refused(&join(&lab, "n2", &twice, "fifth"), 1);
    assert!(why.contains("good for 2"), "{why}");
    lab.down();
}
