//! Why an overlay is not as it should be.

use std::io;

/// What went wrong while devices were brought to their spec.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel offers no TUN devices.
    #[error(
        "there is no /dev/net/tun: load the module (modprobe tun), or give the container that device"
    )]
    NoTun,
    /// The daemon may not make network devices.
    #[error("device {0} cannot be made: the daemon lacks CAP_NET_ADMIN; run it as root")]
    Forbidden(String),
    /// Another process has the device.
    #[error("device {0} is in use by another process: is a second skein daemon running?")]
    Busy(String),
    /// The TUN device cannot be used.
    #[error("device {name} cannot be used: {source}")]
    Tun {
        /// The device.
        name: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The UDP port cannot be used.
    #[error(
        "UDP port {port} cannot be used: {source}; end what listens there (ss -lunp), another WireGuard perhaps"
    )]
    Udp {
        /// The port.
        port: u16,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The kernel refused an address or a route.
    #[error("{what} on device {name}: {why}")]
    Link {
        /// The device.
        name: String,
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        why: String,
    },
    /// Two networks' names lead to one device.
    #[error(
        "networks {0} and {1} would share device {2}: {1} has no overlay here; remove it and make it under another name"
    )]
    Collision(String, String, String),
    /// The packet thread has ended.
    #[error("the packet thread of device {0} has ended")]
    Ended(String),
}
