//! What needs a majority of etcd's voters: serving the API, leading, letting a member go. Shell: it asks the network.

use raft_store::rt::now;

use super::Reach;
use super::machine::Stage;
use super::world::State;

impl State {
    /// Tells whether the etcd member of this id runs on a machine.
    fn votes(&mut self, number: usize, cluster: usize, id: u64) -> bool {
        self.settle(number);
        self.machines.get(&number).is_some_and(|disk| {
            let runs = disk.run.as_ref().is_some_and(|r| r.stage == Stage::Member(cluster));
            runs && disk.etcd == Some((cluster, id))
        })
    }

    /// Returns the ids and machines of a cluster's voters.
    pub(super) fn voters(&self, cluster: usize) -> Vec<(u64, usize)> {
        let members = self.clusters.get(cluster).map(|c| c.members.as_slice()).unwrap_or_default();
        members.iter().filter(|m| !m.learner).map(|m| (m.id, m.machine)).collect()
    }

    /// Returns the voters that run and that a machine reaches, as ids and machines.
    pub(super) fn active(
        &mut self,
        reach: &dyn Reach,
        cluster: usize,
        from: usize,
    ) -> Vec<(u64, usize)> {
        let mut voters = self.voters(cluster);
        voters.retain(|(id, machine)| {
            self.votes(*machine, cluster, *id)
                && (*machine == from || reach.connected(from, *machine))
        });
        voters
    }

    /// Tells whether a machine's voter runs and reaches a majority.
    pub(super) fn has_quorum(&mut self, reach: &dyn Reach, cluster: usize, from: usize) -> bool {
        let active = self.active(reach, cluster, from);
        let inside = active.iter().any(|(_, machine)| *machine == from);
        inside && active.len() * 2 > self.voters(cluster).len()
    }

    /// Returns the cluster whose API a machine serves now.
    pub(super) fn serves(&mut self, reach: &dyn Reach, number: usize) -> Option<usize> {
        self.settle(number);
        let disk = self.machines.get(&number).filter(|disk| !disk.never_ready)?;
        let run = disk.run.as_ref().filter(|r| r.ready_at <= now())?;
        let Stage::Member(cluster) = run.stage else { return None };
        self.has_quorum(reach, cluster, number).then_some(cluster)
    }

    /// Returns a server of the cluster that serves a machine's kubelet.
    pub(super) fn served_by(
        &mut self,
        reach: &dyn Reach,
        cluster: usize,
        from: usize,
    ) -> Option<usize> {
        let voters = self.voters(cluster).into_iter().map(|(_, machine)| machine);
        voters.into_iter().find(|server| {
            (*server == from || reach.connected(from, *server))
                && self.serves(reach, *server) == Some(cluster)
        })
    }

    /// Returns the machine whose member leads etcd; elects one where none does and one could.
    pub(super) fn leads(&mut self, reach: &dyn Reach, cluster: usize) -> Option<usize> {
        let leader = self.clusters.get(cluster)?.leader;
        let voters = self.voters(cluster);
        let known = voters.iter().find(|(id, _)| Some(*id) == leader).copied();
        // Ids are drawn, so the lowest is as good as any.
        let mut next: Vec<(u64, usize)> = known.into_iter().collect();
        let mut others = voters;
        others.sort_unstable();
        next.extend(others);
        let next = next.into_iter().find(|(_, machine)| self.has_quorum(reach, cluster, *machine));
        self.clusters.get_mut(cluster)?.leader = next.map(|(id, _)| id);
        next.map(|(_, machine)| machine)
    }

    /// Tells whether etcd lets a member go: one that is up must leave a majority behind.
    pub(super) fn may_remove(&mut self, reach: &dyn Reach, cluster: usize, id: u64) -> bool {
        let Some(leader) = self.leads(reach, cluster) else { return false };
        let voters = self.voters(cluster).len();
        let active = self.active(reach, cluster, leader);
        let up = active.iter().any(|(voter, _)| *voter == id);
        !up || active.len() > 1 + voters.saturating_sub(1) / 2
    }
}
