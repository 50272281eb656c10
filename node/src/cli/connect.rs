//! Connections for commands: the local daemon, or the nodes of a context. Shell.

use api::client::{ApiError, ContextFile, connect_context, connect_local};
use api::proto::Read;
use api::proto::clusters_client::ClustersClient;
use api::proto::fleet_client::FleetClient;
use api::proto::networks_client::NetworksClient;
use api::proto::nodes_client::NodesClient;
use api::proto::vips_client::VipsClient;
use api::status::detail;
use tonic::transport::Channel;

use super::Global;

impl Global {
    /// Opens a channel to a daemon.
    pub(super) async fn channel(&self) -> Result<Channel, ApiError> {
        let Some(path) = &self.context else {
            return connect_local(&self.socket).await;
        };
        let broken = |why: String| {
            let next = "make a fresh one on a member: skein operator add NAME > context.json";
            ApiError::from(detail("context", "the context file cannot be used", why, next))
        };
        let text = std::fs::read(path).map_err(|e| broken(format!("{}: {e}", path.display())))?;
        let context: ContextFile = serde_json::from_slice(&text)
            .map_err(|e| broken(format!("{}: {e}", path.display())))?;
        connect_context(&context).await
    }

    /// How reads are to be answered.
    pub(super) fn read(&self) -> Option<Read> {
        Some(Read { stale: self.stale })
    }

    pub(super) async fn fleet(&self) -> Result<FleetClient<Channel>, ApiError> {
        Ok(FleetClient::new(self.channel().await?))
    }

    pub(super) async fn nodes(&self) -> Result<NodesClient<Channel>, ApiError> {
        Ok(NodesClient::new(self.channel().await?))
    }

    pub(super) async fn networks(&self) -> Result<NetworksClient<Channel>, ApiError> {
        Ok(NetworksClient::new(self.channel().await?))
    }

    pub(super) async fn clusters(&self) -> Result<ClustersClient<Channel>, ApiError> {
        Ok(ClustersClient::new(self.channel().await?))
    }

    pub(super) async fn vips(&self) -> Result<VipsClient<Channel>, ApiError> {
        Ok(VipsClient::new(self.channel().await?))
    }
}

/// Makes an id that marks retries of one command as the same request.
pub(super) fn request_id() -> String {
    let mut bytes = [0; 16];
    crate::env::linux::random(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}
