//! One end of a tunnel: Skein's overlay without daemon and control plane. Shell.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

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
    /// The other end's public key.
    #[arg(long)]
    peer: PublicKey,
    /// Where the other end is reached.
    #[arg(long)]
    endpoint: SocketAddr,
    /// What the other end answers for.
    #[arg(long, value_delimiter = ',')]
    allowed: Vec<IpNet>,
    /// So many more peers that are never heard.
    #[arg(long, default_value_t = 0)]
    silent: u32,
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
        let mut overlay = Overlay::new();
        overlay.apply(vec![spec.clone()]).await.map_err(|e| e.to_string())?;
        loop {
            tokio::time::sleep(LOOK).await;
            overlay.apply(vec![spec.clone()]).await.map_err(|e| e.to_string())?;
        }
    })
}

fn spec(args: &OverlayArgs) -> Result<MeshSpec, String> {
    let text =
        std::fs::read_to_string(&args.key).map_err(|e| format!("{}: {e}", args.key.display()))?;
    let bytes = hex::decode(text.trim()).ok().and_then(|b| b.try_into().ok());
    let key: [u8; 32] =
        bytes.ok_or_else(|| format!("{}: no key of 64 digits", args.key.display()))?;
    let peer = PeerSpec {
        name: "other".into(),
        public_key: args.peer,
        endpoints: vec![args.endpoint],
        allowed_ips: args.allowed.clone(),
        keepalive: Some(25),
    };
    let silent = (0..args.silent).map(|n| {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let [_, a, b, c] = n.to_be_bytes();
        PeerSpec {
            name: format!("silent{n}"),
            public_key: PrivateKey::new(key).public(),
            endpoints: Vec::new(),
            allowed_ips: vec![IpNet::from(IpAddr::from([11, a, b, c]))],
            keepalive: None,
        }
    });
    Ok(MeshSpec {
        generation: 1,
        network: "bench".into(),
        interface: args.interface.clone(),
        private_key: PrivateKey::new(key),
        listen_port: args.port,
        mtu: args.mtu,
        addresses: args.address.clone(),
        prefixes: args.allowed.clone(),
        held: Vec::new(),
        handovers: Vec::new(),
        peers: std::iter::once(peer).chain(silent).collect(),
    })
}
