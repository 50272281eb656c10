//! Daemons that are killed after every single step of a command, as they themselves counted them in a full run
//! before: the same command again completes what was begun.

use std::process::{Child, Stdio};
use std::slice::from_ref;
use std::time::Duration;

use crate::common::{Lab, now, texts, wait_for};
use crate::steps::{Book, Point, Tally, calm, hold, listed, points};
use crate::wrong_host::{begin, sh};

/// How long systemd waits before it starts a daemon again (RestartSec).
const RESTART: Duration = Duration::from_secs(1);

fn mortal(name: &str, servers: usize, workers: usize, last: &str) -> Option<Lab> {
    Lab::up(name, servers, workers, &["--k3s", "rehearsal", "--mortal", last])
}

/// Starts what was killed again, once the kernel has cleared it away.
fn again(lab: &Lab, host: &str, command: &str) {
    lab.kill_daemon(host);
    begin(lab, host, command);
}

fn names(lab: &Lab, host: &str) -> Result<Vec<String>, String> {
    let status = lab.ask(host, &["status"])?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

/// Runs a command that becomes a daemon, dies after `last`, and is run again; `done` says when it is complete.
fn twice(
    lab: &Lab,
    host: &str,
    command: &str,
    last: Option<&Point>,
    done: impl Fn() -> Result<(), String>,
) -> bool {
    let book = Book::of(lab, host);
    book.begin(last);
    begin(lab, host, command);
    let begun = now();
    while last.is_some() && !book.died() && begun.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(20));
    }
    if book.died() {
        again(lab, host, command);
    }
    let what = last.map_or("in full".into(), |p| format!("killed after {} ({})", p.name, p.nth));
    wait_for(&format!("{host}: {} {what}", &command[..10]), 30, done);
    if last.is_none() {
        calm(&[&book]);
    }
    book.died()
}

fn init_on(lab: &Lab, host: &str, i: usize, last: Option<&Point>) -> bool {
    let command = format!("skein init --name {host} --foreground --state-dir /run/init-{i}");
    let died = twice(lab, host, &command, last, || {
        let status = lab.ask(host, &["status"])?;
        if status["healthy"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(names(lab, host).unwrap(), [host], "one node, however often it began");
    died
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn init_is_completed_after_a_death_at_any_step() {
    let Some(lab) = mortal("killedinit", 3, 0, "--no-daemons") else { return };
    init_on(&lab, "n1", 0, None);
    let all = points(&Book::of(&lab, "n1").steps());
    listed("init", &all);
    let keys = ["file wireguard.key", "file sealing.key", "file tls.key", "file identity.json"];
    hold("init", from_ref(&all), &keys);
    let rest = ["logged found_fleet", "committed found_fleet", "file node.crt"];
    hold("init", from_ref(&all), &rest);
    lab.kill_daemon("n1");
    // Three machines, each for itself.
    let hosts = ["n1", "n2", "n3"];
    let part = |turn: usize| -> Vec<(usize, bool)> {
        let kill_at = |i: usize| {
            let died = init_on(&lab, hosts[turn], i + 1, Some(&all[i]));
            lab.kill_daemon(hosts[turn]);
            (i, died)
        };
        (turn..all.len()).step_by(hosts.len()).map(kill_at).collect()
    };
    let part = &part;
    let deaths = std::thread::scope(|scope| {
        let running = [0, 1, 2].map(|turn| scope.spawn(move || part(turn)));
        running.map(|thread| thread.join().unwrap()).concat()
    });
    let mut tally = Tally::default();
    deaths.into_iter().for_each(|(i, died)| tally.note("init", &all[i], died));
    tally.check();
    lab.down();
}

fn join_as(lab: &Lab, i: usize, last: Option<&Point>) -> bool {
    let ticket = lab.run("n1", &["skein", "ticket", "create", "-q"]);
    let name = format!("j{i}");
    let command = format!(
        "skein join {} --name {name} --foreground --state-dir /run/join-{i}",
        ticket.trim()
    );
    let died = twice(lab, "n2", &command, last, || {
        let node = lab.ask("n1", &["node", "show", &name])?;
        if node["state"] == "ready" { Ok(()) } else { Err(node.to_string()) }
    });
    assert_eq!(names(lab, "n1").unwrap(), ["n1".to_owned(), name], "one entry for it");
    died
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn join_is_completed_after_a_death_at_any_step() {
    let Some(lab) = mortal("killedjoin", 1, 1, "--no-daemons") else { return };
    begin(&lab, "n1", "skein init --foreground");
    wait_for("n1 answers", 20, || lab.ask("n1", &["status"]));
    let leave = |i: usize| {
        lab.kill_daemon("n2");
        lab.run("n1", &["skein", "node", "rm", &format!("j{i}"), "--force"]);
    };
    join_as(&lab, 0, None);
    let all = points(&Book::of(&lab, "n2").steps());
    listed("join", &all);
    let files = ["file identity.json", "file whereabouts.json", "file node.crt", "file ca.crt"];
    hold("join", from_ref(&all), &files);
    let rest = ["redeem answered", "committed admit_node", "committed membership"];
    hold("join", from_ref(&all), &rest);
    leave(0);
    let mut tally = Tally::default();
    for (i, point) in all.iter().enumerate() {
        let died = join_as(&lab, i + 1, Some(point));
        tally.note("join", point, died);
        leave(i + 1);
    }
    tally.check();
    lab.down();
}

const CREATE: &str = "cluster create lab --servers n1,n2,n3 --workers n4";
const DECOMMISSION: &str = "cluster decommission lab --yes";
/// Where commands are typed: its daemon lives.
const HERE: &str = "n3";

/// A command, and the daemons that are to die of it.
struct Act {
    command: &'static str,
    victims: &'static [&'static str],
    wanted: &'static [&'static str],
    /// Whether the next act can do without it.
    optional: bool,
}

const ACTS: [Act; 3] = [
    Act {
        command: CREATE,
        victims: &["n1", "n2", "n4"],
        wanted: &[
            "committed create_cluster",
            "file founding.sealed",
            "host Fetch",
            "host Mark",
            "host Write",
            "host Start",
            "committed report_phase bootstrapped (own)",
            "committed report_phase ready (own)",
        ],
        optional: false,
    },
    Act {
        command: "drain n1",
        victims: &["n1", "n2"],
        wanted: &[
            "committed drain",
            "kube cordon",
            "committed prepare_vip (other)",
            "committed move_vip (other)",
            "kube evict",
            "committed report_drain evict (own)",
        ],
        optional: true,
    },
    Act {
        command: DECOMMISSION,
        victims: &["n1", "n2", "n4"],
        wanted: &[
            "committed decommission_cluster",
            "host Stop",
            "host Wipe",
            "committed report_phase stopped (own)",
        ],
        optional: false,
    },
];

fn spawn(lab: &Lab, command: &str) -> Child {
    let script = format!("exec timeout 60 skein {command}");
    let mut child = lab.command(&["exec", HERE, "--", "sh", "-c", &script]);
    child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether a command that may have been completed by an earlier try has its effect.
fn fine(command: &str, out: &std::process::Output) -> bool {
    // What is gone already is not found.
    out.status.success() || command == DECOMMISSION && out.status.code() == Some(3)
}

/// Runs a command while daemons die, each after its own step; starts each again as systemd would, and runs the command
/// again until it says that it is done. Returns who died, or did not within the time of a full run.
fn play(lab: &Lab, command: &str, orders: &[(&str, Option<&Point>)]) -> Vec<bool> {
    let books: Vec<Book> = orders.iter().map(|(host, _)| Book::of(lab, host)).collect();
    books.iter().zip(orders).for_each(|(book, (_, last))| book.begin(*last));
    let mut seen = vec![None; orders.len()];
    let mut started = vec![false; orders.len()];
    let mut start_dead = || {
        for (i, (host, _)) in orders.iter().enumerate() {
            if books[i].died() && seen[i].get_or_insert_with(now).elapsed() > RESTART && !started[i]
            {
                again(lab, host, "skein daemon");
                started[i] = true;
            }
        }
        started.clone()
    };
    let begun = now();
    loop {
        let mut child = spawn(lab, command);
        while child.try_wait().unwrap().is_none() {
            start_dead();
            std::thread::sleep(Duration::from_millis(50));
        }
        let out = child.wait_with_output().unwrap();
        if fine(command, &out) {
            break;
        }
        println!("      again: {}", String::from_utf8_lossy(&out.stderr).trim());
        assert!(begun.elapsed() < Duration::from_secs(90), "{command}: {out:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    // What comes after the command has ended is a part of it too.
    let whole = || books.iter().zip(orders).all(|(book, (_, last))| last.is_none() || book.died());
    if orders.iter().all(|(_, last)| last.is_none()) || !whole() {
        calm(&books.iter().collect::<Vec<_>>());
    }
    // What did not come now must not come in the middle of what follows, where nobody starts the dead again.
    books.iter().for_each(Book::withdraw);
    while books.iter().zip(start_dead()).any(|(book, started)| book.died() && !started) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let died = books.iter().map(Book::died).collect();
    wait_for("there is a quorum", 30, || {
        let status = lab.ask(HERE, &["status"])?;
        if status["quorum"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    died
}

/// The points of a full run of an act, by victim.
fn record(lab: &Lab, act: &Act) -> Vec<Vec<Point>> {
    let orders: Vec<_> = act.victims.iter().map(|host| (*host, None)).collect();
    play(lab, act.command, &orders);
    let found = act.victims.iter().map(|host| points(&Book::of(lab, host).steps()));
    let found: Vec<Vec<Point>> = found.collect();
    for (host, list) in act.victims.iter().zip(&found) {
        listed(&format!("{} on {host}", act.command), list);
    }
    hold(act.command, &found, act.wanted);
    after(lab, act.command);
    found
}

/// What must be so after an act, whoever died of it.
fn after(lab: &Lab, command: &str) {
    let out = spawn(lab, command).wait_with_output().unwrap();
    assert!(fine(command, &out), "{command} again: {out:?}");
    match command {
        CREATE => {
            lab.settled(HERE, 60);
            lab.one_bearer(HERE);
        }
        DECOMMISSION => no_cluster(lab),
        _ => {
            let node = lab.ask(HERE, &["node", "show", "n1"]).unwrap();
            assert_eq!(node["drain"], "done", "{node}");
            assert_ne!(lab.holder(HERE), "n1");
            lab.run(HERE, &["skein", "undrain", "n1"]);
            lab.settled(HERE, 60);
            lab.one_bearer(HERE);
        }
    }
}

fn no_cluster(lab: &Lab) {
    wait_for("cluster and roles are gone", 60, || {
        let status = lab.ask(HERE, &["status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let free = nodes.iter().all(|n| n["role"] == "" && n["state"] == "ready");
        let none = status["clusters"].as_array().is_some_and(Vec::is_empty);
        if free && none { Ok(()) } else { Err(status.to_string()) }
    });
    for host in lab.hosts() {
        let left = sh(lab, &host, "find /var/lib/rancher /var/lib/kubelet -type f; pgrep -x k3s");
        assert!(left.stdout.is_empty(), "{host}: {left:?}");
    }
    let status = lab.ask(HERE, &["status"]).unwrap();
    let voters = texts(&status["voters"]);
    assert_eq!(voters.len(), 3, "{voters:?}");
    assert_eq!(names(lab, HERE).unwrap().len(), 4, "{status}");
}

/// What became of a point: whose it is, and whether the daemon died there.
type Fate = (String, Point, bool);

/// Plays an act with one death for each victim, at points that lie apart, so that most die alone.
fn round(lab: &Lab, act: &Act, lists: &[Vec<Point>], round: usize) -> Vec<Fate> {
    let rounds = lists.iter().map(Vec::len).max().unwrap_or(0);
    // A drain has fewer points than what lies around it.
    if round >= rounds && act.optional {
        return Vec::new();
    }
    let apart = |turn: usize| (round + turn * rounds / lists.len()) % rounds;
    let point = |(turn, list): (usize, &Vec<Point>)| list.get(apart(turn)).cloned();
    let points: Vec<Option<Point>> = match round < rounds {
        true => lists.iter().enumerate().map(point).collect(),
        false => vec![None; lists.len()],
    };
    let hosts = act.victims.iter().copied();
    let orders: Vec<_> = hosts.zip(&points).map(|(host, last)| (host, last.as_ref())).collect();
    let died = play(lab, act.command, &orders);
    let fate = |((host, point), died): (&(&str, Option<&Point>), bool)| {
        let what = format!("{} on {host}", act.command);
        point.map(|point| (what, point.clone(), died))
    };
    let fates: Vec<Fate> = orders.iter().zip(died).filter_map(fate).collect();
    for (what, Point { nth, name }, died) in &fates {
        println!("    round {}: {what}: {name} ({nth}): died: {died}", round + 1);
    }
    after(lab, act.command);
    fates
}

/// Plays the acts with this one death; tells whether it came.
fn alone(lab: &Lab, what: &str, point: &Point) -> bool {
    let mut came = false;
    for act in ACTS {
        let victim = act.victims.iter().find(|host| what == format!("{} on {host}", act.command));
        if victim.is_none() && act.optional {
            continue;
        }
        let orders: Vec<_> = victim.iter().map(|host| (**host, Some(point))).collect();
        came |= play(lab, act.command, &orders).contains(&true);
        after(lab, act.command);
    }
    println!("    alone: {what}: {} ({}): died: {came}", point.name, point.nth);
    came
}

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn cluster_commands_are_completed_after_deaths_at_any_step() {
    const UP: [&str; 8] =
        ["up", "--servers", "3", "--workers", "1", "--k3s", "rehearsal", "--mortal"];
    let Some(lab) = mortal("killeddaemon", 3, 1, "--no-cluster") else { return };
    let all: Vec<Vec<Vec<Point>>> = ACTS.iter().map(|act| record(&lab, act)).collect();
    let rounds = all.iter().flatten().map(Vec::len).max().unwrap_or(0);
    // Most of the time is spent waiting, so two fleets take turns.
    let other = lab.beside("killedother");
    other.must(&[&UP[..], &["--no-cluster"]].concat());
    let half = |lab: &Lab, turn: usize| -> Vec<Fate> {
        let acts = |i: usize| ACTS.iter().zip(&all).map(move |(act, lists)| (i, act, lists));
        let mine = (turn..rounds).step_by(2).flat_map(acts);
        mine.flat_map(|(i, act, lists)| round(lab, act, lists, i)).collect()
    };
    let fates = std::thread::scope(|scope| {
        let one = scope.spawn(|| half(&lab, 0));
        let two = scope.spawn(|| half(&other, 1));
        [one, two].map(|thread| thread.join().unwrap()).concat()
    });
    other.down();
    // Somebody else's death may lead a run past a point: those that were not met are tried once more, alone.
    let mut tally = Tally::default();
    for (what, point, died) in &fates {
        tally.note(what, point, *died || alone(&lab, what, point));
    }
    tally.check();
    lab.down();
}
