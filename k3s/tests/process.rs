//! The supervised process, with a shell script as a stand-in for K3s.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may talk"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{founder, spec};
use k3s::render::Layout;
use k3s::{Driver, LinuxConfig, LinuxHost, Manager, Phase, Release, RunSpec, Secret, Spec, Turn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Duration, Instant};

/// Says a version and flags like K3s; as a server it notes its start, then lives until it is told or asked to end.
const STAND_IN: &str = r#"#!/bin/sh
case "$1 $2" in
  "--version "*) echo "k3s version v1.33.5+standin (none)"; exit ;;
  *" --help") printf '   --node-name value  name\n   --token value, -t value  token\n   --cluster-init  x\n   --data-dir value  x\n'; exit ;;
esac
cd "$(dirname "$K3S_CONFIG_FILE")/../../.." || exit 9
echo "$1 url=$K3S_URL session=$(cut -d' ' -f6 /proc/$$/stat) pid=$$" >>starts
echo "level=fatal msg=\"stand-in is up\""
trap 'echo term >>starts; exit 0' TERM
while [ ! -e end ]; do sleep 0.05; done
exit 7
"#;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(place.program(), STAND_IN).unwrap();
        fs::set_permissions(place.program(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("stand-in")
    }

    fn driver(&self) -> Driver<LinuxHost> {
        let config = LinuxConfig {
            state_dir: self.path("state"),
            manager: Manager::Process,
            layout: Layout::below(self.dir.path()),
        };
        Driver::new(LinuxHost::new(config))
    }

    fn run(&self) -> RunSpec {
        let mut wanted = spec(founder());
        wanted.release = Release::path(self.program());
        wanted
    }

    fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("starts")).unwrap_or_default();
        text.lines()
            .filter(|line| line.starts_with("server") || line.starts_with("agent"))
            .map(str::to_owned)
            .collect()
    }

    fn pid(&self) -> i32 {
        self.starts().last().unwrap().rsplit('=').next().unwrap().parse().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.path("end"), "");
        std::thread::sleep(Duration::from_millis(150));
    }
}

async fn until(
    driver: &mut Driver<LinuxHost>,
    spec: &Spec,
    what: &str,
    holds: impl Fn(&Turn) -> bool,
) -> Turn {
    let started = Instant::now();
    loop {
        let turn = driver.turn(spec, Instant::now()).await;
        if holds(&turn) {
            return turn;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{what} does not come: {turn:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_daemon_that_comes_back_takes_k3s_over() {
    let place = Place::new();
    let run = Spec::Run(Box::new(place.run()));
    let mut driver = place.driver();
    let turn = until(&mut driver, &run, "a start", |_| place.starts().len() == 1).await;
    assert_eq!(turn.phase, Phase::Starting);
    let turn = driver.turn(&run, Instant::now()).await;
    assert_eq!(turn.version.as_deref(), Some("v1.33.5+standin"));
    assert!(turn.left_out.iter().any(|text| text.contains("flannel-iface")), "{:?}", turn.left_out);
    let pid = place.pid();
    assert!(place.starts()[0].starts_with("server url= "), "{:?}", place.starts());
    assert!(
        place.starts()[0].contains(&format!("session={pid} ")),
        "a session of its own: {:?}",
        place.starts()
    );
    let config = Layout::below(place.dir.path()).config();
    assert_eq!(mode(&config), 0o600);
    assert_eq!(mode(&place.path("var/log/k3s.log")), 0o600);
    drop(driver);

    let mut driver = place.driver();
    for _ in 0..5 {
        let turn = driver.turn(&run, Instant::now()).await;
        assert!(!turn.changed, "{turn:?}");
    }
    assert_eq!(place.starts().len(), 1);
    assert!(alive(pid));

    let mut changed = place.run();
    changed.node_name = "n9".into();
    until(&mut driver, &Spec::Run(Box::new(changed)), "a restart", |_| place.starts().len() == 2)
        .await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn an_exit_is_shown_and_followed_by_a_start_after_a_pause() {
    let place = Place::new();
    let run = Spec::Run(Box::new(place.run()));
    let mut driver = place.driver();
    until(&mut driver, &run, "a start", |_| place.starts().len() == 1).await;
    driver.turn(&run, Instant::now()).await;
    fs::write(place.path("end"), "").unwrap();
    let saw = |turn: &Turn| {
        turn.waiting_for.as_deref().is_some_and(|text| text.contains("exit status 7"))
    };
    let turn = until(&mut driver, &run, "the exit", saw).await;
    let said = turn.waiting_for.unwrap();
    assert!(said.contains("stand-in is up") && said.contains("next in"), "{said}");
    let ended = Instant::now();
    until(&mut driver, &run, "a second start", |_| place.starts().len() == 2).await;
    assert!(ended.elapsed() > Duration::from_millis(700), "the backoff is kept");
    until(&mut driver, &run, "a second exit", |turn| {
        saw(turn) && turn.waiting_for.as_deref().unwrap_or_default().contains("1 restart")
    })
    .await;
    fs::remove_file(place.path("end")).unwrap();
    until(&mut driver, &run, "a third start", |_| place.starts().len() >= 3).await;
}

#[tokio::test]
async fn killed_while_the_daemon_is_away_it_is_started_at_once() {
    let place = Place::new();
    let run = Spec::Run(Box::new(place.run()));
    let mut driver = place.driver();
    until(&mut driver, &run, "a start", |_| place.starts().len() == 1).await;
    drop(driver);
    kill(Pid::from_raw(place.pid()), Signal::SIGKILL).unwrap();
    while alive(place.pid()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut driver = place.driver();
    let back = Instant::now();
    until(&mut driver, &run, "a start", |_| place.starts().len() == 2).await;
    assert!(back.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn stopped_ends_it_and_absent_removes_it() {
    let place = Place::new();
    let run = Spec::Run(Box::new(place.run()));
    let layout = Layout::below(place.dir.path());
    fs::create_dir_all(place.path("etc/rancher/node")).unwrap();
    fs::write(place.path("etc/rancher/node/password"), "keep").unwrap();
    let mut driver = place.driver();
    until(&mut driver, &run, "a start", |_| place.starts().len() == 1).await;
    let pid = place.pid();
    until(&mut driver, &Spec::Stopped, "the stop", |turn| turn.phase == Phase::Stopped).await;
    assert!(!alive(pid));
    assert!(fs::read_to_string(place.path("starts")).unwrap().ends_with("term\n"));
    until(&mut driver, &run, "a start", |_| place.starts().len() == 2).await;
    until(&mut driver, &Spec::Absent, "the removal", |turn| turn.phase == Phase::Absent).await;
    assert!(!alive(place.pid()));
    assert!(
        !layout.data_dir.exists()
            && !layout.config_dir.exists()
            && !place.path("state/bin").exists()
    );
    assert_eq!(fs::read_to_string(place.path("etc/rancher/node/password")).unwrap(), "keep");
}

#[tokio::test]
async fn a_worker_gets_its_environment() {
    let place = Place::new();
    let mut wanted = place.run();
    wanted.role = k3s::Role::Agent { join: common::join("node") };
    let run = Spec::Run(Box::new(wanted));
    let mut driver = place.driver();
    until(&mut driver, &run, "a start", |_| place.starts().len() == 1).await;
    assert!(
        place.starts()[0].starts_with("agent url=https://[fd5e::100]:6443 "),
        "{:?}",
        place.starts()
    );
    let secrets = Layout::below(place.dir.path()).process_environment(k3s::RoleKind::Agent);
    assert_eq!(mode(&secrets), 0o600);
}

#[tokio::test]
async fn what_cannot_be_run_is_said_and_tried_again() {
    let place = Place::new();
    let mut wanted = place.run();
    for (release, expected) in [
        (Release::path(place.path("nowhere")), "cannot read"),
        (Release::path(place.path("plain")), "not an executable file"),
        (Release::path(place.path("liar")), "does not say a K3s version"),
        (Release::path(place.path("old")), "it is v1.18.20+k3s1, and the oldest"),
        (
            Release::Path { path: place.path("old"), sha256: Some("b".repeat(64)) },
            "instead of bbbb",
        ),
        (
            Release::Url { url: "http://127.0.0.1:9/k3s".into(), sha256: "short".into() },
            "64 hexadecimal digits",
        ),
        (
            Release::Url { url: "http://127.0.0.1:9/k3s".into(), sha256: "a".repeat(64) },
            "cannot download",
        ),
    ] {
        fs::write(place.path("plain"), "x").unwrap();
        for (name, says) in [("liar", "hello"), ("old", "k3s version v1.18.20+k3s1 (abc)")] {
            fs::write(place.path(name), format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        wanted.release = release;
        let run = Spec::Run(Box::new(wanted.clone()));
        let saw = |turn: &Turn| {
            turn.waiting_for
                .as_deref()
                .is_some_and(|text| text.contains(expected) && text.contains("next try"))
        };
        let turn = until(&mut place.driver(), &run, expected, saw).await;
        assert_eq!(turn.phase, Phase::Installing);
    }
    assert!(place.starts().is_empty());
}

#[tokio::test]
async fn no_secret_is_shown() {
    let place = Place::new();
    let mut wanted = place.run();
    wanted.server_token = Some(Secret::new("verysecret"));
    let spec = Spec::Run(Box::new(wanted));
    let mut driver = place.driver();
    until(&mut driver, &spec, "a start", |_| place.starts().len() == 1).await;
    assert!(
        !format!("{spec:?} {:?}", driver.turn(&spec, Instant::now()).await).contains("verysecret")
    );
}
