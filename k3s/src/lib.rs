//! Skein's K3s driver: what should run on this host, what does run, and the step from one to the other.
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`spec`] | what should run here | yes |
//! | [`observe`] | what was seen here, and what is reported | yes |
//! | [`mod@step`] | the next actions | yes |
//! | [`render`], [`mod@unit`] | K3s' configuration, systemd units | yes |
//! | [`release`] | versions, what a release honours, where a binary comes from | yes |
//! | [`token`], [`kubeconfig`], [`secret`] | K3s' credentials as text | yes |
//! | [`ca`] | a certificate authority of the cluster's own | draws keys from the system |
//! | [`driver`] | one bounded round of observe, step, perform | no |
//! | [`host`] | the Linux host: files, binaries, systemd, a supervised process | no |
//! | [`kube`] | the Kubernetes API | no |
//! | [`etcd`] | the server's etcd member | no |

pub mod ca;
pub mod driver;
pub mod etcd;
pub mod host;
pub mod kube;
pub mod kubeconfig;
pub mod observe;
pub mod release;
pub mod render;
pub mod secret;
pub mod spec;
pub mod step;
pub mod token;
pub mod unit;

pub use ca::{CaBundle, CaError, make_cluster_ca};
pub use driver::Driver;
pub use etcd::{Etcd, EtcdApi, EtcdError, HandOver, Identity, Member, View};
pub use host::{Host, HostError, LinuxConfig, LinuxHost, Manager};
pub use kube::{EvictProgress, Kube, KubeApi, KubeError, NodeInfo};
pub use kubeconfig::{KubeconfigError, kubeconfig_for, merge_kubeconfig};
pub use observe::{Captured, Health, Observed, Phase, Turn};
pub use release::{Release, Version, endpoint};
pub use secret::Secret;
pub use spec::{Cni, Join, Role, RoleKind, RunSpec, Spec};
pub use step::{Action, Step, step};
