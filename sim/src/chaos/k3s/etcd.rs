//! The etcd member of a server, as its daemon asks it. Shell.

use std::net::IpAddr;

use k3s::{EtcdApi, EtcdError, HandOver, Identity, Member, View};

use super::machine::Stage;
use super::world::{Kubernetes, State};

/// The member on this server.
const LOCAL: &str = "https://127.0.0.1:2379";

/// etcd, from a server.
pub struct SimEtcd {
    all: Kubernetes,
    from: usize,
    /// In PEM: members of other clusters are not believed.
    authority: String,
}

/// Names the failed call in an error.
struct Call<'a> {
    endpoint: &'a str,
    call: &'static str,
}

impl Call<'_> {
    fn failed(&self, detail: &str) -> EtcdError {
        let (endpoint, call) = (self.endpoint.to_owned(), self.call);
        EtcdError::Call { endpoint, call, detail: detail.to_owned() }
    }
}

impl SimEtcd {
    pub(super) fn new(all: Kubernetes, from: usize, authority: String) -> Self {
        Self { all, from, authority }
    }

    /// Finds the member that runs on a machine, whether it has a majority or not; as cluster and id.
    fn member(&self, state: &mut State, machine: usize, call: &Call<'_>) -> Seat {
        let closed = || call.failed("connection refused");
        state.go_on(&*self.all.reach, machine);
        let disk = state.machines.get(&machine).ok_or_else(closed)?;
        let stage = disk.run.as_ref().map(|r| r.stage);
        let runs = |c| matches!(stage, Some(Stage::Member(s) | Stage::Learner(s)) if s == c);
        let (cluster, id) = disk.etcd.filter(|(c, _)| runs(*c)).ok_or_else(closed)?;
        let known = state.clusters.get(cluster).is_some_and(|c| c.server_ca == self.authority);
        if known { Ok((cluster, id)) } else { Err(call.failed("invalid peer certificate")) }
    }

    /// Finds the member that runs on a machine and has a majority.
    fn whole(&self, state: &mut State, machine: usize, call: &Call<'_>) -> Seat {
        let (cluster, id) = self.member(state, machine, call)?;
        state.tend(&*self.all.reach, cluster);
        let member = state.clusters.get_mut(cluster).and_then(|c| c.member(id).cloned());
        match member {
            None => Err(call.failed("etcdserver: server stopped")),
            Some(member) if member.learner => {
                Err(call.failed("etcdserver: rpc not supported for learner"))
            }
            Some(_) if !state.has_quorum(&*self.all.reach, cluster, machine) => {
                Err(call.failed("etcdserver: request timed out"))
            }
            Some(_) => Ok((cluster, id)),
        }
    }

    /// Finds the machine whose member listens at an address.
    fn at(&self, address: IpAddr, call: &Call<'_>) -> Result<usize, EtcdError> {
        let found = self.all.reach.answers(self.from, address);
        found.ok_or_else(|| call.failed("no answer within 5 s"))
    }

    fn list(&self, state: &mut State, machine: usize, call: &Call<'_>) -> Result<View, EtcdError> {
        let (cluster, own) = self.whole(state, machine, call)?;
        let local = (call.endpoint == LOCAL).then_some(own);
        let found = state.clusters.get(cluster).ok_or_else(|| call.failed("no data"))?;
        let listed = |m: &super::cluster::Member| Member {
            id: m.id,
            name: m.name.clone(),
            learner: m.learner,
            addresses: m.address.into_iter().collect(),
            client_urls: m.address.filter(|_| !m.name.is_empty()).map(url).into_iter().collect(),
            leader: found.leader == Some(m.id),
            local: local == Some(m.id),
        };
        let members = found.members.iter().map(listed).collect();
        Ok(View::new(members, call.endpoint.to_owned()))
    }
}

type Seat = Result<(usize, u64), EtcdError>;

fn url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => format!("https://{four}:2379"),
        IpAddr::V6(six) => format!("https://[{six}]:2379"),
    }
}

impl EtcdApi for SimEtcd {
    async fn members_anywhere(&self, others: &[IpAddr]) -> Result<View, EtcdError> {
        let call = "/etcdserverpb.Cluster/MemberList";
        let mut state = self.all.lock();
        let mut found = self.list(&mut state, self.from, &Call { endpoint: LOCAL, call });
        for other in others {
            if found.is_ok() {
                break;
            }
            let endpoint = url(*other);
            let call = Call { endpoint: &endpoint, call };
            let there = self.at(*other, &call);
            found = there.and_then(|machine| self.list(&mut state, machine, &call)).or(found);
        }
        found
    }

    async fn hand_over(&self, avoid: &[Identity]) -> Result<HandOver, EtcdError> {
        let call = |call: &'static str| Call { endpoint: LOCAL, call };
        let mut state = self.all.lock();
        let reach = &*self.all.reach;
        let asked = call("/etcdserverpb.Maintenance/Status");
        let (cluster, own) = self.member(&mut state, self.from, &asked)?;
        let leader = state.leads(reach, cluster);
        if leader != Some(self.from) {
            return Ok(HandOver::NotLeader);
        }
        let view = self.list(&mut state, self.from, &call("/etcdserverpb.Cluster/MemberList"))?;
        let avoided: Vec<u64> =
            avoid.iter().filter_map(|id| id.find(&view.members)).map(|m| m.id).collect();
        let active = state.active(reach, cluster, self.from);
        let fit = |m: &&Member| {
            m.id != own && !m.name.is_empty() && active.iter().any(|(id, _)| *id == m.id)
        };
        let fit: Vec<&Member> = view.members.iter().filter(fit).collect();
        let wanted = fit.iter().find(|m| !avoided.contains(&m.id));
        let Some(to) = wanted.or(fit.first()) else { return Ok(HandOver::NoCandidate) };
        let moved = call("/etcdserverpb.Maintenance/MoveLeader");
        let found = state.clusters.get_mut(cluster).ok_or_else(|| moved.failed("no data"))?;
        found.leader = Some(to.id);
        Ok(HandOver::Moved { to: to.name.clone() })
    }

    async fn remove(&self, view: &View, member: &Member) -> Result<(), EtcdError> {
        let call = "/etcdserverpb.Cluster/MemberRemove";
        let mut state = self.all.lock();
        // A view does not tell whom it is from: its own server's names that server's member, another's does not.
        let (endpoint, machine) = if view.members.iter().any(|m| m.local) {
            (LOCAL.to_owned(), Some(self.from))
        } else {
            let rest = view.members.iter().filter(|m| m.id != member.id && !m.learner);
            let mut there = rest.flat_map(|m| &m.addresses).filter_map(|address| {
                let machine = self.all.reach.answers(self.from, *address)?;
                let call = Call { endpoint: "", call };
                self.whole(&mut state, machine, &call).ok().map(|_| (url(*address), machine))
            });
            there.next().map_or((String::new(), None), |(url, machine)| (url, Some(machine)))
        };
        let call = Call { endpoint: &endpoint, call };
        let machine = machine.ok_or_else(|| call.failed("no answer within 5 s"))?;
        let (cluster, _) = self.whole(&mut state, machine, &call)?;
        if state.clusters.get_mut(cluster).and_then(|c| c.member(member.id)).is_none() {
            return Err(call.failed("etcdserver: member not found"));
        }
        let learner = member.learner;
        if !learner && !state.may_remove(&*self.all.reach, cluster, member.id) {
            return Err(call.failed("etcdserver: unhealthy cluster"));
        }
        if let Some(found) = state.clusters.get_mut(cluster) {
            found.take_out(member.id);
        }
        Ok(())
    }
}
