//! All overlays of this host: exactly those that the specs name. Shell.

use std::collections::BTreeMap;

use rtnetlink::Handle;

use crate::error::ApplyError;
use crate::io::Packets;
use crate::io::tun::{self, Tun};
use crate::io::udp::Udp;
use crate::link::netlink;
use crate::spec::MeshSpec;
use crate::tunnel::{Drops, PeerStatus};

/// The overlays of this host. One task owns it.
#[derive(Debug, Default)]
pub struct Overlay {
    meshes: BTreeMap<String, Running>,
    netlink: Option<(Handle, tokio::task::JoinHandle<()>)>,
}

#[derive(Debug)]
struct Running {
    spec: MeshSpec,
    packets: Packets,
}

/// How one overlay stands.
#[derive(Clone, Debug)]
pub struct MeshStatus {
    /// The network's name.
    pub network: String,
    /// The device.
    pub interface: String,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
    /// What was dropped, by reason.
    pub drops: Drops,
}

impl Overlay {
    /// Makes the handle; nothing is touched until specs come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes exactly these overlays exist, with their addresses and routes. Idempotent.
    ///
    /// # Errors
    /// The first thing that could not be done; the rest was still tried, and a repetition tries again.
    pub async fn apply(&mut self, specs: Vec<MeshSpec>) -> Result<(), ApplyError> {
        let mut first_error = None;
        let gone: Vec<String> = self
            .meshes
            .keys()
            .filter(|name| !specs.iter().any(|s| s.interface == **name))
            .cloned()
            .collect();
        for name in gone {
            self.meshes.remove(&name);
            if let Err(e) = tun::remove(&name) {
                first_error.get_or_insert(e);
            }
        }
        for spec in specs {
            if let Err(e) = self.apply_one(spec).await {
                first_error.get_or_insert(e);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn apply_one(&mut self, spec: MeshSpec) -> Result<(), ApplyError> {
        let name = spec.interface.clone();
        let handle = self.handle(&name)?;
        let restart = self.meshes.get(&name).is_none_or(|r| r.spec.listen_port != spec.listen_port)
            || !device_exists(&name);
        if restart {
            self.meshes.remove(&name);
            let tun = Tun::open(&name)?;
            let udp = Udp::bind(spec.listen_port)?;
            let packets = Packets::start(&name, tun, udp)
                .map_err(|source| ApplyError::Tun { name: name.clone(), source })?;
            let running = Running { spec: spec.clone(), packets };
            if !running.packets.set_spec(spec.clone()) {
                return Err(ApplyError::Ended(name));
            }
            self.meshes.insert(name.clone(), running);
        }
        if let Some(running) = self.meshes.get_mut(&name)
            && !same(&running.spec, &spec)
        {
            if !running.packets.set_spec(spec.clone()) {
                self.meshes.remove(&name);
                return Err(ApplyError::Ended(name));
            }
            running.spec = spec.clone();
        }
        netlink::apply(&handle, &spec).await
    }

    fn handle(&mut self, name: &str) -> Result<Handle, ApplyError> {
        if let Some((handle, _)) = &self.netlink {
            return Ok(handle.clone());
        }
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| ApplyError::Link {
                name: name.to_owned(),
                what: "opening netlink".into(),
                why: e.to_string(),
            })?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the connection's task is owned and ended by this struct"
        )]
        let task = tokio::spawn(connection);
        self.netlink = Some((handle.clone(), task));
        Ok(handle)
    }

    /// Returns how the overlays stand.
    pub fn status(&self) -> Vec<MeshStatus> {
        let status = |r: &Running| {
            let (peers, drops) = r.packets.status()?;
            let (network, interface) = (r.spec.network.clone(), r.spec.interface.clone());
            Some(MeshStatus { network, interface, peers, drops })
        };
        self.meshes.values().filter_map(status).collect()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.netlink {
            task.abort();
        }
    }
}

/// Tells whether the packet thread would notice a difference.
fn same(a: &MeshSpec, b: &MeshSpec) -> bool {
    a.peers == b.peers && a.private_key == b.private_key
}

fn device_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}
