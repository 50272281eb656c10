//! A register that clients write to: a plain WireGuard device of the first network, whose key is the value. Shell.

use api::proto::networks_client::NetworksClient;
use api::proto::{AddPeerRequest, GetNetworkRequest, RemovePeerRequest};
use raft_store::model::PublicKey;
use tonic::Code;
use tonic::body::Body as Sent;
use tonic::client::GrpcService;
use tonic::codegen::{Body, Bytes, StdError};

use super::draw::Draw;
use super::invariant::acknowledged::{Ask, Told};

/// The network in which registers are.
const NETWORK: &str = "default";

/// Names of the registers that clients write to.
const COUNT: u64 = 4;

/// Draws what a client does next: the number of a register, and what is asked of it.
pub fn next(draw: &mut Draw) -> (u64, Ask) {
    let register = draw.within(1..=COUNT);
    let ask = match draw.within(0..=9) {
        0..=3 => Ask::Put(u32::try_from(draw.within(1..=u64::from(u32::MAX))).unwrap_or(1)),
        4..=5 => Ask::Remove,
        _ => Ask::Read,
    };
    (register, ask)
}

/// Returns what is asked of a fresh register at this moment, in microseconds, and what a fleet that is whole answers.
pub fn proof(now_us: u64) -> [(Ask, Told); 3] {
    let key = u32::try_from(now_us % 1_000_000).unwrap_or(1);
    let read = Told::Value(Some(key));
    [(Ask::Put(key), Told::Done), (Ask::Read, read), (Ask::Remove, Told::Done)]
}

/// Makes one call to a register; nothing is returned where nobody knows what became of it.
pub async fn call<C>(channel: C, register: &str, ask: &Ask) -> Option<Told>
where
    C: GrpcService<Sent>,
    C::Error: Into<StdError>,
    C::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let (name, network) = (register.to_owned(), NETWORK.to_owned());
    let mut client = NetworksClient::new(channel);
    let told = match ask {
        Ask::Put(key) => {
            let public_key = public_key(*key).to_string();
            let request = AddPeerRequest { network, name, public_key };
            client.add_peer(request).await.map(|_| Told::Done)
        }
        Ask::Remove => {
            let request = RemovePeerRequest { network, name };
            client.remove_peer(request).await.map(|_| Told::Done)
        }
        Ask::Read => {
            let request = GetNetworkRequest { name: network, read: None };
            client.get(request).await.map(|answer| {
                let members = answer.into_inner().members;
                let found = members.iter().find(|m| m.name == register);
                Told::Value(found.and_then(|m| number_of(&m.public_key)))
            })
        }
    };
    match told {
        Ok(told) => Some(told),
        Err(status) if matches!(status.code(), Code::AlreadyExists | Code::NotFound) => {
            (*ask != Ask::Read).then_some(Told::Refused)
        }
        Err(_) => None,
    }
}

/// The key that stands for a number.
fn public_key(number: u32) -> PublicKey {
    let mut bytes = [0x5a; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey(bytes)
}

fn number_of(key: &str) -> Option<u32> {
    let key: PublicKey = key.parse().ok()?;
    let [a, b, c, d, ..] = key.0;
    Some(u32::from_be_bytes([a, b, c, d]))
}
