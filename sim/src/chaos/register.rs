//! A register that clients write to: a plain WireGuard device of the first network, whose key is the value. Shell.

use api::proto::networks_client::NetworksClient;
use api::proto::{AddPeerRequest, GetNetworkRequest, RemovePeerRequest};
use raft_store::model::PublicKey;
use tonic::Code;
use tonic::body::Body as Sent;
use tonic::client::GrpcService;
use tonic::codegen::{Body, Bytes, StdError};

use super::invariant::acknowledged::{Ask, Told};

/// The network in which registers are.
const NETWORK: &str = "default";

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
