//! What is carried through a tunnel: iperf3's streams, ping's packets, and content. Shell.

use std::process::Stdio;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use super::super::lab::{Lab, wait};
use super::super::proc::own_ticks;
use super::contender::{End, Running};
use super::figures::{self, Beside, Load, Trips};
use crate::beside::beside;

/// Round trips are taken this often, in seconds, as ping(8) reads it.
const PING_EVERY: &str = "0.01";
/// Payload of a datagram that fits an MTU of 1420 bytes over IPv4, in bytes.
const DATAGRAM: &str = "1372";
/// How much content is sent in one direction, in MiB.
const CONTENT_MIB: u64 = 100;
const CONTENT_PORT: u16 = 7_100;
/// A load has its full rate by then.
const WARM_UP: Duration = Duration::from_millis(500);

/// Sends one load; returns Gbit/s, percent lost, and the processor seconds per GB of each of the processes.
pub(super) fn flow(
    lab: &Lab,
    from: &End,
    to: &End,
    (load, seconds): (Load, u64),
    running: &[Running<'_>],
) -> Result<(f64, f64, Vec<f64>), String> {
    let (address, seconds) = (to.address(), seconds.to_string());
    let mut command = vec!["iperf3", "--client", &address, "--time", &seconds, "--json"];
    command.extend(match load {
        Load::Tcp1 => &[][..],
        Load::Tcp4 => &["--parallel", "4"],
        Load::UdpFixed => &["--udp", "--length", DATAGRAM, "--bandwidth", "200M"],
        Load::UdpMax => &["--udp", "--length", DATAGRAM, "--bandwidth", "0"],
    });
    let ticks = || -> Result<Vec<u64>, String> {
        let of = |r: &Running<'_>| {
            own_ticks(&r.process()?.0).ok_or_else(|| "/proc was not understood".to_owned())
        };
        running.iter().map(of).collect()
    };
    let before = ticks()?;
    let said = lab.run(from.host, &command)?;
    let after = ticks()?;
    let (bits, bytes, lost) = figures::iperf(&said)?;
    let per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let cpu = |(before, after): (&u64, &u64)| {
        (after - before) as f64 / per_s as f64 / (bytes / 1e9).max(f64::EPSILON)
    };
    Ok((bits / 1e9, lost, before.iter().zip(&after).map(cpu).collect()))
}

/// Takes round trips beside a load.
pub(super) fn trips(
    lab: &Lab,
    from: &End,
    to: &End,
    (beside, seconds): (Beside, u64),
) -> Result<Trips, String> {
    let (address, count) = (to.address(), (seconds * 100).to_string());
    // Longer than the pings, and ended with them.
    let time = (seconds + 3).to_string();
    let mut load = match beside {
        Beside::Idle => None,
        Beside::Paced | Beside::Bulk => {
            let mut args = vec!["exec", from.host, "--", "iperf3", "--client", &address];
            args.extend(["--time", &time]);
            if beside == Beside::Paced {
                args.extend(["--bandwidth", "200M"]);
            }
            let child = lab.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            Some(child.map_err(|e| format!("iperf3: {e}"))?)
        }
    };
    std::thread::sleep(WARM_UP);
    let ping = ["ping", "-c", &count, "-i", PING_EVERY, "-W", "1", &address];
    let said = lab.run(from.host, &ping);
    if let Some(load) = &mut load {
        let ended = load.wait().map_err(|e| format!("iperf3: {e}"))?;
        if !ended.success() {
            return Err(format!("iperf3 {}: {ended}", beside.title()));
        }
    }
    Ok(figures::trips(&said?))
}

/// Sends content and compares what arrived; returns how many MiB it were.
pub(super) fn content(
    lab: &Lab,
    from: &End,
    to: &End,
    (v6, seed): (bool, u64),
) -> Result<u64, String> {
    let program = beside("skein-bench", "no content was sent")?.display().to_string();
    let at = if v6 {
        format!("[{}]:{CONTENT_PORT}", to.address6())
    } else {
        format!("{}:{CONTENT_PORT}", to.address())
    };
    let receives = lab
        .command(&["exec", to.host, "--", &program, "receive", "--listen", &at])
        .stdout(Stdio::piped())
        .spawn();
    let receives = receives.map_err(|e| format!("{program}: {e}"))?;
    let port = format!("( sport = :{CONTENT_PORT} )");
    wait("the receiver to listen", Duration::from_secs(10), || {
        let sockets = lab.run(to.host, &["ss", "-Hltn", &port])?;
        if sockets.trim().is_empty() { Err("not yet".into()) } else { Ok(()) }
    })?;
    let (mib, seed) = (CONTENT_MIB.to_string(), seed.to_string());
    let send = [&program, "send", "--to", &at, "--mib", &mib, "--seed", &seed];
    let sent = lab.run(from.host, &send)?;
    let received = receives.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
    let received = String::from_utf8_lossy(&received.stdout);
    if sent.trim().len() != 64 || sent.trim() != received.trim() {
        return Err(format!(
            "content did not arrive as it was: {} became {}",
            sent.trim(),
            received.trim()
        ));
    }
    Ok(CONTENT_MIB)
}
