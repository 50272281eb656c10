//! Who carries packets: how each is started in a host, given its peers, and ended. Shell.

use std::path::PathBuf;
use std::time::Duration;

use sdwan::{PrivateKey, PublicKey};

use super::super::lab::{Lab, wait};
use super::figures::Contender;
use crate::beside::beside;
use crate::lab::peers::{self, Peer};

/// The MTU that WireGuard's own tools give a tunnel over Ethernet, in bytes.
pub(super) const MTU: u16 = 1420;
const PORT: u16 = 51_820;
/// How long a tunnel may take until packets pass.
const UP_MAX: Duration = Duration::from_secs(20);
/// What a contender's files are called in a host.
const PID: &str = "/run/bench.pid";
const KEY: &str = "/run/bench.key";
const CONFIG: &str = "/run/bench.conf";

/// The programs that are measured.
pub(super) struct Programs {
    skein: PathBuf,
    wireguard_go: Option<Peer>,
    boringtun: Option<Peer>,
}

impl Programs {
    /// Finds what these contenders need, building it if need be.
    pub(super) fn find(contenders: &[Contender]) -> Result<Self, String> {
        let wants = |c: Contender| contenders.contains(&c);
        let boringtun = wants(Contender::Boringtun) || wants(Contender::BoringtunThreads);
        Ok(Self {
            skein: beside("skein-bench", "nothing was measured")?,
            wireguard_go: wants(Contender::WireguardGo).then(peers::wireguard_go).transpose()?,
            boringtun: boringtun.then(peers::boringtun).transpose()?,
        })
    }

    /// The versions of what is not ours.
    pub(super) fn versions(&self) -> Vec<String> {
        [&self.wireguard_go, &self.boringtun]
            .into_iter()
            .flatten()
            .map(|p| p.version.clone())
            .collect()
    }

    fn line(&self, contender: Contender, device: &str) -> Result<String, String> {
        let missing = || format!("{} was not looked for", contender.title());
        let of = |peer: &Option<Peer>| {
            Ok::<_, String>(peer.as_ref().ok_or_else(missing)?.binary.display().to_string())
        };
        Ok(match contender {
            Contender::Skein => self.skein.display().to_string(),
            Contender::WireguardGo => format!("{} -f {device}", of(&self.wireguard_go)?),
            Contender::Boringtun | Contender::BoringtunThreads => {
                let threads = if contender == Contender::Boringtun { 1 } else { 4 };
                format!(
                    "{} -f --disable-drop-privileges -t {threads} {device}",
                    of(&self.boringtun)?
                )
            }
        })
    }
}

/// A host's end of tunnels: its key, and its addresses by its number.
#[derive(Clone)]
pub(super) struct End {
    /// The host.
    pub(super) host: &'static str,
    number: u8,
    key: [u8; 32],
    underlay: String,
}

impl End {
    /// The end of the host with this number.
    pub(super) fn new(lab: &Lab, number: u8) -> Result<Self, String> {
        let host = ["n1", "n2", "n3"][usize::from(number) - 1];
        let underlay = lab.address(host, "eth0", false)?;
        Ok(Self { host, number, key: [number; 32], underlay })
    }

    /// Its address in the tunnel.
    pub(super) fn address(&self) -> String {
        format!("10.99.0.{}", self.number)
    }

    /// The same of IPv6.
    pub(super) fn address6(&self) -> String {
        format!("fd99::{}", self.number)
    }

    fn public(&self) -> PublicKey {
        PrivateKey::new(self.key).public()
    }

    fn hosts(&self) -> String {
        format!("{}/32,{}/128", self.address(), self.address6())
    }
}

/// Another end as one sees it: where it is, and for whom it answers.
pub(super) struct Neighbour<'e> {
    /// The one at the other end.
    pub(super) end: &'e End,
    /// Those who are reached through it.
    pub(super) behind: Vec<&'e End>,
}

impl Neighbour<'_> {
    fn allowed(&self) -> String {
        let all = std::iter::once(self.end).chain(self.behind.iter().copied());
        all.map(End::hosts).collect::<Vec<_>>().join(",")
    }
}

/// A contender that runs in a host; ended when it is dropped.
pub(super) struct Running<'l> {
    lab: &'l Lab,
    host: &'static str,
    device: String,
}

impl<'l> Running<'l> {
    /// Starts a contender in a host.
    pub(super) fn start(
        lab: &'l Lab,
        programs: &Programs,
        contender: Contender,
        (me, neighbours, silent): (&End, &[Neighbour<'_>], u32),
    ) -> Result<Self, String> {
        Self::start_with(lab, programs, contender, (me, neighbours, silent), "")
    }

    /// As above; Skein gets these options, too.
    pub(super) fn start_with(
        lab: &'l Lab,
        programs: &Programs,
        contender: Contender,
        (me, neighbours, silent): (&End, &[Neighbour<'_>], u32),
        options: &str,
    ) -> Result<Self, String> {
        let device = if contender == Contender::Skein { "wg-sdwan-bench0" } else { "bench0" };
        let running = Self { lab, host: me.host, device: device.into() };
        let program = programs.line(contender, device)?;
        let start =
            |line: &str| lab.detach(me.host, &format!("sh -c 'echo $$ >{PID}; exec {line}'"));
        if contender == Contender::Skein {
            running.write(KEY, &hex::encode(me.key))?;
            let (address, address6) = (me.address(), me.address6());
            let mut line = format!(
                "{program} overlay --interface {device} --key {KEY} --port {PORT} --mtu {MTU} \
                 --address {address},{address6} --prefix 10.99.0.0/24,fd99::/64 --silent {silent} {options}"
            );
            for n in neighbours {
                let (key, at) = (n.end.public(), &n.end.underlay);
                line += &format!(" --peer {key}@{at}:{PORT}={}", n.allowed());
            }
            start(&line)?;
        } else {
            start(&program)?;
            running.configure(me, neighbours, silent)?;
        }
        Ok(running)
    }

    fn write(&self, path: &str, text: &str) -> Result<(), String> {
        let write = format!("umask 077; cat >{path} <<'END'\n{text}\nEND\n");
        self.lab.run(self.host, &["sh", "-c", &write]).map(drop)
    }

    /// Does what WireGuard's tools do for its users.
    fn configure(&self, me: &End, neighbours: &[Neighbour<'_>], silent: u32) -> Result<(), String> {
        use base64::Engine as _;
        use std::fmt::Write as _;

        let (lab, host, device) = (self.lab, self.host, self.device.as_str());
        let key = base64::engine::general_purpose::STANDARD.encode(me.key);
        let mut text = format!("[Interface]\nPrivateKey = {key}\nListenPort = {PORT}\n");
        for n in neighbours {
            let _ = write!(
                text,
                "[Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}\nPersistentKeepalive = 25\n",
                n.end.public(),
                n.end.underlay,
                n.allowed()
            );
        }
        for (key, allowed) in super::end::silent(silent) {
            let _ = write!(text, "[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}\n");
        }
        self.write(CONFIG, &text)?;
        wait("the device", UP_MAX, || {
            lab.run(host, &["wg", "show", device, "listen-port"]).map(drop)
        })?;
        lab.run(host, &["wg", "setconf", device, CONFIG])?;
        let up = format!(
            "ip addr add {}/24 dev {device} && ip addr add {}/64 dev {device} nodad && \
             ip link set {device} mtu {MTU} up",
            me.address(),
            me.address6()
        );
        lab.run(host, &["sh", "-c", &up]).map(drop)
    }

    /// Waits until packets pass to an address.
    pub(super) fn reaches(&self, address: &str) -> Result<(), String> {
        wait("packets to pass", UP_MAX, || {
            self.lab.run(self.host, &["ping", "-c", "1", "-W", "1", address]).map(drop)
        })
    }

    /// When keys were agreed last, as WireGuard's tools tell it; not of Skein.
    pub(super) fn latest_handshake(&self) -> Result<String, String> {
        self.lab.run(self.host, &["wg", "show", &self.device, "latest-handshakes"])
    }

    /// What the kernel says of the process: `/proc/PID/stat` and `/proc/PID/status`.
    pub(super) fn process(&self) -> Result<(String, String), String> {
        let read = |file: &str| {
            self.lab.run(self.host, &["sh", "-c", &format!("cat /proc/$(cat {PID})/{file}")])
        };
        Ok((read("stat")?, read("status")?))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let end = format!(
            "kill $(cat {PID}); for i in 1 2 3 4 5 6 7 8 9; do kill -0 $(cat {PID}) || break; sleep 0.1; done; \
             kill -9 $(cat {PID}); ip link del {}",
            self.device
        );
        // What is gone already is not there to be removed.
        let _ = self.lab.run(self.host, &["sh", "-c", &end]);
    }
}

/// Times one change among `many` peers in a host, in milliseconds.
pub(super) fn change(
    lab: &Lab,
    programs: &Programs,
    (me, other): (&End, &End),
    many: u32,
) -> Result<f64, String> {
    let program = programs.skein.display();
    let write = format!("umask 077; echo {} >{KEY}", hex::encode(me.key));
    let line = format!(
        "{write}; {program} overlay --interface wg-sdwan-bench0 --key {KEY} --port {PORT} --address {} \
         --prefix 10.99.0.0/24 --peer {}@{}:{PORT}={} --silent {} --change; s=$?; ip link del wg-sdwan-bench0; exit $s",
        me.address(),
        other.public(),
        other.underlay,
        other.hosts(),
        many - 1
    );
    let said = lab.run(me.host, &["sh", "-c", &line])?;
    said.trim().parse().map_err(|_| format!("the change was not timed: {}", said.trim()))
}
