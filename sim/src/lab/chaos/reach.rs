//! Asks through the VIP from within hosts' networks. Shell.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::plan::CLUSTER;
use super::stage::Stage;
use super::view::newest;
use crate::chaos::story::Reached;
use crate::lab::store::{HostRecord, Lab};
use crate::lab::{Result, host};

/// Where the API of Kubernetes answers.
const API: u16 = 6_443;
/// Where what answers with its host's name does.
const NAMES: u16 = crate::bench::PORT;
/// How long a connect may take while faults are on, and when they are over.
const PROBE_MAX: Duration = Duration::from_millis(300);
const ASK_MAX: Duration = Duration::from_secs(2);
/// Pause between two rounds through all hosts.
const EVERY_MS: u64 = 300;

/// Does something in a host's network.
fn inside<T: Send>(lab: &Lab, h: &HostRecord, act: impl FnOnce() -> T + Send) -> Result<T> {
    let path = Path::new("/run/netns").join(lab.netns(h));
    let ns = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    // A thread of its own, since it stays there.
    std::thread::scope(|threads| {
        let done = threads.spawn(move || {
            setns(ns, CloneFlags::CLONE_NEWNET).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(act())
        });
        done.join().map_err(|_| "a probe ended early".to_owned())?
    })
}

/// Returns a VIP's address without the length of its network.
fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// Asks through the VIP from one host after the other, until all is over.
pub(super) fn probe(stage: &Stage, until_ms: u64) {
    let mut turn = 0;
    while !stage.docket.is_over() && stage.docket.now_ms() < until_ms {
        for h in &stage.lab.hosts {
            let vip = {
                let state = stage.docket.lock();
                newest(&state.seen).and_then(|s| s.vips.first().cloned())
            };
            let Some(vip) = vip.filter(|_| host::running(&stage.lab, h).is_some()) else {
                continue;
            };
            turn += 1;
            let Some(ip) = vip.addresses.get(turn % vip.addresses.len().max(1)) else { continue };
            let Some(ip) = address(ip) else { continue };
            let at_ms = stage.docket.now_ms();
            let asked = inside(&stage.lab, h, || {
                TcpStream::connect_timeout(&SocketAddr::new(ip, API), PROBE_MAX)
            });
            let how = match asked {
                Ok(Ok(_)) => "yes",
                Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => "refused",
                Ok(Err(_)) => "silence",
                // The host lost its network meanwhile.
                Err(_) => continue,
            };
            let reached = Reached { at_ms, cluster: CLUSTER.to_owned(), how };
            stage.docket.lock().story.reached.push(reached);
        }
        stage.docket.rest(EVERY_MS);
    }
}

/// Asks who answers at each address of each VIP, from each host.
///
/// # Errors
/// In words, where somebody else answers than the holder, or nobody.
pub(super) fn holders_answer(stage: &Stage) -> Result<()> {
    let vips = {
        let state = stage.docket.lock();
        newest(&state.seen).map(|s| s.vips.clone()).unwrap_or_default()
    };
    for vip in &vips {
        for ip in vip.addresses.iter().filter_map(|a| address(a)) {
            for h in &stage.lab.hosts {
                let asked = inside(&stage.lab, h, || who(ip))?;
                let by = asked.map_err(|e| format!("{} at {ip} from {}: {e}", vip.name, h.name))?;
                if by != vip.holder {
                    return Err(format!(
                        "from {}, {} at {ip} is answered by {by}, not by {}",
                        h.name, vip.name, vip.holder
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Returns the name of the host that answers at an address, where the API of Kubernetes answers, too.
fn who(ip: IpAddr) -> std::io::Result<String> {
    drop(TcpStream::connect_timeout(&SocketAddr::new(ip, API), ASK_MAX)?);
    let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, NAMES), ASK_MAX)?;
    stream.set_read_timeout(Some(ASK_MAX))?;
    let mut name = String::new();
    BufReader::new(stream).read_line(&mut name)?;
    Ok(name.trim().to_owned())
}
