//! Brings a device to its spec over rtnetlink. Shell.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, CacheInfo,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::{Address, Device, diff};
use crate::error::ApplyError;
use crate::spec::MeshSpec;

/// "For ever" in an address's lifetimes.
const FOREVER: u32 = u32::MAX;

fn error(spec: &MeshSpec, what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> ApplyError {
    let (name, what) = (spec.interface.clone(), what.into());
    move |e| ApplyError::Link { name, what, why: e.to_string() }
}

/// Makes addresses and routes of the spec's device be as it says.
///
/// # Errors
/// The first thing that the kernel refused; the rest was still tried.
pub async fn apply(handle: &Handle, spec: &MeshSpec) -> Result<(), ApplyError> {
    let index = find(handle, &spec.interface).await.map_err(error(spec, "looking it up"))?;
    let index = index.ok_or_else(|| ApplyError::Link {
        name: spec.interface.clone(),
        what: "looking it up".into(),
        why: "the device is gone".into(),
    })?;
    quiet(&spec.interface);
    // One thing refused (IPv6, say) is no reason to leave out the others.
    let mut first = Ok(());
    let up = LinkUnspec::new_with_index(index).mtu(spec.mtu.into()).up().build();
    let done = handle.link().set(up).execute().await.map_err(error(spec, "bringing it up"));
    first = first.and(done);
    let has = read(handle, index).await.map_err(error(spec, "reading its addresses"))?;
    let todo = diff(spec, &has);
    for ip in todo.remove {
        let done = remove(handle, index, ip).await;
        first = first.and(done.map_err(error(spec, format!("removing address {ip}"))));
    }
    for net in todo.stale {
        let done = handle.route().del(route(index, net, None)).execute().await;
        first = first.and(done.map_err(error(spec, format!("removing route {net}"))));
    }
    for address in todo.add {
        let done = add(handle, index, address).await;
        first = first.and(done.map_err(error(spec, format!("adding address {}", address.ip))));
    }
    for net in todo.routes {
        let source = spec.addresses.iter().find(|ip| ip.is_ipv4() == matches!(net, IpNet::V4(_)));
        let message = route(index, net, source.copied());
        let done = handle.route().add(message).replace().execute().await;
        first = first.and(done.map_err(error(spec, format!("adding route {net}"))));
    }
    first
}

/// IPv6 is there even where the machine's default is without; nothing of the kernel's own is: no router solicitations, no link-local address, and packets
/// may come back another way than they would be sent (pods and VIPs).
fn quiet(interface: &str) {
    let settings = [
        ("ipv6", "disable_ipv6", "0"),
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "autoconf", "0"),
        ("ipv6", "addr_gen_mode", "1"),
        ("ipv6", "accept_dad", "0"),
        ("ipv4", "rp_filter", "2"),
    ];
    for (family, name, value) in settings {
        // Absent without IPv6, read-only in some containers; the overlay works without.
        let _ = std::fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), value);
    }
}

async fn find(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(found) => Ok(found.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
        Err(e) => Err(e),
    }
}

async fn read(handle: &Handle, index: u32) -> Result<Device, rtnetlink::Error> {
    let mut device = Device::default();
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = addresses.try_next().await? {
        device.addresses.extend(message.attributes.iter().filter_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        }));
    }
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        let mut routes = handle.route().get(family).execute();
        while let Some(message) = routes.try_next().await? {
            let over = message
                .attributes
                .iter()
                .any(|a| matches!(a, RouteAttribute::Oif(i) if *i == index));
            let direct =
                !message.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_)));
            let as_ours = message.header.protocol == RouteProtocol::Static && direct;
            let to = message.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
            let length = message.header.destination_prefix_length;
            if let (true, Some(net)) =
                (over && as_ours, to.and_then(|ip| IpNet::new(ip, length).ok()))
            {
                device.routes.insert(net);
            }
        }
    }
    Ok(device)
}

async fn add(handle: &Handle, index: u32, address: Address) -> Result<(), rtnetlink::Error> {
    let length = if address.ip.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(index, address.ip, length).replace();
    let message = request.message_mut();
    message.header.flags |= AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    if address.held {
        // Deprecated from the start (RFC 4862, section 5.5.4): it answers, but is no source of its own accord.
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_preferred = 0;
        lifetimes.ifa_valid = FOREVER;
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    request.execute().await
}

async fn remove(handle: &Handle, index: u32, ip: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut addresses =
        handle.address().get().set_link_index_filter(index).set_address_filter(ip).execute();
    while let Some(message) = addresses.try_next().await? {
        handle.address().del(message).execute().await?;
    }
    Ok(())
}

fn route(index: u32, net: IpNet, source: Option<IpAddr>) -> RouteMessage {
    match net {
        IpNet::V4(net) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .scope(RouteScope::Link)
                .output_interface(index);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
        IpNet::V6(net) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
    }
}
