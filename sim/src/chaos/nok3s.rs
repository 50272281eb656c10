//! A world without K3s.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k3s::etcd::{EtcdApi, EtcdError, HandOver, Identity, Member, View};
use k3s::kube::{EvictProgress, KubeApi, KubeError, NodeInfo};
use k3s::{Action, HostError, Observed, Spec};

pub trait Reach: Send + Sync + 'static {
    fn answers(&self, from: usize, to: IpAddr) -> Option<usize>;
    fn connected(&self, from: usize, to: usize) -> bool;
}
pub struct Kubernetes;
pub struct M;
impl Kubernetes {
    pub fn new(_: Arc<dyn Reach>, _: u64) -> Self { Self }
    pub fn machine(&self, _: usize) -> M { M }
    pub fn founders(&self) -> Vec<(String, Vec<usize>)> { Vec::new() }
    pub fn has_etcd_data(&self, _: usize) -> bool { false }
    pub fn kube(&self, _: usize, _: &k3s::Secret, _: Option<&str>) -> Result<SimKube, KubeError> { Ok(SimKube) }
    pub fn etcd(&self, _: usize) -> Result<SimEtcd, EtcdError> { Err(EtcdError::NoMember("x".into())) }
}
impl M {
    pub fn host(&self) -> SimHost { SimHost }
    pub fn is_ready(&self) -> bool { false }
    pub fn power_off(&self) {}
    pub fn wipe(&self) {}
    pub fn crash_k3s(&self) {}
    pub fn set_slow(&self, _: u32) {}
    pub fn lie_once(&self) {}
    pub fn set_never_ready(&self, _: bool) {}
}
pub fn cluster_ca(_: &str, _: [u8; 32]) -> k3s::CaBundle { k3s::CaBundle { authorities: vec![], root_certificate: String::new(), root_key: k3s::Secret::new("") } }
pub struct SimHost;
pub struct SimKube;
pub struct SimEtcd;
fn no() -> HostError { HostError::Refused("there is no K3s here".into()) }
fn nk<T>() -> Result<T, KubeError> { Err(KubeError::Unreachable { url: String::new(), detail: String::new() }) }
impl k3s::Host for SimHost {
    async fn observe(&self, _: &Spec) -> Result<Observed, HostError> { Err(no()) }
    async fn perform(&self, _: &Action) -> Result<(), HostError> { Err(no()) }
    async fn durable_write(&self) -> Result<Duration, HostError> { Err(no()) }
}
impl KubeApi for SimKube {
    async fn node(&self, _: &str) -> Result<Option<NodeInfo>, KubeError> { nk() }
    async fn cordon(&self, _: &str) -> Result<(), KubeError> { nk() }
    async fn uncordon(&self, _: &str) -> Result<bool, KubeError> { nk() }
    async fn evict(&self, _: &str) -> Result<EvictProgress, KubeError> { nk() }
    async fn delete_node(&self, _: &str) -> Result<(), KubeError> { nk() }
    async fn delete_node_password(&self, _: &str) -> Result<(), KubeError> { nk() }
}
impl EtcdApi for SimEtcd {
    async fn members_anywhere(&self, _: &[IpAddr]) -> Result<View, EtcdError> { Err(EtcdError::NoMember("x".into())) }
    async fn hand_over(&self, _: &[Identity]) -> Result<HandOver, EtcdError> { Err(EtcdError::NoMember("x".into())) }
    async fn remove(&self, _: &View, _: &Member) -> Result<(), EtcdError> { Err(EtcdError::NoMember("x".into())) }
}
