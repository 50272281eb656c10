//! Founding a fleet and joining one: what `skein init` and `skein join` do before the daemon runs. Shell.
//!
//! Both can be killed at any point: the same command again completes what was begun.

use std::path::Path;
use std::time::Duration;

use api::client::ApiError;
use api::proto::RedeemRequest;
use api::secrets::CA_KEY;
use api::status::detail;
use api::ticket::JoinTicket;
use ipnet::{Ipv4Net, Ipv6Net};
use raft_store::apply::{Command, FoundFleet, NewNode, Outcome, Proposal};
use raft_store::model::{FOUNDER, Name, NodeId, RequestId, default_pools, overlap4};
use raft_store::raft::{
    Frame, Profile, Store, StoreConfig, Transport, TransportError, is_in_use, is_put_aside,
};
use raft_store::rt;
use raft_store::seal::FleetKey;
use uuid::Uuid;

use crate::env::Machine;
use crate::identity::{Identity, IdentityError, Membership};
use crate::whereabouts::{Book, Record};

/// The first network's name.
const NETWORK: &str = "default";
/// How long the founding command may take: one fsync, on a slow disk.
const FOUND_MAX: Duration = Duration::from_secs(20);

/// What `skein init` was asked for.
#[derive(Clone, Debug)]
pub struct Init {
    /// The node's name.
    pub name: Name,
    /// The pool of overlay IPv4 addresses, if it was chosen by hand.
    pub ipv4_pool: Option<Ipv4Net>,
    /// How many voters to aim for.
    pub voters: u8,
}

fn fail(what: &str, why: impl std::fmt::Display, next: &str) -> ApiError {
    detail("failed", what, why.to_string(), next).into()
}

fn identity_error(what: &'static str) -> impl Fn(IdentityError) -> ApiError {
    move |e| {
        let next = e.next();
        fail(what, e, next)
    }
}

/// A founder has nobody to talk to yet.
#[derive(Clone)]
struct Alone;

impl Transport for Alone {
    async fn call(&self, to: u64, _: Frame, _: Duration) -> Result<Frame, TransportError> {
        Err(TransportError::Unreachable(format!("node {to}: the fleet is being founded")))
    }
}

/// Returns so many random bytes, at most 32.
fn random<const N: usize>(machine: &impl Machine) -> [u8; N] {
    let bytes = machine.random();
    std::array::from_fn(|i| bytes[i])
}

fn new_uuid(machine: &impl Machine) -> Uuid {
    uuid::Builder::from_random_bytes(random(machine)).into_uuid()
}

fn load_identity(
    machine: &impl Machine,
    dir: &Path,
    what: &'static str,
) -> Result<Identity, ApiError> {
    let tls_key = machine.pki().make_key().map_err(|e| fail(what, e, "run the command again"))?;
    let fill = |bytes: &mut [u8]| {
        for (to, from) in bytes.chunks_mut(32).zip(std::iter::repeat_with(|| machine.random())) {
            to.copy_from_slice(&from[..to.len()]);
        }
    };
    let identity = Identity::load_or_create(machine.files(), dir, fill, || tls_key);
    identity.map_err(identity_error(what))
}

/// Founds a fleet on this machine; done already is fine if the name is the same.
///
/// # Errors
/// When this machine is a member of something else, or its disk refuses.
pub async fn init(machine: &impl Machine, dir: &Path, init: &Init) -> Result<Identity, ApiError> {
    const WHAT: &str = "no fleet was founded";
    let mut identity = load_identity(machine, dir, WHAT)?;
    if let Ok(m) = identity.membership() {
        if m.node == FOUNDER && m.name == init.name {
            return Ok(identity);
        }
        let why = format!("this machine is {} in a fleet already", m.name);
        return Err(fail(
            WHAT,
            why,
            "to leave it, run `skein node leave`, then empty /var/lib/skein",
        ));
    }
    let pool = choose_pool(&machine.routes(), init.ipv4_pool)?;
    // Raft's store is bound to the fleet's id, so an interrupted founding keeps the one it began with.
    let fleet = identity.request();
    let config = StoreConfig { id: FOUNDER.0, fleet, profile: Profile::Lan };
    let open = Store::open_on(machine.disks(), dir, &config, Alone).await;
    let store = open.map_err(|e| {
        let next = e.next(init.name.as_str());
        fail(WHAT, e, &next)
    })?;
    let result = found(machine, &store, &identity, init, pool).await;
    store.stop().await;
    drop(store);
    // Raft's tasks let go of the store a moment after its end, and the daemon is to open it next.
    for _ in 0..100 {
        if !is_in_use(machine.disks(), dir) {
            break;
        }
        rt::sleep(Duration::from_millis(20)).await;
    }
    result?;
    let membership = Membership { fleet, node: FOUNDER, name: init.name.clone() };
    let cert = identity.cert_pem(machine.files()).map_err(identity_error(WHAT))?;
    let ca = identity.ca_pem(machine.files()).map_err(identity_error(WHAT))?;
    identity.enter(machine.files(), &cert, &ca, membership).map_err(identity_error(WHAT))?;
    Ok(identity)
}

async fn found(
    machine: &impl Machine,
    store: &Store<Alone>,
    identity: &Identity,
    init: &Init,
    pool: Ipv4Net,
) -> Result<(), ApiError> {
    const WHAT: &str = "no fleet was founded";
    let fleet = identity.request();
    let failed = |e: &dyn std::fmt::Display| fail(WHAT, e, "run `skein init` again");
    store.found(identity.uuid()).await.map_err(|e| failed(&e))?;
    // A single voter leads at once; what an earlier attempt committed is applied by then.
    store.read_linear(FOUND_MAX).await.map_err(|e| failed(&e))?;
    if let Some(founder) = store.state().nodes.get(&FOUNDER) {
        if founder.name == init.name {
            return Ok(());
        }
        let why = format!("an interrupted `skein init` named this machine {}", founder.name);
        return Err(fail(WHAT, why, &format!("skein init --name {}", founder.name)));
    }
    let at = machine.wall();
    let now_s = at.0 / 1000;
    let pki = machine.pki();
    let ca = pki.make_ca(fleet, now_s).map_err(|e| failed(&e))?;
    let authority = pki.authority(&ca.cert_pem, &ca.key_pem).map_err(|e| failed(&e))?;
    let csr = pki.make_csr(identity.tls_key_pem()).map_err(|e| failed(&e))?;
    let cert = authority.sign_node(&csr, fleet, identity.uuid(), now_s).map_err(|e| failed(&e))?;
    // The papers come first: a fleet whose founder lost its certificate could not be entered.
    let put = identity.put_papers(machine.files(), &cert, &ca.cert_pem);
    put.map_err(identity_error(WHAT))?;
    let key = FleetKey::from_bytes(machine.random());
    let sealing = identity.sealing_public();
    let network = NETWORK.parse().map_err(|e: raft_store::model::InvalidName| failed(&e))?;
    let command = Command::FoundFleet(FoundFleet {
        id: fleet,
        ca_cert: ca.cert_pem.clone(),
        ca_key: key.seal(CA_KEY, ca.key_pem.as_bytes(), random(machine)),
        ipv4_pool: pool,
        ula: ula(random(machine)),
        voters: init.voters,
        network,
        node: new_node(identity, &init.name),
        key_box: key.boxed(&sealing, machine.random(), random(machine)),
    });
    let proposal =
        Proposal { request: RequestId(new_uuid(machine)), at, by: "local".into(), command };
    match store.propose(&proposal, FOUND_MAX).await.map_err(|e| failed(&e))?.1 {
        Outcome::Rejected { rejection } => Err(failed(&rejection)),
        _ => Ok(()),
    }
}

fn new_node(identity: &Identity, name: &Name) -> NewNode {
    NewNode {
        uuid: identity.uuid(),
        name: name.clone(),
        wireguard: identity.wireguard_public(),
        sealing: identity.sealing_public(),
    }
}

/// Makes a fleet's /48: fd00::/8 and 40 random bits (RFC 4193, section 3.1).
fn ula(random: [u8; 5]) -> Ipv6Net {
    let mut address = [0u8; 16];
    address[0] = 0xfd;
    address[1..6].copy_from_slice(&random);
    Ipv6Net::new(address.into(), 48).expect("48 is a prefix length")
}

/// Takes the wanted pool, or the first default one that no route of this host uses.
fn choose_pool(routes: &[Ipv4Net], wanted: Option<Ipv4Net>) -> Result<Ipv4Net, ApiError> {
    const WHAT: &str = "no fleet was founded";
    let clash = |pool: &Ipv4Net| routes.iter().find(|r| overlap4(**r, *pool)).copied();
    match wanted {
        Some(pool) => {
            let pool = pool.trunc();
            let k3s: Ipv4Net =
                Ipv4Net::new([10, 42, 0, 0].into(), 15).expect("15 is a prefix length");
            let shared: Ipv4Net =
                Ipv4Net::new([100, 64, 0, 0].into(), 10).expect("10 is a prefix length");
            if let Some(route) = clash(&pool) {
                let why = format!("--ipv4-pool {pool} clashes with this host's route {route}");
                return Err(fail(
                    WHAT,
                    why,
                    "choose a private range that no machine of the fleet uses, such as --ipv4-pool 10.90.0.0/16",
                ));
            }
            if overlap4(pool, k3s) || overlap4(pool, shared) {
                let why = format!(
                    "--ipv4-pool {pool} overlaps K3s' own ranges (10.42.0.0/15) or 100.64.0.0/10, which other overlays drop"
                );
                return Err(fail(
                    WHAT,
                    why,
                    "choose another private range, such as --ipv4-pool 10.90.0.0/16",
                ));
            }
            if !(8..=24).contains(&pool.prefix_len()) {
                let why =
                    format!("--ipv4-pool {pool} is too small or too large: /8 to /24 are possible");
                return Err(fail(WHAT, why, "leave --ipv4-pool out to have one chosen"));
            }
            Ok(pool)
        }
        None => default_pools().find(|p| clash(p).is_none()).ok_or_else(|| {
            fail(
                WHAT,
                "every default IPv4 pool clashes with a route of this host",
                "choose one by hand: --ipv4-pool 172.20.0.0/16",
            )
        }),
    }
}

/// Gives up an identity that no fleet takes back: its store was put aside, or its node was removed.
fn forget_what_was(machine: &impl Machine, dir: &Path, what: &'static str) -> Result<(), ApiError> {
    let identity = match Identity::load(machine.files(), dir) {
        Ok(identity) => identity,
        Err(IdentityError::Missing(_)) => return Ok(()),
        Err(e) => return Err(identity_error(what)(e)),
    };
    let Ok(m) = identity.membership() else { return Ok(()) };
    let unusable = |e: std::io::Error| fail(what, e, "mend the state folder, or empty it");
    let aside = is_put_aside(machine.disks(), dir, m.fleet, m.node.0).map_err(unusable)?;
    let removed = Book::load(machine.files(), &dir.join("whereabouts.json")).removed();
    if !aside && !removed {
        return Ok(());
    }
    if is_in_use(machine.disks(), dir) {
        let why = format!("the daemon of {}, its former self, still runs here", m.name);
        return Err(fail(what, why, "stop it, and run the command again: systemctl stop skein"));
    }
    if removed && !aside {
        // Nothing in it counts any more, and the next node's store has another owner.
        machine.files().remove(&dir.join("store")).map_err(unusable)?;
    }
    tracing::warn!(was = %m.name, "this machine's former identity is given up");
    Identity::forget(machine.files(), dir).map_err(identity_error(what))
}

/// What came of a join.
#[derive(Debug)]
pub struct Joined {
    /// The machine's identity, a member's now.
    pub identity: Identity,
    /// A route of this machine that overlaps the fleet's IPv4 pool, and the pool.
    pub clash: Option<(Ipv4Net, Ipv4Net)>,
}

/// Joins a fleet with a ticket; done already is fine if it is the same fleet and name.
///
/// # Errors
/// When the ticket is refused, no member answers, or this machine's disk refuses.
pub async fn join(
    machine: &impl Machine,
    dir: &Path,
    ticket: &JoinTicket,
    name: &Name,
    replaces: Option<&Name>,
) -> Result<Joined, ApiError> {
    const WHAT: &str = "this machine did not join";
    forget_what_was(machine, dir, WHAT)?;
    let mut identity = load_identity(machine, dir, WHAT)?;
    if let Ok(m) = identity.membership() {
        if m.fleet == ticket.fleet && m.name == *name {
            return Ok(Joined { identity, clash: None });
        }
        let same = if m.fleet == ticket.fleet { "this fleet" } else { "another fleet" };
        let why = format!("it is {} in {same} already", m.name);
        return Err(fail(WHAT, why, "to start anew, stop the daemon and empty /var/lib/skein"));
    }
    let csr = machine.pki().make_csr(identity.tls_key_pem());
    let csr_pem = csr.map_err(|e| fail(WHAT, e, "run the command again"))?;
    let request = RedeemRequest {
        ticket: ticket.id,
        secret: ticket.secret.to_vec(),
        name: name.to_string(),
        uuid: identity.uuid().to_string(),
        csr_pem,
        wireguard_key: identity.wireguard_public().to_string(),
        sealing_key: identity.sealing_public().to_string(),
        replaces: replaces.map(ToString::to_string).unwrap_or_default(),
        // Not the stored id alone: an attempt that was refused must not be answered from memory.
        request_id: new_uuid(machine).to_string(),
    };
    let answer = machine.redeem(ticket, request).await?;
    let pool: Option<Ipv4Net> = answer.ipv4_pool.parse().ok();
    let clash = pool.and_then(|pool| {
        let route = machine.routes().into_iter().find(|r| overlap4(*r, pool))?;
        Some((route, pool))
    });
    let members = answer.members.iter().filter_map(|w| {
        Some(Record {
            uuid: w.uuid.parse().ok()?,
            node: w.node,
            incarnation: w.incarnation,
            seq: w.seq,
            addresses: w.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        })
    });
    let mut book = Book::load(machine.files(), &dir.join("whereabouts.json"));
    book.merge(members);
    for endpoint in &ticket.endpoints {
        book.hint(*endpoint);
    }
    let saved = book.save(machine.files());
    saved.map_err(|e| fail(WHAT, e, "make room on the disk and run the command again"))?;
    let membership =
        Membership { fleet: ticket.fleet, node: NodeId(answer.node_id), name: name.clone() };
    let (cert, ca) = (&answer.certificate_pem, &answer.ca_pem);
    let entered = identity.enter(machine.files(), cert, ca, membership);
    entered.map_err(identity_error(WHAT))?;
    Ok(Joined { identity, clash })
}
