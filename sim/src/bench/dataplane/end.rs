//! One end of tunnels: Skein's overlay without daemon and control plane. Shell.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;
use sdwan::{MeshSpec, Overlay, PeerSpec, PrivateKey, PublicKey};

/// How often it looks whether its devices are as they should be.
const LOOK: Duration = Duration::from_secs(1);

/// `skein-bench overlay`.
#[derive(Debug, Args)]
pub struct OverlayArgs {
    /// The device's name.
    #[arg(long)]
    interface: String,
    /// A file with this end's private key, 64 hexadecimal digits.
    #[arg(long)]
    key: PathBuf,
    /// The UDP port to listen on.
    #[arg(long)]
    port: u16,
    /// The device's MTU, in bytes.
    #[arg(long, default_value_t = 1420)]
    mtu: u16,
    /// This end's addresses in the tunnel.
    #[arg(long, value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// What is reached over the device.
    #[arg(long, value_delimiter = ',')]
    prefix: Vec<IpNet>,
    /// Another end: its public key, where it is, and what it answers for.
    #[arg(long, value_name = "KEY@ENDPOINT=NET,NET")]
    peer: Vec<Other>,
    /// So many more peers that are never heard.
    #[arg(long, default_value_t = 0)]
    silent: u32,
    /// Renew keys after so many seconds already.
    #[arg(long)]
    rekey_after: Option<u64>,
    /// Let so many threads carry the packets.
    #[arg(long)]
    threads: Option<u32>,
    /// Change one peer among all after a second, say how long that took, and end.
    #[arg(long)]
    change: bool,
}

/// Another end.
#[derive(Clone, Debug)]
struct Other {
    key: PublicKey,
    at: SocketAddr,
    allowed: Vec<IpNet>,
}

impl FromStr for Other {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("{text}: KEY@ENDPOINT=NET,NET is wanted");
        let (key, rest) = text.split_once('@').ok_or_else(wanted)?;
        let (at, allowed) = rest.split_once('=').ok_or_else(wanted)?;
        let allowed = allowed.split(',').map(|net| net.parse::<IpNet>().map_err(|e| e.to_string()));
        Ok(Self {
            key: key.parse().map_err(|e| format!("{key}: {e}"))?,
            at: at.parse().map_err(|e| format!("{at}: {e}"))?,
            allowed: allowed.collect::<Result<_, _>>()?,
        })
    }
}

/// Peers that are never heard: each one's key, and what it answers for.
pub(super) fn silent(count: u32) -> impl Iterator<Item = (PublicKey, IpNet)> {
    (0..count).map(|n| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let [_, a, b, c] = n.to_be_bytes();
        (PrivateKey::new(key).public(), IpNet::from(IpAddr::from([11, a, b, c])))
    })
}

/// Runs until it is ended.
///
/// # Errors
/// When the key cannot be read or the device cannot be made.
pub fn run(args: &OverlayArgs) -> Result<u8, String> {
    let spec = spec(args)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(|e| format!("no runtime: {e}"))?;
    runtime.block_on(async {
        let rekey = args.rekey_after.map(Duration::from_secs);
        let overlay = rekey.into_iter().fold(Overlay::new(), Overlay::with_rekey);
        let mut overlay = args.threads.into_iter().fold(overlay, Overlay::with_threads);
        overlay.apply(vec![spec.clone()]).await.map_err(|e| e.to_string())?;
        if args.change {
            return change(&mut overlay, spec).await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            overlay.apply(vec![spec.clone()]).await.map_err(|e| e.to_string())?;
        }
    })
}

/// Times one change, until the packet thread has it: mail is read in order, so that an answer comes after it.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
async fn change(overlay: &mut Overlay, mut spec: MeshSpec) -> Result<u8, String> {
    tokio::time::sleep(LOOK).await;
    let peer = Arc::make_mut(&mut spec.peers).last_mut().ok_or("there is no peer to change")?;
    peer.allowed_ips.push(IpNet::from(IpAddr::from([12, 0, 0, 1])));
    spec.generation += 1;
    let (peers, began) = (spec.peers.len(), Instant::now());
    overlay.apply(vec![spec]).await.map_err(|e| e.to_string())?;
    let seen = overlay.status().await;
    let took = began.elapsed();
    if seen.first().is_none_or(|mesh| mesh.peers.len() != peers) {
        return Err("the packet thread did not answer".into());
    }
    crate::lab::print(format!("{:.3}", took.as_secs_f64() * 1e3));
    Ok(0)
}

fn spec(args: &OverlayArgs) -> Result<MeshSpec, String> {
    let text =
        std::fs::read_to_string(&args.key).map_err(|e| format!("{}: {e}", args.key.display()))?;
    let bytes = hex::decode(text.trim()).ok().and_then(|b| b.try_into().ok());
    let key: [u8; 32] =
        bytes.ok_or_else(|| format!("{}: no key of 64 digits", args.key.display()))?;
    let others = args.peer.iter().map(|other| PeerSpec {
        name: other.at.to_string(),
        public_key: other.key,
        endpoints: vec![other.at],
        allowed_ips: other.allowed.clone(),
        keepalive: Some(25),
    });
    let silent = silent(args.silent).map(|(public_key, allowed)| PeerSpec {
        name: format!("silent {allowed}"),
        public_key,
        endpoints: Vec::new(),
        allowed_ips: vec![allowed],
        keepalive: None,
    });
    Ok(MeshSpec {
        generation: 1,
        network: "bench".into(),
        interface: args.interface.clone(),
        private_key: PrivateKey::new(key),
        listen_port: args.port,
        mtu: args.mtu,
        addresses: args.address.clone(),
        prefixes: args.prefix.clone(),
        held: Vec::new(),
        handovers: Vec::new(),
        peers: Arc::new(others.chain(silent).collect()),
    })
}
