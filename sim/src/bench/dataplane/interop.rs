//! Skein's tunnel at one end, wireguard-go at the other: `./lab bench interop`. Shell.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::lab::{Lab, wait};
use super::contender::{End, Neighbour, Programs, Running};
use super::figures::Contender;
use super::load;
use crate::lab::say;

/// With how many packet threads Skein has its turns.
const THREADS: [u32; 2] = [1, 4];
/// Skein renews keys after this long, so that it happens while content is sent.
const REKEY_S: u64 = 2;
/// How often keys must have been seen to change.
const REKEYS: usize = 3;
/// How long that may take.
const REKEYS_MAX: Duration = Duration::from_secs(30);

/// Sends content both ways over both families, and sees that keys change meanwhile.
///
/// # Errors
/// When something did not arrive as it was sent, or keys do not change.
pub(crate) fn run(name: &str) -> Result<u8, String> {
    let programs = Programs::find(&[Contender::Skein, Contender::WireguardGo])?;
    let hosts = ["--servers", "2", "--workers", "0", "--k3s", "rehearsal", "--no-daemons"];
    let lab = Lab::up(name, &hosts)?;
    say(programs.versions().join(", "));
    // With several threads as well, on whatever machine this is.
    THREADS.into_iter().try_for_each(|threads| exchange(&lab, &programs, threads))?;
    Ok(0)
}

fn exchange(lab: &Lab, programs: &Programs, threads: u32) -> Result<(), String> {
    let [ours, theirs] = [End::new(lab, 1)?, End::new(lab, 2)?];
    let neighbour = |end| [Neighbour { end, behind: Vec::new() }];
    let options = format!("--rekey-after {REKEY_S} --threads {threads}");
    let pair = (&ours, &neighbour(&theirs)[..], 0);
    let skein = Running::start_with(lab, programs, Contender::Skein, pair, &options)?;
    let stock =
        Running::start(lab, programs, Contender::WireguardGo, (&theirs, &neighbour(&ours), 0))?;
    skein.reaches(&theirs.address())?;
    stock.reaches(&ours.address6())?;
    let mut handshakes = BTreeSet::new();
    for v6 in [false, true] {
        for (from, to, who) in
            [(&ours, &theirs, "Skein to wireguard-go"), (&theirs, &ours, "wireguard-go to Skein")]
        {
            handshakes.insert(stock.latest_handshake()?);
            let mib = load::content(lab, from, to, (v6, u64::from(v6) + 7))?;
            let family = if v6 { "IPv6" } else { "IPv4" };
            say(format!("{who}, {family}, {threads} threads: {mib} MiB arrived as they were sent"));
        }
    }
    wait("keys to change", REKEYS_MAX, || {
        handshakes.insert(stock.latest_handshake()?);
        match handshakes.len().checked_sub(1) {
            Some(changes) if changes >= REKEYS => Ok(()),
            changes => Err(format!("they changed {} times", changes.unwrap_or(0))),
        }
    })?;
    say(format!("keys changed {} times meanwhile", handshakes.len() - 1));
    skein.reaches(&theirs.address()).and_then(|()| stock.reaches(&ours.address()))
}
